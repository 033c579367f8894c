"""The audit's figures, worked out by hand on nine interactions, and the page, plot and JSON of the script."""

import json

import pyarrow as pa
import pytest

from jepa4rec.datasets_builders import build
from jepa4rec.datasets_builders.contract import (
    AMAZON_2023_TEST_START,
    AMAZON_2023_VALIDATION_START,
    PROTOCOLS,
    make_dataset,
    save_dataset,
)
from jepa4rec.evaluation.audit import FIGURES, KEY_FIGURES, audit, figure_rows, lay_flat, percent
from jepa4rec.scripts import audit_dataset

ITEMS = {"item_id": ["a", "b", "c", "d"], "title": ["Tea", "Tea", "Cup", "Pot"], "brand": ["X", "X", "X", None]}
A, B, C, D = range(4)
# Training: u has a at 10 and c at 20; v has c at 15; w, too short to be tested, has a at 52 and c at 70.
# Test: c at 50 for u, d at 60 for v.
SEQUENCES = {
    "user_id": ["u", "v", "w"],
    "items": [[A, C, A, C], [C, A, D], [A, C]],
    "timestamps": [[10, 20, 20, 50], [15, 60, 60], [52, 70]],
}
BY_HAND = {
    "repeat_interactions": 2 / 9,  # u's second a and second c
    "repeat_targets": 1 / 2,  # u's c
    "tied_steps": 2 / 6,  # u's second to third, v's second to third
    "tied_targets": 1 / 2,  # v's d
    "cold_targets": 1 / 2,  # d
    "unseen_items": 2 / 4,  # b and d
    "duplicate_texts": 2 / 4,  # a and b
    "train_after_first_test": 2 / 5,  # the first test is at 50
    "train_after_median_test": 1 / 5,  # the median of 50 and 60 is 55
    "users_after_other_tests": 1 / 3,  # w
    "targets_seen_later": 1 / 2,  # w has c after u's test asked for it
    "top_tenth_items": 4 / 9,  # one item of four: a, or c
}


def dataset(sequences=SEQUENCES, items=ITEMS, **info):
    return make_dataset(pa.table(items), pa.table(sequences), {"name": "tiny", "config": "default", **info})


def without_times():
    return dataset({name: values for name, values in SEQUENCES.items() if name != "timestamps"})


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_what_was_worked_out_by_hand(name):
    assert audit(dataset())["figures"][name] == pytest.approx(BY_HAND[name])


def test_figures_of_time_are_null_with_a_reason_where_only_the_order_is_known():
    audited = audit(without_times())
    for name, figure in FIGURES.items():
        assert (audited["figures"][name] is None) is figure.needs_times is (name in audited["reasons"])
        if not figure.needs_times:
            assert audited["figures"][name] == pytest.approx(BY_HAND[name])
    assert set(audited["distributions"]) == {"history_length", "item_popularity"}


def test_a_later_purchase_by_the_user_alone_is_no_leakage():
    """Everybody buys an item of their own, so nobody's target is in anybody else's training."""
    alone = dataset({"user_id": ["u", "v"], "items": [[A, A, A], [C, C, C]], "timestamps": [[1, 2, 3], [4, 5, 6]]})
    figures = audit(alone)["figures"]
    assert figures["targets_seen_later"] == 0
    assert figures["users_after_other_tests"] == 1 / 2  # v's training, at 4, lies after u's test at 3


def test_one_moment_for_all_leaves_no_leakage_from_the_future():
    t1, t2 = AMAZON_2023_VALIDATION_START, AMAZON_2023_TEST_START
    timed = {"user_id": ["u", "v"], "items": [[A, C, C], [C, A, C, B]],
             "timestamps": [[t1 - 2, t1, t2], [t1 - 1, t1 - 1, t2 + 5, t2 + 6]]}  # fmt: skip
    audited = audit(dataset(timed), "absolute_timestamp")
    assert audited["test_targets"] == 3 and audited["training_interactions"] == 3
    for name in ("train_after_first_test", "users_after_other_tests", "targets_seen_later"):
        assert audited["figures"][name] == 0
    with pytest.raises(ValueError, match="has no timestamps, which absolute_timestamp needs"):
        audit(without_times(), "absolute_timestamp")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_parts_are_those_of_the_split(protocol):
    """On a whole shop, the audit deals out interactions as the ranking does."""
    shop = spread_over_the_split(build("toy_shop", shoppers=80))
    splits, flat = PROTOCOLS[protocol](shop.sequences), lay_flat(shop, protocol)
    assert flat.items[flat.test].tolist() == splits.test.targets.tolist()
    assert flat.items[flat.train].tolist() == [item for history in splits.train for item in history.tolist()]


