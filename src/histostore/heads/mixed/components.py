"""y = X b + Σ Z_k b_k + e: several crossed or nested factors, random slopes and spatial kernels, exactly.

The deviance is profiled over the fixed effects and the residual variance, as in Bates et al., J. Stat. Softw. 67, 1
(2015); what is searched for is one or a few logarithms per term. Cost per step: the non-zeros of Z'Z, plus the cube of
the columns of all terms but the largest; the largest term costs the cube of its blocks (1 for an intercept, K for
slopes, a slide's positions for a surface).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy import linalg
from scipy.optimize import minimize

from histostore.errors import DataError, UsageError
from histostore.heads.estimator import as_rows
from histostore.heads.mixed.blocks import Elimination, as_fits
from histostore.heads.mixed.design import Design, check_method
from histostore.heads.mixed.levels import check_not_collinear
from histostore.heads.mixed.terms import LOG_LIMITS, Spatial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.heads.mixed.design import Floats, Method
    from histostore.heads.mixed.terms import Built, Intercept, Slopes

    type Term = Intercept | Slopes | Spatial

MAX_DENSE = 20_000
"""Columns of all terms but the largest, whose square is held (3.2 GB at this many)."""

STEP = 1e-4
"""Of the central differences: parameters are logarithms, so of order 1."""

CHUNK = 1024
"""Rows whose variances are computed at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Components:
    """A fitted linear mixed model with one or more random terms."""

    method: Method
    intercept: bool
    coef: Floats
    """``(p,)`` fixed effects, the intercept first."""
    coef_cov: Floats
    """``(p, p)``"""
    s2_e: float
    terms: dict[str, dict[str, Any]]
    """Of each term its ``variance`` (an intercept), ``covariance`` ``(K, K)`` (slopes) or ``variance``, ``length``."""
    loglik: float
    """Restricted log-likelihood under REML, with n - p in its 2π term."""
    blup: dict[str, Floats]
    """``(q, K)`` effects of each term's levels."""
    blup_var: dict[str, Floats]
    """``(q, K)`` their variances given the data and the fixed effects."""
    levels: dict[str, tuple[str, ...]]
    """``(q,)`` names of each term's levels."""
    converged: bool
    notes: tuple[str, ...]
    model: _Model
    theta: Floats

    def predict(self, new: Mapping[str, Term], X: Any = None) -> tuple[Floats, Floats]:
        """Return predictions ``(m,)`` of new rows and the variance ``(m,)`` of a new value about them.

        Parameters
        ----------
        new
            The terms of the fit on the new rows. Levels that were not there at fit have effect 0 and their whole
            prior variance; positions that were not there are kriged from those of their slide.
        X
            ``(m, k)`` covariates.
        """
        if set(new) != set(self.blup):
            msg = f"terms are {', '.join(sorted(new))}; at fit they were {', '.join(sorted(self.blup))}"
            raise UsageError(msg)
        parts = self.model.split(self.theta)
        made = [t.rows(new[t.levels.name], p) for t, p in zip(self.model.terms, parts, strict=True)]
        m = made[0][0].shape[0]
        given = np.empty((m, 0)) if X is None else as_rows(X, "X").astype(np.float64)
        columns = np.hstack([np.ones((len(given), 1)), given]) if self.intercept else given
        if columns.shape != (m, len(self.coef)) or any(z.shape[0] != m for z, _ in made):
            msg = f"X is {given.shape} and terms have {[z.shape[0] for z, _ in made]} rows: give one row of each"
            raise UsageError(msg)
        mean = columns @ self.coef
        for term, (z, _) in zip(self.model.terms, made, strict=True):
            mean += z @ self.blup[term.levels.name].ravel()
        known = self.model.variances(self.theta, [z for z, _ in made])
        return mean, self.s2_e * (1 + known + sum(share for _, share in made))


