"""Trained baselines: what each may see, what it learns, one loop for all, and a stranger who loads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train_accelerate
from jepa4rec.baselines import SEQUENCE_MODELS
from jepa4rec.baselines.item_sequences import full_softmax, pad_sequences
from jepa4rec.datasets_builders.contract import make_dataset, save_dataset
from jepa4rec.evaluation.scorers import SequenceScorer
from jepa4rec.scripts import push_to_hub
from jepa4rec.training.batches import Example
from jepa4rec.training.phases.sequence import SequenceCollator
from jepa4rec.training.recipe import read_recipe
from tests.conftest import TINY_ITEMS, WITHOUT_PACKAGE

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "max_length": 5, "dropout": 0.0}
NAMES = sorted(SEQUENCE_MODELS)

STRANGER = (
    WITHOUT_PACKAGE
    + """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

for checkpoint in sys.argv[1:]:
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
    assert config.num_items == 12
    with torch.no_grad():
        users = model.user_vectors(torch.tensor([[3, 1, 4], [5, 9, -1]]))
        save_file({"users": users, "items": model.item_vectors().contiguous()}, checkpoint + ".safetensors")
"""
)


def make_model(name, **overrides):
    """A tiny model of twelve items in evaluation mode; UniSRec with random text vectors."""
    torch.manual_seed(0)
    model_class = SEQUENCE_MODELS[name]
    text = {"text_size": 8, "num_experts": 3} if name == "unisrec" else {}
    model = model_class(model_class.config_class(num_items=12, **SHAPE, **text, **overrides))
    if name == "unisrec":
        model.set_text_vectors(torch.randn(12, 8))
    return model.eval()


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """40 users who walk round the twelve items in order: the next item follows from the last one."""
    items = pa.table(
        {"item_id": [str(i) for i in range(12)], **{k: [i[k] for i in TINY_ITEMS] for k in TINY_ITEMS[0]}}
    )
    starts = np.random.default_rng(0).integers(0, 12, 40)
    walks = [[int(start + step) % 12 for step in range(8)] for start in starts]
    sequences = pa.table({"user_id": [str(u) for u in range(40)], "items": pa.array(walks, pa.list_(pa.int32()))})
    folder = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(make_dataset(items, sequences, {"name": "walks", "config": "tiny"}), folder)
    return folder


@pytest.fixture
def train(shop, tmp_path):
    """train(name, **config) -> (record, folder) of a short run of the recipe of that name."""

    def run(name, *settings, **config):
        tree = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        tree["run"]["output_dir"] = str(tmp_path / name)
        tree["data"] = {"dir": str(shop)}
        if name == "unisrec":
            tree["tokenizer"] = {"max_items": 4, "max_tokens": 64, "vocab_size": 200}
        encoder = {"init": make_encoder(tmp_path, shop)} if name == "unisrec" else {}
        tree["model"] = {**tree["model"], **encoder, "config": {**tree["model"]["config"], **SHAPE, **config}}
        tree["phases"][0] |= {"epochs": 1.0, "steps": 120, "batch_size": 20, "lr": 1e-2, "evaluate_every_steps": 40}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        AcceleratorState._reset_state(reset_partial_state=True)
        return train_accelerate.run(read_recipe(path, list(settings))), tmp_path / name

    return run


def make_encoder(folder, shop) -> str:
    """A tiny random text encoder with its tokenizer, saved as a checkpoint of ours."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tree = {
        "run": {"output_dir": str(folder / "unused")},
        "data": {"dir": str(shop)},
        "tokenizer": {"max_items": 4, "max_tokens": 64, "vocab_size": 200},
        "model": {"config": shape},
        "phases": [{"kind": "finetune"}],
    }
    path = folder / "encoder.yaml"
    path.write_text(yaml.safe_dump(tree))
    recipe = read_recipe(path)
    data = train_accelerate.load_run_data(recipe.data)
    train_accelerate.write_checkpoint(*train_accelerate.make_starting_checkpoint(recipe, data), folder / "encoder")
    return str(folder / "encoder")


