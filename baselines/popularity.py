"""Popularity: every history gets the same scores, the number of times each item occurs in training."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Popularity:
    """Scores items by their count in the training sequences."""

    def __init__(self, counts: np.ndarray):
        """Take the count of each item, (N,)."""
        self.counts = np.asarray(counts, dtype=np.float64)
        self.num_items = len(self.counts)

    @classmethod
    def fit(cls, sequences: Sequence[np.ndarray], num_items: int) -> "Popularity":
        """Count the items of training sequences. Raises ValueError for an item outside the catalogue."""
        return cls(np.bincount(flatten(sequences, num_items), minlength=num_items))

    def score(self, histories: Sequence[np.ndarray]) -> Tensor:
        """B histories -> (B, N) float64, the same counts for each; a view, not a copy a row."""
        return torch.from_numpy(self.counts).expand(len(histories), -1)


def flatten(sequences: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """All items of all sequences, int64; raises ValueError for one outside the catalogue."""
    items = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences] or [np.empty(0, np.int64)])
    if len(items) and not 0 <= items.min() <= items.max() < num_items:
        wrong = items.min() if items.min() < 0 else items.max()
        raise ValueError(f"A training sequence has item {wrong}, but the catalogue has items 0..{num_items - 1}.")
    return items
