"""Item-transition (Markov chain): what came next after this item, in everybody's past?

The simplest model that knows order, and a strong one where shops sell things in runs: on Online Retail it beats the
published tables of several text models, so no table here is without it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .popularity import Popularity, flatten

# As a tie-break, popularity adds less than this; the smallest gap between two distinct counts is 1.
TIE_BREAK = 1e-6


class ItemTransition:
    """Scores items by how often they followed the items of the history, popularity as tie-break.

    With `window` 1 (first order) the score is the count of (last item, item). With a longer window each of the last
    `window` items votes with its transition probabilities, weighed by `decay` to the power of its age:
    sum over k of decay^k count(h_k, item) / count(h_k, any), where h_0 is the newest item.
    """

    def __init__(self, transitions: "Transitions", popularity: Popularity, decay: float = 1.0, window: int = 1):
        """Take counted transitions and the popularity of the same catalogue."""
        self.transitions, self.decay, self.window = transitions, decay, window
        self.num_items = popularity.num_items
        self._tie_break = popularity.counts * (TIE_BREAK / max(1.0, popularity.counts.max(initial=0.0)))

    @classmethod
    def fit(
        cls,
        sequences: Sequence[np.ndarray],
        num_items: int,
        order: str = "first",
        decay: float = 0.7,
        window: int = 20,
        popularity: Popularity | None = None,
    ) -> "ItemTransition":
        """Count the transitions of sequences.

        Args:
            sequences: item indices, oldest first.
            order: "first" (the last item only) or "decayed" (the last `window` items by `decay`).
            popularity: the tie-break; without it the popularity in the same sequences.

        Raises:
            ValueError: an item outside the catalogue, or an unknown order.
        """
        if order not in ("first", "decayed"):
            raise ValueError(f'order is "{order}"; it is "first" or "decayed".')
        transitions = Transitions.count(sequences, num_items)
        popularity = popularity or Popularity.fit(sequences, num_items)
        return cls(transitions, popularity, *((1.0, 1) if order == "first" else (decay, window)))

    def score(self, histories: Sequence[np.ndarray]) -> Tensor:
        """B histories -> (B, N) float64 scores; an empty history leaves popularity alone."""
        scores = np.tile(self._tie_break, (len(histories), 1))
        for age, (rows, items) in enumerate(_by_age(histories, self.window)):
            users, following, counts = self.transitions.after(items)
            votes = counts if self.window == 1 else self.decay**age * counts / self.transitions.totals[items][users]
            scores[rows[users], following] += votes  # no (row, item) twice: within one age a row has one item
        return torch.from_numpy(scores)


class Transitions:
    """How often item j came right after item i: a sparse matrix in compressed rows.

    `starts` (N + 1,), `following` and `counts`: the items that followed item i, and how often, are at
    starts[i]:starts[i + 1]; `totals` (N,) sums the counts of each row.
    """

    def __init__(self, pairs: np.ndarray, counts: np.ndarray, num_items: int):
        """Take distinct sorted pairs coded as i * num_items + j, with their counts."""
        items, self.following = np.divmod(pairs, num_items)
        self.counts = counts.astype(np.float64)
        self.starts = np.searchsorted(items, np.arange(num_items + 1))
        self.totals = np.bincount(items, self.counts, num_items)

    @classmethod
    def count(cls, sequences: Sequence[np.ndarray], num_items: int) -> "Transitions":
        """Count every pair of neighbours in the sequences. Raises ValueError for an item outside the catalogue."""
        items = flatten(sequences, num_items)
        ends = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)
        inside = np.ones(max(0, len(items) - 1), dtype=bool)
        inside[ends[(ends > 0) & (ends < len(items))] - 1] = False  # no transition from one user to the next
        pairs, counts = np.unique(items[:-1][inside] * num_items + items[1:][inside], return_counts=True)
        return cls(pairs, counts, num_items)

    def after(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of `items` (B,), laid end to end: place in `items`, following item and count of each entry."""
        lengths = self.starts[items + 1] - self.starts[items]
        places = np.repeat(np.arange(len(items)), lengths)
        first_of_row = np.cumsum(lengths) - lengths
        entries = np.arange(len(places)) + (self.starts[items] - first_of_row)[places]
        return places, self.following[entries], self.counts[entries]


def _by_age(histories: Sequence[np.ndarray], window: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For age 0 (newest), 1, ...: the rows whose history reaches that far back, and their items of that age."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    for age in range(min(window, lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > age)
        yield rows, np.array([histories[row][-1 - age] for row in rows], dtype=np.int64)
