"""Random terms of a linear mixed model: what varies, over which levels, and the covariance it may have.

Each term has covariance s_e Λ Λ', whatever its parameters are: positive semi-definite by construction, never by
clipping. Parameters are logarithms (and the off-diagonal of a Cholesky factor), relative to the residual's scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from histostore.errors import DataError, UsageError
from histostore.heads.estimator import all_finite, as_rows
from histostore.heads.mixed.blocks import BlockDiagonal
from histostore.heads.mixed.levels import UNSEEN, Levels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats

LOG_LIMITS = (-9.0, 9.0)
"""Of ln(sd / residual sd); what ends at the lower one is reported as a variance of 0."""

JITTER = 1e-8
"""Added to the diagonal of a kernel of unit variance: smooth kernels are singular to rounding."""

Kernel = Literal["gaussian", "exponential"]


class Built(Protocol):
    """A term on given rows."""

    levels: Levels
    width: int
    """Columns of Z."""
    z: sp.csr_array
    """``(n, width)``"""
    gram: BlockDiagonal
    """``Z'Z``"""

    def starts(self) -> list[list[float]]:
        """Return parameters to start a search from."""
        ...

    def bounds(self) -> list[tuple[float, float]]:
        """Return the limits of each parameter."""
        ...

    def factor(self, theta: Floats) -> BlockDiagonal:
        """Return Λ at these parameters."""
        ...

    def rows(self, new: Any, theta: Floats) -> tuple[sp.csr_array, Floats]:
        """Return Z ``(m, width)`` of new rows, and the share of the prior variance that no level known explains."""
        ...

    def describe(self, theta: Floats, s2_e: float) -> dict[str, Any]:
        """Return variance (or covariance, length) in the units of y."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Intercept:
    """A level of its own for every label: ``(1 | labels)``."""

    labels: Any
    """``(n,)``; see `levels.nested` for one factor within another."""

    def build(self, name: str) -> Built:
        """Return the term on its rows."""
        levels = Levels.of(self.labels, name)
        return _Uniform(levels, np.ones((len(levels.codes), 1)))

    def covariates(self) -> Floats:
        """Return the columns the levels' effects multiply."""
        return np.ones((len(np.asarray(self.labels)), 1))


@dataclass(frozen=True, slots=True, eq=False)
class Slopes:
    """Coefficients of covariates that differ between levels, with any covariance: ``(1 + x | labels)``."""

    labels: Any
    """``(n,)``"""
    x: Any
    """``(n, k)`` or ``(n,)``; centre it where 0 is far from the data."""
    intercept: bool = True
    """A level of its own too, correlated with the slopes."""

    def build(self, name: str) -> Built:
        """Return the term on its rows."""
        levels = Levels.of(self.labels, name)
        columns = self.covariates()
        if len(columns) != len(levels.codes):
            msg = f"{name} has {len(levels.codes)} labels and {len(columns)} rows of x"
            raise UsageError(msg)
        if not all_finite(columns):
            msg = f"x of the slopes of {name} holds NaN or infinite values"
            raise DataError(msg)
        return _Uniform(levels, columns)

    def covariates(self) -> Floats:
        """Return the columns ``(n, K)`` the levels' effects multiply."""
        x = np.asarray(self.x)
        columns = as_rows(x[:, None] if x.ndim == 1 else x, "x").astype(np.float64)
        return np.hstack([np.ones((len(columns), 1)), columns]) if self.intercept else columns


