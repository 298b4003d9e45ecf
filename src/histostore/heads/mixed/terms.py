"""Random terms of a mixed model: what varies, over which levels, and the covariance it may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError, UsageError
from histostore.heads.estimator import all_finite, as_rows
from histostore.heads.mixed.levels import Levels
from histostore.heads.mixed.surface import Surface
from histostore.heads.mixed.uniform import Uniform

if TYPE_CHECKING:
    from histostore.heads.mixed.design import Floats
    from histostore.heads.mixed.surface import Kernel

type Term = Intercept | Slopes | Spatial
type Built = Uniform | Surface


@dataclass(frozen=True, slots=True, eq=False)
class Intercept:
    """A level of its own for every label: ``(1 | labels)``."""

    labels: Any
    """``(n,)``; see `levels.nested` for one factor within another."""

    def __len__(self) -> int:
        return len(np.asarray(self.labels))

    def take(self, rows: Any) -> Intercept:
        """Return the term of some of the rows."""
        return Intercept(np.asarray(self.labels)[rows])

    def build(self, name: str) -> Uniform:
        """Return the term on its rows."""
        levels = Levels.of(self.labels, name)
        return Uniform(levels, np.ones((len(levels.codes), 1)))

    def covariates(self) -> Floats:
        """Return the columns the levels' effects multiply."""
        return np.ones((len(self), 1))


@dataclass(frozen=True, slots=True, eq=False)
class Slopes:
    """Coefficients of covariates that differ between levels, with any covariance: ``(1 + x | labels)``."""

    labels: Any
    """``(n,)``"""
    x: Any
    """``(n, k)`` or ``(n,)``; centre it where 0 is far from the data."""
    intercept: bool = True
    """A level of its own too, correlated with the slopes."""

    def __len__(self) -> int:
        return len(np.asarray(self.labels))

    def take(self, rows: Any) -> Slopes:
        """Return the term of some of the rows."""
        return Slopes(np.asarray(self.labels)[rows], np.asarray(self.x)[rows], self.intercept)

    def build(self, name: str) -> Uniform:
        """Return the term on its rows."""
        levels = Levels.of(self.labels, name)
        columns = self.covariates()
        if len(columns) != len(levels.codes):
            msg = f"{name} has {len(levels.codes)} labels and {len(columns)} rows of x"
            raise UsageError(msg)
        if not all_finite(columns):
            msg = f"x of the slopes of {name} holds NaN or infinite values"
            raise DataError(msg)
        return Uniform(levels, columns)

    def covariates(self) -> Floats:
        """Return the columns ``(n, K)`` the levels' effects multiply."""
        x = np.asarray(self.x)
        columns = np.asarray(as_rows(x[:, None] if x.ndim == 1 else x, "x"), np.float64)
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

    def __len__(self) -> int:
        return len(np.asarray(self.xy))

    def take(self, rows: Any) -> Spatial:
        """Return the term of some of the rows."""
        slide = None if self.slide is None else np.asarray(self.slide)[rows]
        return Spatial(np.asarray(self.xy)[rows], slide, self.kernel)

    def build(self, name: str) -> Surface:
        """Return the term on its rows."""
        if self.kernel not in ("gaussian", "exponential"):
            msg = f"kernel of {name} is {self.kernel!r}: give gaussian or exponential"
            raise UsageError(msg)
        xy, slide = self.positions(name)
        slides = Levels.of(slide, f"slide of {name}")
        if len(slides.codes) != len(xy):
            msg = f"{name} has {len(xy)} positions and {len(slides.codes)} labels of slides"
            raise UsageError(msg)
        places, codes = np.unique(np.column_stack([slides.codes, xy]), axis=0, return_inverse=True)
        sizes = np.bincount(codes.ravel(), minlength=len(places)).astype(np.float64)
        text = tuple(f"{slides.names[int(s)]}:{x:g},{y:g}" for s, x, y in places)
        levels = Levels(name, text, codes.ravel().astype(np.int64), sizes)
        return Surface(levels, slides, places[:, 0].astype(np.int64), places[:, 1:].copy(), self.kernel)

    def positions(self, name: str) -> tuple[Floats, Any]:
        """Return positions ``(n, 2)`` and labels of slides."""
        xy = np.asarray(as_rows(self.xy, f"xy of {name}"), np.float64)
        if xy.shape[1] != 2 or not all_finite(xy):
            msg = f"xy of {name} must be two columns of finite numbers"
            raise DataError(msg)
        return xy, np.zeros(len(xy), np.int64) if self.slide is None else self.slide
