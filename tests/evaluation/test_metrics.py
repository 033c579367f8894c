"""Metrics of ranks by hand, the `evaluate` module, and the paired bootstrap."""

import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest

from jepa4rec.evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics, user_values
from jepa4rec.evaluation.metrics.significance import mean_with_interval, paired_bootstrap
from jepa4rec.evaluation.records import write_evaluation

ROOT = Path(__file__).resolve().parents[2]
INF = float("inf")


# Values


def test_metrics_by_hand():
    metrics = ranking_metrics([1, 3, 10, 10.5, 50, 51, INF])
    assert list(metrics) == ["recall@10", "recall@50", "ndcg@10", "ndcg@50", "mrr"]
    assert metrics["recall@10"] == pytest.approx(3 / 7)  # the mean rank 10.5 is beyond the tenth place
    assert metrics["recall@50"] == pytest.approx(5 / 7)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 7)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 10.5 + 1 / 50 + 1 / 51) / 7)


def test_all_first_is_one_and_all_missed_is_zero():
    assert set(ranking_metrics([1, 1]).values()) == {1.0}
    assert set(ranking_metrics([INF, INF]).values()) == {0.0}


def test_user_values_average_to_the_metric():
    ranks = np.random.default_rng(0).integers(1, 100, 50)
    for name, value in ranking_metrics(ranks, cutoffs=[3, 20]).items():
        assert user_values(ranks, name).mean() == value


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([1.0, float("nan")], "rank of row 1 is nan"),
        ([0.0], "rank of row 0 is 0.0"),
        ([2.0, 3.0, -1.0], "rank of row 2"),
        ([], "at least one number"),
        ([[1.0]], "shape"),
    ],
)
def test_what_is_no_rank_is_an_error(ranks, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(ranks)


@pytest.mark.parametrize("metric", ["recall", "recall@0", "ndcg@x", "precision@10", "mrr@10"])
def test_unknown_metrics_are_errors(metric):
    with pytest.raises(ValueError, match="no metric of a ranking"):
        user_values([1.0], metric)


# The module


def test_the_evaluate_module_loads_offline_and_agrees(tmp_path):
    metric = evaluate.load(str(ROOT / "evaluation" / "metrics" / "seqrec_ranking"), cache_dir=str(tmp_path))
    ranks = [1.0, 2.5, INF, 40.0]
    assert metric.compute(predictions=ranks) == ranking_metrics(ranks)
    metric.add_batch(predictions=ranks[:2])
    metric.add_batch(predictions=ranks[2:])
    assert metric.compute(cutoffs=[2]) == ranking_metrics(ranks, [2])
    with pytest.raises(ValueError, match="rank of row 0 is nan"):
        metric.compute(predictions=[float("nan")])


# Paired bootstrap


def slow_bootstrap(gains, resamples, seed):
    generator = np.random.default_rng(seed)
    return [gains[generator.integers(len(gains), size=len(gains))].mean() for _ in range(resamples)]


def test_bootstrap_equals_the_slow_way(monkeypatch):
    from jepa4rec.evaluation.metrics import significance

    rng = np.random.default_rng(1)
    a, b = rng.integers(1, 30, 200), rng.integers(1, 40, 200)
    test = paired_bootstrap(a, b, "ndcg@10", resamples=500, seed=3)
    gains = user_values(a, "ndcg@10") - user_values(b, "ndcg@10")
    drawn = np.array(slow_bootstrap(gains, 500, 3))
    assert test.difference == pytest.approx(gains.mean())
    assert (test.low, test.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert test.p_value == pytest.approx(((abs(drawn - gains.mean()) >= abs(gains.mean())).sum() + 1) / 501)
    monkeypatch.setattr(significance, "BLOCK_CELLS", 450)  # two resamples a block: the same numbers
    assert paired_bootstrap(a, b, "ndcg@10", resamples=500, seed=3) == test


def test_an_interval_is_of_draws_made_one_by_one():
    ranks = np.random.default_rng(1).integers(1, 30, 200)
    low, high = np.quantile(slow_bootstrap(user_values(ranks, "mrr"), 300, 5), [0.025, 0.975])
    found = mean_with_interval(ranks, "mrr", resamples=300, seed=5)
    assert found == pytest.approx((user_values(ranks, "mrr").mean(), low, high), abs=1e-12)


def test_equal_runs_differ_by_nothing():
    ranks = np.random.default_rng(0).integers(1, 100, 300)
    assert paired_bootstrap(ranks, ranks, "mrr", 200) == (0.0, 0.0, 0.0, 1.0)


def test_a_clear_difference_is_significant_and_changes_sign_with_the_order():
    rng = np.random.default_rng(0)
    worse = rng.integers(2, 100, 400)
    better = worse - (rng.random(400) < 0.5)
    test, reverse = paired_bootstrap(better, worse, "mrr", 999), paired_bootstrap(worse, better, "mrr", 999)
    assert 0 < test.low < test.difference < test.high and test.p_value < 0.02
    assert reverse.difference == -test.difference


def test_under_no_difference_small_p_values_are_as_rare_as_they_should_be():
    rng = np.random.default_rng(0)
    p_values = [
        paired_bootstrap(rng.integers(1, 30, 150), rng.integers(1, 30, 150), "ndcg@10", 200, seed=trial).p_value
        for trial in range(300)
    ]
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.09
    assert 0.4 < np.mean(np.array(p_values) <= 0.5) < 0.6


def test_bootstrap_of_different_users_is_an_error():
    with pytest.raises(ValueError, match="Run A ranks 2 users and run B 1"):
        paired_bootstrap([1, 2], [1])
    with pytest.raises(ValueError, match="resamples is 0"):
        paired_bootstrap([1], [1], resamples=0)


# scripts/compare_runs.py


def write_run(folder, ranks, **fields):
    """A run's folder; with `official` ranks as well as strict ones."""
    counted = {name: ranking_metrics([50.0] * len(ranks)) for name in ("popularity", "item_transition")}
    record = {
        "model": folder.name, "system": "JEPA4Rec", "dataset": "shop", "config": None, "fingerprint": "f" * 64,
        "split": "test", "seed": 0, "metrics": ranking_metrics(ranks), "baselines": counted, **fields,
    }  # fmt: skip
    official = record.pop("official_ranks", None)
    if official is not None:
        record["official"] = {"metrics": ranking_metrics(official), "baselines": counted}
    users = [f"u{row}" for row in range(len(ranks))]
    write_evaluation(folder, record, np.array(ranks), users, np.zeros(len(ranks)), official)
    return str(folder)


@pytest.fixture(scope="module")
def compare_main():
    """main() of the script, in this process."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("compare_runs", ROOT / "scripts" / "compare_runs.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main


def test_compare_runs_prints_a_markdown_table(tmp_path, compare_main, capsys):
    a, b = write_run(tmp_path / "a", [1.0, 2.0, 30.0]), write_run(tmp_path / "b", [2.0, 2.0, 60.0])
    compare_main([a, b, "--resamples", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert "| metric | A | B | A - B | 95 % interval | p |" in lines
    row = next(line for line in lines if line.startswith("| R@50 |"))
    assert row.startswith("| R@50 | 1.0000 | 0.6667 | +0.3333 |")
    assert "| popularity | – | .0000 | **1.0000** |" in "\n".join(lines)  # rank 50 for everybody
    assert "| model | seeds | R@10 | R@50 | NDCG@10 | NDCG@50 | MRR |" in lines


def test_the_first_system_is_compared_with_each_other_one(tmp_path, compare_main, capsys):
    runs = [write_run(tmp_path / name, ranks) for name, ranks in (("a", [1.0, 2]), ("b", [2.0, 4]), ("c", [4.0, 8]))]
    out = tmp_path / "abc.json"
    compare_main([*runs, "--resamples", "50", "--out", str(out)])
    comparison = json.loads(out.read_text(encoding="utf-8"))
    assert [(pair["a"], pair["b"]) for pair in comparison["comparisons"]] == [("a", "b"), ("a", "c")]
    gains = [pair["metrics"]["mrr"]["difference"] for pair in comparison["comparisons"]]
    assert gains == pytest.approx([3 / 4 - 3 / 8, 3 / 4 - 3 / 16])
    text = capsys.readouterr().out
    assert "A: a, B: b" in text and "A: a, B: c" in text and "None of these records has ranks by `official`" in text


def test_strict_and_official_stand_side_by_side(tmp_path, compare_main, capsys):
    """Strictly the constant scorer shares the middle; by official ties it comes first."""
    new = write_run(tmp_path / "new", [20.0, 20.0], official_ranks=[1.0, 1.0])
    best = write_run(tmp_path / "best", [2.0, 2.0], official_ranks=[2.0, 2.0])
    old = write_run(tmp_path / "old", [4.0, 4.0])
    out = tmp_path / "out.json"
    compare_main([new, best, old, "--resamples", "20", "--out", str(out)])
    text = capsys.readouterr().out
    assert "| model | seeds | R@10 | R@10, official | R@50 |" in text
    row = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert row["new"].startswith("| new | 1 | .0000 | **1.0000** |")
    assert row["old"].startswith("| old | 1 | **1.0000** | – |")
    assert row["MRR, official"].startswith("| MRR, official | 1.0000 | 0.5000 | +0.5000 |")
    with_best, with_old = json.loads(out.read_text(encoding="utf-8"))["comparisons"]
    assert with_best["metrics"]["mrr"]["difference"] == pytest.approx(1 / 20 - 1 / 2)
    assert with_best["official"]["mrr"]["difference"] == pytest.approx(1 / 2) and with_old["official"] is None


def test_one_run_alone_or_the_same_seed_twice_is_no_comparison(tmp_path, compare_main):
    a, b = write_run(tmp_path / "a", [1.0, 2.0]), write_run(tmp_path / "b", [2.0, 2.0])
    with pytest.raises(SystemExit, match="alone cannot be compared: name at least two runs"):
        compare_main([a])
    write_run(tmp_path / "twice-1", [1.0, 2.0], model="m")
    write_run(tmp_path / "twice-2", [1.0, 2.0], model="m")
    with pytest.raises(SystemExit, match="m has two records with seed 0"):
        compare_main([str(tmp_path / "twice-*"), b])
    with pytest.raises(SystemExit, match="no record carries the baseline item_transition"):
        compare_main([write_run(tmp_path / "bare", [1.0, 2.0], baselines={"popularity": ranking_metrics([1.0])}),
                      write_run(tmp_path / "bare2", [1.0, 2.0], baselines={})])  # fmt: skip


@pytest.mark.parametrize("field", ["fingerprint", "split", "exclude_history", "ties"])
def test_compare_runs_refuses_different_questions(tmp_path, compare_main, field):
    a, b = write_run(tmp_path / "a", [1.0, 2.0]), write_run(tmp_path / "b", [2.0, 2.0], **{field: "other"})
    with pytest.raises(SystemExit, match=f"differ in {field}"):
        compare_main([a, b])


def test_compare_runs_names_what_is_missing_or_broken(tmp_path, compare_main):
    run = write_run(tmp_path / "a", [1.0, 2.0])
    with pytest.raises(SystemExit, match="metrics.json does not exist"):
        compare_main([run, str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="same targets of the same users"):
        compare_main([run, write_run(tmp_path / "b", [1.0, 2.0, 3.0])])
    (tmp_path / "b" / "ranks.parquet").write_bytes(b"PAR1")
    with pytest.raises(SystemExit, match="ranks.parquet cannot be read"):
        compare_main([run, str(tmp_path / "b")])
    (tmp_path / "b" / "metrics.json").write_text(json.dumps({})[:1])
    with pytest.raises(SystemExit, match="metrics.json is not valid JSON"):
        compare_main([run, str(tmp_path / "b")])


def test_several_seeds_are_one_system_and_the_comparison_is_kept(tmp_path, compare_main, capsys):
    for seed, (better, worse) in enumerate(
        [([1.0, 2.0, 1.0], [20.0, 30.0, 40.0]), ([1.0, 1.0, 3.0], [25.0, 50.0, 60.0])]
    ):
        write_run(tmp_path / f"a-seed{seed}", better, model="ours", seed=seed)
        write_run(tmp_path / f"b-seed{seed}", worse, model="theirs", seed=seed)
    out = tmp_path / "comparisons" / "ab.json"
    compare_main([str(tmp_path / "a-seed*"), str(tmp_path / "b-seed*"), "--resamples", "200", "--out", str(out)])
    text = capsys.readouterr().out
    assert "3 users" in text and "A: ours, B: theirs (2 and 2 runs" in text
    # NDCG@10 of A, seed by seed: (2 + 1 / log2(3)) / 3 and (2 + 1 / 2) / 3
    assert "| ours | 2 | **1.0000** ± .0000 | **1.0000** ± .0000 | **.8552** ± .0309 |" in text
    comparison = json.loads(out.read_text(encoding="utf-8"))
    # mean reciprocal rank of A: user by user (1 + 1) / 2, (1/2 + 1) / 2, (1 + 1/3) / 2
    gain = (1 + 3 / 4 + 2 / 3) / 3 - ((1 / 20 + 1 / 25) / 2 + (1 / 30 + 1 / 50) / 2 + (1 / 40 + 1 / 60) / 2) / 3
    (pair,) = comparison["comparisons"]
    assert pair["metrics"]["mrr"]["difference"] == pytest.approx(gain) and pair["metrics"]["mrr"]["low"] > 0
    assert [system["seeds"] for system in comparison["systems"]] == [[0, 1], [0, 1]]
    spread = comparison["systems"][0]["metrics"]["mrr"]
    assert spread == pytest.approx({"mean": ((1 + 1 / 2 + 1) / 3 + (1 + 1 + 1 / 3) / 3) / 2, "sd": 1 / 18 / 2**0.5})


def test_published_records_are_compared_by_their_ranks(tmp_path, compare_main, capsys):
    results = tmp_path / "results"
    (results / "ranks").mkdir(parents=True)
    for name, ranks in {
        "ours-seed1": [1.0, 2.0, 3.0],
        "ours-seed2": [1.0, 1.0, 3.0],
        "plain": [9.0, 8.0, 7.0],
    }.items():
        run = Path(write_run(tmp_path / name, ranks, seed=int(name[-1]) if "seed" in name else 0))
        (run / "metrics.json").rename(results / f"{name}.json")
        (run / "ranks.parquet").rename(results / "ranks" / f"{name}.parquet")
    compare_main([str(results / "ours-seed*.json"), str(results / "plain.json"), "--resamples", "50"])
    assert "(2 and 1 runs, 50 resamples)" in capsys.readouterr().out
    (results / "ranks" / "plain.parquet").unlink()
    with pytest.raises(SystemExit, match="plain.parquet does not exist"):
        compare_main([str(results / "ours-seed*.json"), str(results / "plain.json")])
