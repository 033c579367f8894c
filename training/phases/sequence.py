"""Training of the baselines that know items by their ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from ...baselines import BASELINE_MODELS
from ...baselines.item_sequences import PADDING, pad_sequences
from ...hub.opening import open_as_is
from ..batches import Batches, LengthGroupedBatchSampler
from ..data import RunData
from .phase import Phase, Work

if TYPE_CHECKING:
    from ..recipe import Recipe


@dataclass(kw_only=True)
class SequencePhase(Phase):
    """Training of a baseline on sequences of item ids (`model.baseline`).

    An example is a user's sequence up to its target, cut to the newest items the model can read; of it every next item
    is learned (BERT4Rec: masked ones). So one prefix a user is enough: the "last", or a "window" where sequences are
    longer than what the model reads. `objective` is one of the baseline's: most have "next_item" alone.
    """

    kind: Literal["sequence"]
    prefixes: Literal["all", "random", "late", "last", "window"] = "last"
    lr: float = 1e-3
    weight_decay: float = 0.0
    objective: Literal["next_item", "pretrain", "align", "rank"] = "next_item"

    trains_encoder: ClassVar[bool] = False
    knows_items: ClassVar[bool] = True
    own_data: ClassVar[bool] = True

    def check(self, recipe: Recipe, index: int) -> None:
        if self.gradient_accumulation > 1:
            raise ValueError(
                f"phases.{index}.gradient_accumulation is {self.gradient_accumulation}, but a baseline's loss is "
                "that of the whole batch: leave it out"
            )
        known = BASELINE_MODELS[recipe.model.baseline].objectives
        if self.objective not in known:
            raise ValueError(
                f"phases.{index}.objective is {self.objective}, but {recipe.model.baseline} has {', '.join(known)}"
            )

    def open_model(self, source: Path, data: RunData) -> nn.Module:
        model = open_as_is(source)
        model.start_phase(self.objective)
        return model

    def batches(self, work: Work, process: int = 0, processes: int = 1) -> Batches:
        config_class, overrides = BASELINE_MODELS[work.recipe.model.baseline].config_class, work.recipe.model.config
        max_length = overrides.get("max_length", config_class.max_length)
        examples = self.examples(work, max_length)
        sampler = LengthGroupedBatchSampler(
            examples, None, self.batch_size, max_items=max_length, seed=work.recipe.run.seed
        )
        return Batches(sampler, self.collator(work), self.gradient_accumulation, process, processes)

    def collator(self, work: Work) -> Callable:
        return SequenceCollator()


class SequenceCollator:
    """Examples -> item_ids (B, L): history and target in one row, oldest first, padded at the end with -1; and
    attention_mask (B, L), where the items are."""

    def __call__(self, examples: Sequence) -> dict[str, Tensor]:
        rows = [np.append(example.history, example.target) for example in examples]
        item_ids = pad_sequences(rows, max(map(len, rows)))
        return {"item_ids": item_ids, "attention_mask": item_ids != PADDING}
