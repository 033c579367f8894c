"""Official RecFormer weights: the same vectors and token ids as the published code, every key placed or named."""

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from processes import ask_stranger
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LongformerConfig, LongformerForMaskedLM, PreTrainedTokenizerFast
from transformers.models.longformer.modeling_longformer import LongformerEncoder

from jepa4rec.datasets_builders.contract import make_dataset, save_dataset
from jepa4rec.hub.importing import import_checkpoint, import_recformer
from jepa4rec.hub.opening import load_model
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.tokenization_itemsent import ItemSentTokenizer
from jepa4rec.training.data import DataRecipe, load_run_data
from jepa4rec.training.optimisation import freeze
from tests.hub.test_import_checkpoint import run_script

pytestmark = pytest.mark.slow("runs the command in processes")

HEADS, WINDOW, WIDTH = 4, 64, 32
# A byte-level BPE as Longformer's: "Ġ" is a space before the word. Ids by place.
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = ["ĠTea", "ĠPot", "title", "brand", "category", "Red", "Tea"]  # merged in this order
BEGINNINGS = [word[:end] for word in WORDS for end in range(2, len(word))]
LETTERS = sorted({letter for word in WORDS for letter in word})
VOCABULARY = [*SPECIAL, *WORDS, *[part for part in dict.fromkeys([*BEGINNINGS, *LETTERS]) if part not in WORDS]]
_TEA, _POT, TITLE, BRAND, CATEGORY, RED, TEA = (VOCABULARY.index(word) for word in WORDS)


def save_tokenizer(folder: Path) -> str:
    """The tiny BPE, every word merged letter by letter from its left."""
    merges = list(dict.fromkeys((word[:end], word[end]) for word in WORDS for end in range(1, len(word))))
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*VOCABULARY, "<mask>"])}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    special |= {"unk_token": "<unk>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("bpe"))


def longformer_config(**changes) -> LongformerConfig:
    """Longformer's Hub configuration made small: its class defaults are others."""
    shape = {"vocab_size": len(VOCABULARY) + 1, "hidden_size": WIDTH, "num_hidden_layers": 2, "type_vocab_size": 1}
    shape |= {"num_attention_heads": HEADS, "intermediate_size": 48, "max_position_embeddings": 1030}
    shape |= {"attention_window": [WINDOW] * 2, "layer_norm_eps": 1e-5, "pad_token_id": 1, "initializer_range": 0.2}
    return LongformerConfig(**shape | changes)


def official_state(prefix: str = "", head: bool = False, num_items: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names that the published classes give them."""
    torch.manual_seed(0)
    config = longformer_config()
    source = LongformerForMaskedLM(config)
    encoder = {key: value for key, value in source.longformer.state_dict().items() if not key.startswith("pooler.")}
    encoder["embeddings.token_type_embeddings.weight"] = torch.randn(4, WIDTH)
    encoder["embeddings.item_position_embeddings.weight"] = torch.randn(51, WIDTH)
    encoder["embeddings.position_ids"] = torch.arange(1030)[None]
    state = {f"{prefix}{key}": value.clone() for key, value in encoder.items()}
    root = prefix.removesuffix("longformer.")
    if head:
        state |= {f"{root}lm_head.{key}": value.clone() for key, value in source.lm_head.state_dict().items()}
        state[f"{root}lm_head.decoder.bias"] = state[f"{root}lm_head.bias"].clone()
    if num_items:
        state[f"{root}item_embedding.weight"] = torch.randn(num_items, WIDTH)
    return state


def official_states(encoder: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Hidden states (B, L, d) as the published forward makes them, on transformers' LongformerEncoder.

    Embeddings are LayerNorm(word + position + type + item position); the batch is padded to a multiple of the window
    with token 1, item position 1 and type 0; the merged mask is {masked < 0, local 0, global > 0}.
    """
    length = batch["input_ids"].shape[1]
    extra = -length % WINDOW
    pads = {"input_ids": 1, "item_position_ids": 1, "token_type_ids": 0, "attention_mask": 0}
    ids, items, types, mask = (F.pad(batch[name], (0, extra), value=pad) for name, pad in pads.items())
    real = (ids != 1).long()
    tables = {"word": ids, "position": real.cumsum(1) * real + 1, "token_type": types, "item_position": items}
    embeddings = sum(
        F.embedding(rows, encoder[f"embeddings.{name}_embeddings.weight"]) for name, rows in tables.items()
    )
    norm = [encoder[f"embeddings.LayerNorm.{name}"] for name in ("weight", "bias")]
    layers = LongformerEncoder(longformer_config()).eval()
    weights = {key.removeprefix("encoder."): value for key, value in encoder.items() if key.startswith("encoder.")}
    layers.load_state_dict(weights)
    mask[:, 0] *= 2  # the global token
    merged = (1 - mask) * torch.finfo(torch.float32).min
    with torch.no_grad():
        return layers(F.layer_norm(embeddings, (WIDTH,), *norm, 1e-5), merged, padding_len=extra)[0]


def random_batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Rows of random tokens, `<s>` first, about 20 tokens an item, padded as RecFormer's tokenizer pads."""
    rng = torch.Generator().manual_seed(len(lengths))
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, len(VOCABULARY), valid.shape, generator=rng).masked_fill(~valid, 1)
    items = (1 + torch.arange(max(lengths)) // 21).clamp(max=50).expand(valid.shape).masked_fill(~valid, 50)
    types = torch.randint(1, 3, valid.shape, generator=rng).masked_fill(~valid, 3)
    ids[:, 0], items[:, 0], types[:, 0] = 0, 0, 0
    return {"input_ids": ids, "attention_mask": valid.long(), "token_type_ids": types, "item_position_ids": items}


def import_state(state, folder: Path, tokenizer: str, **options):
    torch.save(state, folder / "weights.bin")
    return import_recformer(folder / "weights.bin", tokenizer, num_attention_heads=HEADS, **options)


@pytest.fixture
def model(tmp_path, tokenizer):
    return import_state(official_state(), tmp_path, tokenizer).model


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1024])
def test_the_vector_is_the_published_one(model, length):
    batch = random_batch([length])
    expected = official_states(official_state(), batch)
    torch.testing.assert_close(model(**batch).last_hidden_state, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.embed(**batch), expected[:, 0], rtol=0, atol=1e-5)


