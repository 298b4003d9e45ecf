"""Variances and group effects of residuals, one target at a time and exactly: what a network is trained against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.heads.mixed.random_intercept import Sums, estimate, nll_sums

if TYPE_CHECKING:
    from histostore.heads.mixed.design import Floats, Method
    from histostore.heads.mixed.levels import Levels


@dataclass(frozen=True, slots=True, eq=False)
class Effects:
    """A random intercept of t targets."""

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

    @classmethod
    def best(cls, residuals: Floats, levels: Levels, method: Method = "ml") -> Effects:
        """Return the maximum of the likelihood for residuals ``(n, t)`` about a constant of their own."""
        ones = np.ones((len(residuals), 1))
        centre = residuals.mean(0)
        found = [estimate(Sums.of(column, ones, levels), method=method) for column in (residuals - centre).T]
        shift = centre + np.array([f.coef[0] for f in found])
        s2_e, s2_b = np.array([f.s2_e for f in found]), np.array([f.s2_b for f in found])
        loss = marginal_loss(residuals - shift, levels, s2_e, s2_b)
        return cls(shift, s2_e, s2_b, np.stack([f.blup for f in found], 1), loss)

    @classmethod
    def given(cls, residuals: Floats, levels: Levels, s2_e: Floats, s2_b: Floats) -> Effects:
        """Return the effects at variances that are given, about no constant."""
        sums = group_sums(residuals, levels)
        blup = s2_b * sums / (s2_e + levels.sizes[:, None] * s2_b)
        loss = marginal_loss(residuals, levels, s2_e, s2_b)
        return cls(np.zeros(residuals.shape[1]), s2_e, s2_b, blup, loss)


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