@dataclass(frozen=True, slots=True, eq=False)
class Spatial:
    """A smooth surface over the positions of each slide; slides are independent and share variance and length.

    ``gaussian`` is exp(-d² / 2l²), ``exponential`` exp(-d / l). Cost is cubic in the positions of one slide.
    """

    xy: Any
    """``(n, 2)`` positions, in µm say; rows at one position share its effect."""
    slide: Any = None
    """``(n,)`` labels; None is one slide."""
    kernel: Kernel = "gaussian"

    def build(self, name: str) -> Built:
        """Return the term on its rows."""
        xy, slide = self._places(name)
        if self.kernel not in ("gaussian", "exponential"):
            msg = f"kernel of {name} is {self.kernel!r}: give gaussian or exponential"
            raise UsageError(msg)
        slides = Levels.of(slide, f"slide of {name}")
        places, codes = np.unique(np.column_stack([slides.codes, xy]), axis=0, return_inverse=True)
        sizes = np.bincount(codes.ravel(), minlength=len(places)).astype(np.float64)
        text = tuple(f"{slides.names[int(s)]}:{x:g},{y:g}" for s, x, y in places)
        levels = Levels(name, text, codes.ravel().astype(np.int64), sizes)
        return _Surface(levels, slides, places[:, 0].astype(np.int64), places[:, 1:], self.kernel)

    def _places(self, name: str) -> tuple[Floats, Any]:
        xy = as_rows(self.xy, f"xy of {name}").astype(np.float64)
        if xy.shape[1] != 2 or not all_finite(xy):
            msg = f"xy of {name} must be two columns of finite numbers"
            raise DataError(msg)
        return xy, np.zeros(len(xy), np.int64) if self.slide is None else self.slide


