"""The encoder is Longformer, RoBERTa or BERT to 1e-5, forward and backward, and `embed` is its pooled output."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    LongformerConfig,
    LongformerModel,
    RobertaConfig,
    RobertaModel,
)

from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.serving.whitening_seqrec import Whitening

VOCABULARY, CLS = 60, 2
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 1030,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}
FAMILIES = {
    "longformer": (LongformerModel, LongformerConfig(attention_window=[64, 64], **SHAPE)),
    "roberta": (RobertaModel, RobertaConfig(**SHAPE)),
    "bert": (BertModel, BertConfig(**SHAPE)),
}
OURS = {
    "longformer": {"attention_window": 64, "position_offset": 2},
    "roberta": {"position_offset": 2},
    "bert": {"position_offset": 0},
}


def small_config(family: str = "bert", **changes) -> Jepa4RecConfig:
    return Jepa4RecConfig(**{**SHAPE, **OURS[family], **changes})


def new_model(family: str = "bert", **changes) -> Jepa4RecModel:
    torch.manual_seed(0)
    model = Jepa4RecModel(small_config(family, **changes)).eval()
    return roughen(model)


def roughen(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their tidy start, so that a forgotten bias or LayerNorm shows."""
    for parameter in model.parameters():
        parameter.data.mul_(4).add_(0.1 * torch.randn_like(parameter))
    return model


def pair(family: str):
    """A transformers model and ours with its weights."""
    torch.manual_seed(0)
    model_class, config = FAMILIES[family]
    source = roughen(model_class(config, add_pooling_layer=False)).eval()
    ours = Jepa4RecModel(small_config(family)).eval()
    weights = source.state_dict()
    types = "embeddings.token_type_embeddings.weight"
    weights[types] = weights[types][:1].expand(4, -1)
    weights["embeddings.item_position_embeddings.weight"] = torch.zeros(51, SHAPE["hidden_size"])
    ours.load_state_dict({key: value for key, value in weights.items() if key in ours.state_dict()})
    return source, ours


def padded_batch(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator)
    ids[:, 0] = CLS
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def source_output(family: str, source, batch: dict) -> torch.Tensor:
    extra = {}
    if family == "longformer":
        extra["global_attention_mask"] = torch.zeros_like(batch["input_ids"]).index_fill_(1, torch.tensor([0]), 1)
    return source(**batch, **extra).last_hidden_state


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


def assert_equal_gradients(ours: dict, theirs: dict) -> None:
    """Equal to 1e-5 of the largest gradient of each parameter."""
    for name, expected in theirs.items():
        scale = expected.abs().max().clamp(min=1.0)
        difference = (ours[name] - expected).abs().max() / scale
        assert difference <= 1e-5, f"{name}: {difference}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "lengths", [[1], [63], [64], [65], [300], [64, 1, 33], [65, 64, 2], [300, 129, 63], [1024, 300]], ids=str
)
def test_equals_transformers_forward_and_backward(family, lengths):
    source, ours = pair(family)
    batch = padded_batch(lengths)
    valid = batch["attention_mask"][..., None]
    expected, out = source_output(family, source, batch), ours(**batch)
    torch.testing.assert_close(out.last_hidden_state * valid, expected * valid, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.pooler_output, expected[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.embed(**batch), expected[:, 0], rtol=0, atol=1e-5)

    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)) * valid / valid.sum()
    theirs = gradients((expected * weights).sum(), source)
    mine = gradients((out.last_hidden_state * weights).sum(), ours)
    types = "embeddings.token_type_embeddings.weight"
    theirs[types], mine[types] = theirs[types].sum(0), mine[types].sum(0)
    mine.pop("embeddings.item_position_embeddings.weight")
    assert mine.keys() == theirs.keys()
    assert_equal_gradients(mine, theirs)


