"""y = X b + (1 | group): the exact linear mixed model with one factor, in O(n + q).

With n_j, S_j = Σe and Q_j = Σe² of the residuals e = y - X b of each group,

    -ln L = ½ Σ_j [ n_j ln 2π + (n_j - 1) ln s_e + ln(s_e + n_j s_b) + Q_j / s_e - s_b S_j² / (s_e (s_e + n_j s_b)) ],

s_e and s_b being the variances within and between groups. Given ρ = s_b / s_e both b and s_e are closed forms, so one
number is searched for; its best value is a root of an analytic derivative, not where an optimiser happened to stop.
Laird and Ware, Biometrics 38, 963 (1982); Patterson and Thompson, Biometrika 58, 545 (1971) for REML.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq

from histostore.errors import DataError, UsageError
from histostore.heads.estimator import as_rows
from histostore.heads.mixed.design import Design, check_method
from histostore.heads.mixed.levels import UNSEEN, Levels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats, Method

LOG_RATIOS = np.arange(-16.0, 24.1, 2.0)
"""Where ln(s_b / s_e) is looked for first; the best valley is then searched to machine precision."""


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """All that the likelihood needs of n rows: sums over all, and per group."""

    n: int
    sizes: Floats
    """``(q,)``"""
    xx: Floats
    """``(p, p)``"""
    xy: Floats
    """``(p,)``"""
    yy: float
    sx: Floats
    """``(q, p)`` sums of the fixed effects' columns per group."""
    sy: Floats
    """``(q,)``"""

    @classmethod
    def of(cls, y: Floats, X: Floats, levels: Levels) -> Sums:
        """Return the sums of targets ``(n,)`` and columns ``(n, p)``."""
        q = len(levels)
        sx = np.stack([np.bincount(levels.codes, column, q) for column in X.T], 1) if X.shape[1] else np.empty((q, 0))
        sy = np.bincount(levels.codes, y, q)
        return cls(len(y), levels.sizes, X.T @ X, X.T @ y, float(y @ y), sx, sy)


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """The best variances and coefficients of some `Sums`."""

    s2_e: float
    s2_b: float
    coef: Floats
    """``(p,)``"""
    coef_cov: Floats
    """``(p, p)``"""
    loglik: float
    """Restricted log-likelihood under REML, with n - p in its 2π term."""
    blup: Floats
    """``(q,)``"""


@dataclass(frozen=True, slots=True, eq=False)
class _Profile:
    """The likelihood at one ratio, all else at its best."""

    deviance: float
    slope: float
    """Derivative of the deviance by the ratio."""
    rss: float
    coef: Floats
    xwx: Floats


def estimate(sums: Sums, *, method: Method = "ml") -> Estimate:
    """Return the maximum of the (restricted) likelihood, s_b = 0 included.

    Raises
    ------
    DataError
        No variation is left within groups.
    """
    check_method(method)
    free = sums.n - (sums.sx.shape[1] if method == "reml" else 0)
    grid = [_profile(sums, float(np.exp(at)), method) for at in LOG_RATIOS]
    if grid[-1].slope <= 0 or grid[-1].rss <= 1e-14 * sums.yy:
        msg = "rows of one group all have the same value beside the fixed effects: nothing is left as residual"
        raise DataError(msg)
    ratios = [0.0]
    for low, high, left, right in zip(LOG_RATIOS, LOG_RATIOS[1:], grid, grid[1:], strict=False):
        if left.slope < 0 <= right.slope:
            # in units of ln ρ the slope is well scaled from end to end
            at = brentq(lambda t: np.exp(t) * _profile(sums, float(np.exp(t)), method).slope, low, high, xtol=1e-13)
            ratios.append(float(np.exp(at)))
    best, ratio = min(((_profile(sums, r, method), r) for r in ratios), key=lambda pair: pair[0].deviance)
    s2_e = best.rss / free
    loglik = -0.5 * (free * (np.log(2 * np.pi) + 1 - np.log(free)) + best.deviance)
    residual = sums.sy - sums.sx @ best.coef
    return Estimate(
        s2_e=s2_e,
        s2_b=ratio * s2_e,
        coef=best.coef,
        coef_cov=s2_e * np.linalg.inv(best.xwx),
        loglik=float(loglik),
        blup=ratio * residual / (1 + sums.sizes * ratio),
    )


def _profile(sums: Sums, ratio: float, method: Method) -> _Profile:
    spread = 1 + sums.sizes * ratio
    shrink = ratio / spread
    xwx = sums.xx - sums.sx.T @ (shrink[:, None] * sums.sx)
    xwy = sums.xy - sums.sx.T @ (shrink * sums.sy)
    coef = np.linalg.solve(xwx, xwy)
    rss = max(sums.yy - float(shrink @ sums.sy**2) - float(xwy @ coef), np.finfo(float).tiny)
    left = (sums.sy - sums.sx @ coef) / spread
    free = sums.n
    deviance = float(np.log(spread).sum())
    slope = float((sums.sizes / spread).sum())
    if method == "reml":
        free -= len(coef)
        deviance += float(np.linalg.slogdet(xwx)[1])
        scaled = sums.sx / spread[:, None]
        slope -= float(np.trace(np.linalg.solve(xwx, scaled.T @ scaled)))
    return _Profile(deviance + free * np.log(rss), slope - free * float(left @ left) / rss, rss, coef, xwx)


