"""ST5's three contrastive phases: pairs of sentences in, symmetric ranking loss out (thesis, section 4.4).

A batch holds an anchor under the names every encoder takes (input_ids, attention_mask, token_type_ids,
item_position_ids: the distinct texts, (D, L), and text_rows (B,), see `read_once`), and its positive under the same
names with `positive_` before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...hub.opening import ENCODERS, open_encoder
from ...losses_seqrec import SentencePairObjective, collapse_telemetry, symmetric_ranking_loss, weighted_total
from ...modeling_seqrec import SeqRecTrainingOutput, in_slices
from ...tokenization_itemsent import ItemSentTokenizer, ItemTokens
from ...tokenization_st5rec import DESCRIPTION
from ..batches import AUGMENTATION_STREAM, Example, PrefixDataset, read_once
from ..data import RunData
from .phase import InBatchPhase, Work

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "item_position_ids")


class SentencePairModel(PreTrainedModel):
    """Any of our encoders under `objective`. It has no weights of its own, and what it saves is the encoder.

    With `slices` n a batch is read in n parts (`in_slices`): the loss and the gradients of the whole batch, with the
    activations of one part of its texts.
    """

    base_model_prefix = "encoder"
    _supports_sdpa = True  # where the encoder does

    def __init__(self, config: PreTrainedConfig):
        encoder = ENCODERS[config.model_type](config)  # first, so that it says in the config how it attends
        super().__init__(encoder.config)
        self.encoder = encoder
        self._no_split_modules = self.encoder._no_split_modules
        self.objective, self.slices = SentencePairObjective(), 1

    @classmethod
    def from_encoder(cls, checkpoint) -> SentencePairModel:
        """Around the encoder of a checkpoint of ours."""
        encoder = open_encoder(checkpoint)
        with torch.device("meta"):
            model = cls(encoder.config)
        model.encoder = encoder
        return model

    def save_pretrained(self, *args, **kwargs) -> None:
        self.encoder.save_pretrained(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        item_position_ids: Tensor,
        positive_input_ids: Tensor,
        positive_attention_mask: Tensor,
        positive_token_type_ids: Tensor,
        positive_item_position_ids: Tensor,
        text_rows: Tensor | None = None,
        positive_text_rows: Tensor | None = None,
        pair_ids: Tensor | None = None,
        telemetry: bool = False,
    ) -> SeqRecTrainingOutput:
        """Symmetric ranking loss of the batch's pairs as `loss_parts` "ranking".

        Args:
            input_ids, attention_mask, token_type_ids, item_position_ids: the anchors, (B, L).
            positive_*: their positives, (B, Lp).
            text_rows, positive_text_rows: (B,) which text each pair has, where the texts are the distinct ones.
            pair_ids: (B,) pairs of equal id are no negatives of each other (`objective.mask_duplicates`).
            telemetry: also measure collapse, on the positives.
        """
        anchors = (input_ids, attention_mask, token_type_ids, item_position_ids)
        positives = (
            positive_input_ids, positive_attention_mask, positive_token_type_ids, positive_item_position_ids,
        )  # fmt: skip
        vectors = [in_slices(self._read, texts, self.slices)["vectors"] for texts in (anchors, positives)]
        rows = (text_rows, positive_text_rows)
        vectors = [read if row is None else read[row] for read, row in zip(vectors, rows, strict=True)]
        loss, reported = weighted_total(self.losses(*vectors, pair_ids), {})
        gauges = collapse_telemetry(*vectors, vectors[1]) if telemetry else {}
        return SeqRecTrainingOutput(loss=loss, loss_parts=reported, telemetry=gauges)

    def _read(self, *texts: Tensor) -> dict[str, Tensor]:
        """Vectors (b, d) of texts (b, L), read as far as the longest of them goes."""
        longest = int(texts[1].any(0).nonzero().max()) + 1
        return {"vectors": self.encoder.embed(*(part[:, :longest] for part in texts))}

    def losses(self, anchors: Tensor, positives: Tensor, pair_ids: Tensor | None) -> dict[str, Tensor]:
        """What is minimised, by name, of vectors (B, d) whose rows belong together."""
        known = pair_ids if self.objective.mask_duplicates else None
        return {"ranking": symmetric_ranking_loss(anchors, positives, self.objective.temperature, known)}


# ------------------------------------------------------------------------------------------------ the three kinds


@dataclass(kw_only=True)
class PairPhase(InBatchPhase):
    """What ST5's contrastive phases share; they train any text encoder."""

    objective: SentencePairObjective = field(default_factory=SentencePairObjective)

    model_class: ClassVar[type] = SentencePairModel

    def open_model(self, source: Path, data: RunData) -> nn.Module:
        model = self.model_class.from_encoder(source)
        model.slices, model.objective = self.slices_in_model, self.objective
        return model