def test_the_vectors_of_a_padded_batch_are_the_published_ones(model):
    batch = random_batch([65, 1, 200, 63])
    expected = official_states(official_state(), batch)[:, 0]
    torch.testing.assert_close(model.embed(**batch), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=0.1), "the rows say something"


def test_token_ids_types_and_positions_are_the_published_ones(tmp_path, tokenizer):
    """Written out from the published tokenizer: three attributes in their order, no space at their seams, no </s>."""
    encode = import_state(official_state(), tmp_path, tokenizer).tokenizer
    oldest = {"title": "Red Tea Pot", "brand": "Tea", "category": "Red", "colour": "the fourth attribute"}
    newest = {"title": "Tea", "brand": "", "category": "Red Red"}
    batch = encode([[oldest, newest], [newest]], return_tensors="np")
    space = VOCABULARY.index("Ġ")  # " Red" is no word of this vocabulary: a space, then "Red"
    assert batch["input_ids"].tolist() == [
        [0, TITLE, TEA, BRAND, CATEGORY, RED, space, RED, TITLE, RED, _TEA, _POT, BRAND, TEA, CATEGORY, RED],
        [0, TITLE, TEA, BRAND, CATEGORY, RED, space, RED] + [1] * 8,
    ]
    assert batch["token_type_ids"].tolist() == [
        [0, 1, 2, 1, 1, 2, 2, 2, 1, 2, 2, 2, 1, 2, 1, 2],
        [0, 1, 2, 1, 1, 2, 2, 2] + [3] * 8,
    ]
    assert batch["item_position_ids"].tolist() == [[0] + [1] * 7 + [2] * 8, [0] + [1] * 7 + [50] * 8]
    assert batch["attention_mask"].tolist() == [[1] * 16, [1] * 8 + [0] * 8]


def test_an_attribute_has_32_tokens_a_history_50_items_and_1024_tokens(tmp_path, tokenizer):
    encode = import_state(official_state(), tmp_path, tokenizer).tokenizer
    long = {"title": " ".join(["Red"] + ["Tea"] * 40)}
    assert encode([long])["input_ids"] == [0, TITLE, RED] + [_TEA] * 30
    many = encode([{"title": "Tea"}] * 60)
    assert many["item_position_ids"] == [0] + [position for position in range(1, 51) for _ in range(2)]
    assert len(encode([long] * 50)["input_ids"]) == 1024 and encode([long] * 50)["item_position_ids"][-1] == 32


