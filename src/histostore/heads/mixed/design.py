"""Fixed effects of a linear mixed model, orthogonalised once so that no digits are lost later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import linalg

from histostore.errors import DataError, UsageError
from histostore.heads.estimator import check_pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

type Method = Literal["ml", "reml"]
METHODS = ("ml", "reml")

RANK_TOLERANCE = 1e-9
"""A column that keeps less than this share of its length beside the columns before it adds nothing."""

NOTHING = 1e-14
"""Residuals of less than this share of y's length are rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """``X = Q R`` and ``y = Q first + residual``; models are fitted to `residual` on `q`."""

    q: Floats
    """``(n, p)`` orthonormal columns."""
    r: Floats
    """``(p, p)`` upper triangle."""
    first: Floats
    """``(p,)`` least-squares coefficients on `q`."""
    residual: Floats
    """``(n,)``"""

    @classmethod
    def of(cls, y: Any, X: Any = None, *, intercept: bool = True) -> Design:
        """Return the design of targets ``(n,)`` and covariates ``(n, k)``; `intercept` puts a column of ones first."""
        values = np.asarray(y)
        if values.ndim != 1:
            msg = f"y is {values.ndim}-D: give one target"
            raise UsageError(msg)
        if X is None:
            X = np.empty((len(values), 0))
        X, column = check_pair(X, values)
        target = column[:, 0].astype(np.float64)
        # column by column in memory: sums and the factorisation of tall matrices are ten times as fast so
        columns = np.ones((len(target), X.shape[1] + intercept), order="F")
        columns[:, int(intercept) :] = X
        if len(target) <= columns.shape[1]:
            msg = f"{len(target)} rows for {columns.shape[1]} fixed effects: nothing is left to estimate variances from"
            raise DataError(msg)
        q, r = linalg.qr(columns, mode="economic", check_finite=False)
        lengths = np.linalg.norm(columns, axis=0)
        poor = np.flatnonzero(np.abs(np.diag(r)) <= RANK_TOLERANCE * lengths)
        if len(poor):
            at = ", ".join(str(int(c) - intercept) for c in poor)
            msg = f"column {at} of X is a combination of the columns before it (or of the intercept): leave it out"
            raise DataError(msg)
        first = q.T @ target
        residual = target - q @ first
        again = residual - q @ (q.T @ residual)  # over many rows the first projection leaves more than rounding
        if np.linalg.norm(again) <= NOTHING * np.linalg.norm(target):
            msg = "y is constant, or a combination of the columns of X: nothing is left to estimate variances from"
            raise DataError(msg)
        return cls(q, r, first, residual)

    def coefficients(self, change: Floats) -> Floats:
        """Return ``(p,)`` coefficients of X from coefficients of `residual` on `q`."""
        found: Floats = np.linalg.solve(self.r, self.first + change)
        return found

    def covariance(self, of_q: Floats) -> Floats:
        """Return the ``(p, p)`` covariance of X's coefficients from that of the coefficients on `q`."""
        inverse = np.linalg.inv(self.r)
        found: Floats = inverse @ of_q @ inverse.T
        return found

    @property
    def logdet(self) -> float:
        """``ln |X'X|``, which REML needs to be that of X itself."""
        return float(2 * np.log(np.abs(np.diag(self.r))).sum())


def check_method(method: str) -> None:
    """Refuse a method that is neither ``ml`` nor ``reml``."""
    if method not in METHODS:
        msg = f"method is {method!r}: give one of {', '.join(METHODS)}"
        raise UsageError(msg)
