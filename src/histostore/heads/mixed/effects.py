"""One factor's variances and group effects of residuals, in closed form: what a network is trained against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from histostore.heads.mixed.random_intercept import Sums, estimate, nll_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats, Method
    from histostore.heads.mixed.levels import Levels

    type Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Effects:
    """Variances and effects of t targets, at their best for some residuals."""

    shift: Floats
    """``(t,)`` best constant of the residuals, given the groups."""
    s2_e: Floats
    """``(t,)``"""
    s2_b: Floats
    """``(t,)``"""
    blup: Floats
    """``(q, t)``"""
    loss: float
    """Exact marginal negative log-likelihood per row, mean over targets."""


@dataclass(frozen=True, slots=True, eq=False)
class OneFactor:
    """Rows that share one effect per group: all that training needs to know of them, in O(n + q)."""

    levels: Levels

    def part(self, rows: Rows) -> Self:
        """Return it for some of the rows."""
        return type(self)(self.levels.on(rows))

    def best(self, residuals: Floats, method: Method, before: Any = None, *, last: bool = False) -> Effects:
        """Return the maximum of the likelihood for residuals ``(n, t)`` about a constant of their own.

        It is a closed form, whatever was `before`, and for the `last` time as for any.
        """
        ones = np.ones((len(residuals), 1))
        centre = residuals.mean(0)
        found = [estimate(Sums.of(column, ones, self.levels), method=method) for column in (residuals - centre).T]
        shift = centre + np.array([f.coef[0] for f in found])
        s2_e, s2_b = np.array([f.s2_e for f in found]), np.array([f.s2_b for f in found])
        loss = marginal_loss(residuals - shift, self.levels, s2_e, s2_b)
        return Effects(shift, s2_e, s2_b, np.stack([f.blup for f in found], 1), loss)

    def given(self, residuals: Floats, s2_e: Floats, s2_b: Floats) -> Effects:
        """Return the effects at variances that are given, about no constant."""
        blup = s2_b * group_sums(residuals, self.levels) / (s2_e + self.levels.sizes[:, None] * s2_b)
        loss = marginal_loss(residuals, self.levels, s2_e, s2_b)
        return Effects(np.zeros(residuals.shape[1]), s2_e, s2_b, blup, loss)

    def of(self, found: Effects, rows: Rows) -> Floats:
        """Return the effects ``(m, t)`` of some of the rows."""
        picked: Floats = found.blup[self.levels.codes[rows]]
        return picked

    def unsure(self, found: Effects, rows: Rows) -> Floats:
        """Return the variance ``(m, t)`` of those, of groups of all rows but these."""
        sizes = self.levels.sizes - self.levels.on(rows).sizes
        return posterior_variance(sizes, found.s2_e, found.s2_b)[self.levels.codes[rows]]


def marginal_loss(residuals: Floats, levels: Levels, s2_e: Floats, s2_b: Floats) -> float:
    """Return the exact marginal negative log-likelihood per row, mean over targets."""
    sums, squares = group_sums(residuals, levels), (residuals**2).sum(0)
    each = [nll_sums(levels.sizes, sums[:, k], float(squares[k]), s2_e[k], s2_b[k]) for k in range(len(s2_e))]
    return float(np.mean(each)) / len(residuals)


def group_sums(residuals: Floats, levels: Levels) -> Floats:
    """Return ``(q, t)`` sums per group."""
    return np.stack([np.bincount(levels.codes, column, len(levels)) for column in residuals.T], 1)


def posterior_variance(sizes: Floats, s2_e: Floats, s2_b: Floats) -> Floats:
    """Return ``(q, t)`` variance of the group effects given the data; of a group without rows it is s2_b."""
    variance: Floats = s2_b * s2_e / np.maximum(s2_e + sizes[:, None] * s2_b, np.finfo(float).tiny)
    return variance
