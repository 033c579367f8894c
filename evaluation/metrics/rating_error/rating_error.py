"""RMSE and MAE of predicted ratings.

`evaluate.load("evaluation/metrics/rating_error")` gives the metric; `rating_errors` is the same without
the module around it.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

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


def rating_errors(predictions: Sequence[float] | np.ndarray, references: Sequence[float] | np.ndarray) -> dict:
    """RMSE and MAE of ratings, each (n,).

    Raises:
        ValueError: no ratings, lists of different lengths, or a rating that is not finite (named by its row).
    """
    predictions, references = (np.asarray(values, dtype=np.float64) for values in (predictions, references))
    if not predictions.size:
        raise ValueError("There are no ratings to compare: predictions are empty.")
    if predictions.shape != references.shape or predictions.ndim != 1:
        raise ValueError(
            f"Predictions {predictions.shape} and references {references.shape} must be lists of one length."
        )
    errors = predictions - references
    wrong = np.flatnonzero(~np.isfinite(errors))
    if len(wrong):
        row = wrong[0]
        raise ValueError(f"Row {row} has prediction {predictions[row]}, reference {references[row]}: not both finite.")
    return {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}


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
