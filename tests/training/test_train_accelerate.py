"""Training: it learns, survives being killed, means the same on two processes, and never leaves half a file."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from processes import python
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig, BertModel

import train_accelerate
from jepa4rec.baselines import SEQUENCE_MODELS
from jepa4rec.datasets_builders.contract import load_dataset_dir, make_dataset, save_dataset
from jepa4rec.losses_seqrec import normalise
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.serving.encoding_seqrec import encode_items
from jepa4rec.serving.whitening_seqrec import CATALOGUE_PRIOR, Whitening
from jepa4rec.serving.whole_files_seqrec import seal, written_folder
from jepa4rec.tokenization_itemsent import ItemSentTokenizer
from jepa4rec.training import run_folder
from jepa4rec.training.data import load_run_data
from jepa4rec.training.log import TrainingDiverged
from jepa4rec.training.measure import evaluate_validation
from jepa4rec.training.optimisation import freeze, learning_rate_factor, parameter_groups
from jepa4rec.training.recipe import read_recipe
from jepa4rec.training.run_folder import PhaseEnd, Progress, RunFolder
from jepa4rec.training.start import encode_texts, train_wordpiece
from tests.conftest import TINY_ITEMS

pytestmark = pytest.mark.slow("trains through the loop, is killed and resumed")

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = {
    "kind": "pretrain",
    "steps": 12,
    "batch_size": 16,
    "lr": 1e-3,
    "max_items": 2,
    "evaluate_every_epochs": 0.0,
}
FINETUNE = {
    "kind": "finetune", "steps": 20, "batch_size": 16, "lr": 1e-3, "lr_items": 1e-2, "history_items": 2,
    "max_items": 2, "evaluate_every_steps": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """40 users who walk round the twelve items in order: the next item follows from the last one."""
    items = pa.table(
        {"item_id": [str(i) for i in range(12)], **{k: [i[k] for i in TINY_ITEMS] for k in TINY_ITEMS[0]}}
    )
    starts = np.random.default_rng(0).integers(0, 12, 40)
    walks = [[int(start + step) % 12 for step in range(6)] for start in starts]
    sequences = pa.table({"user_id": [str(u) for u in range(40)], "items": pa.array(walks, pa.list_(pa.int32()))})
    folder = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(make_dataset(items, sequences, {"name": "walks", "config": "tiny"}), folder)
    return folder


def write(folder: Path, shop: Path, phases: list[dict], **run) -> Path:
    """A recipe for a model of two layers; its run lives in folder/run. A plot of telemetry takes a second, and two
    measurements. In float32, wherever tests run: a processor with bfloat16 would else train in that."""
    run = {"mixed_precision": "no", "telemetry_every": 10} | run
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    tree = {
        "run": {"output_dir": str(folder / "run"), "save_every": 0, "log_every": 2, **run},
        "data": {"dir": str(shop)},
        "tokenizer": {"max_items": 4, "max_tokens": 64, "vocab_size": 200},
        "model": {"config": shape},
        "phases": phases,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def write_recipe(shop, tmp_path):
    """write_recipe(phases, **run) -> a recipe whose run lives in tmp_path/run."""
    return partial(write, tmp_path, shop)


def train(path, *settings) -> dict:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train_accelerate.run(read_recipe(path, list(settings)))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def assert_same_weights(a: dict, b: dict, **tolerance) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def log_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ results


def test_a_kill_while_beaten_weights_are_removed_leaves_no_damage(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    for step in (2, 4):
        with written_folder(folder.best(0, step)) as fresh:
            (fresh / "model.safetensors").write_bytes(bytes([step]))
            seal(fresh)

    def killed(path, ignore_errors):
        (path / "model.safetensors").unlink()
        raise SystemExit

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(SystemExit):
        folder.prune(0, Progress(processes=1, step=4, best_step=4))
    assert not (folder.best(0, 2) / "model.safetensors").exists()
    folder._check_seals()
    (folder.best(0, 4) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="is not what was saved there"):
        folder._check_seals()


def test_item_sequences_leave_the_mean_of_start_and_trained_weights(write_recipe, tmp_path):
    phase = {"kind": "item_sequence", "steps": 6, "batch_size": 8, "lr": 1e-2, "max_items": 3, "freeze_layers": 1}
    phase["evaluate_every_steps"] = 6  # else each share may find another step the best
    path, found = write_recipe([phase], telemetry_every=4), {}
    for share in (0.0, 0.25, 1.0):
        settings = [
            f"phases.0.start_weight={share}",
            f"run.output_dir={tmp_path / str(share)}",
        ]
        record = train(path, *settings)
        found[share] = weights(tmp_path / str(share))
    assert record["history"] == "items" and record["metrics"] == record["zero_shot"]  # nothing but the start is left
    changed = 0
    for name, start in found[1.0].items():
        torch.testing.assert_close(found[0.25][name], 0.25 * start + 0.75 * found[0.0][name], atol=1e-6, rtol=0)
        changed += not torch.equal(start, found[0.0][name])
        assert torch.equal(start, found[0.0][name]) or "layer.0" not in name
    assert changed


def test_item_sequences_learn_from_datasets_whitened_each_by_its_own(write_recipe, shop, tmp_path):
    phase = {
        "kind": "item_sequence",
        "steps": 4,
        "batch_size": 8,
        "lr": 1e-2,
        "max_items": 3,
        "evaluate_every_steps": 4,
    }
    pretrain = f"data.pretrain=[{{dir: {shop}, part: all}}, {{dir: {shop}, part: all}}]"
    for power in ("null", "0.75"):
        train(write_recipe([phase]), pretrain, f"phases.0.whitening={power}", f"run.output_dir={tmp_path / power}")
    plain, whitened = weights(tmp_path / "null"), weights(tmp_path / "0.75")
    assert any(not torch.equal(plain[name], whitened[name]) for name in plain)
    losses = [log_lines(tmp_path / power)[0]["next_item"] for power in ("null", "0.75")]
    assert losses[0] != losses[1]


def test_a_run_learns_and_leaves_checkpoint_metrics_ranks_recipe_and_log(write_recipe, tmp_path):
    phases = [PRETRAIN, {**FINETUNE, "steps": 60, "evaluate_every_steps": 20}]
    record = train(write_recipe(phases, name="walks", save_every=10, telemetry_every=4))
    run = tmp_path / "run"
    assert record["metrics"]["ndcg@10"] > record["baselines"]["popularity"]["ndcg@10"] + 0.2
    assert record == json.loads((run / "metrics.json").read_text())
    needed = {"model", "system", "dataset", "config", "fingerprint", "split", "seed", "commit", "command", "hardware"}
    assert needed <= record.keys() and record["model"] == "walks"
    assert pq.read_table(run / "ranks.parquet").column_names == ["user_id", "target", "rank", "official_rank"]
    assert record["official"]["baselines"]["popularity"]["mrr"] > record["baselines"]["popularity"]["mrr"]
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoint", "log.jsonl", "metrics.json", "ranks.parquet", "recipe.yaml",
    ]  # fmt: skip
    card = (run / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert "(telemetry.png)" in card and (run / "checkpoint" / "telemetry.png").is_file()
    assert record["seconds"] > 0 and "Training took" in card
    assert record["audit"]["figures"]["repeat_targets"] == 0 and "What the test asks" in card
    assert read_recipe(run / "recipe.yaml").phases[1].steps == 60
    telemetry = [line for line in log_lines(run) if "effective_rank" in line]
    assert [line["step"] for line in telemetry] == [4, 8, 12]
    assert all(("mlm" in line) == (line["kind"] == "pretrain") for line in log_lines(run) if "loss" in line)


def test_the_best_weights_on_validation_are_the_ones_kept(write_recipe, tmp_path):
    record = train(write_recipe([{**FINETUNE, "steps": 40, "evaluate_every_steps": 4, "lr": 3e-2, "lr_items": 0.3}]))
    scores = [line["validation_ndcg@10"] for line in log_lines(tmp_path / "run") if "validation_ndcg@10" in line]
    assert len(scores) == 10
    assert record["validation_metrics"]["ndcg@10"] == max(scores)


def test_what_was_evaluated_is_kept_where_asked_and_gone_with_the_run(write_recipe, tmp_path):
    phase = {**FINETUNE, "steps": 4, "evaluate_every_steps": 2, "lr": 3e-2, "lr_items": 0.3}
    recipe, kept = write_recipe([phase]), tmp_path / "run" / "evaluated"
    train(recipe)
    assert not kept.exists()
    train(recipe, "run.overwrite=true", "run.keep_evaluated=true")
    found = {folder.name: load_file(folder / "model.safetensors") for folder in kept.iterdir()}
    assert set(found) == {"phase-0-step-2", "phase-0-step-4"}
    assert not torch.equal(*(own["item_matrix.weight"] for own in found.values()))
    best = weights(tmp_path / "run")
    assert any(torch.equal(best["item_matrix.weight"], own["item_matrix.weight"]) for own in found.values())
    assert AutoModel.from_pretrained(kept / "phase-0-step-2").config.vector_size
    train(recipe, "run.overwrite=true")
    assert not kept.exists()


def test_training_stops_after_patience_evaluations_without_improvement(write_recipe, tmp_path):
    phase = {**FINETUNE, "steps": 100, "evaluate_every_steps": 2, "patience": 2, "lr": 1e-30, "lr_items": 1e-30}
    train(write_recipe([phase]))
    evaluated = [line["step"] for line in log_lines(tmp_path / "run") if "validation_ndcg@10" in line]
    assert evaluated == [2, 4, 6]


def test_a_precision_that_the_device_does_not_train_in_is_refused(write_recipe, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(train_accelerate, "computes_in_bf16", lambda: False)
    for precision in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=f"run.mixed_precision is {precision}, which .*: use auto or no"):
            train(write_recipe([FINETUNE], mixed_precision=precision))
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        with pytest.raises(ValueError, match=f"accelerate's mixed_precision is {precision}, which"):
            train_accelerate.choose_precision("auto")


@pytest.mark.parametrize(("has_bf16", "chosen"), [(True, "bf16"), (False, "no")])
def test_auto_is_bf16_where_the_device_computes_in_it(monkeypatch, has_bf16, chosen):
    monkeypatch.setattr(train_accelerate, "computes_in_bf16", lambda: has_bf16)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as a launcher that was told nothing
    assert train_accelerate.choose_precision("auto") == train_accelerate.choose_precision(None) == chosen


@pytest.mark.usefixtures("estimates")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_texts_are_encoded_in_the_precision_of_the_run(write_recipe, monkeypatch, precision):
    """Estimate, item matrices, validations, test split and zero-shot; steps have always been in it."""
    seen, embed = [], Jepa4RecModel.embed

    def spy(model, *args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return embed(model, *args, **kwargs)

    monkeypatch.setattr(Jepa4RecModel, "embed", spy)
    monkeypatch.setattr(train_accelerate, "computes_in_bf16", lambda: True)
    phase = {**FINETUNE, "item_vectors": "epoch", "steps": 4, "evaluate_every_steps": 2}
    record = train(write_recipe([phase], mixed_precision=precision))
    assert record["precision"] == precision and set(seen) == {precision == "bf16"}


def test_two_stages_encode_items_each_epoch_and_then_keep_them(write_recipe):
    frozen = {"objective": {"item_matrix": "frozen"}, "history_items": 0, "lr_items": 1e-30}
    stages = [
        {**FINETUNE, **frozen, "item_vectors": "epoch", "steps": 10},
        {**FINETUNE, **frozen, "item_vectors": "keep", "steps": 4, "lr": 1e-30},
    ]
    path = write_recipe(stages)
    record = train(path)
    run = Path(record["recipe"]["run"]["output_dir"])
    model = Jepa4RecForSequentialRecommendation.from_pretrained(run / "checkpoint")
    lengths = model.item_matrix.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_a_projection_of_histories_learns_what_follows_and_items_stay_as_their_texts_are_read(write_recipe, tmp_path):
    phase = {**FINETUNE, "history_reading": "items", "history_items": 0, "objective": {"item_matrix": "frozen"}}
    path = write_recipe([{**phase, "steps": 100, "max_items": 3}])
    record = train(path, "model.config.initializer_range=0.5")  # items far apart, as a trained encoder has them
    assert record["history"] == "items"
    assert record["metrics"]["ndcg@10"] > record["zero_shot"]["ndcg@10"] + 0.2
    model = Jepa4RecForSequentialRecommendation.from_pretrained(tmp_path / "run" / "checkpoint")
    tokenizer = ItemSentTokenizer.from_pretrained(tmp_path / "run" / "checkpoint")
    texts = encode_items(model, tokenizer, tokenizer.encode_items(TINY_ITEMS))
    torch.testing.assert_close(model.item_vectors(), normalise(texts), rtol=1e-4, atol=1e-5)


def test_a_matrix_for_all_items_learns_and_ends_as_part_of_the_encoder(write_recipe, tmp_path):
    phase = {**FINETUNE, "history_reading": "items", "history_items": 0, "objective": {"item_matrix": "frozen"}}
    phase |= {"item_projection": True, "repeat_items": 3, "steps": 60, "max_items": 3, "lr_items": 1e-2}
    sets = ["model.config.initializer_range=0.5", "model.config.projection=true"]
    record = train(write_recipe([phase]), *sets)
    assert record["metrics"]["ndcg@10"] > record["zero_shot"]["ndcg@10"]
    model = Jepa4RecForSequentialRecommendation.from_pretrained(tmp_path / "run" / "checkpoint")
    tokenizer = ItemSentTokenizer.from_pretrained(tmp_path / "run" / "checkpoint")
    texts = encode_items(model, tokenizer, tokenizer.encode_items(TINY_ITEMS))
    torch.testing.assert_close(model.item_vectors(), normalise(texts), rtol=1e-4, atol=1e-4)
    assert (model.base_model.projection.weight - torch.eye(len(texts[0]))).abs().max() > 0.01
    assert model.repeat_bias.abs().min() > 0 and not model.config.item_projection


def test_a_layer_behind_the_text_waits_where_no_text_is_read(write_recipe, tmp_path):
    first = {**FINETUNE, "history_projection": True, "history_text": False, "steps": 2}
    train(write_recipe([first, {**first, "history_text": True, "item_vectors": "keep", "lr_items": 1e-2}]))
    model = Jepa4RecForSequentialRecommendation.from_pretrained(tmp_path / "run" / "checkpoint")
    assert model.history_projection.weight.shape[0] == model.config.vector_size
    phase = read_recipe(write_recipe([first])).phases[0]
    opened = phase.open_model(tmp_path / "run" / "checkpoint", load_run_data(read_recipe(write_recipe([first])).data))
    assert not opened.history_projection.weight.requires_grad and opened.item_matrix.weight.requires_grad


def test_a_matrix_for_all_items_needs_a_projection_to_end_in(write_recipe):
    phase = {**FINETUNE, "history_reading": "items", "history_items": 0, "objective": {"item_matrix": "frozen"}}
    with pytest.raises(ValueError, match="set model.config.projection=true"):
        train(write_recipe([{**phase, "item_projection": True, "steps": 1}]))


ENCODED = {
    **FINETUNE, "objective": {"item_matrix": "frozen", "learn_temperature": False}, "history_items": 0,
    "item_vectors": "epoch", "evaluate_every_steps": 4,
}  # fmt: skip


@pytest.mark.parametrize("stale", [False, True])
def test_evaluation_sees_the_items_as_the_encoder_has_them_now_unless_stale(stale, write_recipe, tmp_path, shop):
    train(write_recipe([{**ENCODED, "steps": 4, "stale_items": stale, "lr": 1e-2, "prefixes": "random"}]))
    model = Jepa4RecForSequentialRecommendation.from_pretrained(tmp_path / "run" / "checkpoint")
    tokenizer = ItemSentTokenizer.from_pretrained(tmp_path / "run" / "checkpoint")
    fresh = encode_items(model, tokenizer, tokenizer.encode_items(load_dataset_dir(shop).item_texts()))
    gap = (model.item_vectors() - normalise(fresh)).abs().max().item()
    assert gap > 0.01 if stale else gap < 1e-5


@pytest.mark.parametrize(("steps", "patience", "wanted"), [(8, None, [0.0, 0.0]), (40, 1, [32 / 40, 31 / 40])])
def test_a_second_stage_may_go_on_with_the_learning_rates_of_the_first(
    steps, patience, wanted, write_recipe, tmp_path, monkeypatch
):
    """At the end of the first stage nothing is left to learn with; where it stopped early, the rest of its line is."""
    monkeypatch.setattr("jepa4rec.training.phases.phase.evaluate_validation", lambda *_: {"ndcg@10": 0.5})
    schedule = {"schedule": "recformer", "warmup": 0.0, "lr": 1.0e-3, "clip_norm": None}
    stages = [
        {**ENCODED, **schedule, "steps": steps, "patience": patience},
        {**ENCODED, **schedule, "steps": 2, "item_vectors": "keep", "continue_schedule": True},
    ]
    train(write_recipe(stages, log_every=1))
    rates = [line["lr"] / 1e-3 for line in log_lines(tmp_path / "run") if line["phase"] == 1 and "lr" in line]
    assert rates == pytest.approx(wanted)


def test_null_clips_no_gradient(write_recipe, tmp_path):
    path = write_recipe([{**FINETUNE, "steps": 3}])
    train(path, "phases.0.clip_norm=null")
    free = weights(tmp_path / "run")
    train(path, "phases.0.clip_norm=1.0e+9", "run.overwrite=true")
    assert_same_weights(weights(tmp_path / "run"), free, rtol=0, atol=0)
    train(path, "phases.0.clip_norm=1.0e-9", "run.overwrite=true")
    assert not torch.equal(weights(tmp_path / "run")["item_matrix.weight"], free["item_matrix.weight"])


def test_recformer_runs_through_the_same_loop(write_recipe, tmp_path):
    pretrain = {
        **PRETRAIN, "prefixes": "late", "mask_unit": "word", "freeze_word_embeddings": True,
        "objective": {"map_weight": 0.0, "contrastive_history": "clean", "mlm_average": "sides"},
    }  # fmt: skip
    stages = [pretrain, {**ENCODED, "prefixes": "random", "min_history": 0}, {**ENCODED, "item_vectors": "keep"}]
    record = train(write_recipe(stages, system="RecFormer"), "evaluation.ties=official")
    assert (record["system"], record["ties"]) == ("RecFormer", "official")
    assert {name: record[name] for name in ("metrics", "baselines")} == record["official"]
    steps = [line for line in log_lines(tmp_path / "run") if line["kind"] == "pretrain" and "loss" in line]
    assert steps and all({"contrastive", "mlm"} <= line.keys() and "map" not in line for line in steps)


def test_pretraining_may_leave_its_target_encoder(write_recipe, tmp_path):
    """With a momentum of 1 the target encoder never moves: what is left is the start."""
    path = write_recipe([{**PRETRAIN, "result_encoder": "target", "objective": {"ema_start": 1.0, "ema_end": 1.0}}])
    train(path)
    left = weights(tmp_path / "run")
    train(path, "phases=[]", f"run.output_dir={tmp_path / 'start'}")
    start = weights(tmp_path / "start")
    encoder = {name: value for name, value in left.items() if name.startswith("jepa4rec.")}
    assert_same_weights({name.removeprefix("jepa4rec."): value for name, value in encoder.items()}, start)
    train(path, "phases.0.result_encoder=context", "run.overwrite=true")
    name = "jepa4rec.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(weights(tmp_path / "run")[name], left[name])


def test_a_start_may_be_whitened_by_the_items_that_it_reads(write_recipe, tmp_path, shop):
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    words = [text for item in TINY_ITEMS for text in item.values()]
    BertModel(BertConfig(vocab_size=200, **shape)).save_pretrained(tmp_path / "bert")
    train_wordpiece(words, 200).save_pretrained(tmp_path / "bert")
    settings = [f"model.init={tmp_path / 'bert'}", "model.whitening=1.0", "model.config={projection: true}"]

    def vectors(*settings: str) -> torch.Tensor:
        train(write_recipe([], overwrite=True), *settings)
        run = tmp_path / "run" / "checkpoint"
        model, tokenizer = (kind.from_pretrained(run) for kind in (Jepa4RecModel, ItemSentTokenizer))
        return encode_items(model, tokenizer, tokenizer.encode_items(TINY_ITEMS))

    plain, own = vectors(settings[0], settings[2]), vectors(*settings)
    torch.testing.assert_close(normalise(own), Whitening.fit(plain, 1.0, CATALOGUE_PRIOR)(plain), rtol=1e-3, atol=1e-4)
    pretraining = vectors(*settings, f"data.pretrain=[{{dir: {shop}}}]")  # which are many, and no catalogue
    assert pretraining.mean(0).abs().max() < 0.01
    assert pretraining.square().sum(1).mean() == pytest.approx(1, abs=0.01)
    (tmp_path / "run").rename(tmp_path / "whitened")
    settings[0] = f"model.init={tmp_path / 'whitened' / 'checkpoint'}"
    torch.testing.assert_close(vectors(*settings), own)  # the whitening that it held is replaced
    with pytest.raises(ValueError, match=r"whitening needs config\.projection: true to be kept in"):
        read_recipe(write_recipe([]), [*settings, "model.config={}"])
    with pytest.raises(ValueError, match="whitening is of the vectors of trained weights: name them by init"):
        read_recipe(write_recipe([]), [*settings, "model.init=scratch"])
    with pytest.raises(ValueError, match="whitening must be at least 0 and at most 1, got 1.5"):
        read_recipe(write_recipe([]), [*settings, "model.whitening=1.5"])


def test_a_baselines_texts_may_be_whitened_by_themselves(write_recipe):
    path = write_recipe([{"kind": "sequence", "steps": 1}])
    settings = ["tokenizer={}", "model={baseline: unisrec, config: {hidden_size: 16, text_size: 16}}"]
    recipe = read_recipe(path, settings)
    data = load_run_data(recipe.data)
    torch.manual_seed(0)  # the encoder is random
    plain = encode_texts(recipe, data)
    torch.manual_seed(0)
    whitened = encode_texts(read_recipe(path, [*settings, "model.whitening=0.75"]), data)
    expected = Whitening.fit(plain, 0.75, CATALOGUE_PRIOR)(plain)
    torch.testing.assert_close(whitened, expected)
    assert not torch.allclose(torch.nn.functional.normalize(plain, dim=1), expected, atol=0.01)
    for name in ("gru4rec", "popularity", "llamarec"):
        phases = "phases=[]" if name == "popularity" else "phases=[{kind: sequence, steps: 1}]"
        with pytest.raises(ValueError, match=f"whitening is of text vectors, and {name} has none: leave it out"):
            read_recipe(path, ["tokenizer={}", f"model={{baseline: {name}, whitening: 0.5}}", phases])


def test_what_the_best_evaluation_found_is_not_measured_again(write_recipe, monkeypatch):
    found = []

    def evaluate(*arguments):
        found.append(evaluate_validation(*arguments))
        return found[-1]

    monkeypatch.setattr("jepa4rec.training.phases.phase.evaluate_validation", evaluate)
    record = train(write_recipe([{**FINETUNE, "steps": 20}]))
    assert len(found) == 3 and record["validation_metrics"] == max(found, key=lambda metrics: metrics["ndcg@10"])


def test_text_joins_items_that_learned_alone_at_the_weight_the_recipe_says(write_recipe):
    items_alone = {**FINETUNE, "history_text": False, "steps": 10}
    text_joins = {**FINETUNE, "item_vectors": "keep", "text_gate": 0.25, "steps": 2, "lr": 1e-30, "lr_items": 1e-30}
    run = Path(train(write_recipe([items_alone, text_joins]))["recipe"]["run"]["output_dir"])
    model = Jepa4RecForSequentialRecommendation.from_pretrained(run / "checkpoint")
    assert model.config.history_text and model.text_gate.item() == pytest.approx(0.25)
    start = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    marks = [record["step"] for record in start if record["phase"] == 1 and "validation_ndcg@10" in record]
    assert marks == [0, 2]  # what the items alone left is the mark to beat


def test_a_tensorboard_tracker_writes_events_and_a_missing_one_is_an_error(write_recipe, tmp_path, monkeypatch):
    path = write_recipe([{**FINETUNE, "steps": 2}])
    train(path, "run.tracker=tensorboard")
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install trackio"):
        train(path, "run.tracker=trackio", "run.overwrite=true")


# ------------------------------------------------------------------------------------------------ the run's folder


def test_a_finished_run_is_not_overwritten_unless_asked(write_recipe, capsys):
    path = write_recipe([{**FINETUNE, "steps": 2}])
    first = train(path)
    with pytest.raises(FileExistsError, match="holds a finished run"):
        train(path)
    assert train(path, "run.resume=true") == first
    with pytest.raises(ValueError, match=r"holds the result of another recipe \(phases\.0\.lr differ\)"):
        train(path, "run.resume=true", "phases.0.lr=0.5")
    assert train(path, "run.overwrite=true")["metrics"] == first["metrics"]


def test_a_finished_run_killed_while_it_tidies_up_is_finished(write_recipe, tmp_path, monkeypatch):
    path, state, remove = write_recipe([{**FINETUNE, "steps": 2}]), tmp_path / "run" / "state", shutil.rmtree

    def killed_half_way(folder, **options):
        if folder == state and state.exists():
            remove(state / "start")
            raise KeyboardInterrupt
        remove(folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr("jepa4rec.training.run_folder.shutil.rmtree", killed_half_way)
        with pytest.raises(KeyboardInterrupt):
            train(path)
    assert state.exists()
    train(path, "run.resume=true")
    assert not state.exists()


def test_a_folder_in_the_place_of_what_was_evaluated_is_not_deleted(write_recipe, tmp_path):
    recipe, kept = write_recipe([{**FINETUNE, "steps": 2}]), tmp_path / "run" / "evaluated"
    train(recipe, "run.keep_evaluated=true")
    (kept / "thesis.txt").write_text("three years")
    with pytest.raises(FileExistsError, match=r"evaluated holds thesis\.txt, which no run wrote"):
        train(recipe, "run.overwrite=true")
    assert (kept / "thesis.txt").read_text() == "three years"
    kept.rename(tmp_path / "elsewhere")
    kept.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="evaluated is no folder of a run"):
        train(recipe, "run.overwrite=true")


def test_what_no_run_wrote_is_not_deleted(write_recipe, tmp_path):
    thesis = tmp_path / "run" / "state" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("three years")
    with pytest.raises(FileExistsError, match=r"state holds thesis\.txt, which no run wrote"):
        train(write_recipe([{**FINETUNE, "steps": 2}]), "run.overwrite=true")
    assert thesis.read_text() == "three years"


@pytest.mark.parametrize(
    "name", ["checkpoint/my_weights.pt", "evaluated/phase-0-step-2", "recipe.yaml", "log.jsonl", "ranks.parquet"]
)
def test_what_only_has_the_name_of_a_result_is_not_overwritten_unless_asked(write_recipe, tmp_path, name):
    path, mine = write_recipe([{**FINETUNE, "steps": 2}]), tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (tmp_path / "run" / "notes.txt").write_text("in nobody's way")
    for settings in ([], ["run.resume=true"]):
        with pytest.raises(FileExistsError, match=f"holds {name.split('/')[0]}, but no run, which would overwrite"):
            train(path, *settings)
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted([name.split("/")[0], "notes.txt"])
    assert mine.read_text() == "mine"
    folder = RunFolder(tmp_path / "run")
    folder.open(read_recipe(path, ["run.overwrite=true"]))
    folder.release()


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_half_written_one(write_recipe, tmp_path, monkeypatch):
    path = write_recipe([{**FINETUNE, "steps": 2}])
    train(path)
    before = weights(tmp_path / "run")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("shutil.copytree", "train_accelerate.write_evaluation"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(OSError, match="No space left"):
                train(path, "run.overwrite=true", "run.seed=1")
        assert_same_weights(weights(tmp_path / "run"), before, rtol=0, atol=0)
        assert not list((tmp_path / "run").glob(".*"))
    train(path, "run.resume=true", "run.seed=1")
    assert not torch.equal(weights(tmp_path / "run")["item_matrix.weight"], before["item_matrix.weight"])


def test_a_folder_swap_cut_short_is_mended(tmp_path):
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "a").write_text("old")
    os.replace(target, tmp_path / ".checkpoint.old")
    with pytest.raises(KeyError), written_folder(target):
        raise KeyError
    assert (target / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_run_resumes_only_with_the_recipe_it_was_started_with(write_recipe):
    path = write_recipe([{**FINETUNE, "steps": 2}])
    recipe = read_recipe(path)
    folder = RunFolder(recipe.run.output_dir)
    folder.open(recipe)
    folder.release()
    with pytest.raises(FileExistsError, match="unfinished run"):
        train(path)
    with pytest.raises(ValueError, match=r"another recipe \(phases.0.lr differ\)"):
        train(path, "run.resume=true", "phases.0.lr=1.0")


def test_a_run_resumes_only_on_the_data_it_was_started_on(shop, tmp_path, monkeypatch):
    folders = {name: shutil.copytree(shop, tmp_path / name) for name in ("own", "pretrain")}
    path = write(tmp_path, folders["own"], [{**PRETRAIN, "steps": 2}])
    settings = [f"data.pretrain=[{{dir: {folders['pretrain']}}}]", "run.resume=true"]
    with monkeypatch.context() as patch:
        patch.setattr(train_accelerate, "after_step", interrupt_at(1, train_accelerate.after_step))
        with pytest.raises(KeyboardInterrupt):
            train(path, *settings)
    before = load_dataset_dir(shop)
    half = make_dataset(before.items, before.sequences.slice(20), {"name": "walks", "config": "tiny"})
    for folder in folders.values():
        save_dataset(half, folder, overwrite=True)
        with pytest.raises(ValueError, match=f"run was started on other data than {folder} holds now: resume"):
            train(path, *settings)
        save_dataset(before, folder, overwrite=True)
    save_dataset(half, folders["own"], overwrite=True)
    state = tmp_path / "run" / "state" / "recipe.json"  # an earlier version did not know its data
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "fingerprints"}))
    assert train(path, *settings)["fingerprint"] == half.fingerprint


def test_two_trainings_do_not_share_a_folder(write_recipe, monkeypatch):
    """As when a night's job begins before the last one has ended; whoever was killed holds nothing."""
    path = write_recipe([{**FINETUNE, "steps": 2}])
    recipe = read_recipe(path)
    code = """import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print(flush=True), input()"""
    folder = RunFolder(recipe.run.output_dir)
    folder.open(recipe)
    folder.release()
    other = [sys.executable, "-c", code, str(folder.root)]
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        monkeypatch.setattr(run_folder, "HELD_SECONDS", 0.2)
        for how in ("run.resume=true", "run.overwrite=true"):
            with pytest.raises(BlockingIOError, match="another training is at work in .*run: wait for it, or choose"):
                train(path, how)
        first.kill()
    assert train(path, "run.resume=true")["metrics"]


