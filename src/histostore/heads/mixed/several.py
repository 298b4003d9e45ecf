"""Several random terms' variances and effects of residuals: what a network is trained against beside more than one.

Effects are the exact best predictions at the variances of the moment. The variances take a step or two of `newton`
between epochs (each lowers the exact deviance, so that the network and they climb the same likelihood), and at the end
are searched for: by exact values alone where the matrix to factor is small, else by further steps of `newton`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from histostore.heads.mixed.newton import PROBES, Settled, probes_of, settle
from histostore.heads.mixed.surface import Surface
from histostore.heads.mixed.system import Model, System
from histostore.heads.mixed.uniform import Uniform

if TYPE_CHECKING:
    from histostore.heads.mixed.design import Floats, Method
    from histostore.heads.mixed.effects import Rows
    from histostore.heads.mixed.terms import Built

EXACT = 1000
"""Edge of the largest matrix up to which the last search uses exact values alone."""

EVERY = 1500
"""Edge up to which variances move after every epoch; beyond it after epochs 1, 4, 16, 64, …"""

LAST_PROBES = 128
"""For the last search."""

THIN = 1500
"""Positions of a larger surface whose variance and length are looked for from scratch."""

HELD = 4e9
"""Bytes of factorisations kept from epoch to epoch."""


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Variances and effects of k terms and t targets, at their best for some residuals or on the way there."""

    shift: Floats
    """``(t,)`` best constant of the residuals, given the effects."""
    s2_e: Floats
    """``(t,)``"""
    s2_b: Floats
    """``(t, k)`` mean over rows of the variance that each term adds."""
    loss: float
    """Exact marginal negative log-likelihood per row, mean over targets."""
    blup: Floats
    """``(q, t)`` all terms, as in the system."""
    settled: tuple[Settled, ...]
    """One per target."""
    system: System
    age: int
    """Times it was brought up to date."""


