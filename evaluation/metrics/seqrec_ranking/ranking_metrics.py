"""Recall@k, NDCG@k and MRR, without the `evaluate` library, which takes a second to load."""

from collections.abc import Sequence

import numpy as np

CUTOFFS = (10, 50)


def ranking_metrics(ranks: Sequence[float] | np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Recall@k and NDCG@k for each cut-off, and MRR.

    Args:
        ranks: (U,) ranks, >= 1 or infinite.

    Raises:
        ValueError: no ranks, a rank that is NaN or below 1 (named by its row), a cut-off below 1.
    """
    names = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in cutoffs] + ["mrr"]
    return {name: float(user_values(ranks, name).mean()) for name in names}


def user_values(ranks: Sequence[float] | np.ndarray, metric: str) -> np.ndarray:
    """What each user adds to the mean of one metric ("recall@10", "ndcg@10", "mrr"): float64 (U,)."""
    ranks = check_ranks(ranks)
    name, _, cutoff = metric.partition("@")
    if metric == "mrr":
        return 1.0 / ranks
    if name not in ("recall", "ndcg") or not cutoff.isdecimal() or int(cutoff) < 1:
        raise ValueError(f'"{metric}" is no metric of a ranking; there are recall@k, ndcg@k (k >= 1) and mrr.')
    gains = np.ones_like(ranks) if name == "recall" else 1.0 / np.log2(ranks + 1.0)
    return np.where(ranks <= int(cutoff), gains, 0.0)


def check_ranks(ranks: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks as float64 (U,); raises ValueError for none, and for a rank that is NaN or below 1, naming the row."""
    ranks = np.asarray(ranks, dtype=np.float64)
    if ranks.ndim != 1 or not len(ranks):
        raise ValueError(f"Ranks must be a list of at least one number, got shape {ranks.shape}.")
    wrong = np.flatnonzero(~(ranks >= 1))
    if len(wrong):
        raise ValueError(f"The rank of row {wrong[0]} is {ranks[wrong[0]]}; ranks are numbers from 1 on.")
    return ranks
