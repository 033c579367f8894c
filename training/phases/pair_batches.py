"""Batches of sentence pairs, for ST5's three phases (sections 4.4.1 and 4.4.2 of the thesis).

A batch holds an anchor under the names every encoder takes (input_ids, attention_mask, token_type_ids,
item_position_ids, (B, L)) and its positive under the same names with `positive_` before them, (B, Lp).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..examples import Example
from ...tokenization_itemsent import ItemSentTokenizer, ItemTokens
from ...tokenization_st5rec import DESCRIPTION

_AUGMENTATION_STREAM = 3  # beside those of collation_itemsent


class SequenceItemCollator:
    """Examples -> history and next item, with `pair_ids` (B,): the item, to know duplicates."""

    def __init__(self, tokenizer: ItemSentTokenizer, item_tokens: ItemTokens):
        self.tokenizer, self.item_tokens = tokenizer, item_tokens

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        targets = np.array([example.target for example in examples])
        histories = self.tokenizer.batch_histories(self.item_tokens, [example.history for example in examples])
        pair = as_pair(histories, self.tokenizer.batch_items(self.item_tokens, targets))
        return pair | {"pair_ids": torch.from_numpy(targets)}


class ItemDescriptionCollator:
    """Examples whose target is an item -> the item without its description, and the description alone.

    Args:
        texts: of all items; `names`: the attributes that make a description.
        items: (n,) ascending, which items have one; only these are targets.
    """

    def __init__(
        self, tokenizer: ItemSentTokenizer, texts: Sequence[Mapping[str, str]], names: Sequence[str], items: np.ndarray
    ):
        self.tokenizer, self.items = tokenizer, items
        sides = zip(*(split_description(texts[item], names) for item in items), strict=True)
        self.sides = [tokenizer.encode_items(side, items) for side in sides]

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        rows = np.searchsorted(self.items, [example.target for example in examples])
        return as_pair(*(self.tokenizer.batch_items(side, rows) for side in self.sides))


class SequenceSequenceCollator:
    """Examples -> the whole sequence (the target its last item), and the same augmented; see `augment`."""

    def __init__(self, tokenizer: ItemSentTokenizer, item_tokens: ItemTokens, ratios: Mapping[str, float], seed: int):
        self.tokenizer, self.item_tokens, self.ratios, self.seed = tokenizer, item_tokens, dict(ratios), seed

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        whole = [np.append(example.history, example.target) for example in examples]
        changed = [
            augment(items, self.ratios, np.random.default_rng((_AUGMENTATION_STREAM, self.seed, e.epoch, e.index)))
            for items, e in zip(whole, examples, strict=True)
        ]
        return as_pair(*(self.tokenizer.batch_histories(self.item_tokens, rows) for rows in (whole, changed)))


def as_pair(anchor: Mapping[str, torch.Tensor], positive: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(anchor) | {f"positive_{name}": values for name, values in positive.items()}


def augment(items: np.ndarray, ratios: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """A sequence (n,) after one of three changes, each equally likely; the ratio bounds the share m / n it touches.

    crop (η) keeps a run of m neighbours, reorder (β) shuffles a run of m, drop (δ) removes m items from anywhere. m is
    drawn from 1 (reorder: 2) to the bound; at least one item is left. A ratio of 0 rules its change out.
    """
    ways = [way for way, ratio in ratios.items() if ratio > 0]
    way, n = ways[rng.integers(len(ways))], len(items)
    least = min(n, 2 if way == "reorder" else 1)
    most = max(least, math.floor(ratios[way] * n))
    if way == "drop":
        most = min(most, n - 1)
        gone = rng.choice(n, rng.integers(1, most + 1), replace=False) if most else []
        return np.delete(items, gone)
    size = rng.integers(least, most + 1)
    start = rng.integers(0, n - size + 1)
    if way == "crop":
        return items[start : start + size]
    changed = items.copy()
    changed[start : start + size] = rng.permutation(items[start : start + size])
    return changed


def described_items(texts: Sequence[Mapping[str, str]], names: Sequence[str]) -> np.ndarray:
    """Indices of the items that have a description (one of the attributes `names`) and some text besides."""

    def has_both(item: Mapping[str, str]) -> bool:
        told = [name in names for name, text in item.items() if text.strip()]
        return any(told) and not all(told)

    return np.array([i for i, item in enumerate(texts) if has_both(item)], np.int64)


def split_description(item: Mapping[str, str], names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """An item without its description, and the description alone: the attributes `names`, joined."""
    rest = {name: text for name, text in item.items() if name not in names}
    return rest, {DESCRIPTION: " ".join(item[name] for name in names if item.get(name))}
