"""RMSE and MAE, without the `evaluate` library, which takes a second to load."""

from collections.abc import Sequence

import numpy as np


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