@dataclass(eq=False)
class Several:
    """Rows that share effects of any random terms: all that training needs to know of them."""

    terms: list[Built]
    seed: int = 0

    @cached_property
    def system(self) -> System:
        """What the likelihood needs of the terms."""
        return System.of(self.terms)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms, in the order they were given."""
        return tuple(t.levels.name for t in self.terms)

    def part(self, rows: Rows) -> Self:
        """Return it for some of the rows; levels without rows are kept."""
        if np.array_equal(rows, np.arange(self.system.n)):
            return self
        return type(self)([t.on(rows) for t in self.terms], self.seed)

    def best(self, residuals: Floats, method: Method, before: Joint | None = None, *, last: bool = False) -> Joint:
        """Return better variances than `before`, and their effects, for residuals ``(n, t)`` about a constant.

        The `last` time they are the best.
        """
        centre = residuals.mean(0)
        columns = np.ones((len(residuals), 1)) if last else self._fixed()
        models = [Model.of(self.system, columns, column, method) for column in (residuals - centre).T]
        age = 0 if before is None else before.age + 1
        due = self.system.edge <= EVERY or (not age & (age - 1) and age.bit_length() % 2 == 1)
        keep = 16 * self.system.edge**2 * len(models) < HELD
        settled = []
        for k, (model, y) in enumerate(zip(models, (residuals - centre).T, strict=True)):
            found = self._one(model, y, before, k, due=due, last=last)
            settled.append(found if keep else replace(found, profile=replace(found.profile, factored=None)))
        s2_e = np.array([s.profile.rss / m.free for s, m in zip(settled, models, strict=True)])
        return Joint(
            shift=centre + np.array([s.profile.coef[0] for s in settled]),
            s2_e=s2_e,
            s2_b=np.array([s * self._spread(found.theta) for s, found in zip(s2_e, settled, strict=True)]),
            loss=float(np.mean([_loss(s, v, self.system.n) for s, v in zip(settled, s2_e, strict=True)])),
            blup=np.stack([s.profile.effects for s in settled], 1),
            settled=tuple(settled),
            system=self.system,
            age=age,
        )

    def of(self, found: Joint, rows: Rows) -> Floats:
        """Return the effects ``(m, t)`` of some of the rows."""
        effects: Floats = self.system.z[rows] @ found.blup
        return effects

    def unsure(self, found: Joint, rows: Rows) -> Floats:
        """Return the variance ``(m, t)`` of those, given the rows that `found` was made from."""
        z = self.system.z[rows]
        each = [s * found.system.variances(k.theta, z) for s, k in zip(found.s2_e, found.settled, strict=True)]
        return np.stack(each, 1)

    def said(self, found: Joint) -> tuple[str, ...]:
        """Return what must be said of the search for the variances."""
        notes = []
        lost = sum(not s.converged for s in found.settled)
        if lost:
            notes.append(f"the search for the variances did not converge for {lost} of {len(found.settled)} targets")
        error = max(float(s.error.max(initial=0.0)) for s in found.settled)
        if error:
            notes.append(
                f"a matrix of {self.system.edge} columns: variances from estimated traces, with a standard error from "
                f"that of {200 * error:.1g} % at most (effects are exact at these variances)"
            )
        return tuple(notes)

    def _one(self, model: Model, y: Floats, before: Joint | None, k: int, *, due: bool, last: bool) -> Settled:
        system = self.system
        probes = probes_of(system, self.seed, LAST_PROBES if last else PROBES)
        if before is None:
            return settle(model, self._start(model, y), probes, most=0 if system.edge > EVERY else 8)
        was = before.settled[k]
        found = model.at(was.theta, was.profile.factored if before.system is system else None)
        if last and system.edge <= EXACT:
            theta, converged = model.search(was.theta)
            theta, _ = model.without_nothing(theta)
            return Settled(theta, model.at(theta), converged, np.zeros(len(theta)))
        if last or due:
            return settle(model, was.theta, probes, most=10 if last else 1, found=found)
        return replace(was, profile=found)

    def _fixed(self) -> Floats:
        """Return a column of ones, and the slopes' covariates about it.

        What all levels' slopes have in common is for the network to learn: left in the effects, it would move to it
        by a small share per epoch.
        """
        columns = [np.ones(self.system.n)]
        for t in self.terms:
            for column in t.columns.T if isinstance(t, Uniform) else ():
                beside, before = np.column_stack(columns), np.linalg.norm(column)
                for _ in range(2):
                    column = column - beside @ (beside.T @ column / (beside**2).sum(0))
                if np.linalg.norm(column) > 1e-6 * before:
                    columns.append(column)
        return np.column_stack(columns)

    def _start(self, model: Model, y: Floats) -> Floats:
        if not any(isinstance(t, Surface) and t.block > THIN for t in self.terms):
            return model.start() if self.system.edge <= EVERY else model.starts()[0]
        # the likelihood of all rows of fewer positions is cheap, and near enough to start from
        rng, rows = np.random.default_rng([self.seed, 3]), np.arange(self.system.n)
        for t in self.terms:
            if isinstance(t, Surface):
                rows = rows[np.isin(t.levels.codes[rows], t.sample(THIN, rng))]
        few = System.of([t.compact(rows) if isinstance(t, Surface) else t.on(rows) for t in self.terms])
        thin = Model.of(few, np.ones((len(rows), 1)), y[rows], model.method)
        theta = settle(thin, thin.start(), probes_of(few, self.seed), most=12).theta
        by_name = {t.levels.name: part for t, part in zip(few.terms, few.split(theta), strict=True)}
        return np.concatenate([by_name[t.levels.name] for t in self.system.terms])

    def _spread(self, theta: Floats) -> Floats:
        """Return the variance ``(k,)`` each term adds, in the order they were given."""
        system = self.system
        pairs = zip(system.terms, system.split(theta), strict=True)
        by_name = {term.levels.name: term.spread(part) for term, part in pairs}
        return np.array([by_name[t.levels.name] for t in self.terms])


def _loss(found: Settled, s2_e: float, n: int) -> float:
    """Return the exact marginal negative log-likelihood per row."""
    profile = found.profile
    return float(0.5 * (profile.logdet + n * np.log(2 * np.pi * s2_e) + profile.rss / s2_e) / n)