@pytest.mark.parametrize(
    ("prefix", "head", "num_items", "kind"),
    [
        ("", False, 0, Jepa4RecModel),
        ("longformer.", True, 0, Jepa4RecForPreTraining),
        ("longformer.", True, 7, Jepa4RecForSequentialRecommendation),
        ("_forward_module.model.longformer.", True, 0, Jepa4RecForPreTraining),
        ("model.longformer.", False, 0, Jepa4RecModel),
    ],
)
def test_every_layout_gives_the_same_encoder(prefix, head, num_items, kind, tmp_path, tokenizer):
    state = official_state(prefix, head, num_items)
    imported = import_state(state, tmp_path, tokenizer)
    assert type(imported.model) is kind
    batch = random_batch([70])
    expected = official_states(official_state(), batch)[:, 0]
    torch.testing.assert_close(imported.model.base_model.embed(**batch), expected, rtol=0, atol=1e-5)
    named = " ".join(imported.left_out)
    assert f"{prefix}embeddings.position_ids" in named and ("lm_head." in named) == head
    if kind is Jepa4RecForPreTraining:
        assert torch.equal(imported.model.target_encoder.embed(**batch), imported.model.jepa4rec.embed(**batch))
        assert torch.equal(imported.model.lm_head.bias, state[f"{prefix.removesuffix('longformer.')}lm_head.bias"])
    if num_items:
        assert torch.equal(imported.model.item_matrix.weight, state["item_embedding.weight"])
        assert imported.model.scale.item() == pytest.approx(20)


def test_a_padding_token_in_a_text_moves_the_positions_behind_it_as_published(model):
    batch = random_batch([40, 70])
    batch["input_ids"][0, [5, 6, 30]] = 1
    expected = official_states(official_state(), batch)[:, 0]
    torch.testing.assert_close(model.embed(**batch), expected, rtol=0, atol=1e-5)
    model.config.count_pad_tokens = True
    assert not torch.allclose(model.embed(**batch)[0], expected[0], atol=1e-2)
    torch.testing.assert_close(model.embed(**batch)[1], expected[1], rtol=0, atol=1e-5)


def test_a_decoder_of_its_own_is_kept_and_learns_while_the_words_are_frozen(tmp_path, tokenizer):
    state = official_state("longformer.", head=True)
    state["lm_head.decoder.weight"] += torch.randn_like(state["lm_head.decoder.weight"])
    imported = import_state(state, tmp_path, tokenizer)
    assert any("lm_head.decoder.bias" in what for what in imported.left_out)
    imported.model.save_pretrained(tmp_path / "saved")
    model = Jepa4RecForPreTraining.from_pretrained(tmp_path / "saved")
    assert torch.equal(model.lm_head.decoder.weight, state["lm_head.decoder.weight"])
    freeze(model, word_embeddings=True, layers=0)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert "lm_head.decoder.weight" in learning and "jepa4rec.embeddings.word_embeddings.weight" not in learning
    hidden = torch.randn(3, WIDTH)
    inner = F.gelu(hidden @ state["lm_head.dense.weight"].T + state["lm_head.dense.bias"])
    norm = [state[f"lm_head.layer_norm.{name}"] for name in ("weight", "bias")]
    logits = F.layer_norm(inner, (WIDTH,), *norm, 1e-5) @ state["lm_head.decoder.weight"].T + state["lm_head.bias"]
    torch.testing.assert_close(model.lm_head(hidden), logits)


def test_a_head_of_another_vocabulary_is_left_out_by_name(tmp_path, tokenizer):
    state = official_state("longformer.", head=True)
    state["lm_head.decoder.weight"] = state["lm_head.decoder.weight"][1:]
    imported = import_state(state, tmp_path, tokenizer)
    assert type(imported.model) is Jepa4RecModel
    assert any("lm_head.decoder.weight" in what and "leftover" in what for what in imported.left_out)


def test_what_is_empty_is_read_as_published(tmp_path, tokenizer):
    reads = import_state(official_state(), tmp_path, tokenizer).tokenizer
    empty = {"title": "", "brand": "", "category": ""}
    rows = reads([[], [empty], [{"title": "Tea", "brand": "", "category": "Red"}]])
    assert rows["input_ids"] == [[0], [0, TITLE, BRAND, CATEGORY], [0, TITLE, TEA, BRAND, CATEGORY, RED]]
    assert rows["token_type_ids"][2] == [0, 1, 2, 1, 1, 2]
    assert reads([[]])["input_ids"] == [[0]]
    strict = ItemSentTokenizer.wrap(reads, empty_attributes=False, empty_histories=False)
    for refused, said in (([[]], "history 0 is empty"), ([[empty]], "item 0 of history 0 has no text")):
        with pytest.raises(ValueError, match=said):
            strict(refused)
    with pytest.raises(ValueError, match="item 0 of history 0 has no text"):
        reads([[{}]])