@pytest.mark.parametrize("family", ["longformer", "bert"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("lengths", [[1, 1], [40, 12], [250, 7, 193]], ids=str)
def test_embed_is_the_pooled_output(family, pooling, lengths):
    model = new_model(family, pooling=pooling).train()
    batch = padded_batch(lengths)
    batch["item_position_ids"] = torch.arange(max(lengths)).div(9, rounding_mode="floor").expand(len(lengths), -1)
    pooled, embedded = model(**batch).pooler_output, model.embed(**batch)
    torch.testing.assert_close(embedded, pooled, rtol=0, atol=1e-5)
    slow, fast = gradients(pooled.square().sum(), model), gradients(embedded.square().sum(), model)
    assert_equal_gradients(fast, slow)


def test_mean_pooling_is_over_valid_tokens():
    model = new_model(pooling="mean")
    batch = padded_batch([9, 4])
    out = model(**batch)
    torch.testing.assert_close(out.pooler_output[1], out.last_hidden_state[1, :4].mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_comes_out_as_zeros_and_its_place_does_not_matter(family):
    model = new_model(family)
    batch = padded_batch([230, 70])
    left = {name: torch.stack([value[0], value[1].roll(160)]) for name, value in batch.items()}
    right_out, left_out = model(**batch), model(**left)
    assert not right_out.last_hidden_state[1, 70:].any()
    torch.testing.assert_close(left_out.last_hidden_state[1, 160:], right_out.last_hidden_state[1, :70])
    torch.testing.assert_close(left_out.pooler_output, right_out.pooler_output)


def test_without_types_and_positions_a_row_is_one_item():
    model = new_model()
    batch = padded_batch([6, 3])
    types = torch.tensor([[0, 2, 2, 2, 2, 2], [0, 2, 2, 3, 3, 3]])
    items = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]])
    spelled_out = model(**batch, token_type_ids=types, item_position_ids=items)
    assert torch.equal(model(**batch).pooler_output, spelled_out.pooler_output)
    assert torch.equal(model(batch["input_ids"]).pooler_output, spelled_out.pooler_output), "padding ids are no tokens"
    other = model(**batch, token_type_ids=types, item_position_ids=2 * items)
    assert not torch.allclose(other.pooler_output, spelled_out.pooler_output)


@pytest.mark.parametrize("family", ["longformer", "bert"])
def test_every_parameter_gets_a_gradient_from_embed(family):
    """Distributed training waits for each of them."""
    model = new_model(family).train()
    model.embed(**padded_batch([12, 5])).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("call", ["forward", "embed"])
def test_activation_checkpointing_changes_no_gradient(call):
    model = new_model("longformer").train()
    batch = padded_batch([230, 70])

    def loss():
        out = model.embed(**batch) if call == "embed" else model(**batch).last_hidden_state
        return out.square().mean()

    plain = gradients(loss(), model)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    assert all(layer.gradient_checkpointing for layer in model.encoder.layer)
    assert_equal_gradients(gradients(loss(), model), plain)


@pytest.mark.parametrize("family", ["longformer", "bert"])
def test_dropout_in_training_only(family):
    model = new_model(family, attention_probs_dropout_prob=0.5)
    batch = padded_batch([20, 12])
    assert torch.equal(model.embed(**batch), model.embed(**batch))
    model.train()
    assert not torch.allclose(model.embed(**batch), model.embed(**batch))
    assert not torch.allclose(model(**batch).last_hidden_state, model(**batch).last_hidden_state)


@pytest.mark.parametrize("family", ["longformer", "bert"])
def test_bfloat16_is_near(family):
    torch.manual_seed(0)
    model = Jepa4RecModel(small_config(family)).eval()
    batch = padded_batch([230, 70])
    expected = model(**batch).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch)
        embedded = model.embed(**batch)
    torch.testing.assert_close(mixed.last_hidden_state.float(), expected, rtol=0, atol=0.06)
    torch.testing.assert_close(embedded.float(), expected[:, 0], rtol=0, atol=0.06)
    mixed.last_hidden_state.float().square().sum().backward()
    model.to(torch.bfloat16)
    assert model.embed(**batch).dtype == torch.bfloat16
    torch.testing.assert_close(model.embed(**batch).float(), expected[:, 0], rtol=0, atol=0.1)