# ---- what a model may see


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    model = make_model(name)
    with torch.no_grad():
        alone = model.user_vectors(torch.tensor([[3, 1]]))
        padded = model.user_vectors(torch.tensor([[3, 1, -1, -1], [5, 6, 7, 8]]))
    torch.testing.assert_close(alone[0], padded[0])


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "unisrec"])
def test_no_place_sees_the_items_after_it(name):
    model = make_model(name)
    with torch.no_grad():
        vectors = [model.examples(torch.tensor([[3, 1, 4, last, 2]]))[0] for last in (5, 9)]
    torch.testing.assert_close(vectors[0][:3], vectors[1][:3])
    assert not torch.allclose(vectors[0][3], vectors[1][3])


def test_the_masked_item_is_hidden_and_both_sides_are_seen():
    model = make_model("bert4rec", last_rate=1.0)
    with torch.no_grad():
        one, target, _ = model.examples(torch.tensor([[3, 1, 4]]))
        other, _, _ = model.examples(torch.tensor([[3, 1, 7]]))
        history = model.user_vectors(torch.tensor([[3, 1]]))
    assert target.tolist() == [4]
    torch.testing.assert_close(one, other)  # a different target looks the same
    torch.testing.assert_close(one, history)  # and training asks what ranking asks


def test_masks_fall_at_their_rates_on_items_only():
    model = make_model("bert4rec", mask_rate=0.25, last_rate=0.5)
    torch.manual_seed(0)
    rows = torch.tensor([[1, 2, 3, 4, 5, -1]]).repeat(4000, 1)
    chosen = model.choose_masked(rows)
    assert chosen.any(1).all() and not chosen[:, 5].any()
    none = 0.75**5
    wanted = 0.5 * 0.25, 0.5 + 0.5 * (0.25 + none)
    assert chosen[:, 0].float().mean() == pytest.approx(wanted[0], abs=0.02)
    assert chosen[:, 4].float().mean() == pytest.approx(wanted[1], abs=0.02)


def test_unisrec_gives_items_of_equal_text_equal_vectors_unless_ids_tell_them_apart():
    texts = torch.randn(12, 8)
    texts[7] = texts[2]
    for item_ids in (False, True):
        model = make_model("unisrec", item_ids=item_ids)
        model.set_text_vectors(texts)
        scores = SequenceScorer(model).score([np.array([1, 4])])[0]
        assert (scores[7] == scores[2]).item() is not item_ids


def test_unisrec_experts_are_whitenings_mixed_by_the_gate():
    model = make_model("unisrec")
    adaptor, x = model.adaptor, model.text_vectors
    torch.nn.init.normal_(adaptor.centres)
    maps = adaptor.whiten.weight.unflatten(0, (3, 16))
    by_hand = sum(adaptor.weights(x)[:, [e]] * ((x - adaptor.centres[e]) @ maps[e].T) for e in range(3))
    torch.testing.assert_close(model.item_vectors(), by_hand)


def test_unisrec_refuses_vectors_of_another_shape_and_broken_ones():
    model = make_model("unisrec")
    with pytest.raises(ValueError, match=r"text vectors are \(11, 8\), expected \(12, 8\)"):
        model.set_text_vectors(torch.zeros(11, 8))
    with pytest.raises(ValueError, match="NaN"):
        model.set_text_vectors(torch.full((12, 8), float("nan")))


# ---- loss and batches


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_softmax_in_blocks_equals_softmax_at_once(temperature, monkeypatch):
    torch.manual_seed(0)
    users, items, targets = torch.randn(7, 4), torch.randn(9, 4), torch.arange(7)
    results = []
    for logits in (2**26, 18):
        monkeypatch.setattr("jepa4rec.baselines.item_sequences.MOST_LOGITS", logits)
        u, v = users.clone().requires_grad_(), items.clone().requires_grad_()
        loss = full_softmax(u, targets, v, temperature)
        loss.backward()
        results.append((loss.detach(), u.grad, v.grad))
    for once, blocks in zip(*results, strict=True):
        torch.testing.assert_close(once, blocks)