def fit_components(
    y: Any, terms: Mapping[str, Term], X: Any = None, *, intercept: bool = True, method: Method = "ml"
) -> Components:
    """Fit a linear mixed model by maximum likelihood or REML.

    Parameters
    ----------
    y
        ``(n,)`` finite targets.
    terms
        Random terms by name: `Intercept`, `Slopes`, `Spatial`.
    X
        ``(n, k)`` covariates; none is an intercept only.
    intercept
        Put a column of ones before X.
    method
        ``ml`` or ``reml``.

    Raises
    ------
    DataError
        A factor of one level or of single rows, two factors that cut the rows alike, repeated columns of X.
    UsageError
        Shapes that do not fit, or too many columns beside the largest term to hold their square.
    """
    check_method(method)
    if not terms:
        msg = "no random terms: give at least one, or use plain regression"
        raise UsageError(msg)
    design = Design.of(y, X, intercept=intercept)
    model = _Model.of(design, terms, method)
    theta, converged = model.search()
    theta, zero = model.without_nothing(theta)
    notes = [*model.notes(), *(f"the variance of {name} is estimated as 0" for name in zero)]
    if not converged:
        notes.append("the search did not converge: the variances are the best of those tried")
    found = model.at(theta)
    s2_e = found.rss / model.free
    loglik = -0.5 * (found.deviance + (design.logdet if method == "reml" else 0.0))
    change = (
        linalg.solve_triangular(found.root, found.target, lower=True, trans="T") if len(found.target) else found.target
    )
    blup = model.effects(found, change)
    parts = model.split(theta)
    return Components(
        method=method,
        intercept=intercept,
        coef=design.coefficients(change),
        coef_cov=design.covariance(s2_e * np.linalg.inv(found.root @ found.root.T)),
        s2_e=s2_e,
        terms={t.levels.name: t.describe(p, s2_e) for t, p in zip(model.terms, parts, strict=True)},
        loglik=float(loglik),
        blup={name: blup[name] for name in terms},
        blup_var={name: s2_e * value for name, value in model.effect_variances(theta).items()},
        levels={t.levels.name: t.levels.names for t in model.terms},
        converged=converged,
        notes=tuple(notes),
        model=model,
        theta=theta,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Profile:
    """The model at some parameters, fixed effects and residual variance at their best."""

    factored: Elimination
    deviance: float
    """Minus twice the log-likelihood."""
    rss: float
    root: Floats
    """``(p, p)`` Cholesky factor of ``X' W X``."""
    target: Floats
    """``(p,)`` ``root⁻¹ X' W y``."""
    top: Floats
    bottom: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    """Cross-products of one model, and its deviance as a function of the random terms' parameters."""

    terms: list[Built]
    """The largest first."""
    method: Method
    n: int
    cross: Floats
    """``(p + 1, p + 1)`` of the fixed effects' columns and y."""
    first: Floats
    """``Z₁'[X y]`` ``(q₁, p + 1)``"""
    second: Floats | None
    between: Any
    others: Any

    @classmethod
    def of(cls, design: Design, terms: Mapping[str, Term], method: Method) -> _Model:
        built = sorted((term.build(name) for name, term in terms.items()), key=lambda t: -t.width)
        n = len(design.residual)
        for t in built:
            if t.z.shape[0] != n:
                msg = f"{t.levels.name} has {t.z.shape[0]} rows and y {n}"
                raise UsageError(msg)
        check_not_collinear([t.levels for t in built])
        beside = sum(t.width for t in built[1:])
        if beside > MAX_DENSE:
            msg = f"{beside} columns beside {built[0].levels.name} make a square matrix of {beside**2 * 8 / 1e9:.0f} GB"
            raise UsageError(msg)
        right = np.column_stack([design.q, design.residual])
        lead = built[0].z
        rest = sp.csr_array(sp.hstack([t.z for t in built[1:]], format="csr")) if built[1:] else None
        return cls(
            terms=built,
            method=method,
            n=n,
            cross=right.T @ right,
            first=lead.T @ right,
            second=None if rest is None else rest.T @ right,
            between=None if rest is None else as_fits(lead.T @ rest),
            others=None if rest is None else sp.csr_array(rest.T @ rest),
        )

    @property
    def free(self) -> int:
        """Rows, less the fixed effects under REML."""
        return self.n - (len(self.cross) - 1 if self.method == "reml" else 0)

    def notes(self) -> tuple[str, ...]:
        """Refuse terms that cannot be estimated, and return what must be said of the others."""
        said: tuple[str, ...] = ()
        for term in self.terms:
            if hasattr(term, "slides"):
                continue
            said += term.levels.check(kind="term")
        return said

    def split(self, theta: Floats) -> list[Floats]:
        """Return each term's own parameters."""
        ends = np.cumsum([len(t.bounds()) for t in self.terms])
        return np.split(np.asarray(theta, np.float64), ends[:-1])

    def factored(self, theta: Floats) -> Elimination:
        """Return the factorisation at these parameters."""
        factors = [t.factor(p) for t, p in zip(self.terms, self.split(theta), strict=True)]
        return Elimination.of(factors, self.terms[0].gram, self.between, self.others)

    def at(self, theta: Floats) -> _Profile:
        """Return the profile at these parameters."""
        factored = self.factored(theta)
        top, bottom = factored.halves(self.first, self.second)
        inner = self.cross - top.T @ top
        if bottom is not None:
            inner -= bottom.T @ bottom
        root = np.linalg.cholesky(inner[:-1, :-1])
        target = linalg.solve_triangular(root, inner[:-1, -1], lower=True) if len(root) else np.empty(0)
        rss = float(inner[-1, -1] - target @ target)
        if rss <= 1e-13 * self.cross[-1, -1]:
            msg = "the random terms fit every row: nothing is left as residual; use coarser ones"
            raise DataError(msg)
        deviance = factored.logdet + self.free * (1 + np.log(2 * np.pi * rss / self.free))
        if self.method == "reml":
            deviance += 2 * float(np.log(np.diag(root)).sum())
        return _Profile(factored, float(deviance), rss, root, target, top, bottom)

    def search(self) -> tuple[Floats, bool]:
        """Return the best parameters, from the better of two starts."""
        starts = [np.concatenate(s) for s in zip(*(t.starts() for t in self.terms), strict=True)]
        start = min(starts, key=lambda s: self.at(s).deviance)
        limits = [b for t in self.terms for b in t.bounds()]
        found = minimize(
            self._deviance_and_slope, start, jac=True, method="L-BFGS-B", bounds=limits,
            options={"maxiter": 300, "ftol": 1e-14, "gtol": 1e-5},
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
        parts = self.split(theta)
        zero: list[str] = []
        best = self.at(theta).deviance
        for i, term in enumerate(self.terms):
            if len(parts[i]) != len(term.bounds()) or (len(parts[i]) > 1 and not hasattr(term, "slides")):
                continue
            without = [p.copy() for p in parts]
            without[i][0] = -np.inf
            if parts[i][0] < LOG_LIMITS[0] / 2 and self.at(np.concatenate(without)).deviance <= best + 1e-6:
                parts, zero = without, [*zero, term.levels.name]
        return np.concatenate(parts), zero

    def effects(self, found: _Profile, change: Floats) -> dict[str, Floats]:
        """Return the effects ``(q, K)`` of each term, given the fixed effects' change."""
        weights = np.append(-change, 1.0)[:, None]
        bottom = None if found.bottom is None else found.bottom @ weights
        first, second = found.factored.effects(found.top @ weights, bottom)
        both = first if second is None else np.concatenate([first, second])
        return self._by_term(both.ravel())

    def variances(self, theta: Floats, rows: list[Any]) -> Floats:
        """Return ``z' Λ A⁻¹ Λ' z`` of rows ``(m, q)`` given term by term."""
        factored = self.factored(theta)
        first = sp.csr_array(rows[0])
        second = sp.csr_array(sp.hstack(rows[1:], format="csr")) if rows[1:] else None
        out = np.empty(first.shape[0])
        for start in range(0, len(out), CHUNK):
            part = slice(start, start + CHUNK)
            top, bottom = factored.halves(first[part].T, None if second is None else second[part].T)
            out[part] = (top**2).sum(0) + (0.0 if bottom is None else (bottom**2).sum(0))
        return out

    def effect_variances(self, theta: Floats) -> dict[str, Floats]:
        """Return the variances of all effects, in units of the residual variance."""
        widths = [t.width for t in self.terms]
        made = []
        for i, width in enumerate(widths):
            rows = [
                sp.eye_array(width, format="csr") if j == i else sp.csr_array((width, w)) for j, w in enumerate(widths)
            ]
            made.append(self.variances(theta, rows))
        return self._by_term(np.concatenate(made))

    def _by_term(self, values: Floats) -> dict[str, Floats]:
        ends = np.cumsum([t.width for t in self.terms])
        parts = np.split(values, ends[:-1])
        return {t.levels.name: p.reshape(len(t.levels), -1) for t, p in zip(self.terms, parts, strict=True)}