def test_fresh_weights():
    model = Jepa4RecModel(small_config(initializer_range=0.02))
    for table in ("token_type", "item_position", "position"):
        weight = getattr(model.embeddings, f"{table}_embeddings").weight
        assert 0.01 < weight.std() < 0.03
    assert not model.embeddings.word_embeddings.weight[1].any(), "the padding row"
    assert torch.equal(model.embeddings.LayerNorm.weight, torch.ones(24))


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "Row 1 of the batch has no token"),
        ({"input_ids": torch.full((2, 3), VOCABULARY)}, "input_ids lie between .* the model's table has 60 rows"),
        ({"item_position_ids": torch.full((2, 3), 51)}, "item_position_ids lie between"),
        ({"token_type_ids": torch.full((2, 3), -1)}, "token_type_ids lie between"),
        ({"token_type_ids": torch.zeros(2, 4, dtype=torch.long)}, r"another input is \(2, 4\)"),
        ({"output_hidden_states": True}, "keeps no outputs"),
        ({"output_attentions": True}, "keeps no outputs"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        new_model()(**{**padded_batch([3, 2]), **change})


def test_too_long_a_row_is_named():
    model = Jepa4RecModel(small_config("roberta", max_position_embeddings=12))
    assert model(**padded_batch([3, 10])).last_hidden_state.shape == (2, 10, 24)
    with pytest.raises(ValueError, match="Row 1 has 11 tokens, the model reads at most 10"):
        model(**padded_batch([3, 11]))


# ---------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("model_class", [Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation])
def test_a_checkpoint_with_heads_opens_as_the_encoder_without_noise(model_class, tmp_path, capfd):
    model = model_class(small_config("longformer", num_items=3, history_items=2)).eval()
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    encoder, info = Jepa4RecModel.from_pretrained(tmp_path, output_loading_info=True)
    printed = "".join(capfd.readouterr())
    assert "UNEXPECTED" not in printed and "MISSING" not in printed and "warn" not in printed.lower()
    assert not info["missing_keys"] and not info["mismatched_keys"]
    batch = padded_batch([30, 200])
    assert torch.equal(encoder.embed(**batch), model.jepa4rec.embed(**batch))


def test_a_truncated_file_is_a_clear_error(tmp_path):
    new_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        Jepa4RecModel.from_pretrained(tmp_path)


def test_a_checkpoint_of_another_kind_is_a_clear_error(tmp_path):
    BertModel(FAMILIES["bert"][1]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='is a "bert" checkpoint, not a "jepa4rec" one.*import_checkpoint'):
        Jepa4RecModel.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_a_clear_error(tmp_path):
    new_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights have other shapes than its config.json"):
        Jepa4RecModel.from_pretrained(tmp_path, max_item_embeddings=20)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere is no checkpoint folder"):
        Jepa4RecModel.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("model_class", [Jepa4RecModel, Jepa4RecForPreTraining])
def test_missing_encoder_weights_are_an_error_not_random_numbers(model_class, tmp_path):
    from safetensors.torch import load_file, save_file

    new_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of the encoder.*layer.1.output.dense.bias"):
        model_class.from_pretrained(tmp_path)


def test_weights_and_code_are_saved_and_nothing_is_pickled(tmp_path):
    Jepa4RecForPreTraining(small_config()).save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.iterdir()}
    modules = {f"{role}_jepa4rec.py" for role in ("configuration", "modeling", "attention")}
    modules |= {"losses_seqrec.py", "modeling_seqrec.py"}
    served = {f"{name}_seqrec.py" for name in ("pipeline", "catalogue", "encoding", "embedding", "whole_files")}
    served |= {"pipeline_catalogue.py", "whitening_seqrec.py", "modules.json"}
    assert saved == modules | served | {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"].keys() >= {"AutoModel", "AutoConfig"}


def test_another_dtype_can_be_asked_for(tmp_path):
    new_model().save_pretrained(tmp_path)
    assert Jepa4RecModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    copy = tmp_path.parent / "copy_of_checkpoint"
    shutil.copytree(tmp_path, copy)
    loaded = AutoModel.from_pretrained(copy, trust_remote_code=True)
    assert type(loaded).__name__ == "Jepa4RecModel" and loaded.dtype == torch.float32


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_projection_begins_as_the_identity_and_reads_vectors_one_long(pooling, tmp_path):
    torch.manual_seed(0)
    plain = new_model(pooling=pooling).eval()
    projected = Jepa4RecModel(small_config(pooling=pooling, projection=True)).eval()
    projected.load_state_dict(plain.state_dict() | {k: v for k, v in projected.state_dict().items() if "proj" in k})
    ids = torch.randint(5, VOCABULARY, (3, 7)).index_fill(1, torch.tensor([0]), CLS)
    wanted = torch.nn.functional.normalize(plain(ids).pooler_output, dim=1)
    torch.testing.assert_close(projected(ids).pooler_output, wanted)
    torch.testing.assert_close(projected.embed(ids), wanted)
    projected.whiten(*Whitening.fit(torch.randn(100, 24), 1.0))
    projected.save_pretrained(tmp_path)
    again = Jepa4RecModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.embed(ids), projected.embed(ids))
    assert (again.embed(ids) - wanted).abs().max() > 0.1


def test_whitening_makes_directions_equally_strong_by_its_power():
    """Vectors one long whose variances differ a thousandfold; what is left of that in the whitened ones."""
    torch.manual_seed(0)
    vectors = torch.randn(4000, 24) * torch.logspace(0, -1.5, 24) + torch.linspace(1, 0, 24)
    model, spread = new_model(projection=True), []
    for power in (0.0, 0.5, 1.0):
        model.whiten(*Whitening.fit(vectors, power))
        whitened = model._project(vectors).detach()
        variances = torch.linalg.eigvalsh(torch.cov(whitened.T))
        spread.append((variances[-1] / variances[0]).item())
        assert whitened.mean(0).abs().max() < 1e-5 and whitened.square().sum(1).mean() == pytest.approx(1, abs=1e-3)
    assert spread[0] > 100 and spread[1] == pytest.approx(spread[0] ** 0.5, rel=0.1) and spread[2] < 1.2


def test_whitening_needs_a_projection():
    with pytest.raises(ValueError, match="set projection to true"):
        new_model().whiten(*Whitening.fit(torch.randn(50, 24), 1.0))
