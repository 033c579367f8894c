"""Fine-tuning by full softmax over the catalogue (JEPA4Rec, section 3.4; RecFormer, eq. 12, its two stages
by Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from ...hub.opening import recommendation_class
from ...losses_seqrec import FineTuningObjective, process_index
from ...modeling_seqrec import RECENCY_DECAY
from ...serving.encoding_seqrec import HistoryCollator, encode_items, newest_item_ids
from ...tokenization_itemsent import ItemSentTokenizer, ItemTokens
from ..batches import MASK_STREAM, Example, read_once
from ..data import RunData
from ..frozen import FrozenStates
from ..masking import TokenMasker, maskable, uniform
from ..typed_yaml import Range, check_ranges
from .phase import Phase, Work

if TYPE_CHECKING:
    from ..recipe import Recipe


@dataclass(kw_only=True)
class FinetunePhase(Phase):
    """Fine-tuning by full softmax over the catalogue.

    `item_vectors` says when the item matrix is encoded from the item texts: "start" (once, before the first step),
    "epoch" (again before each epoch: RecFormer's stage 1) or "keep" (never: the matrix of the phase before, stage 2).
    Whether it also learns is `objective.item_matrix`. `history_items`: how many of the newest items add a learnable
    vector of their own to the user vector. `history_text` false leaves the text encoder out of the user vector: item
    vectors alone learn, some fifty times faster, before a phase that adds the text. `text_gate`: the weight the text
    begins with beside the items (None: where the phase before left it; 1 at first). `lr_items` is for everything that
    is not the text encoder. With `max_items` 1 the frozen layers of a jepa4rec encoder read without dropout, each item
    once (`FrozenStates`). `history_reading` "items" reads no history as a text, see `SeqRecConfig`: encoder and item
    vectors stay, a linear layer that histories go through learns, and an item that comes later needs no more than a
    text. `history_projection` puts such a layer behind a history's text. With `item_projection` a matrix for all items
    learns too, and ends as a part of the encoder. `repeat_items`: of how many of the newest items it is learned, by
    age, how much less (or more) an item scores that was had. `history_mask_rate`: share of tokens that
    `objective.mlm_weight` has predicted.

    Slips of RecFormer's published code, to compare with its numbers: `min_history` 0 also trains on empty histories
    (`[CLS]` alone); `stale_items` evaluates with the item vectors from before the epoch (else those of
    `item_vectors: epoch` are encoded before each evaluation too); `continue_schedule` goes on with the learning rates
    of the phase before from the step where that stopped, at 0 after its last.
    """

    kind: Literal["finetune"]
    lr_items: float = 3e-3
    history_items: int = 10
    history_text: bool = True
    text_gate: float | None = None
    history_reading: Literal["text", "items"] = "text"
    history_projection: bool = False
    item_projection: bool = False
    repeat_items: int = 0
    item_vectors: Literal["start", "epoch", "keep"] = "start"
    stale_items: bool = False
    continue_schedule: bool = False
    history_mask_rate: float = 0.15
    objective: FineTuningObjective = field(default_factory=FineTuningObjective)

    least_history: ClassVar[int] = 0
    knows_items: ClassVar[bool] = True
    own_data: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.reads_items and (self.history_items or not self.history_text or self.objective.mlm_weight):
            raise ValueError("history_reading items needs history_items: 0, history_text: true and no mlm_weight")
        if self.reads_items and (self.item_vectors, self.objective.item_matrix) != ("start", "frozen"):
            raise ValueError(
                "history_reading items leaves items as their texts are read: item_vectors is start and "
                "objective.item_matrix frozen"
            )
        if self.item_projection and not self.reads_items:
            raise ValueError("item_projection needs history_reading: items")
        if not self.history_text and not self.history_items:
            raise ValueError("history_text is false and history_items 0: nothing of the history would be read")
        check_ranges(self, history_mask_rate=Range(0, 1), text_gate=Range(0, 1, above=True), repeat_items=Range(0))
        if self.objective.mlm_weight and not (self.history_text and self.gradient_accumulation == 1):
            raise ValueError("objective.mlm_weight needs history_text: true and gradient_accumulation: 1")
        if self.text_gate is not None and not self.history_items:
            raise ValueError("text_gate weighs the text beside history_items, which are 0: leave it out")

    @property
    def reads_items(self) -> bool:
        return self.history_reading == "items"

    @property
    def known_items(self) -> int:
        return max(self.history_items, self.repeat_items)

    @property
    def history_decay(self) -> float | None:
        return RECENCY_DECAY if self.reads_items else None

    def check(self, recipe: Recipe, index: int) -> None:
        before = [phase for phase in recipe.phases[:index] if isinstance(phase, FinetunePhase)]
        if self.item_vectors == "keep" and not before:
            raise ValueError("the first finetune phase has item_vectors keep, but no item matrix to keep: use start")
        if self.continue_schedule and not index:
            raise ValueError("the first phase has continue_schedule, but no phase before it to continue")
        for name in ("history_items", "history_reading", "history_projection", "repeat_items"):
            if before and getattr(before[-1], name) != getattr(self, name):
                raise ValueError(f"finetune phases must agree on {name}: they train one model")

    def open_model(self, source: Path, data: RunData) -> nn.Module:
        shape = {
            "num_items": data.num_items,
            "history_items": self.history_items,
            "history_text": self.history_text,
            "history_reading": self.history_reading,
            "history_projection": self.history_projection,
            "item_projection": self.item_projection,
            "repeat_items": self.repeat_items,
            "history_decay": self.history_decay,
            "catalogue_whitening": None,  # of an encoder that serves; what is compared here is not whitened again
            "token_head": self.objective.mlm_weight > 0,
            "catalogue_fingerprint": data.dataset.fingerprint,
        }
        model = recommendation_class(source).from_pretrained(source, **shape)
        if self.item_projection:
            model.encoder_projection()  # said before the first step, not after the last
        model.mark_seen_items(data.seen_items())
        if self.reads_items or not self.history_text:
            model.base_model.requires_grad_(False)
        if not self.history_text:
            model.log_text_gate.requires_grad_(False)
            if self.history_projection:
                model.history_projection.requires_grad_(False)
        if self.text_gate is not None:
            nn.init.constant_(model.log_text_gate, math.log(self.text_gate))
        model.objective = self.objective
        # A text of one item comes again with every history that ends in it; one of several hardly ever does.
        if self.freeze_layers and self.max_items == 1 and hasattr(model.base_model, "embed_below"):
            model.frozen = FrozenStates(model.base_model, self.freeze_layers)
        return model

    def collator(self, work: Work) -> Callable:
        if self.reads_items:
            return ItemReadingCollator(max(work.tokenizer.max_items, self.known_items))
        item_tokens = work.data.item_tokens(work.tokenizer, work.data.own)
        masked = (self.history_mask_rate if self.objective.mlm_weight else None, work.recipe.run.seed)
        return FineTuningCollator(work.tokenizer, item_tokens, self.known_items, *masked)

    def begin(self, model: nn.Module, work: Work) -> dict:
        if not self.keeps_weights:
            model.initialise_items(work.data.item_vectors(model, work.tokenizer, work.precision))
        return {"encoded_at": 0}

    @property
    def keeps_weights(self) -> bool:
        """What the phase before left is the mark to beat."""
        return self.item_vectors == "keep"

    def before_epoch(self, model: nn.Module, work: Work, step: int) -> None:
        """With `item_vectors: epoch`, encode the item matrix anew, unless that was done at this very step."""
        if self.item_vectors == "epoch" and work.made["encoded_at"] != step:
            item_tokens = work.data.item_tokens(work.tokenizer, work.data.own)
            options = {"progress": process_index() == 0, "precision": work.precision}
            model.initialise_items(encode_items(model, work.tokenizer, item_tokens, **options))
            work.made["encoded_at"] = step

    def result(self, model: nn.Module) -> nn.Module:
        return model.folded()

    def before_validation(self, model: nn.Module, work: Work, step: int) -> None:
        if not self.stale_items:
            self.before_epoch(model, work, step)


class ItemReadingCollator:
    """Examples -> history_item_ids (B, k), the newest item first, -1 for none, and target_item_ids (B,)."""

    def __init__(self, most_items: int):
        self.most_items = most_items

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        return {
            "history_item_ids": newest_item_ids([example.history for example in examples], self.most_items),
            "target_item_ids": torch.tensor([example.target for example in examples]),
        }


class FineTuningCollator:
    """Examples -> their distinct texts as model inputs (D, L), text_rows (B,), history_item_ids (B, history_items) and
    target_item_ids (B,); with a `mask_rate` also `masked`: the histories (B, L) with tokens masked at it by (seed,
    epoch, example), and their `labels`."""

    def __init__(
        self,
        tokenizer: ItemSentTokenizer,
        item_tokens: ItemTokens,
        history_items: int = 0,
        mask_rate: float | None = None,
        seed: int = 0,
    ):
        self.collate_histories = HistoryCollator(tokenizer, item_tokens, history_items, allow_empty=True)
        self.mask_rate, self.seed = mask_rate, seed
        self.mask = None if mask_rate is None else TokenMasker(tokenizer)

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = self.collate_histories([example.history for example in examples])
        items = {"history_item_ids": batch.pop("history_item_ids")}
        items["target_item_ids"] = torch.tensor([example.target for example in examples])
        masked = {} if self.mask is None else {"masked": self._masked(batch, examples)}
        return read_once(batch) | items | masked

    def _masked(self, batch: dict[str, torch.Tensor], examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        whole = {name: part.numpy() for name, part in batch.items()}
        rngs = [np.random.default_rng((MASK_STREAM, self.seed, e.epoch, e.index)) for e in examples]
        masked = self.mask(whole, uniform(rngs, maskable(whole)), self.mask_rate)
        return batch | {name: torch.from_numpy(part) for name, part in masked.items()}
