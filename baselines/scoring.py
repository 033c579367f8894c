"""Trained baselines at work: training batches of item ids, and rankings of the catalogue."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..evaluation.ranking import ItemIndex, check_histories
from .item_sequences import ItemSequenceModel, pad_sequences

BATCH_HISTORIES = 512


class SequenceCollator:
    """Examples -> item_ids (B, L): history and target in one row, oldest first, padded at the end with -1."""

    def __call__(self, examples: Sequence) -> dict[str, Tensor]:
        rows = [np.append(example.history, example.target) for example in examples]
        return {"item_ids": pad_sequences(rows, max(map(len, rows)))}


class SequenceScorer:
    """Scores the whole catalogue for histories of item indices, by what a trained baseline makes of them."""

    def __init__(self, model: ItemSequenceModel):
        """Compute the item vectors; the model must not be trained while the scorer is used."""
        self.model = model.eval()
        with torch.no_grad():
            vectors = model.item_vectors()
        self.index = ItemIndex(vectors, "dot" if model.config.temperature is None else "cosine")
        self.num_items = self.index.num_items

    @torch.no_grad()
    def score(self, histories: Sequence[np.ndarray]) -> Tensor:
        """B histories -> (B, num_items) float32. Raises ValueError for an empty history or an unknown item."""
        check_histories(histories, self.num_items)
        blocks = [histories[start : start + BATCH_HISTORIES] for start in range(0, len(histories), BATCH_HISTORIES)]
        return torch.cat([self.index.scores(self.model.encode_histories(block)) for block in blocks])
