"""A search tries every combination once, records validation only, and goes on where it was."""

import json
from pathlib import Path

import pytest
import yaml

from jepa4rec.scripts import search_settings
from jepa4rec.scripts.search_settings import combinations, search
from tests.baselines.test_sequence_baselines import SHAPE, shop  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow("trains every combination")


@pytest.fixture
def recipe(shop, tmp_path):  # noqa: F811
    tree = {
        "run": {"output_dir": str(tmp_path / "run"), "save_every": 0},
        "data": {"dir": str(shop)},
        "model": {"baseline": "sasrec", "config": SHAPE},
        "phases": [{"kind": "sequence", "steps": 6, "batch_size": 20, "evaluate_every_steps": 3}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_every_combination():
    assert combinations(["a.b=[1, 2]", "c=[x]"]) == [{"a.b": 1, "c": "x"}, {"a.b": 2, "c": "x"}]
    with pytest.raises(ValueError, match=r"--vary a=1: write section.key=\[value, value\]"):
        combinations(["a=1"])
    with pytest.raises(ValueError, match=r"--vary a=\[1: no valid YAML: "):
        combinations(["a=[1"])


def test_a_search_records_validation_and_goes_on(recipe, tmp_path, monkeypatch):
    out, runs = tmp_path / "results" / "search.json", tmp_path / "runs"
    search(recipe, [], ["phases.0.lr=[0.01]"], out, runs)
    tried = []
    real = search_settings.try_settings
    monkeypatch.setattr(search_settings, "try_settings", lambda *a: tried.append(a[2]) or real(*a))
    found = search(recipe, [], ["phases.0.lr=[0.01, 0.0001]"], out, runs)
    assert tried == [{"phases.0.lr": 0.0001}] and json.loads(out.read_text()) == found
    scores = [entry["validation_metrics"]["ndcg@10"] for entry in found["runs"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    assert not [name for entry in found["runs"] for name in entry if name == "metrics"]
    assert {entry["best_step"] for entry in found["runs"]} <= {3, 6} and not list(runs.iterdir())


def test_another_search_is_not_overwritten(recipe, tmp_path):
    out = tmp_path / "search.json"
    search(recipe, [], ["phases.0.lr=[0.01]"], out, tmp_path / "runs")
    with pytest.raises(ValueError, match="holds another search .base_settings.* differ.: choose another --out"):
        search(recipe, ["run.seed=2"], ["phases.0.lr=[0.01]"], out, tmp_path / "runs")


def test_an_edited_recipe_is_another_search(recipe, tmp_path):
    out, tree = tmp_path / "search.json", yaml.safe_load(Path(recipe).read_text())
    search(recipe, [], ["phases.0.lr=[0.01]"], out, tmp_path / "runs")
    tree["phases"][0]["steps"] = 3
    Path(recipe).write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=r"search \(settings_of_recipe.phases.0.steps differ\): choose another"):
        search(recipe, [], ["phases.0.lr=[0.01]"], out, tmp_path / "runs")
