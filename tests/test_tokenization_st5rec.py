"""ST5's item sentences: expected ids written out by hand, on a vocabulary of known words."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jepa4rec.tokenization_itemsent import ST5_SETTINGS, ItemSentTokenizer
from jepa4rec.tokenization_st5rec import TAGS
from jepa4rec.training.start import train_t5_wordpiece

WORDS = ["<pad>", "</s>", "<unk>", "TITLE:", "DESCRIPTION:", "description", "not", "available.", ",", "tea", "pot"]
WORDS += ["green", "black", "leaf", "A", "user"]
PAD, END, UNK, TITLE, DESCRIPTION, DESC, NOT, AVAILABLE, COMMA, TEA, POT, GREEN, BLACK, LEAF, A, USER = range(16)
SEQ, ITEM, ITEM_END, SEQ_END = range(16, 20)
TEAPOT, GREEN_TEA, BLACK_TEA = {"title": "tea pot"}, {"title": "green tea"}, {"title": "black tea"}


def words(extra=TAGS) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=list(extra), **names)


def st5(**settings) -> ItemSentTokenizer:
    return ItemSentTokenizer.wrap(words(), **{**ST5_SETTINGS, **settings})


def ids(tokenizer, histories, **options):
    return tokenizer(histories, **options)["input_ids"]


def test_an_item_has_its_own_tags_and_a_history_those_of_a_sequence_around_its_items_oldest_first():
    tokenizer = st5()
    assert tokenizer.max_tokens == 255
    assert ids(tokenizer, TEAPOT) == [ITEM, TITLE, TEA, POT, ITEM_END, END]
    assert ids(tokenizer, [TEAPOT]) == [SEQ, ITEM, TITLE, TEA, POT, ITEM_END, SEQ_END, END]
    batch = tokenizer([TEAPOT, GREEN_TEA])
    first, second = [ITEM, TITLE, TEA, POT, ITEM_END], [ITEM, TITLE, GREEN, TEA, ITEM_END]
    assert batch["input_ids"] == [SEQ, *first, *second, SEQ_END, END]
    assert batch["item_position_ids"] == [0, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 0, 0]


def test_a_batch_is_padded():
    batch = st5()([[TEAPOT, GREEN_TEA], [BLACK_TEA]], return_tensors="np")
    assert batch["input_ids"][1].tolist() == [SEQ, ITEM, TITLE, BLACK, TEA, ITEM_END, SEQ_END, END] + [PAD] * 5
    assert batch["attention_mask"].sum(1).tolist() == [13, 8]
    left = st5()([[TEAPOT, GREEN_TEA], [BLACK_TEA]], return_tensors="np", padding_side="left")
    assert left["input_ids"][1].tolist() == [PAD] * 5 + [SEQ, ITEM, TITLE, BLACK, TEA, ITEM_END, SEQ_END, END]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (13, [SEQ, ITEM, TITLE, TEA, POT, ITEM_END, ITEM, TITLE, GREEN, TEA, ITEM_END, SEQ_END, END]),
        (12, [SEQ, ITEM, TITLE, GREEN, TEA, ITEM_END, SEQ_END, END]),  # the oldest item goes, and goes whole
        (8, [SEQ, ITEM, TITLE, GREEN, TEA, ITEM_END, SEQ_END, END]),
        (7, [SEQ, ITEM, TITLE, GREEN, ITEM_END, SEQ_END, END]),  # the title is cut from its end, no tag is
        (6, [SEQ, ITEM, TITLE, ITEM_END, SEQ_END, END]),
    ],
)
def test_the_oldest_items_are_dropped_first_then_the_newest_title_is_cut(limit, expected):
    assert ids(st5(max_tokens=limit), [TEAPOT, GREEN_TEA]) == expected
    assert ids(st5(), [TEAPOT, GREEN_TEA], max_length=limit) == expected


def test_nothing_older_than_a_dropped_item_comes_back():
    long = {"title": "leaf " * 20}
    expected = [SEQ, ITEM, TITLE, GREEN, TEA, ITEM_END, SEQ_END, END]
    assert ids(st5(max_tokens=20), [{"title": "pot"}, long, GREEN_TEA]) == expected


def test_tags_survive_any_limit_and_a_limit_for_tags_alone_is_refused():
    tokenizer = st5()
    for limit in range(6, 40):
        row = ids(tokenizer, [TEAPOT, GREEN_TEA, BLACK_TEA], max_length=limit)
        assert len(row) <= limit and row[0] == SEQ and row[-2:] == [SEQ_END, END]
        assert row.count(ITEM) == row.count(ITEM_END) >= 1
    long = [{"title": "leaf " * 300}]
    row = ids(tokenizer, long)
    assert row == [SEQ, ITEM, TITLE, *[LEAF] * 249, ITEM_END, SEQ_END, END] and len(row) == 255
    assert ids(tokenizer, long[0]) == [ITEM, TITLE, *[LEAF] * 251, ITEM_END, END]
    with pytest.raises(ValueError, match="max_tokens is 5: 5 go to tags"):
        ids(tokenizer, [TEAPOT], max_length=5)


def test_a_description_follows_the_title_or_is_said_to_be_missing():
    tokenizer = st5(description=True)
    told = {"title": "tea", "description": "green leaf"}
    assert ids(tokenizer, told) == [ITEM, TITLE, TEA, DESCRIPTION, GREEN, LEAF, ITEM_END, END]
    assert ids(tokenizer, {"title": "tea"}) == [ITEM, TITLE, TEA, DESCRIPTION, DESC, NOT, AVAILABLE, ITEM_END, END]
    assert ids(st5(), told) == [ITEM, TITLE, TEA, ITEM_END, END]
    assert ids(st5(), {"description": "green leaf"}) == [ITEM, DESCRIPTION, GREEN, LEAF, ITEM_END, END]


def test_the_title_is_the_attribute_of_that_name_or_the_first_one():
    pot = {"brand": "green", "title": "tea pot"}
    assert ids(st5(), pot) == [ITEM, TITLE, TEA, POT, ITEM_END, END]
    assert ids(st5(), {"description": "black", "name": "pot"}) == [ITEM, TITLE, POT, ITEM_END, END]


def test_unstructured_items_are_parted_by_commas():
    tokenizer = st5(sentence="unstructured")
    assert ids(tokenizer, TEAPOT) == [TITLE, TEA, POT, END]
    row = [TITLE, TEA, POT, COMMA, TITLE, GREEN, TEA, COMMA, TITLE, BLACK, TEA, END]
    assert ids(tokenizer, [TEAPOT, GREEN_TEA, BLACK_TEA]) == row
    assert ids(tokenizer, [TEAPOT, GREEN_TEA, BLACK_TEA], max_length=11) == row[4:]


def test_an_instruction_stands_before_histories_only():
    tokenizer = st5(instruction=True)
    row = ids(tokenizer, [TEAPOT])
    assert row[:2] == [A, USER] and row[-8:] == [SEQ, ITEM, TITLE, TEA, POT, ITEM_END, SEQ_END, END]
    assert ids(tokenizer, TEAPOT) == [ITEM, TITLE, TEA, POT, ITEM_END, END]


def test_a_sentence_is_what_the_vocabulary_makes_of_it_written_out():
    backend = train_t5_wordpiece(["ceramic teapot", "green tea", "TITLE:"], 100)
    tokenizer = ItemSentTokenizer.wrap(backend, **ST5_SETTINGS)
    written = "<extra_id_0><extra_id_1>TITLE: Ceramic teapot<extra_id_2><extra_id_1>TITLE: Green tea<extra_id_2>"
    history = [{"title": "Ceramic teapot"}, {"title": "Green tea"}]
    assert ids(tokenizer, history) == backend(written + "<extra_id_3>")["input_ids"]
    assert train_t5_wordpiece(["ceramic teapot", "green tea", "TITLE:"], 100).get_vocab() == backend.get_vocab()


def test_a_catalogue_gives_what_single_calls_give():
    tokenizer = st5(description=True)
    items = [TEAPOT, {"title": "leaf", "description": "green"}, BLACK_TEA]
    tokens = tokenizer.encode_items(items)
    batch = tokenizer.batch_items(tokens, np.array([1, 0]))
    assert (
        batch["input_ids"].tolist()
        == tokenizer.pad({"input_ids": [ids(tokenizer, items[1]), ids(tokenizer, items[0])]}, return_tensors="np")[
            "input_ids"
        ].tolist()
    )
    rows = tokenizer.batch_histories(tokens, [[0, 2], [1]], return_tensors=None, padding=False)["input_ids"]
    assert rows == [ids(tokenizer, [items[0], items[2]]), ids(tokenizer, [items[1]])]
    empty = tokenizer.batch_histories(tokens, [[], [1]], allow_empty=True)
    assert empty["input_ids"][0, :3].tolist() == [SEQ, SEQ_END, END] and empty["attention_mask"][0].sum() == 3


def test_the_format_is_saved_with_the_tokenizer(tmp_path):
    tokenizer = st5(sentence="unstructured", description=True, instruction=True)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.settings == tokenizer.settings
    assert ids(again, [{"brand": "tea"}]) == ids(tokenizer, [{"brand": "tea"}])


def test_a_tokenizer_that_made_its_titles_of_other_attributes_is_refused(tmp_path):
    st5().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"title_attributes": ["brand"]}))
    with pytest.raises(ValueError, match="title_attributes is no longer a setting"):
        ItemSentTokenizer.from_pretrained(tmp_path)({"title": "tea"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sentence": "structure"}, "must be one of attributes, structured, unstructured"),
        ({"description": "yes"}, "must be true or false"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        st5(**settings)


def test_bad_items_and_vocabularies_are_named():
    with pytest.raises(ValueError, match="item 1 of history 0 has no text: give it a title"):
        st5()([TEAPOT, {"title": " "}])
    with pytest.raises(ValueError, match="<extra_id_0> is not"):
        ItemSentTokenizer.wrap(words(extra=()), **ST5_SETTINGS)(TEAPOT)
