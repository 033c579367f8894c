"""How good is a run: full ranking, shared between processes, and the run's record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..evaluation.audit import audit, summarise
from ..evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics
from ..evaluation.ranking import Ranks, Scorer, rank_split_both_ways
from ..evaluation.scorers import make_scorer
from .data import RunData, sample_users, take_rows

if TYPE_CHECKING:
    from .recipe import EvaluationRecipe, Recipe


def encoding_precision(accelerator: Accelerator) -> torch.dtype | None:
    """What a run encodes texts in: bfloat16 where it trains in that, else float32. float16 overflows where no gradient
    scaler notices, and RecFormer's run in it is evaluated in float32."""
    return torch.bfloat16 if accelerator.mixed_precision == "bf16" else None


def evaluate_validation(accelerator: Accelerator, model, tokenizer, data: RunData, recipe: Recipe) -> dict[str, float]:
    """Metrics on the validation split, or on the recipe's fixed sample of its users."""
    split = sample_users(data.splits.validation, recipe.evaluation.validation_users, recipe.run.seed)
    scorer = _scorer(accelerator, model, tokenizer, data)
    return ranking_metrics(_rank_together(accelerator, scorer, split, recipe.evaluation).by(recipe.evaluation.ties))


def rank_test_split(
    accelerator: Accelerator, model, tokenizer, data: RunData, recipe: Recipe, kept: bool = False
) -> Ranks:
    """Ranks of all test users; `kept`: item vectors by these weights are worth keeping, other runs start from them."""
    scorer = _scorer(accelerator, model, tokenizer, data, kept)
    return _rank_together(accelerator, scorer, data.splits.test, recipe.evaluation)


def _scorer(accelerator: Accelerator, model: nn.Module, tokenizer, data: RunData, kept: bool = False) -> Scorer:
    item_tokens = None if tokenizer is None else data.item_tokens(tokenizer, data.own)
    precision = encoding_precision(accelerator)
    vectors = data.item_vectors(model, tokenizer, precision) if kept and tokenizer is not None else None
    options = {"progress": _bar(accelerator), "item_vectors": vectors, "precision": precision}
    return make_scorer(model, tokenizer, item_tokens, **options)


def _bar(accelerator: Accelerator) -> bool:
    """Whether a progress bar is shown: by one process, also in a log file."""
    return accelerator.is_main_process


def _rank_together(accelerator: Accelerator, scorer: Scorer, split, settings: EvaluationRecipe) -> Ranks:
    """Ranks of a split's targets; every process ranks its share of the users and receives all ranks."""
    rows = np.arange(accelerator.process_index, len(split.targets), accelerator.num_processes)
    own = Ranks(np.empty(0), np.empty(0))
    if len(rows):
        own = rank_split_both_ways(scorer, take_rows(split, rows), settings.exclude_history, _bar(accelerator))
    if accelerator.num_processes == 1:
        return own
    ranks = np.empty((2, len(split.targets)))
    for process_rows, process_ranks in gather_object([(rows, tuple(own))]):
        ranks[:, process_rows] = process_ranks
    return Ranks(*ranks)


def make_record(
    recipe: Recipe, data: RunData, accelerator: Accelerator, origin: dict, results: dict[str, dict]
) -> dict:
    """What metrics.json says about a run.

    `origin` is `describe_run` from when it began; `results` holds what `measure` gives, validation_metrics, zero_shot
    and seconds, the wall time of all phases.
    """
    info = data.dataset.info
    return {
        "model": recipe.run.name or Path(recipe.run.output_dir).name,
        "init": recipe.model.init,
        "system": recipe.run.system,
        "dataset": info.get("name"),
        "config": info.get("config"),
        "fingerprint": data.dataset.fingerprint,
        "pretrain_fingerprints": data.pretrain_fingerprints,
        "source": info.get("source"),
        "licence": info.get("licence"),
        "split": "test",
        "protocol": recipe.data.split,
        "exclude_history": recipe.evaluation.exclude_history,
        "ties": recipe.evaluation.ties,
        "users": len(data.splits.test.targets),
        "items": data.num_items,
        "own_data": any(phase.own_data for phase in recipe.phases) or not recipe.data.pretrain,
        "seed": recipe.run.seed,
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        **origin,
        **results,
        "audit": summarise(audit(data.dataset, recipe.data.split)),
        "recipe": asdict(recipe),
    }