def test_a_built_dataset_keeps_empty_attributes_for_who_reads_them(tmp_path, tokenizer):
    items = pa.table(
        {"item_id": ["a", "b"], "title": ["Tea", "Red"], "brand": ["", "Red"], "category": ["Red", "Tea"]}
    )
    sequences = pa.table({"user_id": ["u"], "items": pa.array([[0, 1, 0]], pa.list_(pa.int32()))})
    save_dataset(make_dataset(items, sequences, {"name": "tiny", "config": "tiny"}), tmp_path / "built")
    data = load_run_data(DataRecipe(dir=str(tmp_path / "built")))
    reads = import_state(official_state(), tmp_path, tokenizer).tokenizer
    for names, wanted in ((True, [TITLE, TEA, BRAND, CATEGORY, RED]), (False, [TITLE, TEA, CATEGORY, RED])):
        tokens = data.item_tokens(ItemSentTokenizer.wrap(reads, empty_attributes=names), data.own)
        assert tokens.input_ids[: tokens.offsets[1]].tolist() == wanted


def test_a_lightning_file_half_precision_and_frozen_words(tmp_path, tokenizer):
    words = official_state()["embeddings.word_embeddings.weight"]
    state = {key: value.half() for key, value in official_state("_forward_module.model.longformer.").items()}
    del state["_forward_module.model.longformer.embeddings.word_embeddings.weight"]
    wrapped = {"state_dict": state, "epoch": 3}
    with pytest.raises(ValueError, match="lacks embeddings.word_embeddings.weight, frozen .* --word_embeddings"):
        import_state(wrapped, tmp_path, tokenizer)
    source = LongformerForMaskedLM(longformer_config())
    source.get_input_embeddings().weight.data.copy_(words)
    source.save_pretrained(tmp_path / "longformer")
    model = import_state(wrapped, tmp_path, tokenizer, word_embeddings=str(tmp_path / "longformer")).model
    assert model.dtype == torch.float32 and torch.equal(model.embeddings.word_embeddings.weight, words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings.extra.weight": torch.ones(2)}, "holds the unknown embeddings.extra.weight"),
        ({"classifier.weight": torch.ones(2)}, "holds classifier.weight, which RecFormer does not have"),
        ({"encoder.layer.1.output.dense.bias": None}, "lacks encoder.layer.1.output.dense.bias"),
        ({"embeddings.token_type_embeddings.weight": None}, "lacks the table embeddings.token_type_embeddings"),
        (
            {"embeddings.item_position_embeddings.weight": None},
            "is no RecFormer checkpoint: it has no embeddings.item",
        ),
        ({"encoder.layer.1.output.dense.bias": torch.ones(3)}, "does not fit together: size mismatch for encoder"),
        ({"embeddings.LayerNorm.bias": torch.full((WIDTH,), torch.nan)}, "embeddings.LayerNorm.bias hold NaN"),
        ({"epoch": 3}, "is no RecFormer checkpoint: it holds something else than named tensors"),
    ],
)
def test_a_key_too_many_or_too_few_is_named(change, message, tmp_path, tokenizer):
    state = {key: value for key, value in (official_state() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        import_state(state, tmp_path, tokenizer)


class Malice:
    """Unpickled, it runs a command."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_refused_and_not_run(save, tmp_path, tokenizer, monkeypatch):
    mark, source = tmp_path / "mark", tmp_path / "weights.bin"
    save(official_state() | {"x": Malice(mark)}, source)
    with pytest.raises(SystemExit) as stopped:
        run_script(monkeypatch, source, tmp_path / "ours", "--tokenizer", tokenizer)
    assert "is no file of weights alone, so nothing in it was executed" in str(stopped.value)
    assert (f"it asks for {os.system.__module__}.system" in str(stopped.value)) == (save is torch.save)
    assert "\n" not in str(stopped.value) and not mark.exists() and not (tmp_path / "ours").exists()
    if save is not torch.save:
        with open(source, "rb") as file:  # the mark shows that this pickle does bite where code is let run
            pickle.load(file)
        assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all\n" * 20, b"PK\x03\x04 a broken archive"])
def test_a_file_of_another_kind_is_refused(content, tmp_path, tokenizer):
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(ValueError, match="weights.bin is no file of weights alone"):
        import_recformer(tmp_path / "weights.bin", tokenizer)


def test_another_tokenizer_and_unknown_heads_are_named(tmp_path, tokenizer, tiny_backend):
    torch.save(official_state(), tmp_path / "weights.bin")
    with pytest.raises(ValueError, match="do not tell their heads: give --num_attention_heads"):
        import_recformer(tmp_path / "weights.bin", tokenizer)
    tiny_backend.save_pretrained(tmp_path / "wordpiece")
    with pytest.raises(ValueError, match="opens with id 0 and pads with 1, this one with"):
        import_recformer(tmp_path / "weights.bin", str(tmp_path / "wordpiece"))
    with pytest.raises(OSError, match="Without network, name a folder with Longformer's tokenizer: --tokenizer"):
        import_recformer(tmp_path / "weights.bin")


def test_a_recipe_may_start_from_the_file(tmp_path, tokenizer, monkeypatch):
    """`model.init: FILE` comes this way; the tokenizer is then Longformer's of the Hub."""
    monkeypatch.setattr("jepa4rec.hub.importing.import_recformer.__defaults__", (tokenizer, None, None, 0))
    torch.save(official_state(), tmp_path / "weights.bin")
    model, tokens = import_checkpoint(str(tmp_path / "weights.bin"), num_attention_heads=HEADS)
    assert type(model) is Jepa4RecModel and (tokens.max_attributes, tokens.pad_item_position) == (3, 50)


def test_the_item_matrix_is_for_the_catalogue_that_is_named(tmp_path, tokenizer):
    from jepa4rec import datasets_builders

    shop = datasets_builders.build("toy_shop")
    save_dataset(shop, tmp_path / "shop")
    state = official_state("longformer.", num_items=shop.num_items)
    imported = import_state(state, tmp_path, tokenizer, catalogue=str(tmp_path / "shop"))
    assert imported.model.config.catalogue_fingerprint == shop.fingerprint
    for part in imported[:2]:
        part.save_pretrained(tmp_path / "ours")
    ranking = load_model(str(tmp_path / "ours"), shop.fingerprint)
    torch.testing.assert_close(ranking.item_vectors(), F.normalize(state["item_embedding.weight"], dim=-1))
    assert ranking.scale.item() == pytest.approx(20) and ranking.config.history_items == 0
    zero_shot = load_model(str(tmp_path / "ours"), "another catalogue")
    assert type(zero_shot) is Jepa4RecModel
    with pytest.raises(ValueError, match=f"the item matrix has 7 rows, .* has {shop.num_items} items"):
        import_state(official_state("longformer.", num_items=7), tmp_path, tokenizer, catalogue=str(tmp_path / "shop"))


def test_the_command_writes_what_a_stranger_opens(tmp_path, tokenizer, monkeypatch, capsys):
    torch.save(official_state("longformer.", head=True), tmp_path / "recformer_seqrec_ckpt.bin")
    options = ("--tokenizer", tokenizer, "--num_attention_heads", HEADS)
    run_script(monkeypatch, tmp_path / "recformer_seqrec_ckpt.bin", tmp_path / "ours", *options)
    told = capsys.readouterr().out
    assert "Jepa4RecForPreTraining, 2 layers of width 32, cls pooling, up to 1024 tokens of 50 items" in told
    assert "left out: longformer.embeddings.position_ids" in told and "left out: lm_head.decoder.weight" in told
    stranger = (
        "import sys; from transformers import AutoModel, AutoTokenizer; p = sys.argv[1]\n"
        "m = AutoModel.from_pretrained(p, trust_remote_code=True)\n"
        "t = AutoTokenizer.from_pretrained(p, trust_remote_code=True)\n"
        "b = t([[{'title': 'Red Tea'}]], return_tensors='pt')\n"
        "print(*m(**b).pooler_output[0].tolist())"
    )
    said = ask_stranger("-c", stranger, tmp_path / "ours", home=tmp_path)
    batch = {"input_ids": torch.tensor([[0, TITLE, RED, _TEA]]), "token_type_ids": torch.tensor([[0, 1, 2, 2]])}
    batch |= {"item_position_ids": torch.tensor([[0, 1, 1, 1]]), "attention_mask": torch.ones(1, 4).long()}
    expected = official_states(official_state(), batch)[0, 0]
    found = torch.tensor([float(number) for number in said.split()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_options_of_official_files_are_for_them_alone(tmp_path, tokenizer, monkeypatch):
    with pytest.raises(SystemExit, match="--tokenizer is for an official RecFormer file"):
        run_script(monkeypatch, tmp_path, tmp_path / "ours", "--tokenizer", tokenizer)
    torch.save(official_state(), tmp_path / "weights.bin")
    with pytest.raises(SystemExit, match="--max_items is in the file's own tables"):
        run_script(monkeypatch, tmp_path / "weights.bin", tmp_path / "ours", "--max_items", 3)