def nll(residuals: Any, groups: Any, s2_e: float, s2_b: float) -> float:
    """Return the exact marginal negative log-likelihood of residuals ``(n,)`` (targets less fixed effects).

    Parameters
    ----------
    residuals
        ``(n,)`` finite.
    groups
        ``(n,)`` labels.
    s2_e, s2_b
        Variances within (> 0) and between (>= 0) groups, in squared units of the residuals.
    """
    e = np.asarray(residuals, np.float64)
    levels = Levels.of(groups)
    if e.shape != levels.codes.shape:
        msg = f"residuals are {e.shape} and groups {levels.codes.shape}: give one of each per row"
        raise UsageError(msg)
    if not (s2_e > 0 and s2_b >= 0):
        msg = f"variances are {s2_e} and {s2_b}: the first must be above 0, the second not below"
        raise UsageError(msg)
    return nll_sums(levels.sizes, np.bincount(levels.codes, e, len(levels)), float(e @ e), s2_e, s2_b)


def nll_sums(sizes: Floats, sums: Floats, squares: float, s2_e: float, s2_b: float) -> float:
    """Return that of groups with these sizes ``(q,)`` and sums ``(q,)``, and this sum of squares over all rows."""
    total = s2_e + sizes * s2_b
    n = float(sizes.sum())
    logdet = (n - len(sizes)) * np.log(s2_e) + np.log(total).sum()
    quadratic = squares / s2_e - s2_b / s2_e * float((sums**2 / total).sum())
    return float(0.5 * (n * np.log(2 * np.pi) + logdet + quadratic))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RandomIntercept:
    """A fitted ``y = X b + (1 | group)``."""

    method: Method
    intercept: bool
    coef: Floats
    """``(p,)`` fixed effects, the intercept first."""
    coef_cov: Floats
    """``(p, p)``"""
    s2_e: float
    s2_b: float
    loglik: float
    """Restricted log-likelihood under REML, with n - p in its 2π term."""
    levels: Levels
    blup: Floats
    """``(q,)`` best linear unbiased predictions of the group effects."""
    blup_var: Floats
    """``(q,)`` their variance given the data and the fixed effects: ``s_b s_e / (s_e + n_j s_b)``."""
    notes: tuple[str, ...]

    @property
    def icc(self) -> float:
        """Share of the variance that lies between groups."""
        return self.s2_b / (self.s2_b + self.s2_e)

    @property
    def se(self) -> Floats:
        """``(p,)`` standard errors of the fixed effects."""
        found: Floats = np.sqrt(np.diag(self.coef_cov))
        return found

    def effects(self) -> dict[str, float]:
        """Return the group effects by label."""
        return dict(zip(self.levels.names, self.blup.tolist(), strict=True))

    def predict(self, groups: Any, X: Any = None) -> Floats:
        """Return ``(m,)`` predictions; a group that was not there at fit has effect 0."""
        return self._fixed(len(np.asarray(groups)), X) + self._at(groups, self.blup, 0.0)

    def variance(self, groups: Any) -> Floats:
        """Return ``(m,)`` variance of a new value about its prediction: wider where the group is new."""
        return self.s2_e + self._at(groups, self.blup_var, self.s2_b)

    def _fixed(self, m: int, X: Any) -> Floats:
        given = np.empty((m, 0)) if X is None else np.asarray(as_rows(X, "X"), np.float64)
        columns = np.hstack([np.ones((m, 1)), given]) if self.intercept else given
        if columns.shape != (m, len(self.coef)):
            msg = f"X is {given.shape} for {m} groups and {len(self.coef) - self.intercept} columns at fit"
            raise UsageError(msg)
        fixed: Floats = columns @ self.coef
        return fixed

    def _at(self, groups: Any, known: Floats, unseen: float) -> Floats:
        codes: NDArray[np.int64] = self.levels.find(groups)
        return np.where(codes == UNSEEN, unseen, known[codes])


def fit_random_intercept(
    y: Any, groups: Any, X: Any = None, *, intercept: bool = True, method: Method = "ml"
) -> RandomIntercept:
    """Fit ``y = X b + (1 | group)`` by maximum likelihood or REML.

    Parameters
    ----------
    y
        ``(n,)`` finite targets.
    groups
        ``(n,)`` labels, compared as text.
    X
        ``(n, k)`` covariates; none is an intercept only.
    intercept
        Put a column of ones before X.
    method
        ``ml`` or ``reml``.

    Raises
    ------
    DataError
        One group, groups of one row each, columns of X that repeat each other, nothing left as residual.
    """
    check_method(method)
    design = Design.of(y, X, intercept=intercept)
    levels = Levels.of(groups)
    if len(levels.codes) != len(design.residual):
        msg = f"y has {len(design.residual)} rows and groups {len(levels.codes)}"
        raise UsageError(msg)
    notes = levels.check()
    found = estimate(Sums.of(design.residual, design.q, levels), method=method)
    if found.s2_b == 0:
        notes = (*notes, f"the variance between {levels.name} is estimated as 0")
    return RandomIntercept(
        method=method,
        intercept=intercept,
        coef=design.coefficients(found.coef),
        coef_cov=design.covariance(found.coef_cov),
        s2_e=found.s2_e,
        s2_b=found.s2_b,
        loglik=found.loglik - (0.5 * design.logdet if method == "reml" else 0.0),
        levels=levels,
        blup=found.blup,
        blup_var=found.s2_b * found.s2_e / (found.s2_e + levels.sizes * found.s2_b),
        notes=notes,
    )