def test_a_row_is_history_and_target():
    examples = [Example(np.array([4, 5]), 6, 0, 0), Example(np.array([7]), 8, 1, 0)]
    assert SequenceCollator()(examples)["item_ids"].tolist() == [[4, 5, 6], [7, 8, -1]]
    assert pad_sequences([np.array([1, 2, 3])], 2).tolist() == [[2, 3]]


# ---- the one loop


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_learns_and_is_recorded(train, name):
    record, folder = train(name)
    assert record["metrics"]["recall@10"] > 0.9 and record["validation_metrics"]["ndcg@10"] > 0.8
    assert record["system"].lower() == name and (folder / "ranks.parquet").is_file()
    assert (folder / "checkpoint" / f"{name}.py").is_file()


def test_a_finished_run_is_ready_to_be_pushed(train, capsys):
    _, folder = train("sasrec", "phases.0.steps=4")
    push_to_hub.main([str(folder), "me/sasrec", "--dry-run"])
    told = capsys.readouterr().out
    assert "all checks passed" in told and "pipeline_item_ids.py" in told and "item_ids.json" in told


def test_a_stranger_loads_every_model(tmp_path):
    checkpoints = {name: tmp_path / name for name in NAMES}
    for name, folder in checkpoints.items():
        make_model(name).save_pretrained(folder)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    away = tmp_path / "away"
    away.mkdir()
    command = [sys.executable, "-c", STRANGER, *map(str, checkpoints.values())]
    done = subprocess.run(command, cwd=away, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, folder in checkpoints.items():
        theirs, model = load_file(f"{folder}.safetensors"), make_model(name)
        with torch.no_grad():
            assert torch.equal(theirs["users"], model.user_vectors(torch.tensor([[3, 1, 4], [5, 9, -1]])))
            assert torch.equal(theirs["items"], model.item_vectors())


def test_an_interrupted_run_ends_as_an_uninterrupted_one(train, monkeypatch):
    settings = ("run.save_every=10", "phases.0.steps=30", "phases.0.evaluate_every_steps=15")
    whole, folder = train("bert4rec", *settings)
    weights = load_file(folder / "checkpoint" / "model.safetensors")
    real_step, calls = train_accelerate.optimiser_step, []

    def stop_at_25(*arguments):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return real_step(*arguments)

    monkeypatch.setattr(train_accelerate, "optimiser_step", stop_at_25)
    with pytest.raises(KeyboardInterrupt):
        train("bert4rec", *settings, "run.overwrite=true")
    monkeypatch.undo()
    resumed, _ = train("bert4rec", *settings, "run.resume=true")
    assert resumed["metrics"] == whole["metrics"]
    again = load_file(folder / "checkpoint" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


# ---- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.baseline=null"], "phases of kind sequence train a model.baseline: name one"),
        (["model.baseline=sasrek"], "baseline sasrek is unknown; did you mean sasrec?"),
        (["phases.0.freeze_layers=1"], "freeze_layers and freeze_word_embeddings are for text encoders"),
        (["run.activation_checkpointing=true"], "activation_checkpointing is for text encoders"),
        (["model.config.droput=0.1"], "SasRecConfig has no such field; did you mean dropout?"),
        (["model.config.num_attention_heads=3"], r"hidden_size \(16\) must be a multiple of num_attention_heads"),
        (["model.config.dropout=high"], "dropout"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(train, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        train("sasrec", *settings)
    assert "\n" not in str(caught.value).strip()


def test_the_records_name_what_was_trained(train):
    record, folder = train("gru4rec", "phases.0.steps=2")
    assert json.loads((folder / "metrics.json").read_text())["recipe"]["model"]["baseline"] == "gru4rec"
    assert record["baselines"].keys() >= {"popularity"} and "zero_shot" not in record
