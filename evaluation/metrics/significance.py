"""Is run A better than run B, or was it luck? A paired bootstrap over users."""

from typing import NamedTuple

import numpy as np

from .seqrec_ranking.ranking_metrics import user_values

BLOCK_CELLS = 2**22  # (resamples x users) drawn at once


class PairedDifference(NamedTuple):
    """A minus B on one metric: the difference of means, its 95 % interval and the two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    ranks_a: np.ndarray, ranks_b: np.ndarray, metric: str = "ndcg@10", resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Compare two runs, or two systems of several seeds, that ranked the same targets of the same users in order.

    With several seeds a user's value is the mean over them, so the test is about the average run. Users are drawn with
    replacement; the interval is the 2.5 % and 97.5 % quantile of the resampled differences. The p-value asks how often
    differences around zero (the resampled ones less their mean) are at least as large as the one seen; it is never
    below 1 / (resamples + 1) (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §16.4).

    Args:
        ranks_a, ranks_b: (U,) ranks, or (seeds, U), >= 1 or infinite.
        metric: "recall@k", "ndcg@k" or "mrr".

    Raises:
        ValueError: different numbers of users, bad ranks, an unknown metric, fewer than one resample.
    """
    ranks_a, ranks_b = np.atleast_2d(ranks_a), np.atleast_2d(ranks_b)
    if ranks_a.shape[1] != ranks_b.shape[1]:
        raise ValueError(
            f"Run A ranks {ranks_a.shape[1]} users and run B {ranks_b.shape[1]}; a paired test needs the same users."
        )
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; at least 1 is needed.")
    values_a, values_b = (
        np.mean([user_values(seed_ranks, metric) for seed_ranks in ranks], axis=0) for ranks in (ranks_a, ranks_b)
    )
    gains = values_a - values_b
    seen = float(gains.mean())
    drawn = _resampled_means(gains, resamples, np.random.default_rng(seed))
    low, high = np.quantile(drawn, [0.025, 0.975])
    # The tolerance keeps sums of the same numbers in another order equal.
    as_extreme = int(np.count_nonzero(np.abs(drawn - seen) >= abs(seen) - 1e-12))
    return PairedDifference(seen, float(low), float(high), (as_extreme + 1) / (resamples + 1))


def _resampled_means(values: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Means of `resamples` draws of len(values) values with replacement, (resamples,)."""
    block = max(1, BLOCK_CELLS // len(values))
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        part = means[start : start + block]
        part[:] = values[generator.integers(len(values), size=(len(part), len(values)))].mean(axis=1)
    return means


class MeanWithInterval(NamedTuple):
    """A mean over users (and seeds) and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_with_interval(
    ranks: np.ndarray, metric: str = "ndcg@10", resamples: int = 1_000, seed: int = 0
) -> MeanWithInterval:
    """Mean of a metric and its bootstrap interval; users are drawn with replacement, and so are seeds where several.

    Args:
        ranks: (U,) ranks, or (seeds, U), >= 1 or infinite.
        metric: "recall@k", "ndcg@k" or "mrr".
    """
    values = np.array([user_values(seed_ranks, metric) for seed_ranks in np.atleast_2d(ranks)])
    generator = np.random.default_rng(seed)
    if len(values) == 1:  # nothing is drawn among seeds, so all resamples of users are drawn at once
        means = _resampled_means(values[0], resamples, generator)
    else:
        means = np.array([_mean_of_one_draw(values, generator) for _ in range(resamples)])
    low, high = np.quantile(means, [0.025, 0.975])
    return MeanWithInterval(float(values.mean()), float(low), float(high))


def _mean_of_one_draw(values: np.ndarray, generator: np.random.Generator) -> float:
    """The mean of as many users and seeds as there are, drawn with replacement from values (seeds, users)."""
    seeds, users = values.shape
    of_users = values[:, generator.integers(users, size=users)].mean(axis=1)
    return of_users[generator.integers(seeds, size=seeds)].mean()
