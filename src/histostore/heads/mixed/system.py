"""The likelihood of given random terms as a function of their parameters, fixed effects and residual variance apart.

The deviance is profiled over the fixed effects and the residual variance, as in Bates et al., J. Stat. Softw. 67, 1
(2015). Cost of one value: the non-zeros of Z'Z, plus the cube of the columns of all terms but the largest; the largest
costs the cube of its blocks (1 for an intercept, K for slopes, a slide's positions for a surface).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy import linalg
from scipy.optimize import minimize

from histostore.errors import DataError, UsageError
from histostore.heads.mixed.blocks import Elimination, as_fits
from histostore.heads.mixed.surface import Surface
from histostore.heads.mixed.uniform import LOG_LIMITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.heads.mixed.design import Floats, Method
    from histostore.heads.mixed.terms import Built, Term

MAX_DENSE = 20_000
"""Columns of all terms but the largest, whose square is held (3.2 GB at this many)."""

STEP = 1e-4
"""Of the central differences: parameters are logarithms, so of order 1."""

CHUNK = 1024
"""Rows whose variances are computed at a time."""


@dataclass(eq=False)
class System:
    """Cross-products of random terms: all that the likelihood needs of Z."""

    terms: list[Built]
    """The largest first."""
    n: int
    z: sp.csr_array
    """``(n, q)`` all terms side by side."""

    @classmethod
    def of(cls, terms: Sequence[Built]) -> System:
        """Return it for terms on the same rows.

        Raises
        ------
        UsageError
            Too many columns beside the largest term to hold their square.
        """
        built = sorted(terms, key=lambda t: -t.width)
        beside = sum(t.width for t in built[1:])
        if max(beside, built[0].block) > MAX_DENSE:
            many = max(beside, built[0].block)
            which = f"beside {built[0].levels.name}" if beside == many else f"in one block of {built[0].levels.name}"
            msg = f"{many} columns {which} make a square matrix of {many**2 * 8 / 1e9:.0f} GB: use coarser levels"
            raise UsageError(msg)
        return cls(built, built[0].z.shape[0], sp.csr_array(sp.hstack([t.z for t in built], format="csr")))

    @cached_property
    def gram(self) -> sp.csr_array:
        """Return ``Z'Z`` ``(q, q)``."""
        return sp.csr_array(self.z.T @ self.z)

    @cached_property
    def between(self) -> Any:
        """``Z₁'Z₂`` of the largest term and the others."""
        return as_fits(self.gram[: self.lead, self.lead :])

    @cached_property
    def others(self) -> sp.csr_array:
        """Return ``Z₂'Z₂``."""
        return sp.csr_array(self.gram[self.lead :, self.lead :])

    @property
    def lead(self) -> int:
        """Columns of the largest term."""
        return self.terms[0].width

    @property
    def edge(self) -> int:
        """Edge of the largest dense matrix there is to factor."""
        return max(int(self.z.shape[1]) - self.lead, self.terms[0].block)

    def split(self, theta: Floats) -> list[Floats]:
        """Return each term's own parameters."""
        ends = np.cumsum([t.parameters for t in self.terms])
        return np.split(np.asarray(theta, np.float64), ends[:-1])

    def by_term(self, values: Floats) -> dict[str, Floats]:
        """Return values ``(q,)`` of all columns as ``(levels, K)`` of each term."""
        parts = np.split(values, np.cumsum([t.width for t in self.terms])[:-1])
        return {t.levels.name: p.reshape(len(t.levels), -1) for t, p in zip(self.terms, parts, strict=True)}

    def describe(self, theta: Floats, s2_e: float) -> dict[str, dict[str, Any]]:
        """Return of each term its variance, covariance of slopes, or variance and length."""
        pairs = zip(self.terms, self.split(theta), strict=True)
        return {t.levels.name: t.describe(part, s2_e) for t, part in pairs}

    def factored(self, theta: Floats) -> Elimination:
        """Return the factorisation at these parameters."""
        parts = self.split(theta)
        factors = [t.factor(p) for t, p in zip(self.terms[1:], parts[1:], strict=True)]
        if not factors:
            return Elimination.of(self.terms[0].eliminated(parts[0]), [], None, None)
        return Elimination.of(self.terms[0].eliminated(parts[0]), factors, self.between, self.others)

    def solve(self, factored: Elimination, right: Floats) -> Floats:
        """Return ``(D⁻¹ + Z'Z)⁻¹ M`` of a matrix ``(q, m)``: of ``Z'r``, the effects."""
        return factored.effects(*factored.reduce(right[: self.lead], right[self.lead :]))

    def weighed(self, factored: Elimination, columns: Any) -> Floats:
        """Return ``Z' V⁻¹ Z U`` of a matrix U ``(q, m)``, V in units of the residual variance."""
        before = self.gram @ columns
        found: Floats = before - self.gram @ self.solve(factored, before)
        return found

    def rows(self, new: Mapping[str, Term], theta: Floats) -> tuple[sp.csr_array, Floats]:
        """Return Z ``(m, q)`` of new rows, and the share ``(m,)`` of their prior variance that nothing known explains.

        Raises
        ------
        UsageError
            Other terms than at fit, or terms of different numbers of rows.
        """
        names = {t.levels.name for t in self.terms}
        if set(new) != names:
            msg = f"terms are {', '.join(sorted(new))}; at fit they were {', '.join(sorted(names))}"
            raise UsageError(msg)
        rows_in(new)
        pairs = zip(self.terms, self.split(theta), strict=True)
        made = [t.rows(new[t.levels.name], part) for t, part in pairs]
        return sp.csr_array(sp.hstack([z for z, _ in made], format="csr")), np.sum([share for _, share in made], 0)

    def variances(self, theta: Floats, rows: Any) -> Floats:
        """Return the variance ``(m,)`` of ``z'b`` given the data, of rows z ``(m, q)``, in residual variances."""
        factored = self.factored(theta)
        rows = sp.csr_array(rows)
        out = np.empty(rows.shape[0])
        for start in range(0, len(out), CHUNK):
            right = rows[start : start + CHUNK].T.toarray()
            top, bottom = factored.reduce(right[: self.lead], right[self.lead :])
            found = (right[: self.lead] * top).sum(0)
            out[start : start + CHUNK] = found + (0.0 if bottom is None else (bottom**2).sum(0))
        return out

    def effect_variances(self, theta: Floats) -> dict[str, Floats]:
        """Return the variances of all effects, in units of the residual variance."""
        return self.by_term(self.variances(theta, sp.eye_array(self.z.shape[1], format="csr")))


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """The model at some parameters, fixed effects and residual variance at their best."""

    factored: Elimination | None
    """None where it was let go to save memory."""
    logdet: float
    deviance: float
    """Minus twice the (restricted) log-likelihood."""
    rss: float
    """``r' V⁻¹ r``"""
    root: Floats
    """``(p, p)`` Cholesky factor of ``X' V⁻¹ X``."""
    coef: Floats
    """``(p,)``"""
    effects: Floats
    """``(q,)``"""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A system with fixed effects and targets: a deviance to minimise."""

    system: System
    method: Method
    cross: Floats
    """``(p + 1, p + 1)`` cross-products of the fixed effects' columns and y."""
    right: Floats
    """``Z'[X y]`` ``(q, p + 1)``"""

    @classmethod
    def of(cls, system: System, columns: Floats, y: Floats, method: Method) -> Model:
        """Return the model of targets ``(n,)`` and fixed effects' columns ``(n, p)``."""
        both = np.column_stack([columns, y])
        return cls(system, method, both.T @ both, system.z.T @ both)

    @property
    def free(self) -> int:
        """Rows, less the fixed effects under REML."""
        return self.system.n - (len(self.cross) - 1 if self.method == "reml" else 0)

    def at(self, theta: Floats, factored: Elimination | None = None) -> Profile:
        """Return the profile at these parameters, whose factorisation may be known."""
        system = self.system
        factored = factored or system.factored(theta)
        first, second = self.right[: system.lead], self.right[system.lead :]
        top, bottom = factored.reduce(first, second)
        inner = self.cross - first.T @ top
        if bottom is not None:
            inner -= bottom.T @ bottom
        root = np.linalg.cholesky(inner[:-1, :-1])
        target, coef = np.empty(0), np.empty(0)
        if len(root):
            target = linalg.solve_triangular(root, inner[:-1, -1], lower=True)
            coef = linalg.solve_triangular(root, target, lower=True, trans="T")
        rss = float(inner[-1, -1] - target @ target)
        if rss <= 1e-13 * self.cross[-1, -1]:
            msg = "the random terms fit every row: nothing is left as residual; use coarser ones"
            raise DataError(msg)
        deviance = factored.logdet + self.free * (1 + np.log(2 * np.pi * rss / self.free))
        if self.method == "reml":
            deviance += 2 * float(np.log(np.diag(root)).sum())
        weights = np.append(-coef, 1.0)[:, None]
        effects = factored.effects(top @ weights, None if bottom is None else bottom @ weights)
        return Profile(factored, factored.logdet, float(deviance), rss, root, coef, effects[:, 0])

    def start(self) -> Floats:
        """Return the best of the starts."""
        return min(self.starts(), key=lambda s: self.at(s).deviance)

    def starts(self) -> list[Floats]:
        """Return parameters that a search may start from."""
        return [np.concatenate(s) for s in zip(*(t.starts() for t in self.system.terms), strict=True)]

    def limits(self) -> list[tuple[float, float]]:
        """Return the limits of all parameters."""
        return [b for t in self.system.terms for b in t.bounds()]

    def search(self, start: Floats | None = None) -> tuple[Floats, bool]:
        """Return the best parameters, found by exact values alone, and whether they are an optimum."""
        limits = self.limits()
        found = minimize(
            self._deviance_and_slope, self.start() if start is None else start, jac=True, method="L-BFGS-B",
            bounds=limits, options={"maxiter": 300, "ftol": 1e-14, "gtol": 1e-5},
        )  # fmt: skip
        # "abnormal termination in line search" at a flat optimum is rounding, not failure
        _, slope = self._deviance_and_slope(found.x)
        inside = [
            (x - lo > 1e-6 or g < 0) and (hi - x > 1e-6 or g > 0)
            for x, g, (lo, hi) in zip(found.x, slope, limits, strict=True)
        ]
        return found.x, bool(found.success or np.abs(slope[inside]).max(initial=0.0) < 1e-2)

    def _deviance_and_slope(self, theta: Floats) -> tuple[float, Floats]:
        slope = np.empty_like(theta)
        for i, step in enumerate(np.eye(len(theta)) * STEP):
            slope[i] = (self.at(theta + step).deviance - self.at(theta - step).deviance) / (2 * STEP)
        return self.at(theta).deviance, slope

    def without_nothing(self, theta: Floats) -> tuple[Floats, list[str]]:
        """Return the parameters with variances that do not help at exactly 0, and those terms' names."""
        parts = self.system.split(theta)
        zero: list[str] = []
        for i, term in enumerate(self.system.terms):
            if (len(parts[i]) > 1 and not isinstance(term, Surface)) or parts[i][0] >= LOG_LIMITS[0] / 2:
                continue
            without = [p.copy() for p in parts]
            without[i][0] = -np.inf
            if self.at(np.concatenate(without)).deviance <= self.at(np.concatenate(parts)).deviance + 1e-6:
                parts, zero = without, [*zero, term.levels.name]
        return np.concatenate(parts), zero


def rows_in(terms: Mapping[str, Term]) -> int:
    """Return the rows of all of some terms; different numbers are a `UsageError`."""
    found = {name: len(term) for name, term in terms.items()}
    if len(set(found.values())) > 1:
        msg = f"terms have {', '.join(f'{n} rows ({name})' for name, n in found.items())}: give one row of each"
        raise UsageError(msg)
    return next(iter(found.values()))


def notes_of(terms: Sequence[Built]) -> tuple[str, ...]:
    """Refuse terms that cannot be estimated, and return what must be said of the others."""
    said: tuple[str, ...] = ()
    for term in terms:
        if not isinstance(term, Surface):
            said += term.levels.check(kind="term")
    return said
