"""From a phase of a recipe to its examples and batches, in a known order that any number of processes share."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..baselines import SEQUENCE_MODELS
from ..baselines.scoring import SequenceCollator
from .examples import FineTuningCollator, LengthGroupedBatchSampler, PrefixDataset, PreTrainingCollator
from .phases.pair_batches import (
    ItemDescriptionCollator,
    SequenceItemCollator,
    SequenceSequenceCollator,
    described_items,
)
from .data import RunData
from ..evaluation.ratings import RatedIds, RatingCollator, RatingVectors
from .recipe import (
    ItemDescriptionPhase,
    Phase,
    PretrainPhase,
    RatingPhase,
    Recipe,
    SequenceItemPhase,
    SequencePhase,
    SequenceSequencePhase,
)
from ..tokenization_itemsent import ItemSentTokenizer


class Batches:
    """A phase's optimiser steps in a known order, as one process sees them, from any position on.

    The sampler deals whole batches of the recipe's `batch_size`; each is cut into `slices` for gradient accumulation,
    and of each slice a process takes every n-th example. So all processes together see what one process would, and
    resuming is a matter of leaving out the first batches' indices: nothing is computed for them.
    """

    def __init__(
        self, sampler: LengthGroupedBatchSampler, collate: Callable, slices: int, process: int, processes: int
    ):
        self.sampler, self.collate = sampler, collate
        self.slices, self.process, self.processes = slices, process, processes

    def __len__(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The steps of one epoch after the first `skip`, each a list of `slices` batches."""
        self.sampler.dataset.set_epoch(epoch)
        shares = [share for batch in list(self.sampler)[skip:] for share in self._shares(batch)]
        # A generator of its own: a loader without one draws from the global random numbers, which dropout uses.
        loader = DataLoader(
            self.sampler.dataset, batch_sampler=shares, collate_fn=self.collate, generator=torch.Generator()
        )
        stream = iter(loader)
        for _ in range(len(self) - skip):
            yield [next(stream) for _ in range(self.slices)]

    def _shares(self, batch: list[int]) -> list[list[int]]:
        """This process's examples of each slice of a batch."""
        return [batch[start :: self.slices][self.process :: self.processes] for start in range(self.slices)]


def make_batches(
    recipe: Recipe,
    phase: Phase,
    data: RunData,
    tokenizer: ItemSentTokenizer | None,
    process: int = 0,
    processes: int = 1,
    ratings: RatingVectors | RatedIds | None = None,
) -> Batches:
    """The batches of a phase as process `process` of `processes` sees them; a rating phase is given its tasks."""
    if isinstance(phase, SequencePhase):
        return _sequence_batches(recipe, phase, data, process, processes)
    if isinstance(phase, RatingPhase):
        examples = make_examples(recipe, phase, data, 1)
        sampler = LengthGroupedBatchSampler(examples, None, phase.batch_size, drop_last=True, seed=recipe.run.seed)
        collate = RatingCollator(ratings.part("train"))
        return Batches(sampler, collate, phase.gradient_accumulation, process, processes)
    item_tokens = data.item_tokens(tokenizer, phase.kind)
    dataset = make_examples(recipe, phase, data, max(tokenizer.max_items, getattr(phase, "history_items", 0)))
    sampler = LengthGroupedBatchSampler(
        dataset,
        item_tokens,
        phase.batch_size,
        max_items=tokenizer.max_items,
        max_tokens=tokenizer.max_tokens,
        drop_last=True,
        seed=recipe.run.seed,
    )
    collate = make_collator(recipe, phase, data, tokenizer)
    return Batches(sampler, collate, phase.gradient_accumulation, process, processes)


def make_collator(recipe: Recipe, phase: Phase, data: RunData, tokenizer: ItemSentTokenizer) -> Callable:
    """What makes batches of a phase's examples."""
    item_tokens, seed = data.item_tokens(tokenizer, phase.kind), recipe.run.seed
    if isinstance(phase, PretrainPhase):
        rates = (phase.history_mask_rate, phase.next_mask_rate)
        clean = phase.objective.contrastive_history == "clean"
        options = {"seed": seed, "clean_history": clean, "mask_unit": phase.mask_unit}
        return PreTrainingCollator(tokenizer, item_tokens, *rates, **options)
    if isinstance(phase, ItemDescriptionPhase):
        texts = data.corpora[phase.kind].texts
        return ItemDescriptionCollator(tokenizer, texts, phase.description, described_items(texts, phase.description))
    if isinstance(phase, SequenceSequencePhase):
        return SequenceSequenceCollator(tokenizer, item_tokens, phase.ratios, seed)
    if isinstance(phase, SequenceItemPhase):
        return SequenceItemCollator(tokenizer, item_tokens)
    return FineTuningCollator(tokenizer, item_tokens, phase.history_items)


def _sequence_batches(recipe: Recipe, phase: SequencePhase, data: RunData, process: int, processes: int) -> Batches:
    config_class, overrides = SEQUENCE_MODELS[recipe.model.baseline].config_class, recipe.model.config
    max_length = overrides.get("max_length", config_class.max_length)
    dataset = make_examples(recipe, phase, data, max_length)
    sampler = LengthGroupedBatchSampler(
        dataset, None, phase.batch_size, max_items=max_length, drop_last=True, seed=recipe.run.seed
    )
    return Batches(sampler, SequenceCollator(), phase.gradient_accumulation, process, processes)


def make_examples(recipe: Recipe, phase: Phase, data: RunData, max_history: int) -> PrefixDataset:
    """The training examples of a phase.

    Raises ValueError when its data hold none.
    """
    seed = recipe.run.seed
    if isinstance(phase, ItemDescriptionPhase):
        items = described_items(data.corpora[phase.kind].texts, phase.description)
        if not len(items):
            raise ValueError(
                f"no item has both a title and one of the attributes {', '.join(phase.description)}, which the phase "
                "item_description needs: name others in its description, or leave the phase out"
            )
        return PrefixDataset(np.repeat(items, 2).reshape(-1, 2), "last", seed=seed)  # the item, "after" itself
    if isinstance(phase, RatingPhase):
        histories = data.ratings["train"].histories  # a baseline of ids does not read them, so it learns from all
        tasks = len(histories) if recipe.model.baseline else sum(len(history) > 0 for history in histories)
        return PrefixDataset(np.repeat(np.arange(tasks), 2).reshape(-1, 2), "last", seed=seed)
    sequences = data.corpora[phase.kind].sequences
    return PrefixDataset(sequences, phase.prefixes, phase.min_history, max_history, seed)


def check_phases(recipe: Recipe, data: RunData, processes: int) -> None:
    """Raise ValueError when a phase's batches do not fit its data or the processes, before anything is trained."""
    for index, phase in enumerate(recipe.phases):
        examples, share = len(make_examples(recipe, phase, data, 1)), processes * phase.gradient_accumulation
        if examples < phase.batch_size:
            raise ValueError(
                f"phases.{index}.batch_size is {phase.batch_size}, but there are only {examples} training examples: "
                "lower it"
            )
        if phase.batch_size % share:
            raise ValueError(
                f"phases.{index}.batch_size {phase.batch_size} does not divide into {processes} process(es) × "
                f"{phase.gradient_accumulation} slices: choose a multiple of {share}"
            )
