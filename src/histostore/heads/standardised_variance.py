"""The variance of a gene's counts in units of what genes of its mean have: the score of scanpy's ``seurat_v3``.

Stuart et al., Cell 177, 1888 (2019): a curve through the logarithms of mean and variance says how much a gene of some
mean varies; counts are cut where they exceed their mean by that times the root of the number of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

SHARE = 0.3
"""Of the genes, those that a point of the curve is fitted to: scanpy's."""

FEWEST = 10
"""Genes that a curve needs. LOESS ends the process where there are three."""


def expected_spread(mean: Floats, variance: Floats, rows: str) -> Floats:
    """Return ``(g,)`` standard deviations that genes of like mean have, by LOESS.

    Parameters
    ----------
    mean, variance
        ``(g,)`` of counts; the spread is NaN where the variance is, and 1 where it is 0.
    rows
        Whose they are, for messages.

    Raises
    ------
    DataError
        Too few genes vary, or too many have the same mean.
    MissingDependencyError
        scikit-misc is not installed.
    """
    try:
        from skmisc.loess import loess
    except ImportError:
        raise MissingDependencyError(
            "flavor seurat_v3 needs scikit-misc: pip install scikit-misc, or choose flavor seurat"
        ) from None
    varies = variance > 0
    if varies.sum() < FEWEST:
        raise DataError(
            f"flavor seurat_v3 fits a curve through {FEWEST} genes or more, and {varies.sum()} vary over {rows}; "
            "choose more genes, or flavor seurat"
        )
    # equal means that differ in their last digits would order the curve's neighbours: it moves by a hundredth
    curve = loess(np.round(np.log10(mean[varies]), 12), np.log10(variance[varies]), span=SHARE, degree=2)
    try:
        curve.fit()
    except ValueError as error:
        raise DataError(
            f"flavor seurat_v3: no curve fits means and variances over {rows}, for too many genes are alike; "
            "choose more rows or genes, or flavor seurat"
        ) from error
    spread = np.where(np.isnan(variance), np.nan, 1.0)
    spread[varies] = np.sqrt(10.0**curve.outputs.fitted_values)
    return spread


def largest_counts(n: NDArray[np.int64] | int, mean: Floats, spread: Floats) -> Floats:
    """Return ``(g,)`` the counts above which they are cut."""
    out: Floats = spread * np.sqrt(n) + mean
    return out


def clipped_sums(counts: sp.csr_array, columns: NDArray[np.int64], most: Floats) -> Floats:
    """Return ``(2, g)`` sums of counts ``(n, k)`` cut at `most` ``(g,)``, and of their squares.

    `columns` ``(k,)`` says which of the genes the counts are of.
    """
    where = columns[counts.indices]
    values = np.minimum(counts.data, most[where])
    return np.stack([np.bincount(where, weights=v, minlength=len(most)) for v in (values, values**2)])


def standardised(n: NDArray[np.int64] | int, mean: Floats, spread: Floats, sums: Floats) -> Floats:
    """Return ``(g,)`` variances of cut counts about the mean of all, in units of the squared spread."""
    with np.errstate(invalid="ignore", divide="ignore"):
        out: Floats = (n * mean**2 + sums[1] - 2 * sums[0] * mean) / ((n - 1) * spread**2)
    return out