def spread_over_the_split(shop):
    """The shop with its times stretched so that some lie before, between and after the two moments."""
    times = shop.sequences["timestamps"].combine_chunks()
    flat, (low, high) = times.flatten().to_numpy(), (AMAZON_2023_VALIDATION_START, AMAZON_2023_TEST_START)
    share = (flat - flat.min()) / (flat.max() - flat.min())
    moved = pa.ListArray.from_arrays(times.offsets, pa.array((low + (4 * share - 2) * (high - low)).astype("int64")))
    place = shop.sequences.column_names.index("timestamps")
    return make_dataset(shop.items, shop.sequences.set_column(place, "timestamps", moved), {})


def test_shares_are_said_without_rounding_to_none_or_all():
    assert [percent(share) for share in (0, 0.0001, 0.123, 0.9999, 1)] == [
        "0.0 %", "< 0.1 %", "12.3 %", "> 99.9 %", "100.0 %",
    ]  # fmt: skip
    rows = figure_rows(audit(without_times()), KEY_FIGURES)
    assert [value for _, value, _ in rows].count("not known") == 3


# The script


def test_page_plot_and_json_say_the_same(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    save_dataset(dataset(source="made up"), tmp_path / "tiny")
    audit_dataset.main([str(tmp_path / "tiny"), "--out", str(tmp_path / "audits")])
    audited = json.loads((tmp_path / "audits" / "tiny.json").read_text(encoding="utf-8"))
    assert audited["figures"] == pytest.approx(BY_HAND) and audited["fingerprint"] == dataset().fingerprint
    assert {"commit", "command", "hardware", "users", "protocol"} <= audited.keys()
    # Training has c three times, a twice, b and d never: u's c ranks 1, v's d shares 3 and 4.
    assert audited["baselines"]["popularity"]["mrr"] == pytest.approx((1 + 1 / 3.5) / 2)
    text = (tmp_path / "audits" / "tiny.md").read_text(encoding="utf-8")
    assert "| test targets that nobody has in training | 50.0 % |" in text and "(tiny.png)" in text
    assert f"| popularity | 1.0000 | 1.0000 | {audited['baselines']['popularity']['ndcg@10']:.4f}"[:-6] in text
    assert (tmp_path / "audits" / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote" in capsys.readouterr().out


def test_a_shop_without_times_has_a_page_that_says_so():
    audited = audit_dataset.make_audit(without_times(), "leave_one_out")
    text = audit_dataset.page(audited, "plain")
    assert "| not known |" in text and "Not known: the dataset has no timestamps" in text
    assert len(audit_dataset.panel_names(audited)) == 4 and "over time" not in text


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "items.parquet").unlink(), "is not a built dataset .items.parquet is missing."),
        (lambda folder: (folder / "items.parquet").write_bytes(b"PAR1"), "is damaged, build it again"),
        (lambda folder: save_dataset(short(), folder, overwrite=True), "tiny default is too small to audit"),
    ],
)
def test_what_cannot_be_audited_is_one_sentence(tmp_path, damage, sentence):
    pytest.importorskip("matplotlib")
    save_dataset(dataset(), tmp_path / "tiny")
    damage(tmp_path / "tiny")
    with pytest.raises(SystemExit, match=sentence) as stop:
        audit_dataset.main([str(tmp_path / "tiny"), "--out", str(tmp_path / "audits")])
    assert "\n" not in str(stop.value.code) and not (tmp_path / "audits").exists()


def short():
    return dataset({"user_id": ["u", "v"], "items": [[A, B], [C]]})
