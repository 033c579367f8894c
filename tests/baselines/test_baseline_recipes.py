"""Counted baselines and those of ratings: each recipe runs, is recorded, opens again, and says what it cannot."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from transformers import AutoModel

from jepa4rec import train_accelerate
from jepa4rec.baselines import fit_baseline
from jepa4rec.datasets_builders.contract import leave_one_out, load_dataset_dir, make_dataset, save_dataset
from jepa4rec.evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics
from jepa4rec.evaluation.ranking import rank_split
from jepa4rec.scripts import evaluate_checkpoint, push_to_hub
from jepa4rec.training.recipe import read_recipe
from tests.conftest import ROOT, TINY_ITEMS

pytestmark = pytest.mark.slow("carries out recipes")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """80 users who mostly walk round the twelve items; those who love cheap things rate the first six high."""
    rng = np.random.default_rng(0)
    items = pa.table(
        {"item_id": [str(i) for i in range(12)], **{k: [i[k] for i in TINY_ITEMS] for k in TINY_ITEMS[0]}}
    )
    walks = [((rng.integers(12) + np.arange(8) + (rng.random(8) < 0.2)) % 12).tolist() for _ in range(80)]
    stars = [[5.0 if (item < 6) == (user % 2 == 0) else 2.0 for item in walk] for user, walk in enumerate(walks)]
    lists = {"items": pa.array(walks, pa.list_(pa.int32())), "ratings": pa.array(stars, pa.list_(pa.float32()))}
    folder = tmp_path_factory.mktemp("rated") / "shop"
    sequences = pa.table({"user_id": [f"u{user}" for user in range(80)], **lists})
    save_dataset(make_dataset(items, sequences, {"name": "rated", "config": "tiny"}), folder)
    return folder


@pytest.fixture
def run(shop, tmp_path):
    """``run(name, *settings)`` -> (record, folder) of the recipe of that name on the shop."""

    def go(name, *settings):
        tree = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        tree["run"]["output_dir"], tree["data"] = str(tmp_path / name), {"dir": str(shop)}
        for phase in tree["phases"]:
            phase |= {"epochs": 15.0, "batch_size": 64, "lr": 5e-2}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        AcceleratorState._reset_state(reset_partial_state=True)
        return train_accelerate.run(read_recipe(path, ["run.overwrite=true", *settings])), tmp_path / name

    return go


@pytest.mark.parametrize(
    ("name", "settings", "column"),
    [
        ("popularity", [], "popularity"),
        ("item_transition", [], "item_transition"),
        ("item_transition", ["model.config.order=decayed"], "item_transition_decayed"),
    ],
)
def test_a_counted_baseline_is_the_one_beside_every_run(run, shop, name, settings, column):
    record, folder = run(name, *settings)
    assert record["metrics"] == record["baselines"][column]
    dataset = load_dataset_dir(shop)
    splits = leave_one_out(dataset.sequences)
    blind = fit_baseline(column, splits, "validation", dataset.num_items)
    expected = ranking_metrics(rank_split(blind, splits.validation, progress=False))
    assert record["validation_metrics"] == expected  # the checkpoint itself knows validation's targets
    card = (folder / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert "Started from nothing, by counting." in card and "model.score" in card and "pipe(" not in card


def test_a_counted_baseline_is_measured_again_on_its_own_data_only(run, shop, tmp_path):
    record, folder = run("item_transition")
    command = [str(folder), str(shop), "--cutoffs", "10", "--out", str(tmp_path / "again")]
    evaluate_checkpoint.main(command)
    again = json.loads((tmp_path / "again" / "metrics.json").read_text(encoding="utf-8"))
    assert again["metrics"].items() <= record["metrics"].items()
    with pytest.raises(SystemExit, match="validation's targets included: rank test"):
        evaluate_checkpoint.main([*command, "--split", "validation"])
    with pytest.raises(SystemExit, match="is a item_transition, which has no pipeline: publish its dataset"):
        push_to_hub.main([str(folder), "me/transitions", "--dry-run"])


def test_mean_ratings_by_recipe_are_those_beside_every_rating_run(run):
    record, folder = run("rating_mean")
    assert record["ratings"]["this run"] == record["ratings"]["rating_mean"]
    model = AutoModel.from_pretrained(folder / "checkpoint", trust_remote_code=True)
    scores = model.score([np.array([0]), np.array([3, 4])])
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], model.item_bias[:-1])
    assert "model.predict" in (folder / "checkpoint" / "README.md").read_text(encoding="utf-8")


def test_pmf_learns_in_the_one_loop_who_loves_what(run):
    record, folder = run("pmf")
    errors = record["ratings"]
    assert errors["this run"]["rmse"] < 0.7 * errors["rating_mean"]["rmse"]  # means cannot know who loves what
    assert record["validation_metrics"]["rmse"] < 1
    model = AutoModel.from_pretrained(folder / "checkpoint", trust_remote_code=True)
    stars = model.predict(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 9, 1, 9]))
    assert stars[0] > stars[1] and stars[2] < stars[3]
    assert model.score([np.array([2])]).shape == (1, 12)
    assert "item_ids.json" in {path.name for path in (folder / "checkpoint").iterdir()}


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        (
            "popularity",
            ["phases=[{kind: sequence}]"],
            "the baseline popularity is counted, not trained: write phases",
        ),
        ("pmf", ["phases=[{kind: sequence}]"], "phases of kind rating, and no others, train the baseline pmf"),
        (
            "item_transition",
            ["model.config.order=second"],
            'model.config: order is "second"; it is "first" or',
        ),
        ("item_transition", ["model.config.windw=2"], "ItemTransitionConfig has no such field; did you mean window?"),
        ("popularity", ["model.config.num_items=3"], "num_items is counted from the data: leave it out"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(run, name, settings, said):
    with pytest.raises(ValueError) as caught:
        run(name, *settings)
    assert said in str(caught.value) and "\n" not in str(caught.value).strip()
