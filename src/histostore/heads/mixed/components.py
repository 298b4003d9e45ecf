"""y = X b + Σ Z_k b_k + e: several crossed or nested factors, random slopes and spatial kernels, exactly.

What is searched for is one or a few logarithms per term; the likelihood and its cost are those of `system`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import UsageError
from histostore.heads.estimator import as_rows
from histostore.heads.mixed.design import Design, check_method
from histostore.heads.mixed.levels import check_not_collinear
from histostore.heads.mixed.system import Model, System, notes_of, rows_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.heads.mixed.design import Floats, Method
    from histostore.heads.mixed.terms import Term


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
    system: System
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
        z, unknown = self.system.rows(new, self.theta)
        m = z.shape[0]
        given = np.empty((m, 0)) if X is None else np.asarray(as_rows(X, "X"), np.float64)
        columns = np.hstack([np.ones((len(given), 1)), given]) if self.intercept else given
        if columns.shape != (m, len(self.coef)):
            msg = f"X is {given.shape} and terms have {m} rows: give one row of each"
            raise UsageError(msg)
        effects = np.concatenate([self.blup[t.levels.name].ravel() for t in self.system.terms])
        variance = self.s2_e * (1 + self.system.variances(self.theta, z) + unknown)
        return columns @ self.coef + z @ effects, variance


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
    built = [term.build(name) for name, term in terms.items()]
    if rows_in(terms) != len(design.residual):
        msg = f"{next(iter(terms))} has {rows_in(terms)} rows and y {len(design.residual)}"
        raise UsageError(msg)
    check_not_collinear([t.levels for t in built])
    system = System.of(built)
    notes = list(notes_of(built))
    model = Model.of(system, design.q, design.residual, method)
    theta, converged = model.search()
    theta, zero = model.without_nothing(theta)
    notes += [f"the variance of {name} is estimated as 0" for name in zero]
    if not converged:
        notes.append("the search did not converge: the variances are the best of those tried")
    found = model.at(theta)
    s2_e = found.rss / model.free
    loglik = -0.5 * (found.deviance + (design.logdet if method == "reml" else 0.0))
    blup, described = system.by_term(found.effects), system.describe(theta, s2_e)
    return Components(
        method=method,
        intercept=intercept,
        coef=design.coefficients(found.coef),
        coef_cov=design.covariance(s2_e * np.linalg.inv(found.root @ found.root.T)),
        s2_e=s2_e,
        terms={name: described[name] for name in terms},
        loglik=float(loglik),
        blup={name: blup[name] for name in terms},
        blup_var={name: s2_e * value for name, value in system.effect_variances(theta).items()},
        levels={t.levels.name: t.levels.names for t in system.terms},
        converged=converged,
        notes=tuple(notes),
        system=system,
        theta=theta,
    )
