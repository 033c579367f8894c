"""Recall@k, NDCG@k and MRR of next-item ranking, from the rank of each user's target.

`evaluate.load("evaluation/metrics/seqrec_ranking")` gives the metric of `ranking_metrics.py`.
"""

import datasets
import evaluate

from .ranking_metrics import CUTOFFS, ranking_metrics

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