def test_a_batch_larger_than_the_data_is_known_before_training(write_recipe):
    with pytest.raises(ValueError, match=r"phases.1.batch_size is 4096, but there are only 120 training examples"):
        train(write_recipe([PRETRAIN, {**FINETUNE, "batch_size": 4096}]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            [],
            "phases.1.max_items is 6, but the model has positions for 4 items of a history: lower it to at most 4, or",
        ),
        (["model.config.max_item_embeddings=4", "phases.0.max_items=null"], "tokenizer.max_items is 4, .* at most 3"),
        (["model.config.max_item_embeddings=4", "phases=[]"], "tokenizer.max_items is 4, .* at most 3"),
    ],
)
def test_more_items_than_the_model_has_positions_for_are_known_before_training(write_recipe, tmp_path, settings, told):
    with pytest.raises(ValueError, match=told):
        train(write_recipe([{**PRETRAIN, "steps": 1}, {**FINETUNE, "max_items": 6}]), *settings)
    assert not (tmp_path / "run" / "log.jsonl").read_text()


def test_a_tokenizer_may_hold_more_items_than_any_phase_reads(write_recipe):
    path = write_recipe([{**FINETUNE, "steps": 1, "max_items": 6}])
    train(path, "tokenizer.max_items=9", "model.config.max_item_embeddings=7")


