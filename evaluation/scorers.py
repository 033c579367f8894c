"""Whoever can be ranked: text encoders and baselines, trained or counted; and what a record says of their ranks."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..baselines import fit_baseline
from ..baselines.item_sequences import ItemSequenceModel
from ..losses_seqrec import NORM_EPSILON, normalise
from ..modeling_seqrec import RECENCY_DECAY
from ..serving.encoding_seqrec import (
    Histories,
    check_histories,
    encode_histories,
    encode_items,
    newest_item_ids,
    reads_items,
)
from ..serving.whitening_seqrec import CATALOGUE_PRIOR, Whitening
from .metrics.seqrec_ranking.ranking_metrics import CUTOFFS, ranking_metrics
from .ranking import ItemIndex, Ranks, Scorer, Ties, rank_split_both_ways

History = Literal["text", "items"]  # one sentence of all its items, or the mean of their vectors

BATCH_HISTORIES = 512


def make_scorer(
    model: nn.Module,
    tokenizer,
    item_tokens,
    batch_tokens: int | None = None,
    progress: bool | None = None,
    history: History | None = None,
    item_vectors: Tensor | None = None,
    precision: torch.dtype | None = None,
) -> Scorer:
    """A baseline ranks by item ids, a fine-tuned model with its item matrix, any other with the vectors of the item
    texts (zero-shot). Without a tokenizer the model is a baseline. `history` "items" reads no history as a text, but
    takes the recency-weighted mean of its items' vectors; None: as the model says (`history_reading`).
    `item_vectors` are those of the texts, where known; `precision` as in `encode_items`."""
    if tokenizer is None:
        return SequenceScorer(model) if isinstance(model, ItemSequenceModel) else model
    options = (batch_tokens, progress, precision)
    scorer = _by_cosine(model, tokenizer, item_tokens, history, item_vectors, *options)
    return RepeatScorer(scorer, model) if hasattr(model, "repeat_bias") else scorer


def _by_cosine(
    model: nn.Module,
    tokenizer,
    item_tokens,
    history: History | None,
    item_vectors: Tensor | None,
    batch_tokens: int | None,
    progress: bool | None,
    precision: torch.dtype | None,
) -> Scorer:
    """As in `make_scorer`, for a model of texts."""
    vectors = item_vectors
    if hasattr(model, "item_matrix"):
        vectors = model.folded().item_matrix.weight
    if vectors is None:
        vectors = encode_items(model, tokenizer, item_tokens, batch_tokens, progress, precision)
    if history == "text" and hasattr(model, "history_projection") and reads_items(model):
        raise ValueError("This model was trained to read histories item by item; it reads none as a text.")
    if (history or history_reading(model)) == "items":
        if model.config.catalogue_whitening is not None and not hasattr(model, "item_matrix"):
            vectors = Whitening.fit(vectors, model.config.catalogue_whitening, CATALOGUE_PRIOR)(vectors)
        project = model.project_histories if hasattr(model, "history_projection") else None
        return ItemMeanScorer(vectors, model.config.history_decay or RECENCY_DECAY, project)
    return DualEncoderScorer(model, tokenizer, item_tokens, vectors, batch_tokens, progress, precision)


def history_reading(model: nn.Module) -> History:
    """How a model reads a history, see `reads_items`."""
    return "items" if reads_items(model) else "text"


class DualEncoderScorer:
    """Cosine of a model's history vectors with its item vectors.

    Without `item_vectors` the items are encoded from their texts: zero-shot. A fine-tuned model ranks with its own
    item matrix: `DualEncoderScorer(model, tokenizer, item_tokens, model.item_vectors())`.
    """

    def __init__(
        self,
        model,
        tokenizer,
        item_tokens,
        item_vectors: Tensor | None = None,
        batch_tokens: int | None = None,
        progress: bool | None = None,
        precision: torch.dtype | None = None,
    ):
        """Encode the catalogue once (arguments as `encode_items`).

        Raises:
            ValueError: item vectors of another catalogue than `item_tokens`.
        """
        if item_vectors is None:
            item_vectors = encode_items(model, tokenizer, item_tokens, batch_tokens, progress, precision)
        if len(item_vectors) != item_tokens.num_items:
            raise ValueError(
                f"The item matrix has {len(item_vectors)} rows, the catalogue {item_tokens.num_items} items."
            )
        self.index = ItemIndex(item_vectors)
        self.num_items = self.index.num_items
        self._model, self._tokenizer, self._item_tokens = model, tokenizer, item_tokens
        self._batch_tokens, self._precision = batch_tokens, precision

    def score(self, histories: Histories) -> Tensor:
        """B histories -> (B, num_items) cosines, float32."""
        options = (self._model, self._tokenizer, self._item_tokens, histories, self._batch_tokens)
        users = encode_histories(*options, progress=False, precision=self._precision)
        return self.index.scores(users)


class ItemMeanScorer:
    """Cosine of a history's recency-weighted mean item vector with all item vectors.

    The newest item has weight 1, each older one `decay` times that of the next newer. The user's vector costs
    no run of the encoder, and no fine-tuning is needed: with a text encoder this is zero-shot.
    """

    def __init__(
        self,
        item_vectors: Tensor,
        decay: float = RECENCY_DECAY,
        project: Callable[[Tensor], Tensor] | None = None,
    ):
        """Take (N, d) vectors of any length, and what means (B, d) go through before they are compared."""
        self.decay, self.project = decay, project
        self.index = ItemIndex(item_vectors)
        self.num_items = self.index.num_items
        self._directions = normalise(item_vectors.detach())

    def score(self, histories: Histories) -> Tensor:
        """B histories -> (B, num_items) cosines, float32. Raises ValueError for an empty history or unknown item."""
        check_histories(histories, self.num_items)
        lengths = [len(history) for history in histories]
        ages = np.concatenate([np.arange(length)[::-1] for length in lengths])
        users = nn.functional.embedding_bag(
            torch.from_numpy(np.concatenate(histories).astype(np.int64)).to(self._directions.device),
            self._directions,
            torch.from_numpy(np.cumsum([0, *lengths[:-1]])).to(self._directions.device),
            mode="sum",
            per_sample_weights=torch.from_numpy(self.decay ** ages.astype(np.float32)).to(self._directions),
        )
        if self.project is not None:
            with torch.no_grad():
                users = self.project(users)
        return self.index.scores(users)


class RepeatScorer:
    """Another's scores, and what a fine-tuned model has learned of items that a history holds (`repeat_items`)."""

    def __init__(self, scorer: Scorer, model: nn.Module):
        self.scorer, self.model, self.num_items = scorer, model, scorer.num_items

    @torch.no_grad()
    def score(self, histories: Histories) -> Tensor:
        """B histories -> (B, num_items) float32."""
        known = newest_item_ids(histories, self.model.config.repeat_items)
        return self.model.with_repeats(self.scorer.score(histories), known)


