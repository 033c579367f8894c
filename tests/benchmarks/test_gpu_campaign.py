"""What a campaign on a GPU carries and brings back: 8-bit rows, a budget of time, records after every run."""

import sys
import tarfile
import time

import pytest
import torch
import yaml
from conftest import ROOT
from processes import python
from safetensors.torch import load_file, save_file

from jepa4rec.benchmarks import gpu_campaign
from jepa4rec.datasets_builders import build, save_dataset
from jepa4rec.scripts.campaign import Campaign
from jepa4rec.training.recipe import read_recipe


def test_8_bit_rows_come_back_within_half_a_step_of_their_scale(tmp_path):
    source, packed = tmp_path / "source", tmp_path / "packed"
    source.mkdir()
    weights = {"matrix": torch.randn(5, 40) * torch.tensor([[1], [100], [0.01], [0], [1]]), "bias": torch.randn(5)}
    save_file({**weights, "ids": torch.arange(3)}, source / "model.safetensors")
    (source / "config.json").write_text("{}")
    gpu_campaign.pack_weights(source, packed)
    gpu_campaign.unpack_weights(packed)
    found = load_file(packed / "model.safetensors")
    step = weights["matrix"].abs().amax(1, keepdim=True) / 127
    assert ((found["matrix"] - weights["matrix"]).abs() <= 0.51 * step + 1e-12).all()
    torch.testing.assert_close(found["bias"], weights["bias"], rtol=1e-3, atol=1e-3)
    assert found["ids"].tolist() == [0, 1, 2] and (packed / "config.json").is_file()


def test_every_run_of_the_campaign_has_a_recipe_that_holds_together():
    path = ROOT / "recipes" / "campaigns" / "gpu.yaml"
    campaign = read_recipe(path, kind=Campaign)
    recipes = {run.name: read_recipe(path.parent / run.recipe, [*campaign.set, *run.set]) for run in campaign.runs}
    assert len(recipes) == 30
    for name in ("jepa4rec_pretrain", "recformer_pretrain"):
        phase = recipes[name].phases[0]
        assert (phase.steps, phase.epochs, phase.batch_size) == (None, 1, 512)
        assert recipes[name].run.mixed_precision == "bf16" and recipes[name].data.pretrain[2].dir == "gpu/data/books"
    seeds = [int(name[-1]) for name in list(recipes)[3:]]
    assert seeds == sorted(seeds), "whole seeds first: what is done can be compared"


@pytest.mark.slow("trains in processes")
def test_what_is_done_when_the_time_is_over_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_dataset(build("toy_shop", shoppers=60), tmp_path / "gpu" / "data" / "toy")
    (tmp_path / "gpu" / "minilm").mkdir()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    recipe = {
        "run": {"output_dir": "unused"}, "data": {"dir": "gpu/data/toy"},
        "tokenizer": {"max_items": 4, "max_tokens": 64, "vocab_size": 300}, "model": {"config": shape},
        "phases": [{"kind": "pretrain", "steps": 2, "batch_size": 16, "max_items": 2}],
        "evaluation": {"zero_shot": False, "validation_users": 20},
    }  # fmt: skip
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(recipe))
    runs = [{"name": "pretrain", "recipe": "first.yaml"}, {"name": "too_long", "recipe": "first.yaml"}]
    runs[1]["set"] = ["phases.0.steps=1000000"]
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump({"runs": runs}))
    command = ["run", "gpu", "--campaign", "campaign.yaml", "--out", "out", "--seconds", "300", "--benchmark", ""]
    monkeypatch.setattr(sys, "argv", ["gpu_campaign.py", *command])
    monkeypatch.setattr(sys, "executable", python())
    keep = gpu_campaign.Budget.keep_checkpoint

    def keep_and_be_late(budget, one) -> None:
        keep(budget, one)
        budget.end = time.monotonic() + 5

    monkeypatch.setattr(gpu_campaign.Budget, "keep_checkpoint", keep_and_be_late)
    gpu_campaign.main(command)
    with tarfile.open(tmp_path / "out" / "records.tar.gz") as archive:
        assert "pretrain/metrics.json" in archive.getnames() and "too_long/metrics.json" not in archive.getnames()
    assert (tmp_path / "out" / "pretrain.tar.0").stat().st_size > 1000
