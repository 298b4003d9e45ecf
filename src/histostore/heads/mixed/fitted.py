"""The random effects of a fitted head, in the units of its targets: of known levels, and what is said of new ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from histostore.errors import UsageError
from histostore.heads.mixed.effects import posterior_variance
from histostore.heads.mixed.levels import UNSEEN, Levels
from histostore.heads.mixed.surface import Surface
from histostore.heads.mixed.system import System, rows_in
from histostore.heads.mixed.uniform import Uniform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats
    from histostore.heads.mixed.effects import Rows
    from histostore.heads.mixed.terms import Term

KINDS: dict[str, type[Uniform] | type[Surface]] = {"uniform": Uniform, "surface": Surface}


@dataclass(frozen=True, slots=True, eq=False)
class FittedFactor:
    """A random intercept."""

    levels: Levels
    s2_e: Floats
    """``(t,)``"""
    s2_b: Floats
    """``(t,)``"""
    blup: Floats
    """``(q, t)``"""
    sizes: Floats
    """``(q,)`` rows of each level at fit."""

    def add(self, groups: Mapping[str, Any]) -> Floats:
        """Return the effects ``(m, t)`` of rows of these groups: 0 of a group that was not there at fit."""
        codes = self._codes(groups)
        found: Floats = np.where((codes == UNSEEN)[:, None], 0.0, self.blup[codes])
        return found

    def variance(self, groups: Mapping[str, Any]) -> Floats:
        """Return the variance ``(m, t)`` of those."""
        codes = self._codes(groups)
        known = posterior_variance(self.sizes, self.s2_e, self.s2_b)[codes]
        return np.where((codes == UNSEEN)[:, None], self.s2_b, known)

    def _codes(self, groups: Mapping[str, Any]) -> Rows:
        if len(groups) > 1:
            msg = f"groups are {', '.join(groups)}; at fit there was one factor"
            raise UsageError(msg)
        return self.levels.find(next(iter(groups.values())).labels)

    def effects(self, target: int, name: str | None = None) -> dict[str, float]:
        """Return the effects of one target by level."""
        return dict(zip(self.levels.names, self.blup[:, target].tolist(), strict=True))

    def describe(self, target: int) -> dict[str, dict[str, Any]]:
        """Return the variance between groups of one target."""
        return {self.levels.name: {"variance": float(self.s2_b[target])}}

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and JSON."""
        return {"blup": self.blup, "sizes": self.sizes}, {"groups": list(self.levels.names)}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return what `to_state` described, `arrays` holding the variances too."""
        levels = Levels("groups", tuple(meta["groups"]), np.empty(0, np.int64), arrays["sizes"])
        return cls(levels, arrays["s2_e"], arrays["s2_b"], arrays["blup"], arrays["sizes"])


@dataclass(frozen=True, slots=True, eq=False)
class FittedTerms:
    """Several random terms."""

    system: System
    names: tuple[str, ...]
    """Of the terms, in the order they were given."""
    theta: Floats
    """``(targets that vary, parameters)``"""
    varies: NDArray[np.bool_]
    """``(t,)``"""
    s2_e: Floats
    """``(t,)``"""
    s2_b: Floats
    """``(t, k)``"""
    blup: Floats
    """``(q, t)``"""

    def add(self, groups: Mapping[str, Term]) -> Floats:
        """Return the effects ``(m, t)`` of new rows: 0 of new levels, kriged at new positions."""
        out = np.zeros((rows_in(groups), len(self.varies)))
        for k, theta in zip(np.flatnonzero(self.varies), self.theta, strict=True):
            z, _ = self.system.rows(groups, theta)
            out[:, k] = z @ self.blup[:, k]
        return out

    def variance(self, groups: Mapping[str, Term]) -> Floats:
        """Return the variance ``(m, t)`` of those."""
        out = np.zeros((rows_in(groups), len(self.varies)))
        for k, theta in zip(np.flatnonzero(self.varies), self.theta, strict=True):
            z, unknown = self.system.rows(groups, theta)
            out[:, k] = self.s2_e[k] * (self.system.variances(theta, z) + unknown)
        return out

    def effects(self, target: int, name: str | None = None) -> dict[str, Any]:
        """Return the effects of one target and term by level: a number each, or K of slopes."""
        if name not in self.names:
            msg = f"there are several terms: name one of {', '.join(self.names)}"
            raise UsageError(msg)
        term = next(t for t in self.system.terms if t.levels.name == name)
        values = self.system.by_term(self.blup[:, target])[name]
        listed = values[:, 0].tolist() if values.shape[1] == 1 else values.tolist()
        return dict(zip(term.levels.names, listed, strict=True))

    def describe(self, target: int) -> dict[str, dict[str, Any]]:
        """Return of each term its variance, covariance of slopes, or variance and length."""
        if not self.varies[target]:
            return {}
        made = self.system.describe(self.theta[int(self.varies[:target].sum())], float(self.s2_e[target]))
        return {name: made[name] for name in self.names}

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and JSON."""
        arrays, terms = {"blup": self.blup, "theta": self.theta}, []
        for i, term in enumerate(self.system.terms):
            inside, meta = term.to_state()
            arrays |= {f"term{i}.{name}": values for name, values in inside.items()}
            terms.append({"kind": type(term).__name__.lower(), **meta})
        return arrays, {"terms": terms, "names": list(self.names)}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return what `to_state` described, `arrays` holding the variances too."""
        terms = []
        for i, one in enumerate(meta["terms"]):
            mark = f"term{i}."
            inside = {k.removeprefix(mark): v for k, v in arrays.items() if k.startswith(mark)}
            terms.append(KINDS[one["kind"]].from_state(inside, one))
        named = {name: arrays[name] for name in ("theta", "varies", "s2_e", "s2_b", "blup")}
        return cls(System.of(terms), tuple(meta["names"]), **named)
