"""Popularity: every history gets the same scores, the number of times each item occurs in training."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class PopularityConfig(PreTrainedConfig):
    """Size of the catalogue, and the fingerprint of the dataset it is of."""

    model_type = "popularity"
    _auto_class = "AutoConfig"
    num_items: int = 1
    catalogue_fingerprint: str | None = None


class Popularity(PreTrainedModel):
    """Scores items by their count in the training sequences, `counts` (N,)."""

    config_class = PopularityConfig
    _auto_class = "AutoModel"
    trained_by, predicts_ratings = None, False

    def __init__(self, config: PopularityConfig):
        super().__init__(config)
        self.counts = nn.Parameter(torch.zeros(config.num_items), requires_grad=False)  # exact up to 2^24
        self.post_init()

    @classmethod
    @torch.no_grad()
    def fit(cls, sequences: Sequence[np.ndarray], num_items: int) -> "Popularity":
        """Count the items of training sequences. Raises ValueError for an item outside the catalogue."""
        model = cls(PopularityConfig(num_items=num_items))
        model.counts.copy_(torch.from_numpy(np.bincount(flatten(sequences, num_items), minlength=num_items)))
        return model

    @property
    def num_items(self) -> int:
        return self.config.num_items

    def score(self, histories: Sequence[np.ndarray]) -> Tensor:
        """B histories -> (B, N) float64, the same counts for each; a view, not a copy a row."""
        return self.counts.detach().double().expand(len(histories), -1)


def flatten(sequences: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """All items of all sequences, int64; raises ValueError for one outside the catalogue."""
    items = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences] or [np.empty(0, np.int64)])
    if len(items) and not 0 <= items.min() <= items.max() < num_items:
        wrong = items.min() if items.min() < 0 else items.max()
        raise ValueError(f"A training sequence has item {wrong}, but the catalogue has items 0..{num_items - 1}.")
    return items
