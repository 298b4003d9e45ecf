"""How well each gene is predicted on some rows; vectorised over genes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from histostore.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

METRICS = ("pearson", "spearman", "mse", "mae", "r2")

ALL = "all"
"""In the place of a slide where rows are slides: those of a fold are scored together."""


def per_gene(truth: NDArray[Any], guess: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return each metric of `METRICS` as ``(t,)`` float64.

    Parameters
    ----------
    truth, guess
        ``(n, t)`` finite values of the same rows.

    Returns
    -------
    dict
        ``pearson`` and ``spearman`` are NaN where either side is constant, ``r2`` (about the truth's own mean on these
        rows) where the truth is; nothing undefined becomes a zero.
    """
    truth, guess = np.asarray(truth, dtype=np.float64), np.asarray(guess, dtype=np.float64)
    if truth.shape != guess.shape or truth.ndim != 2 or not len(truth):
        msg = f"truth of shape {truth.shape} and prediction of shape {guess.shape}: give equal (rows, genes)"
        raise UsageError(msg)
    if not (np.isfinite(truth).all() and np.isfinite(guess).all()):
        msg = "truth or prediction holds NaN: leave those rows out and count them"
        raise UsageError(msg)
    error = guess - truth
    squares = np.einsum("ij,ij->j", error, error)
    centred = truth - truth.mean(0)
    spread = np.einsum("ij,ij->j", centred, centred)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(_constant(truth), np.nan, 1.0 - squares / spread)
    return {
        "pearson": pearson(truth, guess),
        "spearman": pearson(rankdata(truth, axis=0), rankdata(guess, axis=0)),
        "mse": squares / len(truth),
        "mae": np.abs(error).mean(0),
        "r2": r2,
    }


def pearson(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``(t,)`` correlations of the columns of two ``(n, t)`` arrays; NaN where either is constant."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    undefined = _constant(a) | _constant(b)
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt(np.einsum("ij,ij->j", a, a) * np.einsum("ij,ij->j", b, b))
    r = np.einsum("ij,ij->j", a, b) / np.where(undefined, 1.0, scale)
    return np.where(undefined, np.nan, np.clip(r, -1.0, 1.0))


def mean_defined(values: NDArray[Any]) -> tuple[float, int]:
    """Return the mean of the values that are not NaN (NaN where there are none) and how many are NaN."""
    values = np.asarray(values, dtype=np.float64)
    defined = values[~np.isnan(values)]
    return (float(defined.mean()) if defined.size else float("nan")), int(values.size - defined.size)


def scored_together(slide: NDArray[Any], usable: NDArray[np.int64]) -> NDArray[Any]:
    """Return ``(n,)`` what each row of a cohort is scored with: its slide; where every slide is one usable row, `ALL`.

    Slides are scored one by one since heads may tell slides apart and nothing within them. One row has no correlation
    and no ranking.
    """
    return slide if len(np.unique(slide[usable])) < len(usable) else np.full(len(slide), ALL)


def _constant(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Say which columns hold one value, up to the rounding of float32 predictions."""
    low, high = values.min(0), values.max(0)
    flat: NDArray[np.bool_] = (high - low) <= 1e-6 * np.maximum(np.abs(low), np.abs(high))
    return flat


def json_lines(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's lines as plain JSON; what is not finite becomes null."""
    return [
        {str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        for line in table.to_dict(orient="records")
    ]
