"""Whether a result would survive other patients: ST-Net's sign test with Holm's correction, the paired bootstrap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binom

from histostore.errors import UsageError
from histostore.heads.mixed.levels import as_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignTest:
    """Per gene: in how many patients a correlation is above zero, and how surprising that is."""

    positive: NDArray[np.int64]
    n: NDArray[np.int64]
    """Patients in which the correlation is defined."""
    p: Floats
    """P(at least so many of n heads)."""
    p_holm: Floats
    """Adjusted for all genes given (Holm, Scand. J. Statist. 6, 65 (1979))."""


def sign_test(correlations: NDArray[Any]) -> SignTest:
    """Test each gene's correlations ``(patients, genes)`` for being above zero more often than by chance.

    As He et al. (Nature Biomedical Engineering 4, 827 (2020)) did over 23 patients: give one correlation per patient,
    of all of that patient's spots while held out. NaN (undefined) does not count; a zero counts as not above.
    """
    values = np.asarray(correlations, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        msg = f"correlations have shape {values.shape}: give (patients, genes)"
        raise UsageError(msg)
    n = np.isfinite(values).sum(0)
    positive = (np.nan_to_num(values) > 0).sum(0)
    p = np.where(n > 0, binom.sf(positive - 1, n, 0.5), np.nan)
    return SignTest(positive=positive, n=n, p=p, p_holm=holm(p))


def holm(p: NDArray[Any]) -> Floats:
    """Return p values ``(m,)`` adjusted for m tests by Holm's step-down procedure; NaN stays and is no test."""
    p = np.asarray(p, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    defined = np.flatnonzero(~np.isnan(p))
    order = defined[np.argsort(p[defined], kind="stable")]
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """A difference between two methods, and how it varies over draws of patients."""

    difference: float
    """Mean over patients of a − b."""
    low: float
    high: float
    p: float
    """Two-sided: twice the share of draws on the other side of zero, never below 2 / (draws + 1)."""
    patients: int
    draws: int


def paired_bootstrap(
    a: NDArray[Any],
    b: NDArray[Any],
    patients: NDArray[Any],
    *,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Compare two methods on the same rows (or slides, or genes) by drawing whole patients with replacement.

    Parameters
    ----------
    a, b
        ``(n,)`` scores or errors of both methods, row by row; a row where either is NaN counts for neither.
    patients
        ``(n,)``; rows of a patient are averaged first, so that each patient weighs the same.
    level
        Of the percentile interval.

    Raises
    ------
    UsageError
        Fewer than two patients: the bootstrap could only ever draw the same one.
    DataError
        Rows whose patient is missing (None, NaN).
    """
    a, b, of = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64), np.asarray(patients)
    if not a.shape == b.shape == of.shape or a.ndim != 1:
        msg = f"scores of shape {a.shape} and {b.shape} and patients of shape {of.shape}: give equal (n,)"
        raise UsageError(msg)
    if draws < 1 or not 0 < level < 1:
        msg = f"draws is {draws} and level {level}: give 1 or more draws and a level between 0 and 1"
        raise UsageError(msg)
    text, row = as_text(of, "patient")
    both = np.isfinite(a) & np.isfinite(b)
    names, which = np.unique(text[row][both], return_inverse=True)
    if len(names) < 2:
        msg = f"{len(names)} patient with defined scores: drawing patients needs two, and says little below ten"
        raise UsageError(msg)
    means = np.bincount(which, weights=(a - b)[both]) / np.bincount(which)
    rng = np.random.default_rng(seed)
    drawn = means[rng.integers(len(names), size=(draws, len(names)))].mean(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Bootstrap(
        difference=float(means.mean()),
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * (beyond + 1) / (draws + 1)),
        patients=len(names),
        draws=draws,
    )
