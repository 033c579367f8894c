"""RMSE and MAE of predicted ratings.

`evaluate.load("evaluation/metrics/rating_error")` gives the metric of `rating_errors.py`.
"""

import datasets
import evaluate

from .rating_errors import rating_errors

_DESCRIPTION = """
How far predicted ratings are from the true ones: root of the mean squared error, and mean absolute error, in the unit
of the ratings (stars). Both are 0 for perfect predictions.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float): predicted ratings.
    references (list of float): true ratings, in the same order.
Returns:
    rmse: root of the mean squared difference.
    mae: mean absolute difference.
Examples:
    >>> metric = evaluate.load("evaluation/metrics/rating_error")
    >>> metric.compute(predictions=[4.0, 2.0], references=[5.0, 2.0])
    {'rmse': 0.7071067811865476, 'mae': 0.5}
"""

_CITATION = """
@article{hyndman2006another, title={Another look at measures of forecast accuracy},
author={Hyndman, Rob J. and Koehler, Anne B.}, journal={International Journal of Forecasting}, year={2006}}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class RatingError(evaluate.Metric):
    """The metric as a module of the `evaluate` library."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return rating_errors(predictions, references)