@dataclass(kw_only=True)
class ItemDescriptionPhase(PairPhase):
    """Items and their descriptions find each other (section 4.4.1). An example is an item that has both; `description`
    names the attributes that make one, where a shop has no attribute of that name (brand and category, say)."""

    kind: Literal["item_description"]
    prefixes: Literal["last"] = "last"
    description: list[str] = field(default_factory=lambda: ["description"])

    def examples(self, work: Work, max_history: int = 1) -> PrefixDataset:
        items = described_items(self.corpus(work.data).texts, self.description)
        if not len(items):
            raise ValueError(
                f"no item has both a title and one of the attributes {', '.join(self.description)}, which the phase "
                "item_description needs: name others in its description, or leave the phase out"
            )
        pairs = np.repeat(items, 2).reshape(-1, 2)  # the item, "after" itself
        return PrefixDataset(pairs, "last", seed=work.recipe.run.seed)

    def collator(self, work: Work) -> Callable:
        texts = self.corpus(work.data).texts
        return ItemDescriptionCollator(
            work.tokenizer, texts, self.description, described_items(texts, self.description)
        )


@dataclass(kw_only=True)
class SequenceSequencePhase(PairPhase):
    """A user's sequence and the same augmented find each other: one of crop (η), reorder (β) and drop (δ), which the
    thesis leaves open; crop and reorder are as in CL4SRec. 0 rules one out."""

    kind: Literal["sequence_sequence"]
    prefixes: Literal["all", "random", "late", "last"] = "last"
    crop: float = 0.6
    reorder: float = 0.6
    drop: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        for name, ratio in self.ratios.items():
            if not 0 <= ratio <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {ratio}")
        if not any(self.ratios.values()):
            raise ValueError("crop, reorder and drop are all 0: nothing would be augmented")

    @property
    def ratios(self) -> dict[str, float]:
        return {"crop": self.crop, "reorder": self.reorder, "drop": self.drop}

    def collator(self, work: Work) -> Callable:
        item_tokens = work.data.item_tokens(work.tokenizer, self.corpus(work.data))
        return SequenceSequenceCollator(work.tokenizer, item_tokens, self.ratios, work.recipe.run.seed)


@dataclass(kw_only=True)
class SequenceItemPhase(PairPhase):
    """Histories and their next items find each other: ST5's fine-tuning (section 4.4.2)."""

    kind: Literal["sequence_item"]

    def collator(self, work: Work) -> Callable:
        return SequenceItemCollator(work.tokenizer, work.data.item_tokens(work.tokenizer, self.corpus(work.data)))


# ------------------------------------------------------------------------------------------------ batches


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
            augment(items, self.ratios, np.random.default_rng((AUGMENTATION_STREAM, self.seed, e.epoch, e.index)))
            for items, e in zip(whole, examples, strict=True)
        ]
        return as_pair(*(self.tokenizer.batch_histories(self.item_tokens, rows) for rows in (whole, changed)))


def as_pair(anchor: Mapping[str, torch.Tensor], positive: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    positive = {f"positive_{name}": values for name, values in read_once(positive).items()}
    return read_once(anchor) | positive


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
    rest = {name: text for name, text in item.items() if text and name not in names}
    return rest, {DESCRIPTION: " ".join(item[name] for name in names if item.get(name))}
