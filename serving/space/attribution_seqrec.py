"""Why was this item recommended? By deletion: what its score loses when one item, or one word, of the history is gone.

A gradient or an attention weight says what a model looked at; a deletion says what would have been different. The
numbers here are exact differences of scores, each of a history that was really encoded without the thing in question
(leave-one-out; Li et al. 2016, "Understanding neural networks through representation erasure").
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

ITEM_ID = "item_id"  # names an item in a history; it is no text
# A run of letters and digits with its inner ' ’ - and decimal points; one character of a script without spaces.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    r"|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
    r"(?:['’.\-][^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+)*"
)

Item = Mapping[str, str]
History = Sequence[Item]
VectorsOf = Callable[[list[list[Item]]], np.ndarray]


class Word(NamedTuple):
    """A word of a history: characters start to end of one attribute of one item."""

    item: int
    attribute: str
    start: int
    end: int


class Attribution(NamedTuple):
    """What T scores lose without each of n items and each of W words; negative where a thing spoke against it."""

    scores: np.ndarray  # (T,) of the whole history
    items: np.ndarray  # (T, n)
    words: np.ndarray  # (T, W)
    places: list[Word]  # (W,) which word each column of `words` is


def words_of(item: Item, place: int = 0) -> list[Word]:
    """The words of an item's attributes, in reading order, its id aside."""
    return [
        Word(place, name, *match.span())
        for name, text in item.items()
        if name != ITEM_ID
        for match in WORD.finditer(str(text))
    ]


def words_of_history(history: History, most: int | None = None) -> list[Word]:
    """The words of a history, item by item; of the newest items only where there would be more than `most`."""
    by_item = [words_of(item, place) for place, item in enumerate(history)]
    if most is not None:
        from_the_end = np.cumsum([len(words) for words in by_item[::-1]])[::-1]
        by_item = [words if total <= most else [] for words, total in zip(by_item, from_the_end, strict=True)]
    return [word for words in by_item for word in words]


def without_item(history: History, place: int) -> list[Item]:
    """The history with one item left out."""
    return [item for other, item in enumerate(history) if other != place]


def without_word(history: History, word: Word) -> list[Item]:
    """The history with one word left out; an item whose only word it was goes with it."""
    item = dict(history[word.item])
    text = str(item[word.attribute])
    item[word.attribute] = " ".join((text[: word.start] + " " + text[word.end :]).split())
    if not words_of(item):
        return without_item(history, word.item)
    return [*history[: word.item], item, *history[word.item + 1 :]]


def only_words(item: Item, kept: Iterable[Word]) -> dict[str, str]:
    """The item's kept words alone, joined by spaces; attributes that have none, and its id, are left out."""
    texts: dict[str, list[str]] = {}
    for word in sorted(kept, key=lambda word: word.start):
        texts.setdefault(word.attribute, []).append(str(item[word.attribute])[word.start : word.end])
    return {name: " ".join(texts[name]) for name in item if name in texts}


def masked_words(item: Item, told: Iterable[Word], tokenizer) -> dict[str, str]:
    """The item with the tokenizer's mask in place of each token of the words that are not told."""
    texts = {name: str(text) for name, text in item.items()}
    for word in sorted(set(words_of(item)) - set(told), key=lambda word: word.start, reverse=True):
        text = texts[word.attribute]
        masks = tokenizer.mask_token * len(tokenizer.tokenize(text[word.start : word.end]))
        texts[word.attribute] = text[: word.start] + masks + text[word.end :]
    return texts


def attribute(
    history: History, targets: np.ndarray, vectors_of: VectorsOf, max_words: int | None = None
) -> Attribution:
    """Deletion of every item and every word of a history, seen by the scores of T items at once.

    Args:
        history: attributes of the items, oldest first; an `item_id` among them is kept with its item.
        targets: vectors of the T recommended items, (T, d).
        vectors_of: the queries (B, d) of B histories; a history of one item is also asked for without it, as [].
        max_words: words that are deleted at most, those of the newest items.

    Raises:
        ValueError: an empty history.
    """
    if not history:
        raise ValueError("The history is empty: there is nothing to take away.")
    places = words_of_history(history, max_words)
    variants = [list(history), *(without_item(history, place) for place in range(len(history)))]
    variants += [without_word(history, word) for word in places]
    scores = np.asarray(vectors_of(variants), np.float64) @ np.asarray(targets, np.float64).T
    drops = (scores[0] - scores[1:]).T
    return Attribution(scores[0], drops[:, : len(history)], drops[:, len(history) :], places)
