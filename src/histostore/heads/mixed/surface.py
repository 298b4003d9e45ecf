"""A random term that is a Gaussian process over the positions of each slide.

Parameters are the logarithms of its standard deviation (relative to the residual's) and of its length. Positions
without rows, and new ones, are kriged from those of their slide.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from histostore.errors import DataError, UsageError
from histostore.heads.mixed.blocks import BlockDiagonal, LargeBlocks
from histostore.heads.mixed.levels import Levels
from histostore.heads.mixed.uniform import LOG_LIMITS, indicator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats

JITTER = 1e-8
"""Added to the diagonal of a kernel of unit variance: smooth kernels are singular to rounding."""

NOTHING = 1e-18
"""Smaller correlations are none."""

Kernel = Literal["gaussian", "exponential"]


@dataclass(slots=True, eq=False)
class Surface:
    """The term on given rows."""

    levels: Levels
    """One per position."""
    slides: Levels
    of_slide: NDArray[np.int64]
    """``(q,)`` slide of each position; positions are sorted by it."""
    places: Floats
    """``(q, 2)``"""
    kernel: Kernel
    z: sp.csr_array = field(init=False)
    """``(n, q)``"""
    parts: list[slice] = field(init=False)
    """Positions of each slide."""

    def __post_init__(self) -> None:
        self.z = indicator(self.levels.codes, np.ones((len(self.levels.codes), 1)), self.width)
        ends = np.searchsorted(self.of_slide, np.arange(len(self.slides) + 1))
        self.parts = [slice(int(a), int(b)) for a, b in pairwise(ends)]

    @property
    def width(self) -> int:
        """Columns of Z."""
        return len(self.places)

    @property
    def block(self) -> int:
        """Edge of the largest block of its covariance."""
        return max(int(p.stop) - int(p.start) for p in self.parts)

    @property
    def parameters(self) -> int:
        """How many its covariance has."""
        return 2

    def on(self, rows: NDArray[np.int64]) -> Self:
        """Return the term on some of the rows; positions without rows are kept."""
        return replace(self, levels=self.levels.on(rows))

    def sample(self, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return at most this many positions of each slide."""
        return np.concatenate([rng.permutation(np.arange(p.start, p.stop))[:most] for p in self.parts])

    def compact(self, rows: NDArray[np.int64]) -> Self:
        """Return the term on some of the rows, without positions that have none."""
        kept, codes = np.unique(self.levels.codes[rows], return_inverse=True)
        levels = Levels.coded(self.levels.name, tuple(self.levels.names[k] for k in kept), codes)
        return replace(self, levels=levels, of_slide=self.of_slide[kept], places=self.places[kept])

    def limits(self) -> tuple[float, float]:
        """Return the shortest and (a bound of the) longest distance that means anything here."""
        near, far = np.inf, 0.0
        for part in self.parts:
            here = self.places[part]
            if len(here) > 1:
                near = min(near, float(KDTree(here).query(here, k=2)[0][:, 1].min()))
                far = max(far, float(np.hypot(*np.ptp(here, axis=0))))
        if not far:
            msg = f"{self.levels.name}: no slide has two positions, so no distance is known"
            raise DataError(msg)
        return near, far

    def starts(self) -> list[list[float]]:
        """Return parameters to start a search from."""
        low, high = np.log(self.limits())
        return [[np.log(0.7), low + share * (high - low)] for share in (0.25, 0.6)]

    def bounds(self) -> list[tuple[float, float]]:
        """Return the limits of each parameter."""
        low, high = self.limits()
        return [LOG_LIMITS, (float(np.log(low / 4)), float(np.log(high * 4)))]

    def factor(self, theta: Floats) -> BlockDiagonal:
        """Return Λ."""
        sd = np.exp(theta[0])
        return BlockDiagonal(tuple(sd * np.linalg.cholesky(k)[None] for k in self._correlations(theta)))

    def derivatives(self, theta: Floats) -> Iterator[BlockDiagonal]:
        """Yield the derivative of the covariance by each parameter."""
        variance = np.exp(2 * theta[0])
        yield BlockDiagonal(tuple(2 * variance * k[None] for k in self._correlations(theta)))
        made = []
        for part in self.parts:
            apart = self._apart(self.places[part], part)
            at = apart / np.exp(theta[1])
            made.append(variance * (at * at if self.kernel == "gaussian" else at) * self._correlation(apart, theta))
        yield BlockDiagonal(tuple(m[None] for m in made))

    def eliminated(self, theta: Floats) -> LargeBlocks:
        """Return the term as the one that is eliminated first."""
        priors = [np.exp(2 * theta[0]) * k for k in self._correlations(theta)]
        return LargeBlocks.of(priors, [self.levels.sizes[p] for p in self.parts])

    def rows(self, new: Any, theta: Floats) -> tuple[sp.csr_array, Floats]:
        """Return Z ``(m, q)`` of new rows, and the share of the prior variance that no position known explains."""
        if not hasattr(new, "positions"):
            msg = f"{self.levels.name} is a surface: give Spatial positions, not {type(new).__name__}"
            raise UsageError(msg)
        xy, slide = new.positions(self.levels.name)
        codes = self.slides.find(slide)
        made, open_share = [], np.ones(len(xy))
        for s, part in enumerate(self.parts):
            here = np.flatnonzero(codes == s)
            if not len(here):
                continue
            apart, nearest = KDTree(self.places[part]).query(xy[here])
            known = apart == 0
            open_share[here[known]] = 0.0
            made.append((np.ones(known.sum()), here[known], part.start + nearest[known]))
            if not known.all():
                weights, left = self._kriged(xy[here[~known]], part, theta)
                open_share[here[~known]] = left
                at = np.indices(weights.shape)
                made.append((weights.ravel(), here[~known][at[0].ravel()], part.start + at[1].ravel()))
        values, i, j = (np.concatenate(x) for x in zip(*made, strict=True)) if made else (np.empty(0),) * 3
        places = (i.astype(np.int64), j.astype(np.int64))
        return sp.csr_array((values, places), shape=(len(xy), self.width)), np.exp(2 * theta[0]) * open_share

    def describe(self, theta: Floats, s2_e: float) -> dict[str, Any]:
        """Return variance (in the units of y, squared) and length (in those of the positions)."""
        return {"variance": float(s2_e * np.exp(2 * theta[0])), "length": float(np.exp(theta[1]))}

    def spread(self, theta: Floats) -> float:
        """Return the prior variance of the term's part of y, in units of the residual variance."""
        return float(np.exp(2 * theta[0]))

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and JSON that the term can be made of again."""
        arrays = {"codes": self.levels.codes, "of_slide": self.of_slide, "places": self.places}
        slides = {"slides_name": self.slides.name, "slides": list(self.slides.names)}
        names = {"name": self.levels.name, "levels": list(self.levels.names), "kernel": self.kernel}
        return arrays, names | slides

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the term that `to_state` described."""
        levels = Levels.coded(meta["name"], tuple(meta["levels"]), arrays["codes"])
        slides = Levels.coded(meta["slides_name"], tuple(meta["slides"]), arrays["of_slide"])
        return cls(levels, slides, arrays["of_slide"], arrays["places"], meta["kernel"])

    def _apart(self, xy: Floats, part: slice) -> Floats:
        found: Floats = cdist(xy, self.places[part])
        return found

    def _correlation(self, apart: Floats, theta: Floats) -> Floats:
        # in place: there may be 10⁸ of them
        apart /= np.exp(theta[1])
        if self.kernel == "gaussian":
            apart *= apart
            apart *= 0.5
        np.negative(apart, out=apart)
        np.exp(apart, out=apart)
        # far below rounding beside the diagonal, yet their products are denormal, which makes algebra ten times slower
        apart[apart < NOTHING] = 0.0
        return apart

    def _correlations(self, theta: Floats) -> Iterator[Floats]:
        for part in self.parts:
            found = self._correlation(self._apart(self.places[part], part), theta)
            found.flat[:: len(found) + 1] += JITTER
            yield found

    def _kriged(self, xy: Floats, part: slice, theta: Floats) -> tuple[Floats, Floats]:
        """Return weights ``(m, positions)`` of new positions, and the share of their variance left open."""
        kernel = self._correlation(self._apart(self.places[part], part), theta)
        kernel.flat[:: len(kernel) + 1] += JITTER
        near = self._correlation(self._apart(xy, part), theta)
        solved = cho_solve(cho_factor(kernel, lower=True, overwrite_a=True), near.T).T
        return solved, np.maximum(1 + JITTER - (solved * near).sum(1), 0.0)