class TfIdfScorer:
    """Cosine of a history's recency-weighted sum of item texts with all item texts, by counting words.

    A text is the set of its tokens, each weighted by log(N / items that have it) and all together one long. Nothing is
    trained: what a text encoder ranks no better than this, it has not understood. Users weigh as in `ItemMeanScorer`.
    """

    def __init__(self, item_tokens, decay: float = RECENCY_DECAY):
        """Take a catalogue of N items, as `tokenizer.encode_items` gives it."""
        self.decay, self.num_items = decay, item_tokens.num_items
        tokens, columns = np.unique(item_tokens.input_ids, return_inverse=True)
        owners = np.repeat(np.arange(self.num_items), item_tokens.lengths)
        rows, columns = np.divmod(np.unique(owners * len(tokens) + columns), len(tokens))  # each token of a text once
        weights = np.log(self.num_items / np.bincount(columns))[columns]
        lengths = np.sqrt(np.bincount(rows, weights**2, self.num_items))
        values = (weights / np.maximum(lengths, NORM_EPSILON)[rows]).astype(np.float32)  # 0 where all items say this
        places, shape = torch.from_numpy(np.stack([rows, columns])), (self.num_items, len(tokens))
        texts = torch.sparse_coo_tensor(places, torch.from_numpy(values), shape, check_invariants=False)
        self._texts, self._by_token = texts.coalesce(), texts.T.coalesce()

    def score(self, histories: Histories) -> Tensor:
        """B histories -> (B, num_items) float32: the cosines times the length of each history's sum."""
        check_histories(histories, self.num_items)
        owners = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        ages = np.concatenate([np.arange(len(history))[::-1] for history in histories])
        read = np.zeros((self.num_items, len(histories)), np.float32)
        np.add.at(read, (np.concatenate(histories).astype(np.int64), owners), self.decay ** ages.astype(np.float32))
        return (self._texts @ (self._by_token @ torch.from_numpy(read))).T


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
        users = ((block, self.model.encode_histories(block)) for block in blocks)
        return torch.cat([self.model.rerank(block, self.index.scores(vectors)) for block, vectors in users])


def rank_baselines(
    names: Sequence[str], splits, part: str, num_items: int, exclude_history: bool = False
) -> dict[str, Ranks]:
    """Ranks of the users of a part ("validation" or "test") by each of these baselines."""
    scorers = {name: fit_baseline(name, splits, part, num_items) for name in names}
    split = getattr(splits, part)
    return {name: rank_split_both_ways(one, split, exclude_history, progress=False) for name, one in scorers.items()}


def measure(ranks: Ranks, baselines: dict[str, Ranks], ties: Ties, cutoffs: Sequence[int] = CUTOFFS) -> dict:
    """`metrics` and `baselines` as a record has them, and both once more under `official`, by optimistic ties."""

    def metrics_by(way: Ties) -> dict:
        by_baseline = {name: ranking_metrics(own.by(way), cutoffs) for name, own in baselines.items()}
        return {"metrics": ranking_metrics(ranks.by(way), cutoffs), "baselines": by_baseline}

    return {**metrics_by(ties), "official": metrics_by("official")}
