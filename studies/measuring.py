"""Ranking the test users of a study in several ways: baselines, a checkpoint's texts, groups of users."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed

from jepa4rec.baselines import fit_baseline
from jepa4rec.datasets_builders.contract import DOMAIN
from jepa4rec.evaluation.metrics.significance import paired_bootstrap
from jepa4rec.evaluation.ranking import Scorer, rank_split
from jepa4rec.evaluation.scorers import make_scorer
from jepa4rec.hub.opening import open_encoder
from jepa4rec.studies.studying import METRICS, Point, Study
from jepa4rec.tokenization_itemsent import ItemSentTokenizer
from jepa4rec.training.start import make_starting_checkpoint

BASELINES = ("popularity", "item_transition")


def baseline_ranks(study: Study, train: Sequence[np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Ranks (U,) by each baseline; where a part of the training sequences is given, counted in that alone."""
    splits, counted = study.data.splits, "test"
    if train is not None:  # before the targets of validation lies training and nothing else
        splits, counted = splits._replace(train=train), "validation"
    scorers = {name: fit_baseline(name, splits, counted, study.data.num_items) for name in BASELINES}
    return {name.replace("_", "-"): rank_test(study, scorer) for name, scorer in scorers.items()}


def baseline_points(study: Study, x: float | str, train: Sequence[np.ndarray] | None = None) -> list[Point]:
    return [Point(name, x, ranks) for name, ranks in baseline_ranks(study, train).items()]


def start_checkpoint(study: Study, settings: Sequence[str] = ()) -> tuple:
    """The model and tokenizer that the base recipe, or a system of it, starts from, before any training."""
    recipe = study.variant(settings)
    set_seed(study.recipe.seeds[0])
    return make_starting_checkpoint(recipe, study.data)


def open_trained(checkpoint: str | Path) -> tuple:
    """A checkpoint's text encoder and tokenizer."""
    return open_encoder(checkpoint).eval(), ItemSentTokenizer.from_pretrained(checkpoint)


def rank_as_texts(study: Study, checkpoint: tuple, texts: list[dict[str, str]] | None = None) -> np.ndarray:
    """Zero-shot ranks (U,): the catalogue is read as texts, those of the dataset or the ones given, and histories as
    the model says (`history_reading`)."""
    model, tokenizer = checkpoint
    item_tokens = tokenizer.encode_items(study.data.dataset.item_texts(empty=True) if texts is None else texts)
    return rank_test(study, make_scorer(model, tokenizer, item_tokens, progress=False))


def rank_test(study: Study, scorer: Scorer) -> np.ndarray:
    """Ranks (U,) of the test users by the base recipe's rules, which are all systems'."""
    rules = study.rules
    return rank_split(scorer, study.data.splits.test, rules.exclude_history, rules.ties, progress=False)


def group_points(study: Study, series: dict[str, np.ndarray], groups: dict[str, np.ndarray]) -> list[Point]:
    """One point per series, (seeds, U) or (U,) ranks, and group of users, a mask (U,).

    Raises:
        ValueError: a group of too few users.
    """
    for name, members in groups.items():
        study.require_users(int(members.sum()), f"test users with {name}")
    ranks = {name: np.atleast_2d(values) for name, values in series.items()}
    return [Point(s, g, values[:, members]) for s, values in ranks.items() for g, members in groups.items()]


def user_groups(study: Study) -> dict[str, np.ndarray]:
    """Test users by the domain of the dataset's that they are of, masks (U,); all of them where it tells none."""
    users, sequences = study.data.splits.test.user_ids, study.data.dataset.sequences
    if DOMAIN not in sequences.column_names:
        return {study.dataset_name: np.ones(len(users), bool)}
    domains = dict(zip(*(sequences[name].to_pylist() for name in ("user_id", DOMAIN)), strict=True))
    own = np.array([domains[user] for user in users], dtype=object)
    return {name: own == name for name in sorted(set(own))}


def compare(ranks: dict[str, np.ndarray]) -> list[dict]:
    """The paired test (`paired_bootstrap`) per metric of each two systems' ranks, (seeds, U) each."""
    return [
        {"a": a, "b": b, **{metric: paired_bootstrap(ranks[a], ranks[b], metric)._asdict() for metric in METRICS}}
        for a, b in combinations(ranks, 2)
    ]


def change_texts(
    texts: list[dict[str, str]], change: Callable[[dict[str, str], np.random.Generator], dict[str, str]], seed: int
) -> list[dict[str, str]]:
    """Every item's attributes changed at random, the same way whenever the seed is the same."""
    return [change(item, np.random.default_rng((seed, row))) for row, item in enumerate(texts)]
