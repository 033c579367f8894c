"""The toy shop holds what it promises: the next item can be read from the words of the last ones, not from counts."""

import numpy as np
import pytest

from jepa4rec.datasets_builders import build, leave_one_out
from jepa4rec.datasets_builders.toy_shop import COLOURS, DEPARTMENTS, LINES, Shopper


@pytest.fixture(scope="module")
def shop():
    return build("toy_shop")


def recall_at_10(split, score) -> float:
    """Share of targets among the ten best of all items; ties count as their mean rank."""
    hits = 0
    for history, target in zip(split.histories, split.targets, strict=True):
        scores = score(history)
        better, equal = (scores > scores[target]).sum(), (scores == scores[target]).sum()
        hits += better + (equal + 1) / 2 <= 10
    return hits / len(split.targets)


def counts(train, num_items) -> tuple[np.ndarray, np.ndarray]:
    popularity, transitions = np.zeros(num_items), np.zeros((num_items, num_items))
    for history in train:
        np.add.at(popularity, history, 1)
        np.add.at(transitions, (history[:-1], history[1:]), 1)
    return popularity, transitions


class ReadingClerk:
    """Knows the shop's habits and reads titles and categories, nothing else."""

    def __init__(self, texts):
        categories = [text["category"].split(", ") for text in texts]
        self.department = np.array([department for department, _ in categories])
        self.position = np.array([list(DEPARTMENTS[d][1]).index(kind) for d, kind in categories])
        self.brand = np.array([text["brand"] for text in texts])
        self.colour = np.array([text["title"].split(", ")[1] for text in texts])
        self.line = np.array([next(line for line in LINES if f" {line} " in text["title"]) for text in texts])

    def score(self, history) -> np.ndarray:
        """Continue one of the last two projects, in its brand and in the shopper's recent colours and lines."""
        liking = self._taste(self.colour, history, Shopper.colour_weight)
        liking *= self._taste(self.line, history, Shopper.line_weight)
        scores = 0.01 * liking / liking.sum()
        for share, department in zip((0.55, 0.35), dict.fromkeys(self.department[history[::-1]]), strict=False):
            mine = history[self.department[history] == department]
            liked = liking * self._taste(self.brand, mine, Shopper.brand_weight)
            for steps, probability in Shopper.next_kind:
                position = (self.position[mine[-1]] + steps) % 10
                shelf = (self.department == department) & (self.position == position)
                scores += share * probability * np.where(shelf, liked, 0) / liked[shelf].sum()
        scores[history] = 0
        return scores

    @staticmethod
    def _taste(values, history, weight) -> np.ndarray:
        recency = 0.8 ** np.arange(len(history))[::-1]
        shares = (values[:, None] == values[history]) @ (recency / recency.sum())
        return 1 + (weight - 1) * shares**1.3


@pytest.mark.slow("counts and reads a whole shop")
def test_reading_beats_counting(shop):
    splits = leave_one_out(shop.sequences)
    popularity, transitions = counts(splits.train, shop.num_items)
    test = splits.test._replace(histories=splits.test.histories[::4], targets=splits.test.targets[::4])
    counted = recall_at_10(test, lambda history: popularity)
    first_order = recall_at_10(test, lambda history: transitions[history[-1]] + 1e-6 * popularity)
    decayed = recall_at_10(
        test, lambda history: 0.7 ** np.arange(min(20, len(history))) @ transitions[history[:-21:-1]]
    )
    read = recall_at_10(test, ReadingClerk(shop.item_texts()).score)
    assert counted < 0.05 < first_order < decayed
    assert read > 0.45 and read > 2 * decayed


def test_catalogue_is_several_hundred_items_that_can_be_told_apart(shop):
    titles = [text["title"] for text in shop.item_texts()]
    assert len(set(titles)) == len(titles) == shop.num_items == 720
    assert shop.attributes == ["title", "brand", "category", "description"]
    assert all(
        title.endswith(COLOURS) and all(text.values()) for title, text in zip(titles, shop.item_texts(), strict=True)
    )


def test_the_same_seed_gives_the_same_shop_everywhere_and_for_ever(shop):
    # Quickstart numbers are published with this fingerprint.
    assert shop.fingerprint == "9dbeb8fdddc59da33687e6fee835c218b5e9ebb499f591edb03c2c4675cfec8a"
    assert build("toy_shop", seed=1, shoppers=50).fingerprint != build("toy_shop", shoppers=50).fingerprint
    lengths = [len(history) for history in shop.histories()]
    assert (min(lengths), max(lengths)) == (5, 20)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="at least one shopper, not shoppers=0"):
        build("toy_shop", shoppers=0)
