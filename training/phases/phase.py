"""What every kind of phase is: settings of a recipe, and what the one loop asks of them.

A kind is one file in this folder: a subclass of `Phase` with a `kind: Literal["name"]`. Everything that the kind knows
stands there: its settings, its examples and batches, its model, and what a validation measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from ...tokenization_itemsent import ItemSentTokenizer
from ..batches import Batches, LengthGroupedBatchSampler, PrefixDataset
from ..data import Corpus, RunData
from ..measure import evaluate_validation
from ..typed_yaml import Range, check_ranges

if TYPE_CHECKING:
    from ..recipe import Recipe


@dataclass
class Work:
    """What a phase is given: the run's recipe and data, the tokenizer (None for a baseline), what texts are encoded in
    (`measure.encoding_precision`), and what `begin` made."""

    recipe: Recipe
    data: RunData
    tokenizer: ItemSentTokenizer | None
    precision: torch.dtype | None = None
    made: Any = None


@dataclass(kw_only=True)
class Phase:
    """What all kinds of phase share.

    Length: `epochs` (fractions allowed), or `steps` where given. `batch_size` counts examples per optimiser step over
    all processes and all `gradient_accumulation` slices, so that a recipe means the same on any machine. Examples are
    "all" prefixes of a user's sequence, or one of them an epoch: a "random" one, one from the "late" half, the "last",
    or one that ends a "window" anywhere in a sequence longer than what is read.
    `warmup` is a fraction of the steps, after which "linear" falls from 1, and "recformer" goes on along the line that
    falls from the first step on. `clip_norm` null clips nothing. Evaluation on the validation split: every
    `evaluate_every_steps` where given, else every `evaluate_every_epochs`; 0 evaluates at the end only. `patience`
    counts evaluations without a better NDCG@10. `freeze_layers` n freezes all embeddings and the lowest n layers.
    `max_items`: newest items kept in the text.
    """

    kind: str
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 256
    gradient_accumulation: int = 1
    prefixes: Literal["all", "random", "late", "last", "window"] = "all"
    min_history: int = 1
    max_items: int | None = None
    lr: float = 5e-5
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    schedule: Literal["linear", "cosine", "constant", "recformer"] = "linear"
    warmup: float = 0.05
    clip_norm: float | None = 1.0
    freeze_word_embeddings: bool = False
    freeze_layers: int = 0
    evaluate_every_steps: int | None = None
    evaluate_every_epochs: float = 1.0
    patience: int | None = None

    least_history: ClassVar[int] = 1
    trains_encoder: ClassVar[bool] = True  # else a baseline, or a head on vectors
    history_decay: ClassVar[float | None] = None  # how an encoder learns to read histories, see `SeqRecConfig`
    knows_items: ClassVar[bool] = False  # whether the trained model has learned vectors of the catalogue's items
    own_data: ClassVar[bool] = False  # learns from the data of the run, whatever `data.pretrain` holds
    lr_items = None  # what some kinds set; see FinetunePhase
    lr_heads = None  # see PretrainPhase
    history_items = 0
    same_domain = False
    continue_schedule = False

    def __post_init__(self):
        counts = dict.fromkeys(("batch_size", "gradient_accumulation", "steps", "max_items", "patience"), Range(1))
        rates = dict.fromkeys(("lr", "lr_items", "lr_heads"), Range(0, 1, above=True))
        rates |= dict.fromkeys(("freeze_layers", "history_items"), Range(0)) | {"weight_decay": Range(0, 1)}
        every = dict.fromkeys(("evaluate_every_steps", "evaluate_every_epochs"), Range(0))
        least = {"min_history": Range(self.least_history), "clip_norm": Range(0, above=True), "warmup": Range(0, 1)}
        check_ranges(self, **counts, **rates, **every, **least)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers, each at least 0 and below 1, got {self.betas}")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into gradient_accumulation = "
                f"{self.gradient_accumulation} slices: choose a multiple"
            )
        if self.epochs <= 0:
            raise ValueError(f"steps or epochs must be above 0, got epochs {self.epochs:g}")

    def total_steps(self, epoch_steps: int) -> int:
        """Optimiser steps of the phase, where an epoch has so many."""
        return self.steps or max(1, round(self.epochs * epoch_steps))

    def evaluation_interval(self, epoch_steps: int) -> int:
        """Optimiser steps between two evaluations; the last step is always followed by one."""
        steps = self.evaluate_every_steps
        if steps is None:
            steps = round(self.evaluate_every_epochs * epoch_steps)
        return steps or self.total_steps(epoch_steps)

    # ---- what a kind brings, or leaves as it is here

    def check(self, recipe: Recipe, index: int) -> None:
        """Raise ValueError where the phase does not fit the recipe around it."""

    def corpus(self, data: RunData) -> Corpus:
        """The texts and sequences the phase learns from: the run's own, or those of `data.pretrain` if there are."""
        return data.own if self.own_data else data.read

    def open_model(self, source: Path, data: RunData) -> nn.Module:
        """The model of the phase with the weights of the phase before; heads that were not there yet are new."""
        raise NotImplementedError

    def collator(self, work: Work) -> Callable:
        """What makes a batch (a dict with `forward`'s argument names) of examples."""
        raise NotImplementedError

    def examples(self, work: Work, max_history: int = 1) -> PrefixDataset:
        """The training examples. Raises ValueError when the data hold none."""
        sequences = self.corpus(work.data).sequences
        return PrefixDataset(sequences, self.prefixes, self.min_history, max_history, work.recipe.run.seed)

    @property
    def known_items(self) -> int:
        """How many of the newest items of a history are looked up by id."""
        return self.history_items

    def batches(self, work: Work, process: int = 0, processes: int = 1) -> Batches:
        """The optimiser steps as process `process` of `processes` sees them."""
        tokenizer = work.tokenizer
        sampler = LengthGroupedBatchSampler(
            self.examples(work, max(tokenizer.max_items, self.known_items)),
            work.data.item_tokens(tokenizer, self.corpus(work.data)),
            self.batch_size,
            max_items=tokenizer.max_items,
            max_tokens=tokenizer.max_tokens,
            seed=work.recipe.run.seed,
            domains=self.corpus(work.data).domains if self.same_domain else None,
        )
        return Batches(sampler, self.collator(work), self.slices, process, processes)

    @property
    def slices(self) -> int:
        """Batches that the loop adds up for one optimiser step."""
        return self.gradient_accumulation

    def begin(self, model: nn.Module, work: Work) -> Any:
        """What has to happen before the first step, or after a resume; what it returns is `work.made`."""

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights the phase begins with are a candidate for the best ones."""
        return False

    def before_epoch(self, model: nn.Module, work: Work, step: int) -> None:
        pass

    def before_validation(self, model: nn.Module, work: Work, step: int) -> None:
        pass

    def after_step(self, model: nn.Module, step: int, total: int) -> None:
        pass

    def result(self, model: nn.Module) -> nn.Module:
        """The model that is validated, and written down where it is the best so far."""
        return model

    def validate(self, accelerator, model: nn.Module, work: Work) -> dict[str, float]:
        """Metrics on the validation split."""
        return evaluate_validation(accelerator, model, work.tokenizer, work.data, work.recipe)

    @staticmethod
    def score(metrics: dict[str, float]) -> float:
        """What weights are chosen by, higher is better."""
        return metrics["ndcg@10"]

    def results(self, model: nn.Module, work: Work) -> dict:
        """What the record of a run that ends with this phase says besides the ranking."""
        return {}


@dataclass(kw_only=True)
class InBatchPhase(Phase):
    """A phase whose examples are each other's negatives, so that cutting a batch is not free.

    `negatives` "batch": all of `batch_size`, read in `gradient_accumulation` slices by cached gradients, which gives
    the same loss and gradients for any number of slices and costs a third more time. "slice": those of the own slice,
    and the mean loss of the slices, as in published runs: 64 × 4 accumulated has 63 negatives, not 255.
    """

    negatives: Literal["batch", "slice"] = "batch"

    REMOVED: ClassVar = {"cache_chunk": (None, "gradient_accumulation says in how many slices a batch is read")}

    @property
    def slices(self) -> int:
        return self.gradient_accumulation if self.negatives == "slice" else 1

    @property
    def slices_in_model(self) -> int:
        return self.gradient_accumulation // self.slices