@dataclass(slots=True, eq=False)
class _Uniform:
    """K numbers per level with one K x K covariance; an intercept is K = 1."""

    levels: Levels
    columns: Floats
    """``(n, K)``"""
    width: int = field(init=False)
    z: sp.csr_array = field(init=False)
    gram: BlockDiagonal = field(init=False)

    def __post_init__(self) -> None:
        k = self.columns.shape[1]
        self.width = len(self.levels) * k
        self.z = _indicator(self.levels.codes, self.columns, len(self.levels))
        gram = np.empty((len(self.levels), k, k))
        for i in range(k):
            for j in range(k):
                both = self.columns[:, i] * self.columns[:, j]
                gram[:, i, j] = np.bincount(self.levels.codes, both, len(self.levels))
        self.gram = BlockDiagonal((gram,))

    @property
    def k(self) -> int:
        return int(self.columns.shape[1])

    def starts(self) -> list[list[float]]:
        rms = np.sqrt((self.columns**2).mean(0))
        scale = np.log(np.where(rms > 0, rms, 1.0))
        return [[*(np.log(sd) - scale), *[0.0] * (self.k * (self.k - 1) // 2)] for sd in (0.3, 1.0)]

    def bounds(self) -> list[tuple[float, float]]:
        return [LOG_LIMITS] * self.k + [(-1e4, 1e4)] * (self.k * (self.k - 1) // 2)

    def lower(self, theta: Floats) -> Floats:
        """Return the ``(K, K)`` Cholesky factor."""
        lower = np.diag(np.exp(np.asarray(theta[: self.k], np.float64)))
        lower[np.tril_indices(self.k, -1)] = theta[self.k :]
        return lower

    def factor(self, theta: Floats) -> BlockDiagonal:
        return BlockDiagonal((np.broadcast_to(self.lower(theta), (len(self.levels), self.k, self.k)),))

    def rows(self, new: Any, theta: Floats) -> tuple[sp.csr_array, Floats]:
        codes, columns = self.levels.find(new.labels), new.covariates()
        if columns.shape != (len(codes), self.k):
            msg = f"{self.levels.name}: {columns.shape} columns for {len(codes)} rows, {self.k} at fit"
            raise UsageError(msg)
        unseen = codes == UNSEEN
        prior = ((columns @ self.lower(theta)) ** 2).sum(1)
        known = np.where(unseen[:, None], 0.0, columns)
        return _indicator(np.where(unseen, 0, codes), known, len(self.levels)), np.where(unseen, prior, 0.0)

    def describe(self, theta: Floats, s2_e: float) -> dict[str, Any]:
        lower = self.lower(theta)
        covariance = s2_e * lower @ lower.T
        return {"variance": float(covariance[0, 0])} if self.k == 1 else {"covariance": covariance}


@dataclass(slots=True, eq=False)
class _Surface:
    """A Gaussian process over the positions of each slide."""

    levels: Levels
    slides: Levels
    of_slide: NDArray[np.int64]
    """``(q,)`` slide of each position; positions are sorted by it."""
    places: Floats
    """``(q, 2)``"""
    kernel: Kernel
    width: int = field(init=False)
    z: sp.csr_array = field(init=False)
    gram: BlockDiagonal = field(init=False)
    distances: list[Floats] = field(init=False)

    def __post_init__(self) -> None:
        self.width = len(self.places)
        self.z = _indicator(self.levels.codes, np.ones((len(self.levels.codes), 1)), self.width)
        self.gram = BlockDiagonal(tuple(np.diag(self.levels.sizes[p])[None] for p in self._parts()))
        self.distances = [cdist(self.places[p], self.places[p]) for p in self._parts()]

    def _parts(self) -> list[NDArray[np.int64]]:
        return [np.flatnonzero(self.of_slide == s) for s in range(len(self.slides))]

    def _limits(self) -> tuple[float, float]:
        """Return the shortest and longest distance that means anything here."""
        beside = [d + np.where(np.eye(len(d)), np.inf, 0) for d in self.distances if len(d) > 1]
        if not beside:
            msg = f"{self.levels.name}: no slide has two positions, so no distance is known"
            raise DataError(msg)
        return min(float(d.min()) for d in beside), max(float(d.max()) for d in self.distances)

    def starts(self) -> list[list[float]]:
        low, high = np.log(self._limits())
        return [[np.log(0.7), low + share * (high - low)] for share in (0.25, 0.6)]

    def bounds(self) -> list[tuple[float, float]]:
        low, high = self._limits()
        return [LOG_LIMITS, (float(np.log(low / 4)), float(np.log(high * 4)))]

    def _correlation(self, distance: Floats, theta: Floats) -> Floats:
        at = distance / np.exp(theta[1])
        found: Floats = np.exp(-0.5 * at**2) if self.kernel == "gaussian" else np.exp(-at)
        return found

    def _kernels(self, theta: Floats) -> list[Floats]:
        return [self._correlation(d, theta) + JITTER * np.eye(len(d)) for d in self.distances]

    def factor(self, theta: Floats) -> BlockDiagonal:
        return BlockDiagonal(tuple(np.exp(theta[0]) * np.linalg.cholesky(k)[None] for k in self._kernels(theta)))

    def rows(self, new: Any, theta: Floats) -> tuple[sp.csr_array, Floats]:
        """Positions that were not there at fit are kriged from those of their slide."""
        xy, slide = new._places(self.levels.name)
        codes = self.slides.find(slide)
        weights, open_share = sp.lil_array((len(xy), self.width)), np.ones(len(xy))
        for s, (part, kernel) in enumerate(zip(self._parts(), self._kernels(theta), strict=True)):
            here = np.flatnonzero(codes == s)
            if not len(here):
                continue
            distance = cdist(xy[here], self.places[part])
            near = self._correlation(distance, theta) + np.where(distance == 0, JITTER, 0.0)
            solved = cho_solve(cho_factor(kernel, lower=True), near.T).T
            weights[np.ix_(here, part)] = solved
            open_share[here] = np.maximum(1 + JITTER - (solved * near).sum(1), 0.0)
        return sp.csr_array(weights), np.exp(2 * theta[0]) * open_share

    def describe(self, theta: Floats, s2_e: float) -> dict[str, Any]:
        return {"variance": float(s2_e * np.exp(2 * theta[0])), "length": float(np.exp(theta[1]))}


def _indicator(codes: NDArray[np.int64], columns: Floats, q: int) -> sp.csr_array:
    """Return Z ``(n, q K)``: row i holds its K numbers in the columns of its level."""
    n, k = columns.shape
    places = codes[:, None] * k + np.arange(k)
    return sp.csr_array((columns.ravel(), places.ravel(), np.arange(0, n * k + 1, k)), shape=(n, q * k))
