"""Recall@k, NDCG@k and MRR of next-item ranking, from the rank of each user's target.

`evaluate.load("evaluation/metrics/seqrec_ranking")` gives the metric; `ranking_metrics` is the same without
the module around it.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

CUTOFFS = (10, 50)

_DESCRIPTION = """
How high the one relevant item of each user stands in the ranking of the whole catalogue. The predictions are its
ranks: 1 is best, ties have the mean of their ranks (so ranks may end in .5), infinity is a miss.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float): rank of the target of each user, >= 1; infinity where it was no candidate.
    cutoffs (list of int): the k of recall@k and ndcg@k. Default: 10, 50.
Returns:
    recall@k: share of users whose target has rank <= k (hit rate, as there is one target a user).
    ndcg@k: mean of 1 / log2(rank + 1) where rank <= k, else 0.
    mrr: mean of 1 / rank, without cut-off.
Examples:
    >>> metric = evaluate.load("evaluation/metrics/seqrec_ranking")
    >>> metric.compute(predictions=[1.0, 2.5, float("inf")], cutoffs=[2])
    {'recall@2': 0.3333333333333333, 'ndcg@2': 0.3333333333333333, 'mrr': 0.4666666666666666}
"""

_CITATION = """
@inproceedings{jarvelin2000ir, title={IR evaluation methods for retrieving highly relevant documents},
author={J{\\"a}rvelin, Kalervo and Kek{\\"a}l{\\"a}inen, Jaana}, booktitle={SIGIR}, year={2000}}
"""


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


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class SeqRecRanking(evaluate.Metric):
    """The metric as a module of the `evaluate` library."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, cutoffs=CUTOFFS) -> dict[str, float]:
        return ranking_metrics(predictions, cutoffs)
