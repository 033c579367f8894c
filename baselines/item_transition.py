"""Item-transition (Markov chain): what came next after this item, in everybody's past?

The simplest model that knows order, and a strong one where shops sell things in runs: on Online Retail it beats the
published tables of several text models, so no table here is without it.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .popularity import Popularity, flatten

# As a tie-break, popularity adds less than this; the smallest gap between two distinct counts is 1.
TIE_BREAK = 1e-6


@strict
class ItemTransitionConfig(PreTrainedConfig):
    """How transitions vote, and the sizes of what was counted.

    Args:
        order: "first" (the last item only) or "decayed" (the last `window` items, weighed by `decay`).
        num_pairs: distinct pairs of neighbours.
        catalogue_fingerprint: of the dataset whose items the numbers are.
    """

    model_type = "item_transition"
    _auto_class = "AutoConfig"
    order: str = "first"
    decay: float | int = 0.7
    window: int = 20
    num_items: int = 1
    num_pairs: int = 0
    catalogue_fingerprint: str | None = None

    def validate_order(self):
        """The order is one of two, and decayed votes are of at least one item."""
        if self.order not in ("first", "decayed"):
            raise ValueError(f'order is "{self.order}"; it is "first" or "decayed".')
        if self.window < 1 or not 0 < self.decay <= 1:
            raise ValueError(f"window ({self.window}) must be at least 1, and decay ({self.decay}) in (0, 1].")


class ItemTransition(PreTrainedModel):
    """Scores items by how often they followed the items of the history, popularity as tie-break.

    In first order the score is the count of (last item, item). Decayed, each of the last `window` items votes with its
    transition probabilities, weighed by `decay` to the power of its age:
    sum over k of decay^k count(h_k, item) / count(h_k, any), where h_0 is the newest item.
    """

    config_class = ItemTransitionConfig
    _auto_class = "AutoModel"
    trained_by, predicts_ratings = None, False

    def __init__(self, config: ItemTransitionConfig):
        super().__init__(config)
        self.register_buffer("pairs", torch.zeros(config.num_pairs, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(config.num_pairs, dtype=torch.int64))
        self.popularity = nn.Parameter(torch.zeros(config.num_items), requires_grad=False)
        self.post_init()

    @classmethod
    @torch.no_grad()
    def fit(
        cls, sequences: Sequence[np.ndarray], num_items: int, popularity: Popularity | None = None, **votes
    ) -> "ItemTransition":
        """Count the transitions of sequences.

        Args:
            sequences: item indices, oldest first.
            popularity: the tie-break; without it the popularity in the same sequences.
            votes: order, decay and window of `ItemTransitionConfig`.

        Raises:
            ValueError: an item outside the catalogue.
            StrictDataclassError: an unknown order, a window or decay that cannot be.
        """
        pairs, counts = count_pairs(sequences, num_items)
        model = cls(ItemTransitionConfig(num_items=num_items, num_pairs=len(pairs), **votes))
        model.pairs, model.counts = torch.from_numpy(pairs), torch.from_numpy(counts)
        model.popularity.copy_((popularity or Popularity.fit(sequences, num_items)).counts)
        return model

    @property
    def num_items(self) -> int:
        return self.config.num_items

    @cached_property
    def transitions(self) -> "Transitions":
        return Transitions(self.pairs.cpu().numpy(), self.counts.cpu().numpy(), self.num_items)

    def score(self, histories: Sequence[np.ndarray]) -> Tensor:
        """B histories -> (B, N) float64 scores; an empty history leaves popularity alone."""
        popularity, first = self.popularity.detach().cpu().double().numpy(), self.config.order == "first"
        tie_break = popularity * (TIE_BREAK / max(1.0, popularity.max(initial=0.0)))
        scores = np.tile(tie_break, (len(histories), 1))
        for age, (rows, items) in enumerate(_by_age(histories, 1 if first else self.config.window)):
            users, following, counts = self.transitions.after(items)
            votes = counts if first else self.config.decay**age * counts / self.transitions.totals[items][users]
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

    def after(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of `items` (B,), laid end to end: place in `items`, following item and count of each entry."""
        lengths = self.starts[items + 1] - self.starts[items]
        places = np.repeat(np.arange(len(items)), lengths)
        first_of_row = np.cumsum(lengths) - lengths
        entries = np.arange(len(places)) + (self.starts[items] - first_of_row)[places]
        return places, self.following[entries], self.counts[entries]


def count_pairs(sequences: Sequence[np.ndarray], num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of neighbours in the sequences, coded as i * num_items + j and sorted, and its count, int64 both.

    Raises ValueError for an item outside the catalogue.
    """
    items = flatten(sequences, num_items)
    ends = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)
    inside = np.ones(max(0, len(items) - 1), dtype=bool)
    inside[ends[(ends > 0) & (ends < len(items))] - 1] = False  # no transition from one user to the next
    return np.unique(items[:-1][inside] * num_items + items[1:][inside], return_counts=True)


def _by_age(histories: Sequence[np.ndarray], window: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For age 0 (newest), 1, ...: the rows whose history reaches that far back, and their items of that age."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    for age in range(min(window, lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > age)
        yield rows, np.array([histories[row][-1 - age] for row in rows], dtype=np.int64)