def test_an_unknown_model_field_is_an_error(write_recipe):
    with pytest.raises(ValueError, match=r"model.config.hiden_size.*did you mean hidden_size\?"):
        train(write_recipe([FINETUNE]), "model.config.hiden_size=8")


def test_a_loss_that_is_no_number_names_step_and_batch_and_keeps_what_was_good(write_recipe, tmp_path, monkeypatch):
    calls = iter(range(1, 100))
    forward = Jepa4RecForSequentialRecommendation.forward

    def broken_at_the_13th(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if next(calls) == 13:
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(Jepa4RecForSequentialRecommendation, "forward", broken_at_the_13th)
    with pytest.raises(TrainingDiverged, match=r"at step 13 \(epoch 1, batch 5\)"):
        train(write_recipe([FINETUNE], save_every=4))
    state = tmp_path / "run" / "state"
    assert sorted(path.name for path in state.glob("phase-0-*")) == ["phase-0-best-8", "phase-0-step-12"]
    for path in state.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


# ------------------------------------------------------------------------------------------------ interruption


def launch(path: Path, *settings, launcher=()) -> subprocess.Popen:
    command = [python(), *launcher, str(ROOT / "train_accelerate.py"), "--recipe", str(path)]
    command += [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_when(process: subprocess.Popen, path: Path, pattern: str) -> None:
    """SIGKILL as soon as a file of that pattern is seen."""
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(write_recipe, tmp_path, monkeypatch):
    phases = [
        {**PRETRAIN, "steps": 7},
        {**FINETUNE, "steps": 16, "gradient_accumulation": 2, "evaluate_every_steps": 6},
    ]
    path = write_recipe(phases, save_every=4)
    train(path, f"run.output_dir={tmp_path / 'whole'}")
    with monkeypatch.context() as patch:
        patch.setattr("train_accelerate.after_step", interrupt_at(6, train_accelerate.after_step))
        with pytest.raises(KeyboardInterrupt):
            train(path)
    saved = tmp_path / "run" / "state" / "phase-0-step-4" / "progress.json"
    seconds_before = json.loads(saved.read_text(encoding="utf-8"))["seconds"]
    kill_when(launch(path, "run.resume=true"), tmp_path / "run" / "state", "phase-1-step-[48]")
    assert train(path, "run.resume=true")["seconds"] > seconds_before > 0
    assert_same_weights(weights(tmp_path / "run"), weights(tmp_path / "whole"), rtol=0, atol=0)
    assert logged_losses(tmp_path / "run") == logged_losses(tmp_path / "whole")


@pytest.fixture(scope="module")
def interrupted(shop, tmp_path_factory) -> Path:
    """The recipe of a run that was interrupted at its third step and had saved its second."""
    path = write(tmp_path_factory.mktemp("interrupted"), shop, [{**PRETRAIN, "steps": 6}], save_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_accelerate, "after_step", interrupt_at(3, train_accelerate.after_step))
        with pytest.raises(KeyboardInterrupt):
            train(path)
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"])
@pytest.mark.parametrize("damage", ["changed", "cut short", "gone"])
def test_a_damaged_state_is_not_gone_on_from(interrupted, tmp_path, name, damage):
    shutil.copytree(interrupted.parent / "run", tmp_path / "run")
    file = next((tmp_path / "run" / "state").glob(f"phase-0-step-*/{name}"))
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "changed" else content[:-1])
    with pytest.raises(ValueError, match=f"{name} is not what was saved there: start the run again"):
        train(interrupted, "run.resume=true", f"run.output_dir={tmp_path / 'run'}")


def test_a_run_stopped_before_its_first_state_logs_nothing_twice(write_recipe, tmp_path, monkeypatch):
    path = write_recipe([{**PRETRAIN, "steps": 2}, {**FINETUNE, "steps": 3}], log_every=1)
    train(path, f"run.output_dir={tmp_path / 'whole'}")
    for phase in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(train_accelerate, "after_step", interrupt_at(2, train_accelerate.after_step, phase))
            with pytest.raises(KeyboardInterrupt):
                train(path, "run.resume=true")
    train(path, "run.resume=true")
    assert logged_losses(tmp_path / "run") == logged_losses(tmp_path / "whole")


@pytest.mark.parametrize(("second", "expected"), [(2.0, 3.5), (None, None)])
def test_a_run_takes_as_long_as_its_phases_or_does_not_know(tmp_path, second, expected):
    folder = RunFolder(tmp_path)
    for phase, seconds in enumerate((1.5, second)):
        (tmp_path / f"weights-{phase}").mkdir()
        folder.finish_phase(phase, tmp_path / f"weights-{phase}", PhaseEnd(1, 1, {}, seconds))
    assert folder.training_seconds(2) == expected


def interrupt_at(step: int, after_step, phase: int = 0):
    def after_or_interrupt(training, watch):
        if (training.index, training.progress.step) == (phase, step):
            raise KeyboardInterrupt
        return after_step(training, watch)

    return after_or_interrupt


def logged_losses(run: Path) -> list[tuple]:
    return [(line["phase"], line["step"], line["loss"]) for line in log_lines(run) if "loss" in line]


# ------------------------------------------------------------------------------------------------ same training


STILL = ["model.config.hidden_dropout_prob=0.0", "model.config.attention_probs_dropout_prob=0.0", "run.log_every=1"]


def assert_same_training(a: Path, b: Path) -> None:
    """The same losses and gradient lengths at every step: each depends on all updates before it.

    Weights are no measure: where a gradient is zero but for rounding, AdamW makes whole steps of the rounding.
    """
    for name in ("loss", "grad_norm"):
        values = [[line[name] for line in log_lines(run) if name in line] for run in (a, b)]
        assert len(values[0]) > 4
        np.testing.assert_allclose(*values, rtol=2e-3)


def test_two_processes_train_as_one(write_recipe, tmp_path):
    # Small steps: after large ones AdamW's steps of rounding show in the gradient's length, by 2 % on some processors.
    small = {"lr": 1e-5, "lr_items": 1e-4}
    path = write_recipe([{**PRETRAIN, "steps": 3}, {**FINETUNE, **small, "steps": 3, "batch_size": 32}])
    config = ROOT / "recipes" / "accelerate" / "two_processes_cpu.yaml"
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(config))
    process = launch(path, *STILL, f"run.output_dir={tmp_path / 'two'}", launcher=launcher)
    one = train(path, *STILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    assert_same_training(tmp_path / "two", tmp_path / "run")


def test_saving_memory_does_not_change_what_is_learned(write_recipe, tmp_path):
    path = write_recipe([{**FINETUNE, "steps": 5, "evaluate_every_steps": 5}])
    train(path, *STILL, f"run.output_dir={tmp_path / 'plain'}")
    train(path, *STILL, "phases.0.gradient_accumulation=4", "run.activation_checkpointing=true")
    assert_same_training(tmp_path / "run", tmp_path / "plain")


def test_slices_keep_the_negatives_of_the_whole_batch_unless_told_otherwise(write_recipe, tmp_path):
    path = write_recipe([{**PRETRAIN, "steps": 5}])
    train(path, *STILL, f"run.output_dir={tmp_path / 'plain'}")
    cut = [*STILL, "phases.0.gradient_accumulation=4"]
    train(path, *cut, "run.activation_checkpointing=true")
    assert_same_training(tmp_path / "run", tmp_path / "plain")
    train(path, *cut, "phases.0.negatives=slice", f"run.output_dir={tmp_path / 'slices'}")
    whole, own = (log_lines(tmp_path / name)[0]["contrastive"] for name in ("plain", "slices"))
    assert own < whole - 1  # the next item among 4 instead of 16: ln 4 less


# ------------------------------------------------------------------------------------------------ optimisation


def test_learning_rate_rises_then_falls():
    linear = [learning_rate_factor(step, 10, 0.2, "linear") for step in range(10)]
    assert linear == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert learning_rate_factor(6, 10, 0.2, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(9, 10, 0.0, "constant") == 1.0
    recformer = [learning_rate_factor(step, 10, 0.2, "recformer") for step in (1, 2, 9, 10, 12)]
    assert recformer == pytest.approx([2 / 3, 0.8, 0.1, 0, 0])


@pytest.fixture
def fine_tuned(tiny_config):
    tiny_config.num_items, tiny_config.history_items = 12, 2
    return Jepa4RecForSequentialRecommendation(tiny_config)


def test_items_have_a_rate_of_their_own_and_norms_and_biases_do_not_decay(fine_tuned):
    names = {parameter: name for name, parameter in fine_tuned.named_parameters()}
    seen = {}
    for group in parameter_groups(fine_tuned, lr=1.0, lr_items=2.0, weight_decay=0.1):
        seen |= {names[p]: (group["peak_lr"], group["weight_decay"]) for p in group["params"]}
    assert seen.keys() == set(names.values())
    assert seen["item_matrix.weight"] == (2.0, 0.1) and seen["log_scale"] == (2.0, 0.0)
    assert seen["jepa4rec.encoder.layer.0.intermediate.dense.weight"] == (1.0, 0.1)
    assert seen["jepa4rec.encoder.layer.0.intermediate.dense.bias"] == (1.0, 0.0)
    assert seen["jepa4rec.embeddings.LayerNorm.weight"] == (1.0, 0.0)


def test_heads_that_begin_anew_may_have_a_rate_of_their_own(tiny_config):
    model = Jepa4RecForPreTraining(tiny_config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, lr=1.0, lr_items=2.0, weight_decay=0.1, lr_heads=3.0)
    seen = {names[p]: group["peak_lr"] for group in groups for p in group["params"]}
    assert seen["predictor.next.0.weight"] == seen["lm_head.dense.weight"] == 3.0
    assert seen["jepa4rec.embeddings.word_embeddings.weight"] == 1.0  # the token head decodes through them


def test_frozen_layers_are_not_recorded_for_the_backward_pass(fine_tuned):
    freeze(fine_tuned, word_embeddings=False, layers=1)
    outputs = []
    for layer in fine_tuned.jepa4rec.encoder.layer:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    fine_tuned.train().jepa4rec(torch.tensor([[2, 5, 6]]))
    assert [output.requires_grad for output in outputs] == [False, True]
    with pytest.raises(ValueError, match="freeze_layers is 3, the encoder has 2 layers"):
        freeze(fine_tuned, word_embeddings=False, layers=3)


def test_masked_tokens_may_be_learned_in_fine_tuning_and_the_head_comes_from_pre_training(write_recipe, tmp_path):
    tuned = {**FINETUNE, "steps": 4, "lr": 1e-9, "lr_items": 1e-9}
    path = write_recipe([{**PRETRAIN, "steps": 60, "lr": 5e-3}, tuned], telemetry_every=0)
    train(path, *STILL, "phases.1.objective.mlm_weight=0.1")
    lines = log_lines(tmp_path / "run")
    before, after = ([line["mlm"] for line in lines if line.get("kind") == kind and "mlm" in line] for kind in KINDS)
    assert np.mean(after) < 0.8 * before[0] and np.mean(after) < np.mean(before[-5:]) + 1
    again = Jepa4RecForSequentialRecommendation.from_pretrained(tmp_path / "run" / "checkpoint")
    assert again.config.token_head and "lm_head.bias" in again.state_dict()


KINDS = ("pretrain", "finetune")

# ------------------------------------------------------------------------------------------------ ST5

ST5 = [
    "model.family=st5rec", "tokenizer.vocab_size=150",
    "model.config={d_model: 16, d_kv: 8, d_ff: 32, num_layers: 1, num_heads: 2, projection_size: 16}",
]  # fmt: skip
PAIRS = {"batch_size": 16, "lr": 1e-2, "evaluate_every_epochs": 0.0, "max_items": 2}
ST5_PHASES = [
    {"kind": "item_description", "description": ["brand", "category"], "steps": 4, **PAIRS, "batch_size": 12},
    {"kind": "sequence_sequence", "steps": 4, **PAIRS, "gradient_accumulation": 4},
    {"kind": "sequence_item", "steps": 24, **PAIRS, "gradient_accumulation": 2},
]


def test_the_phases_of_st5_learn_and_an_interrupted_one_goes_on(write_recipe, tmp_path, monkeypatch):
    path = write_recipe(ST5_PHASES, save_every=6)
    record = train(path, *ST5, "run.telemetry_every=4")
    assert record["metrics"]["ndcg@10"] > record["zero_shot"]["ndcg@10"] + 0.03
    kinds = [line["kind"] for line in log_lines(tmp_path / "run") if "effective_rank" in line]
    assert kinds == ["item_description", "sequence_sequence", *["sequence_item"] * 6]
    assert "**sequence_sequence**" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    whole = weights(tmp_path / "run")

    def stop(training, *arguments):
        if training.index == 2 and training.progress.step == 8:
            raise KeyboardInterrupt
        return optimiser_step(training, *arguments)

    optimiser_step = train_accelerate.optimiser_step
    monkeypatch.setattr(train_accelerate, "optimiser_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(path, *ST5, f"run.output_dir={tmp_path / 'again'}")
    monkeypatch.undo()
    train(path, *ST5, f"run.output_dir={tmp_path / 'again'}", "run.resume=true")
    assert_same_weights(weights(tmp_path / "again"), whole)


def test_without_phases_the_starting_weights_are_measured(write_recipe, tmp_path):
    record = train(write_recipe([]), *ST5)
    assert "zero_shot" not in record and record["validation_metrics"]["mrr"] > 0
    assert "nothing was trained" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    start = ["model.config={}", f"model.init={tmp_path / 'run' / 'checkpoint'}", f"run.output_dir={tmp_path / 'b'}"]
    again = train(write_recipe([]), *start)
    assert again["metrics"] == record["metrics"]


def test_phases_of_st5_train_our_other_encoder_too(write_recipe):
    record = train(write_recipe([{**ST5_PHASES[2], "negatives": "slice"}]))
    assert record["metrics"]["ndcg@10"] > record["zero_shot"]["ndcg@10"]


def test_a_sentence_t5_learns_by_full_softmax_too(write_recipe):
    record = train(write_recipe([{"kind": "finetune", "history_items": 2, "steps": 2, "batch_size": 8}]), *ST5)
    assert 0 < record["metrics"]["mrr"] < 1


def test_a_sentence_t5_from_scratch_is_pre_trained_by_jepa_and_masks_by_a_sentinel(write_recipe, tmp_path):
    record = train(write_recipe([{**PRETRAIN, "max_items": 3, "steps": 2, "batch_size": 8}]), *ST5)
    assert 0 < record["metrics"]["mrr"] < 1
    assert ItemSentTokenizer.from_pretrained(tmp_path / "run" / "checkpoint").mask_token == "<extra_id_4>"


def test_descriptions_that_no_item_has_are_named(write_recipe):
    phase = {"kind": "item_description", "description": ["blurb"], "batch_size": 8, "steps": 1}
    with pytest.raises(ValueError, match="no item has both a title and one of the attributes"):
        train(write_recipe([phase]), *ST5)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79 GiB",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 22011707392 bytes.",
    ],
)
def test_a_batch_too_long_for_memory_says_what_to_lower(write_recipe, monkeypatch, message):
    def full(*_):
        raise torch.OutOfMemoryError(message)

    monkeypatch.setattr(train_accelerate, "optimiser_step", full)
    with pytest.raises(ValueError, match=r"needs (20.50 GiB|22011707392 bytes) more.*lower phases.0.batch_size"):
        train(write_recipe([{"kind": "pretrain", "steps": 2, "batch_size": 4}]))


def test_memory_that_runs_out_outside_of_steps_says_the_way_out_and_the_run_goes_on(write_recipe, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has 79 GiB")

    path = write_recipe([{**PRETRAIN, "steps": 2}])
    for place, told in (
        ("jepa4rec.training.phases.phase.evaluate_validation", "phases.0, outside .* or lower phases.0.max_items"),
        ("train_accelerate.rank_test_split", "test split needs 20.50 GiB .*run.resume=true.*state by .*--batch"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=told):
            patch.setattr(place, full)
            train(path, "run.resume=true")
    assert 0 < train(path, "run.resume=true")["metrics"]["mrr"] < 1


@pytest.mark.slow  # compiles C++
def test_compiling_what_sees_tokens_one_by_one_changes_nothing(tiny_config):
    from jepa4rec.modeling_jepa4rec import Jepa4RecModel
    from jepa4rec.training.optimisation import compile_token_wise

    model = Jepa4RecModel(tiny_config).eval()
    ids = torch.randint(5, 100, (3, 9))
    plain = model.embed(ids)
    compile_token_wise(model)
    torch.testing.assert_close(model.embed(ids), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.embed(ids[:2, :5]), model.embed(ids[:2, :5]))
    with pytest.raises(ValueError, match="for jepa4rec encoders"):
        compile_token_wise(BareModel())


class BareModel(torch.nn.Module):
    @property
    def base_model(self):
        return self


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: whether a step waits cannot be seen")
@pytest.mark.parametrize("kind", ["pretrain", "finetune", "item_sequence", "gru4rec", "bert4rec", "s3rec"])
def test_no_step_waits_for_the_gpu(write_recipe, monkeypatch, kind):
    step = train_accelerate.optimiser_step

    def watched(training, slices):
        if training.progress.step < 2:  # what is set up once may wait
            return step(training, slices)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(training, slices)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train_accelerate, "optimiser_step", watched)
    phase, settings = {"kind": kind, "steps": 4, "batch_size": 4}, []
    if kind in SEQUENCE_MODELS:
        phase |= {"kind": "sequence", "objective": SEQUENCE_MODELS[kind].objectives[-1]}
        settings = ["tokenizer={}", f"model={{baseline: {kind}, config: {{hidden_size: 16}}}}"]
    train(write_recipe([phase], telemetry_every=0, log_every=4), *settings)
