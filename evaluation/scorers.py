"""How good is a run, and beside what: full ranking, shared between processes, and the run's record."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from .audit import audit, summarise
from ..baselines import fit_baseline
from ..baselines.item_sequences import ItemSequenceModel
from ..baselines.scoring import SequenceScorer
from ..training.data import RunData, sample_users, take_rows
from .metrics.seqrec_ranking.seqrec_ranking import CUTOFFS, ranking_metrics
from .ranking import DualEncoderScorer, Ranks, Scorer, Ties, rank_split_both_ways
from ..training.recipe import EvaluationRecipe, Recipe, recipe_to_dict


def make_scorer(model: nn.Module, tokenizer, data: RunData, settings: EvaluationRecipe) -> Scorer:
    """A baseline ranks by item ids, a fine-tuned model with its item matrix, any other with the vectors of the item
    texts (zero-shot)."""
    if tokenizer is None:
        return baseline_scorer(model)
    matrix = model.item_matrix.weight if hasattr(model, "item_matrix") else None
    item_tokens = data.item_tokens(tokenizer, "finetune")
    return DualEncoderScorer(model, tokenizer, item_tokens, matrix, settings.batch_tokens, progress=False)


def baseline_scorer(model: nn.Module) -> Scorer:
    """A trained baseline ranks by its vectors, a counted one and one of ratings as it is."""
    return SequenceScorer(model) if isinstance(model, ItemSequenceModel) else model


def rank_together(accelerator: Accelerator, scorer: Scorer, split, settings: EvaluationRecipe) -> Ranks:
    """Ranks of a split's targets; every process ranks its share of the users and receives all ranks."""
    rows = np.arange(accelerator.process_index, len(split.targets), accelerator.num_processes)
    own = _rank(scorer, take_rows(split, rows), settings) if len(rows) else Ranks(np.empty(0), np.empty(0))
    if accelerator.num_processes == 1:
        return own
    ranks = np.empty((2, len(split.targets)))
    for process_rows, process_ranks in gather_object([(rows, tuple(own))]):
        ranks[:, process_rows] = process_ranks
    return Ranks(*ranks)


def _rank(scorer: Scorer, split, settings: EvaluationRecipe) -> Ranks:
    return rank_split_both_ways(scorer, split, settings.exclude_history, progress=False)


def evaluate_validation(accelerator: Accelerator, model, tokenizer, data: RunData, recipe: Recipe) -> dict[str, float]:
    """Metrics on the validation split, or on the recipe's fixed sample of its users."""
    settings = recipe.evaluation
    split = sample_users(data.splits.validation, settings.validation_users, recipe.run.seed)
    scorer = make_scorer(model, tokenizer, data, settings)
    return ranking_metrics(rank_together(accelerator, scorer, split, settings).by(settings.ties))


def rank_test_split(accelerator: Accelerator, model, tokenizer, data: RunData, recipe: Recipe) -> Ranks:
    """Ranks of all test users."""
    scorer = make_scorer(model, tokenizer, data, recipe.evaluation)
    return rank_together(accelerator, scorer, data.splits.test, recipe.evaluation)


def rank_baselines(data: RunData, settings: EvaluationRecipe) -> dict[str, Ranks]:
    """Ranks of all test users by each of the recipe's baselines."""
    scorers = {name: fit_baseline(name, data.splits, "test", data.num_items) for name in settings.baselines}
    return {name: _rank(scorer, data.splits.test, settings) for name, scorer in scorers.items()}


def measure(ranks: Ranks, baselines: dict[str, Ranks], ties: Ties, cutoffs: Sequence[int] = CUTOFFS) -> dict:
    """`metrics` and `baselines` as a record has them, and both once more under `official`, by optimistic ties."""

    def metrics_by(way: Ties) -> dict:
        by_baseline = {name: ranking_metrics(own.by(way), cutoffs) for name, own in baselines.items()}
        return {"metrics": ranking_metrics(ranks.by(way), cutoffs), "baselines": by_baseline}

    return {**metrics_by(ties), "official": metrics_by("official")}


def make_record(recipe: Recipe, data: RunData, processes: int, origin: dict, results: dict[str, dict]) -> dict:
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
        "source": info.get("source"),
        "licence": info.get("licence"),
        "split": "test",
        "protocol": recipe.data.split,
        "exclude_history": recipe.evaluation.exclude_history,
        "ties": recipe.evaluation.ties,
        "users": len(data.splits.test.targets),
        "items": data.num_items,
        "seed": recipe.run.seed,
        "processes": processes,
        **origin,
        **results,
        "audit": summarise(audit(data.dataset, recipe.data.split)),
        "recipe": recipe_to_dict(recipe),
    }
