"""Every family in the registry keeps the plug's promises: the same heads train around it, save and open again."""

import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, WITHOUT_PACKAGE
from processes import ask_stranger
from tiny_batches import VOCABULARY, finetuning_batch, pretraining_batch
from tiny_batches import tiny_config as small_config
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from jepa4rec.baselines.sasrec import SasRec, SasRecConfig
from jepa4rec.hub.opening import (
    ENCODERS,
    check_weights,
    encoder_class,
    find_checkpoint,
    is_fine_tuned,
    open_encoder,
    open_pipeline,
    pretraining_class,
    read_config,
    recommendation_class,
)
from jepa4rec.losses_seqrec import FineTuningObjective, PreTrainingObjective
from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.modeling_st5rec import St5RecConfig
from jepa4rec.modeling_textrec import TextRecConfig
from jepa4rec.serving.pipeline_item_ids import save_item_checkpoint
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "item_position_ids")
ENCODER_OF = {"jepa4rec": "jepa4rec", "st5rec": "st5rec", "modernbert": "textrec", "qwen3": "textrec"}
WITHOUT_TABLE = ("st5rec",)  # encoders without item positions of their own


def family_config(family: str, **changes):
    """The smallest model of each family, without dropout."""
    if family == "jepa4rec":
        return small_config(**changes)
    if family == "st5rec":
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "projection_size": 12}
        return St5RecConfig(vocab_size=VOCABULARY, dropout_rate=0.0, **shape, **changes)
    text = {"model_type": family, "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}
    if family == "modernbert":
        text |= {"local_attention": 4, "layer_types": ["full_attention", "sliding_attention"], "pad_token_id": 0}
    else:
        text |= {"num_key_value_heads": 1, "head_dim": 8}
    return TextRecConfig(text_config=text, pooling="last" if family == "qwen3" else "cls", **changes)


def new_model(family: str, kind: str, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    encoder = ENCODERS[ENCODER_OF[family]]
    heads = {"pretraining": encoder.pretraining_class, "fine-tuned": encoder.recommendation_class}
    return heads.get(kind, encoder)(family_config(family, **changes))


def texts() -> dict[str, torch.Tensor]:
    return {name: value for name, value in pretraining_batch().items() if name in INPUTS}


@pytest.fixture(params=list(ENCODER_OF))
def family(request):
    return request.param


def test_every_encoder_is_tried_here():
    assert set(ENCODER_OF.values()) == set(ENCODERS)


def test_an_encoder_has_what_the_plug_asks_for(family):
    model, batch = new_model(family, "encoder").eval(), texts()
    out = model(**batch)
    assert out.last_hidden_state.shape == (*batch["input_ids"].shape, model.config.hidden_size)
    assert out.pooler_output.shape == (6, model.config.vector_size)
    torch.testing.assert_close(model.embed(**batch), out.pooler_output)
    torch.testing.assert_close(model.embed(*(batch[name] for name in INPUTS)), out.pooler_output)
    embeddings, *layers = model.stages()
    assert len(layers) == model.config.num_hidden_layers
    words = model.get_input_embeddings()
    assert words.num_embeddings == VOCABULARY and any(part is words.weight for part in embeddings.parameters())
    assert (model.get_item_position_embeddings() is None) == (family in WITHOUT_TABLE)
    for head in (model.pretraining_class, model.recommendation_class):
        assert head.encoder_class is type(model) and head.__module__ == type(model).__module__


def test_padding_changes_no_vector(family):
    model, batch = new_model(family, "encoder").eval(), texts()
    together = model.embed(**batch)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = model.embed(**{name: value[row : row + 1, :length] for name, value in batch.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_a_row_without_a_token_is_named(family):
    batch = texts()
    batch["attention_mask"][3] = 0
    with pytest.raises(ValueError, match="Row 3"):
        new_model(family, "encoder")(**batch)


def test_jepa_pre_training_moves_every_part_but_the_target_encoder(family):
    model = new_model(family, "pretraining")
    out = model(**pretraining_batch(), telemetry=True)
    assert list(out.loss_parts) == ["contrastive", "mlm", "map"] and out.telemetry
    out.loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"target_encoder.{name}" for name, _ in model.target_encoder.named_parameters()}
    assert model.lm_head.decoder.weight is model.base_model.get_input_embeddings().weight


def test_new_layers_begin_small(family):
    model = new_model(family, "pretraining")
    layers = [model.predictor.history[0], model.predictor.next[2], model.lm_head.dense]
    assert all(0.01 < layer.weight.std() < 0.03 for layer in layers)


@pytest.mark.slow("trains every family")
def test_jepa_pre_training_learns(family):
    model = new_model(family, "pretraining")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(20):
        out = model(**pretraining_batch())
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_target_encoder(0.99)
        losses.append(out.loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


def test_an_item_older_than_the_predictors_table_takes_its_last_row(family):
    model, batch = new_model(family, "pretraining"), pretraining_batch()
    table = model.base_model.get_item_position_embeddings() or model.predictor.item_position_embeddings
    torch.nn.init.normal_(table.weight)
    parts = []
    for position in (table.num_embeddings - 1, table.num_embeddings + 7, 1):
        batch["masked_item_positions"] = torch.full((6,), position)
        parts.append(model(**batch).loss_parts["map"].item())
    assert parts[0] == parts[1] != parts[2]


def test_without_the_mapping_loss_the_predictor_waits(family):
    model = new_model(family, "pretraining")
    model.objective = PreTrainingObjective(map_weight=0.0)
    assert not any(parameter.requires_grad for parameter in model.predictor.parameters())
    model(**pretraining_batch()).loss.backward()


@pytest.mark.slow("trains every family")
@pytest.mark.parametrize("history_items", [0, 3])
def test_fine_tuning_learns_the_targets(family, history_items):
    model = new_model(family, "fine-tuned", num_items=9, history_items=history_items).train()
    model.objective = FineTuningObjective(item_matrix="learnable")
    model.initialise_items(torch.randn(9, model.config.vector_size))
    batch = finetuning_batch(9)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        out = model(**batch)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
    assert model.item_vectors().shape == (9, model.config.vector_size)


def test_a_pre_trained_checkpoint_opens_as_encoder_as_itself_and_as_a_fine_tuned_model(family, tmp_path):
    model = new_model(family, "pretraining").eval()
    model.save_pretrained(tmp_path)
    batch = texts()
    assert encoder_class(tmp_path) is ENCODERS[ENCODER_OF[family]]
    again, info = pretraining_class(tmp_path).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    wanted = model.base_model.embed(**batch)
    tuned = recommendation_class(tmp_path).from_pretrained(tmp_path, num_items=4)
    for opened in (open_encoder(tmp_path), again, tuned):
        torch.testing.assert_close(opened.base_model.embed(**batch), wanted)
    assert is_fine_tuned(tuned) and not is_fine_tuned(again) and not is_fine_tuned(read_config(tmp_path))


def test_an_encoder_begins_both_heads(family, tmp_path):
    encoder = new_model(family, "encoder").eval()
    encoder.save_pretrained(tmp_path)
    model = encoder.pretraining_class.from_pretrained(tmp_path)
    torch.testing.assert_close(model.target_encoder.embed(**texts()), encoder.embed(**texts()))
    assert not any(parameter.requires_grad for parameter in model.target_encoder.parameters())


def test_transformers_own_classes_open_a_checkpoint_without_trusting_its_code(family, tmp_path):
    new_model(family, "pretraining").save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ENCODERS[ENCODER_OF[family]].config_class
    assert type(AutoModel.from_pretrained(tmp_path)) is ENCODERS[ENCODER_OF[family]]
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is ENCODERS[ENCODER_OF[family]].pretraining_class


def test_a_resized_vocabulary_is_that_of_every_part(family):
    model = new_model(family, "pretraining")
    before = model.target_encoder.embed(**texts())
    for size in (VOCABULARY + 7, VOCABULARY):
        words = model.resize_token_embeddings(size)
        assert words.num_embeddings == model.target_encoder.get_input_embeddings().num_embeddings == size
        assert len(model.lm_head.bias) == size and model.lm_head.decoder.weight is words.weight
        torch.testing.assert_close(model.target_encoder.embed(**texts()), before)
    out = model(**pretraining_batch())
    out.loss.backward()
    assert model.lm_head.bias.grad is not None and words.weight.grad is not None
    assert not any(parameter.requires_grad for parameter in model.target_encoder.parameters())


def test_what_wrappers_hand_on_is_taken_when_it_is_none(family):
    """As peft does for FEATURE_EXTRACTION."""
    model = new_model(family, "encoder").eval()
    handed = {"inputs_embeds": None, "output_attentions": None, "output_hidden_states": None, "return_dict": None}
    assert torch.equal(model(**texts(), **handed).pooler_output, model(**texts()).pooler_output)
    with pytest.raises(ValueError, match="inputs_embeds is not for this model"):
        model(**texts(), inputs_embeds=torch.zeros(1))


def test_weights_may_stay_on_disk(family, tmp_path):
    new_model(family, "encoder").save_pretrained(tmp_path / "saved")
    offloaded = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "offload")}
    model = AutoModel.from_pretrained(tmp_path / "saved", **offloaded).eval()
    assert all(parameter.is_meta for parameter in model.parameters())
    expected = AutoModel.from_pretrained(tmp_path / "saved").eval()(**texts()).pooler_output
    torch.testing.assert_close(model(**texts()).pooler_output, expected)


@pytest.mark.parametrize("changes", [{"num_items": -1}, {"history_items": -2}, {"history_text": False}])
def test_every_configuration_checks_its_history(family, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        family_config(family, **changes)


def test_a_fine_tuned_model_needs_a_catalogue(family):
    with pytest.raises(ValueError, match="num_items"):
        new_model(family, "fine-tuned")


def test_a_run_has_its_checkpoint_inside(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    assert (
        find_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint") == find_checkpoint(str(tmp_path / "checkpoint"))
    )
    assert find_checkpoint("someone/model") == "someone/model"
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        find_checkpoint("no/such/place")


def test_weights_that_are_no_numbers_are_named():
    model = new_model("jepa4rec", "encoder")
    check_weights("here", model)
    model.embeddings.LayerNorm.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"here: the weights embeddings\.LayerNorm\.bias"):
        check_weights("here", model)


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", '{"model_type": "jepa4rec", "hidden_size": "wide"}'),
        ("config.json", '{"model_type": "sasrec", "num_items": null}'),
        ("config.json", '{"model_type": "sasrec", "num_items": 3, "dtype": "é"}'),
        ("model.safetensors", "x"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", '{"cls_token": []}'),
        ("tokenizer_config.json", "{}"),
        ("config.json", f'{{"model_type": "sasrec", "num_items": 3, "num_hidden_layers": {10**400}}}'),
        ("config.json", f'{{"model_type": "jepa4rec", "num_hidden_layers": {10**400}}}'),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, tiny_tokenizer, name, content):
    model = new_model("jepa4rec", "encoder")
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        open_pipeline(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.slow("imports torch in a process of its own")
def test_the_package_registers_its_classes_when_it_is_imported(tmp_path, tiny_tokenizer):
    new_model("jepa4rec", "encoder").save_pretrained(tmp_path / "encoder")
    tiny_tokenizer.save_pretrained(tmp_path / "encoder")
    save_item_checkpoint(SasRec(SasRecConfig(num_items=3)), tmp_path / "sasrec")
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import jepa4rec
assert "torch" not in sys.modules and "transformers" not in sys.modules
import torch  # once for all orders, each of which has a fork
for first in sys.argv[1:]:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, first
        continue
    exec(first)
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    for kind in (AutoTokenizer, AutoConfig, AutoModel):
        assert type(kind.from_pretrained("encoder")).__module__.startswith("jepa4rec."), kind
    assert type(AutoModel.from_pretrained("sasrec")).__module__ == "jepa4rec.baselines.sasrec"
    print("registered", flush=True)
    os._exit(0)
"""
    # What is imported first: transformers' classes, what imports them half-way, ours that import them half-way.
    orders = ["", "from transformers import pipeline", "import jepa4rec.serving.pipeline_seqrec"]
    done = subprocess.run([sys.executable, "-c", code, *orders], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("registered") == len(orders), done.stderr


TWO_CODES = """
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained("checkpoint", trust_remote_code=True)
batch = tokenizer([[{"title": "Tea"}]], return_tensors="pt")
places = ("checkpoint", "other/checkpoint", "checkpoint")
models = [AutoModel.from_pretrained(place, trust_remote_code=True) for place in places]
first, second, again = (model(**batch).pooler_output for model in models)
assert torch.equal(second, 2 * first) and torch.equal(first, again)
pipes = [pipeline("sequential-recommendation", model=place, trust_remote_code=True) for place in places]
pipes += [pipeline("sequential-recommendation", model=m, tokenizer=pipes[0].tokenizer) for m in models]
for pipe in pipes:
    pipe.add_items([{"item_id": str(row), "title": "Tea"} for row in range(20)])
assert [len(pipe({"history": ["0"]})) for pipe in pipes] == [10, 2, 10, 10, 2, 10]
"""


@pytest.mark.slow("opens checkpoints in a process of a stranger")
def test_two_checkpoints_in_one_process_run_each_its_own_code(tmp_path, tiny_config, tiny_tokenizer):
    save_checkpoint_files(Jepa4RecModel(tiny_config), tiny_tokenizer, tmp_path / "checkpoint")
    other = shutil.copytree(tmp_path / "checkpoint", tmp_path / "other" / "checkpoint")
    for name, old, new in (
        ("modeling_jepa4rec.py", "pooler_output=self._pool(hidden", "pooler_output=2 * self._pool(hidden"),
        ("pipeline_catalogue.py", "top_k: int = 10", "top_k: int = 2"),
    ):
        code = (other / name).read_text(encoding="utf-8")
        assert code.count(old) == 1
        (other / name).write_text(code.replace(old, new), encoding="utf-8")
    ask_stranger("-c", WITHOUT_PACKAGE + TWO_CODES, home=tmp_path)
