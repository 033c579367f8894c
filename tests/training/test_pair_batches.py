"""ST5's pairs: augmentations keep their bounds and depend on (seed, epoch, example) alone; sides are what they say."""

import numpy as np
import pytest

from jepa4rec.tokenization_itemsent import ST5_SETTINGS, ItemSentTokenizer
from jepa4rec.training.batches import Example
from jepa4rec.training.phases.pairs import (
    ItemDescriptionCollator,
    SequenceItemCollator,
    SequenceSequenceCollator,
    augment,
    described_items,
)
from jepa4rec.training.start import train_t5_wordpiece

RATIOS = {"crop": 0.6, "reorder": 0.6, "drop": 0.3}
ITEMS = [
    {"title": "tea pot", "description": "to brew"},
    {"title": "green tea", "description": ""},
    {"title": "cup", "brand": "acme", "description": "to drink"},
    {"description": "nameless"},
    {"title": "stove"},
]


@pytest.fixture(scope="module")
def tokenizer():
    words = [text for item in ITEMS for text in item.values()] + ["TITLE:", "DESCRIPTION:"]
    return ItemSentTokenizer.wrap(train_t5_wordpiece(words, 200), **ST5_SETTINGS)


def written(tokenizer, ids) -> list[str]:
    return [tokenizer.decode(row).replace("<pad>", "").replace("</s>", "").replace("  ", " ").strip() for row in ids]


def draws(way: str, n: int, count: int = 300) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [augment(np.arange(n), {way: RATIOS[way]}, rng).tolist() for _ in range(count)]


def test_crop_keeps_a_run_of_at_most_eta_n():
    results = draws("crop", 10)
    assert all(row == list(range(row[0], row[0] + len(row))) for row in results)
    assert {len(row) for row in results} == set(range(1, 7))


def test_reorder_shuffles_a_run_of_at_most_beta_n_and_loses_nothing():
    results = draws("reorder", 10)
    assert all(sorted(row) == list(range(10)) for row in results)
    moved = [np.flatnonzero(np.array(row) != np.arange(10)) for row in results]
    assert max(np.ptp(places) + 1 for places in moved if len(places)) == 6
    assert sum(len(places) > 0 for places in moved) > 200


def test_drop_takes_at_most_delta_n_and_keeps_the_order():
    results = draws("drop", 10)
    assert all(row == sorted(set(row)) for row in results)
    assert {10 - len(row) for row in results} == {1, 2, 3}


@pytest.mark.parametrize("way", RATIOS)
def test_the_shortest_sequences_keep_at_least_one_item(way):
    assert all(row == [0] for row in draws(way, 1, 20))
    assert all(1 <= len(row) <= 2 for row in draws(way, 2, 50))


def test_each_way_is_drawn_about_as_often_and_never_the_one_ruled_out():
    rng = np.random.default_rng(1)

    def way_of(row) -> str:
        whole = sorted(row) == list(range(30))
        return "reorder" if whole else "crop" if row[-1] - row[0] + 1 == len(row) else "drop"

    ways = [way_of(augment(np.arange(30), {"crop": 0.4, "reorder": 0.6, "drop": 0.3}, rng)) for _ in range(900)]
    counts = {way: ways.count(way) for way in RATIOS}
    assert all(250 < count < 350 for count in counts.values()), counts
    none = [way_of(augment(np.arange(30), {"crop": 0.4, "reorder": 0.6, "drop": 0.0}, rng)) for _ in range(90)]
    assert "drop" not in none


def test_sequences_are_paired_with_themselves_the_same_way_whatever_the_batch(tokenizer):
    tokens = tokenizer.encode_items(ITEMS)
    examples = [Example(np.array([0, 1, 2, 4]), 0, index, 3) for index in range(8)]
    collate = SequenceSequenceCollator(tokenizer, tokens, RATIOS, seed=1)
    batch, alone = collate(examples), collate(examples[5:6])
    first = written(tokenizer, batch["input_ids"][:1])[0]
    assert len(batch["input_ids"]) == 1 and batch["text_rows"].tolist() == [0] * 8  # they all say the same
    assert first.count("<extra_id_1>") == 5 and first.index("tea pot") < first.index("stove") < first.rindex("tea pot")
    assert positives(tokenizer, batch)[5:6] == positives(tokenizer, alone)
    later = collate([example._replace(epoch=4) for example in examples])
    assert positives(tokenizer, batch) != positives(tokenizer, later)


def positives(tokenizer, batch):
    """The positive of every pair in words; the batch holds the distinct ones and which pair reads which."""
    return written(tokenizer, batch["positive_input_ids"][batch["positive_text_rows"]])


def test_histories_are_paired_with_their_next_items(tokenizer):
    collate = SequenceItemCollator(tokenizer, tokenizer.encode_items(ITEMS))
    batch = collate([Example(np.array([0]), 4, 0, 0), Example(np.array([4, 1]), 2, 1, 0)])
    assert written(tokenizer, batch["positive_input_ids"]) == [
        "<extra_id_1> title : stove <extra_id_2>", "<extra_id_1> title : cup <extra_id_2>",
    ]  # fmt: skip
    assert written(tokenizer, batch["input_ids"])[0] == (
        "<extra_id_0> <extra_id_1> title : tea pot <extra_id_2> <extra_id_3>"
    )
    assert batch["pair_ids"].tolist() == [4, 2]


def test_items_are_paired_with_their_descriptions(tokenizer):
    items = described_items(ITEMS, ["description"])
    assert items.tolist() == [0, 2]  # the others have no description, or nothing else
    assert described_items(ITEMS, ["brand", "description"]).tolist() == [0, 2]
    assert described_items(ITEMS, ["brand"]).tolist() == [2]
    batch = ItemDescriptionCollator(tokenizer, ITEMS, ["brand", "description"], items)(
        [Example(np.array([2]), 2, 0, 0), Example(np.array([0]), 0, 1, 0)]
    )
    assert written(tokenizer, batch["input_ids"]) == [
        "<extra_id_1> title : cup <extra_id_2>", "<extra_id_1> title : tea pot <extra_id_2>",
    ]  # fmt: skip
    assert written(tokenizer, batch["positive_input_ids"]) == [
        "<extra_id_1> description : acme to drink <extra_id_2>", "<extra_id_1> description : to brew <extra_id_2>",
    ]  # fmt: skip
