"""Any text model of transformers as an encoder: its own numbers, plus tables that begin at nothing."""

import json

import pytest
import torch
from conftest import TINY_ITEMS, WITHOUT_PACKAGE
from processes import ask_stranger
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    BartConfig,
    CLIPVisionConfig,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from jepa4rec.hub.importing import import_checkpoint
from jepa4rec.modeling_textrec import TextRecConfig, TextRecForPreTraining, TextRecModel
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline, save_checkpoint_files
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

HISTORIES = [[TINY_ITEMS[0], TINY_ITEMS[3]], [TINY_ITEMS[7]]]
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


def qwen_tokenizer(rows: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level, as Qwen3-Embedding's: it ends a text with the token that it also pads with, and has no mask."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=rows, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([text for item in TINY_ITEMS for text in item.values()], trainer)
    backend.post_processor = processors.TemplateProcessing("$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def text_config(name: str, rows: int, pad: int):
    if name == "qwen3":
        return Qwen3Config(vocab_size=rows, **SHAPE, num_key_value_heads=1, head_dim=8, max_position_embeddings=96)
    layers = ["full_attention", "sliding_attention", "sliding_attention"]
    ids = {"pad_token_id": pad, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    return ModernBertConfig(
        vocab_size=rows, **SHAPE, max_position_embeddings=96, local_attention=8, layer_types=layers, **ids
    )


@pytest.fixture(scope="module", params=["modernbert", "qwen3"])
def source(request, tmp_path_factory, tiny_backend):
    """A tiny random model of transformers in a folder with tokenizer: name, folder, model, tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = qwen_tokenizer() if request.param == "qwen3" else tiny_backend
    torch.manual_seed(0)
    config = text_config(request.param, len(tokenizer) + 5, tokenizer.pad_token_id)
    config.initializer_range = 0.2
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return request.param, folder, model, tokenizer


@pytest.fixture(scope="module")
def imported(source):
    return import_checkpoint(str(source[1]))


def pooled(name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[m.bool()][-1 if name == "qwen3" else 0] for row, m in zip(hidden, mask, strict=True)])


@torch.no_grad()
def test_same_ids_same_states_and_vectors_as_transformers(source, imported):
    (name, _, theirs, _), (model, tokenizer) = source, imported
    assert isinstance(model, TextRecModel) and model.config.pooling == ("last" if name == "qwen3" else "cls")
    for batch in (
        tokenizer(HISTORIES, return_tensors="pt"),
        tokenizer([item["title"] for item in TINY_ITEMS], padding=True, return_tensors="pt"),
    ):
        ours, ids = model(**batch), {key: batch[key] for key in ("input_ids", "attention_mask")}
        hidden, valid = theirs(**ids).last_hidden_state, batch["attention_mask"].bool()
        torch.testing.assert_close(ours.last_hidden_state[valid], hidden[valid], rtol=0, atol=1e-5)
        wanted = pooled(name, hidden, batch["attention_mask"])
        torch.testing.assert_close(ours.pooler_output, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.embed(**batch), wanted, rtol=0, atol=1e-5)


def test_a_row_opens_with_cls_or_ends_with_what_the_tokenizer_ends_texts_with(source, imported):
    (name, _, _, theirs), (_, tokenizer) = source, imported
    batch = tokenizer(HISTORIES, return_tensors="pt")
    lengths = batch["attention_mask"].sum(1).tolist()
    place = [length - 1 for length in lengths] if name == "qwen3" else [0, 0]
    rows = torch.arange(2)
    cls = theirs("a")["input_ids"][-1] if name == "qwen3" else theirs.cls_token_id
    assert batch["input_ids"][rows, place].tolist() == [cls, cls]
    for key in ("token_type_ids", "item_position_ids"):
        values = batch[key].masked_fill(batch["attention_mask"] == 0, 9)
        assert (values == 0).sum(1).tolist() == [1, 1] and not values[rows, place].any()
    title, text = (theirs(words, add_special_tokens=False)["input_ids"] for words in ("title", "Head torch"))
    item = [cls, *title, *text]
    assert tokenizer({"title": "Head torch"})["input_ids"] == (item[1:] + [cls] if name == "qwen3" else item)
    assert tokenizer.mask_token_id is not None and tokenizer.padding_side == "right"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_that_is_too_long_keeps_its_cls(source, imported, side):
    _, tokenizer = imported
    tokens = tokenizer.encode_items(TINY_ITEMS)
    batch = tokenizer.batch_histories(tokens, [range(12), [3]], max_tokens=20, padding_side=side)
    real = batch["attention_mask"].bool()
    assert real.sum(1).tolist() == [20, min(20, 1 + tokens.lengths[3])]
    assert ((batch["item_position_ids"] == 0) & real).sum(1).tolist() == [1, 1]
    at = -1 if source[0] == "qwen3" else 0
    assert [row[kept][at].item() for row, kept in zip(batch["input_ids"], real, strict=True)] == [
        tokenizer.first_token_id
    ] * 2


def test_the_tables_begin_at_zero_and_learn(imported):
    model, tokenizer = imported
    assert not model.token_type_embeddings.weight.any() and not model.item_position_embeddings.weight.any()
    model.embed(**tokenizer(HISTORIES, return_tensors="pt")).square().sum().backward()
    assert model.token_type_embeddings.weight.grad[:3].any(1).all()
    assert model.item_position_embeddings.weight.grad[:3].any(1).all()
    model.zero_grad()


def test_without_types_and_positions_a_plain_text_is_one_item_of_values(imported):
    model, tokenizer = imported
    text = tokenizer("camping stove", return_tensors="pt")
    last = tokenizer.cls_last
    row = list(range(text["input_ids"].shape[1]))
    cls = row[-1 if last else 0]
    types = torch.tensor([[0 if place == cls else 2 for place in row]])
    items = torch.tensor([[0 if place == cls else 1 for place in row]])
    with torch.no_grad():
        torch.nn.init.normal_(model.token_type_embeddings.weight)
        torch.nn.init.normal_(model.item_position_embeddings.weight)
        wanted = model.embed(text["input_ids"], text["attention_mask"], types, items)
        torch.testing.assert_close(model.embed(text["input_ids"]), wanted)
        for table in (model.token_type_embeddings, model.item_position_embeddings):
            torch.nn.init.zeros_(table.weight)


@pytest.mark.parametrize("template", ["<|im_end|> $A", "<|im_end|> $A <|endoftext|>"])
def test_a_decoder_that_begins_its_texts_with_bos_reads_items_so_too(template, tmp_path):
    source, begin, end = qwen_tokenizer(), 1, 0
    special = [("<|endoftext|>", end), ("<|im_end|>", begin)]
    source.backend_tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=special)
    source.bos_token, source.eos_token = "<|im_end|>", "<|endoftext|>"
    source.save_pretrained(tmp_path)
    AutoModel.from_config(text_config("qwen3", len(source), end)).save_pretrained(tmp_path)
    _, tokenizer = import_checkpoint(str(tmp_path))
    tea = source("tea", add_special_tokens=False)["input_ids"]
    title = source("title", add_special_tokens=False)["input_ids"]
    assert tokenizer("tea")["input_ids"] == [begin, *tea, end]
    batch = tokenizer([[{"title": "tea"}], [{"title": "tea"}, {"title": "tea"}]], return_tensors="np")
    rows = [[begin, *title, *tea, end], [begin, *title, *tea, *title, *tea, end]]
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        assert ids[mask == 1].tolist() == rows[row]
    assert batch["token_type_ids"][1, [0, -1]].tolist() == batch["item_position_ids"][1, [0, -1]].tolist() == [0, 0]
    short = ItemSentTokenizer.wrap(tokenizer, max_tokens=5)([{"title": "tea"}] * 2)["input_ids"]
    assert short == [begin, *rows[1][1:4], end]
    plain = ItemSentTokenizer.wrap(tokenizer, sentence="unstructured")({"title": "tea"})["input_ids"]
    assert (plain[0], plain[-1]) == (begin, end)


def test_stages_are_the_embeddings_with_their_tables_and_the_layers(imported):
    model, _ = imported
    embeddings, *layers = model.stages()
    names = {name for name, p in model.named_parameters() if any(p is own for own in embeddings.parameters())}
    assert {"token_type_embeddings.weight", "item_position_embeddings.weight"} < names
    assert layers == list(model.text_model.layers) and not any("layers" in name for name in names)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_pooling(imported, pooling):
    encoder, tokenizer = imported
    model = TextRecModel(TextRecConfig(text_config=encoder.config.text_config, pooling=pooling)).eval()
    model.load_state_dict(encoder.state_dict())
    batch = tokenizer(HISTORIES, return_tensors="pt")
    out = model(**batch)
    for hidden, mask, vector in zip(out.last_hidden_state, batch["attention_mask"], out.pooler_output, strict=True):
        hidden = hidden[mask.bool()]
        wanted = {"cls": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[pooling]
        torch.testing.assert_close(vector, wanted)


def test_other_text_models_are_plugs_too():
    torch.manual_seed(0)
    others = [
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32),
        DistilBertConfig(vocab_size=50, dim=16, hidden_dim=24, n_layers=2, n_heads=2),
        MPNetConfig(vocab_size=50, **SHAPE),
    ]
    for config in others:
        model = TextRecModel(TextRecConfig(text_config=config, pooling="mean")).eval()
        ids = torch.randint(5, 50, (2, 7))
        wanted = model.text_model(input_ids=ids).last_hidden_state.mean(1)
        torch.testing.assert_close(model.embed(ids), wanted, rtol=0, atol=1e-5)
        assert len(model.stages()) == 1 + config.num_hidden_layers
        model.train().embed(ids).sum().backward()
        assert all(p.grad is not None for name, p in model.named_parameters())


def test_what_is_no_single_text_stack_is_refused():
    with pytest.raises(ValueError, match="text_config is a bart"):
        TextRecConfig(text_config=BartConfig())
    with pytest.raises(ValueError, match="is no text model"):
        TextRecModel(TextRecConfig(text_config=CLIPVisionConfig(**SHAPE, image_size=8, patch_size=4)))


def test_a_text_model_that_takes_no_embeddings_has_no_place_for_the_tables(monkeypatch, imported):
    encoder, tokenizer = imported
    batch = tokenizer(HISTORIES, return_tensors="pt")
    wanted, kind = encoder.embed(**batch), type(encoder.text_model)
    inner = kind.forward

    def forward(self, input_ids, attention_mask=None):
        return inner(self, input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(kind, "forward", forward)
    config = encoder.config.text_config
    for off in ({}, {"token_types": False}, {"item_positions": False}):
        with pytest.raises(ValueError, match="takes no inputs_embeds.*set token_types and item_positions to false"):
            TextRecModel(TextRecConfig(text_config=config, **off))
    plain = TextRecConfig(text_config=config, pooling=encoder.config.pooling, token_types=False, item_positions=False)
    model = TextRecForPreTraining(plain).eval()
    assert model.base_model.get_item_position_embeddings() is None
    model.base_model.text_model.load_state_dict(encoder.text_model.state_dict())
    torch.testing.assert_close(model.base_model.embed(**batch), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "max"}, "pooling must be"),
        ({"type_vocab_size": 2}, "type_vocab_size"),
        ({"max_item_embeddings": 1}, "max_item_embeddings"),
        ({"text_config": {"model_type": "no_such_model"}}, "no_such_model"),
    ],
)
def test_wrong_value_is_an_error_that_names_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        TextRecConfig(**changes)


def test_an_id_outside_its_table_is_named(imported):
    model, tokenizer = imported
    batch = tokenizer(HISTORIES, return_tensors="pt")
    for name, wrong in (("input_ids", 10_000), ("token_type_ids", 4), ("item_position_ids", 51)):
        with pytest.raises(ValueError, match=f"{name} lie between"):
            model(**{**batch, name: batch[name].index_fill(1, torch.tensor([1]), wrong)})
    with pytest.raises(ValueError, match=r"Row 0 has 97 tokens, the model reads at most 96"):
        model(torch.ones(1, 97).long())


def test_precision_and_attention_are_as_asked_for(imported, tmp_path):
    model, tokenizer = imported
    model.save_pretrained(tmp_path)
    batch = tokenizer(HISTORIES, return_tensors="pt")
    half = TextRecModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path / "half")
    back = TextRecModel.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    eager = TextRecModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.text_model.config._attn_implementation == "eager"
    torch.testing.assert_close(eager.embed(**batch), model.embed(**batch), rtol=0, atol=1e-5)


STRANGER = (
    WITHOUT_PACKAGE
    + """
import json, torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoTokenizer, pipeline
folder, items = sys.argv[1], json.loads(sys.argv[2])
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    vectors = model(**tokenizer([items[:2], items[2:3]], return_tensors="pt")).pooler_output
pipe = pipeline("sequential-recommendation", model=folder, trust_remote_code=True)
pipe.add_items([{"item_id": str(i), **item} for i, item in enumerate(items)])
answer = pipe({"history": ["0", "1"]}, top_k=2)
from sentence_transformers import SentenceTransformer
st = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
print("OUT" + json.dumps({"vectors": vectors.tolist(), "answer": answer, "model": type(model).__name__,
    "whole": type(AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)).__name__,
    "items": st.encode(items[:2]).tolist()}))
"""
)


@pytest.mark.slow("opens it in a process of a stranger")
def test_a_stranger_opens_it_everywhere(imported, tmp_path):
    encoder, tokenizer = imported
    encoder.save_pretrained(tmp_path / "encoder")
    model = TextRecForPreTraining.from_pretrained(tmp_path / "encoder")
    save_checkpoint_files(model, tokenizer, tmp_path / "checkpoint")
    told = ask_stranger("-c", STRANGER, tmp_path / "checkpoint", json.dumps(TINY_ITEMS), home=tmp_path)
    said = json.loads(told[told.index("OUT") + 3 :].splitlines()[0])
    assert (said["model"], said["whole"]) == ("TextRecModel", "TextRecForPreTraining")
    with torch.no_grad():
        batch = tokenizer([TINY_ITEMS[:2], TINY_ITEMS[2:3]], return_tensors="pt")
        torch.testing.assert_close(torch.tensor(said["vectors"]), encoder.embed(**batch))
        items = torch.cat([encoder.embed(**tokenizer([item], return_tensors="pt")) for item in TINY_ITEMS[:2]])
    torch.testing.assert_close(torch.tensor(said["items"]), torch.nn.functional.normalize(items))
    pipe = SequentialRecommendationPipeline(encoder, tokenizer)
    pipe.add_items([{"item_id": str(i), **item} for i, item in enumerate(TINY_ITEMS)])
    assert [a["item_id"] for a in pipe({"history": ["0", "1"]}, top_k=2)] == [a["item_id"] for a in said["answer"]]


def test_saved_and_opened_by_the_package_the_configuration_is_the_same(source, imported, tmp_path):
    model, tokenizer = imported
    save_checkpoint_files(model, tokenizer, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is TextRecConfig and type(config.text_config) is type(model.config.text_config)
    assert config.text_config.to_dict() == model.config.text_config.to_dict()
    assert str(source[1]) not in (tmp_path / "config.json").read_text(encoding="utf-8"), "no path of this machine"
    again = ItemSentTokenizer.from_pretrained(tmp_path)
    assert again.cls_last == tokenizer.cls_last
    assert again(HISTORIES[0])["input_ids"] == tokenizer(HISTORIES[0])["input_ids"]
