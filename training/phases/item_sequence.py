"""Pre-training on sequences of item vectors: what is bought next is found by what was bought before.

Ours, and no paper's: a history is the recency-weighted mean of its items' vectors, so the encoder reads each item of a
batch once and no history as a text (docs/training-log.md says what it gave).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...baselines.item_sequences import pad_sequences
from ...losses_seqrec import effective_rank, item_sequence_loss, weighted_total
from ...modeling_seqrec import RECENCY_DECAY, SeqRecTrainingOutput, in_slices
from ...serving.encoding_seqrec import encode_items
from ...serving.whitening_seqrec import CATALOGUE_PRIOR, Whitening
from ...tokenization_itemsent import ItemSentTokenizer, ItemTokens
from ..batches import Example
from ..data import Corpus, RunData
from ..frozen import FrozenStates
from ..typed_yaml import Range, check_ranges
from .pairs import SentencePairModel
from .phase import InBatchPhase, Work

WHITENED_ITEMS = 2000  # of a dataset; more say little more, see docs/training-log.md


@dataclass(kw_only=True)
class ItemSequencePhase(InBatchPhase):
    """Every next item of a sequence is found among the batch's items (`item_sequence_loss`).

    An example is an item and up to `max_items` before it. `start_weight` is the share of the weights the phase began
    with in those it leaves (WiSE-FT, Wortsman et al., 2022): shops that were not learned from lose less by it. The
    frozen layers of a jepa4rec encoder read without dropout, each item once (`FrozenStates`).
    `whitening` is the power by which items are whitened in the loss by those of their own dataset, as
    `catalogue_whitening` does where the model serves: what serving takes away need not be learned.
    """

    kind: Literal["item_sequence"]
    prefixes: Literal["all", "random", "late", "last", "window"] = "window"
    max_items: int = 5
    temperature: float = 0.1
    same_domain: bool = True
    start_weight: float = 0.5
    whitening: float | None = None

    history_decay: ClassVar[float] = RECENCY_DECAY

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, temperature=Range(0, above=True), start_weight=Range(0, 1), whitening=Range(0, 1))
        if self.whitening is not None and not self.same_domain:
            raise ValueError("whitening is of one dataset at a time: set same_domain to true, or leave whitening out")

    def open_model(self, source: Path, data: RunData) -> nn.Module:
        model = ItemSequenceEncoder.from_encoder(source)
        model.slices, model.temperature = self.slices_in_model, self.temperature
        if self.freeze_layers and hasattr(model.encoder, "embed_below"):
            model.frozen = FrozenStates(model.encoder, self.freeze_layers)
        return model

    def begin(self, model: nn.Module, work: Work) -> Any:
        model.start = {name: weight.clone() for name, weight in model.state_dict().items()}
        if self.whitening is not None:
            model.whitenings = DomainWhitenings.fit(model, work, self.corpus(work.data), self.whitening)

    def result(self, model: nn.Module) -> nn.Module:
        average = copy.deepcopy(model)
        with torch.no_grad():
            for name, weight in average.state_dict().items():  # state_dict() shares memory with the weights
                if weight.is_floating_point():
                    weight.lerp_(model.start[name].to(weight), self.start_weight)
        return average

    def collator(self, work: Work) -> Callable:
        return ItemSequenceCollator(work.tokenizer, work.data.item_tokens(work.tokenizer, self.corpus(work.data)))


class ItemSequenceEncoder(SentencePairModel):
    """Any of our encoders, each item of a batch read once; what it saves is the encoder."""

    temperature, start, frozen, whitenings = 0.1, None, None, None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        item_position_ids: Tensor,
        item_ids: Tensor,
        sequences: Tensor,
        next_places: Tensor,
        telemetry: bool = False,
    ) -> SeqRecTrainingOutput:
        """The loss as `loss_parts` "next_item".

        Args:
            input_ids, attention_mask, token_type_ids, item_position_ids: the distinct items, (D, L).
            item_ids, sequences, next_places: as for `item_sequence_loss`.
        """
        texts = (input_ids, attention_mask, token_type_ids, item_position_ids)
        vectors = in_slices(self._read, texts, self.slices)["vectors"]
        compared = vectors if self.whitenings is None else self.whitenings(item_ids, vectors)
        next_item = item_sequence_loss(compared, item_ids, sequences, next_places, self.temperature, RECENCY_DECAY)
        loss, reported = weighted_total({"next_item": next_item}, {})
        gauges = {"effective_rank": effective_rank(vectors)} if telemetry else {}
        return SeqRecTrainingOutput(loss=loss, loss_parts=reported, telemetry=gauges)

    def _read(self, *texts: Tensor) -> dict[str, Tensor]:
        return super()._read(*texts) if self.frozen is None else {"vectors": self.frozen.embed(*texts)}


class DomainWhitenings(NamedTuple):
    """A whitening for each dataset that a phase learns from, by vectors as they are when it begins."""

    domains: Tensor  # (N,) the dataset of each item of the corpus
    means: Tensor  # (datasets, d)
    matrices: Tensor  # (datasets, d, d)

    @classmethod
    def fit(cls, model: nn.Module, work: Work, corpus: Corpus, power: float) -> DomainWhitenings:
        """Learned from `WHITENED_ITEMS` of each dataset, a catalogue's prior beside them."""
        of_sequence = np.zeros(len(corpus.sequences), np.int64) if corpus.domains is None else corpus.domains
        of_item, maps = np.zeros(len(corpus.texts), np.int64), []
        for domain in range(of_sequence.max() + 1):
            items = np.unique(np.concatenate([corpus.sequences[row] for row in np.flatnonzero(of_sequence == domain)]))
            of_item[items] = domain
            drawn = np.random.default_rng(work.recipe.run.seed).permutation(items)[:WHITENED_ITEMS]
            tokens = work.tokenizer.encode_items([corpus.texts[item] for item in drawn])
            vectors = encode_items(model, work.tokenizer, tokens, progress=False, precision=work.precision)
            maps.append(Whitening.fit(vectors, power, CATALOGUE_PRIOR))
        means, matrices = (torch.stack(parts) for parts in zip(*maps, strict=True))
        return cls(torch.from_numpy(of_item).to(means.device), means, matrices)

    def __call__(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Vectors (D, d) of `items` (D,), all of one dataset -> whitened, one long."""
        own = self.domains[items[:1]]
        return Whitening(self.means[own], self.matrices[own][0])(vectors)


class ItemSequenceCollator:
    """Examples -> the texts of their distinct items, and `item_ids` (D,) and `sequences` (B, L) that point at them;
    `next_places` (M,) are found here, on the host, so that no step waits for a GPU."""

    def __init__(self, tokenizer: ItemSentTokenizer, item_tokens: ItemTokens):
        self.tokenizer, self.item_tokens = tokenizer, item_tokens

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        rows = [np.append(example.history[-self.tokenizer.max_items :], example.target) for example in examples]
        items, places = np.unique(np.concatenate(rows), return_inverse=True)
        split = np.split(places, np.cumsum([len(row) for row in rows])[:-1])
        sequences = pad_sequences(split, max(map(len, rows)))
        texts = dict(self.tokenizer.batch_items(self.item_tokens, items))
        return texts | {
            "item_ids": torch.from_numpy(items.astype(np.int64)),
            "sequences": sequences,
            "next_places": (sequences[:, 1:] >= 0).flatten().nonzero().flatten(),
        }
