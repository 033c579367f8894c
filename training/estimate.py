"""How long a run will take, measured on this machine before it starts: a step of each phase, a few items to encode."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..serving.encoding_seqrec import encode_items
from ..tokenization_itemsent import ItemTokens
from .data import RunData
from .optimisation import freeze
from .phases import Work
from .recipe import Recipe
from .start import open_tokenizer

MEASURED_ITEMS = 64


def estimate(recipe: Recipe, data: RunData, start: Path) -> dict[str, float]:
    """Seconds of each part of a run on this machine's CPU: "items to vectors", then "phases.0" and so on.

    A step is a forward and a backward pass of the phase's first batch; a validation is counted as reading its users'
    histories, a third of learning from them. Optimiser, logging and disk are not in it, nor that a run may stop early.
    Only phases that train a text encoder are measured. Nothing random or on disk changes.
    """
    seconds = {}
    with torch.random.fork_rng(devices=[]):
        for index, phase in enumerate(recipe.phases):
            if not phase.trains_encoder or recipe.model.baseline:
                continue
            work = Work(recipe, data, open_tokenizer(recipe, start, phase))
            model = phase.open_model(start, data).train()
            seconds.setdefault("items to vectors", _seconds_of_items(model, work))
            freeze(model, phase.freeze_word_embeddings, phase.freeze_layers)
            batches = phase.batches(work)
            step = _seconds(lambda model=model, batches=batches: _step(model, next(batches.epoch(0))))
            users = min(recipe.evaluation.validation_users or np.inf, len(data.splits.validation.targets))
            validation = step * users / phase.batch_size / 3
            validation += 0 if phase.knows_items else seconds["items to vectors"]
            steps = phase.total_steps(len(batches))
            times = -(-steps // phase.evaluation_interval(len(batches)))
            seconds[f"phases.{index}"] = steps * step + times * validation
    return seconds


def in_words(seconds: dict[str, float]) -> str:
    """One line for the terminal."""
    parts = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items())
    return f"training will take about {_duration(sum(seconds.values()))}, as measured now: {parts}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _seconds_of_items(model: nn.Module, work: Work) -> float:
    """The whole catalogue, from a sample of it."""
    tokens = work.data.item_tokens(work.tokenizer, work.data.own)
    rows = np.sort(np.random.default_rng(0).permutation(tokens.num_items)[:MEASURED_ITEMS])
    parts = [slice(*tokens.offsets[row : row + 2]) for row in rows]
    lengths = tokens.lengths[rows]
    sample = ItemTokens(
        np.concatenate([tokens.input_ids[part] for part in parts]),
        np.concatenate([tokens.token_type_ids[part] for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    measured = _seconds(lambda: encode_items(model, work.tokenizer, sample, progress=False))
    return measured * len(tokens.input_ids) / max(1, int(lengths.sum()))


def _step(model: nn.Module, slices: list[dict]) -> None:
    for batch in slices:
        (model(**batch).loss / len(slices)).backward()
    model.zero_grad()


def _seconds(action: Callable[[], None]) -> float:
    """The second time counts: the first sets things up."""
    action()
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
