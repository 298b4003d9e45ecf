"""Sums that linear heads are fitted from, so that the rows themselves need not stay in memory.

For each group (an inner fold) of rows ``X (n, d)``, ``Y (n, t)``: n, ΣX, ΣY, X'X, X'Y and ΣY². All in float64, after
subtracting the first block's means: centring later then loses no digits to large offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg.blas import dsyrk

from histostore.errors import SpecMismatchError, UsageError
from histostore.heads.estimator import as_rows, check_finite, check_lengths

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

BLOCK_ROWS = 2048
"""Rows turned to float64 at a time."""


@dataclass(slots=True)
class Sums:
    """Sufficient statistics of some rows, about a fixed origin."""

    n: int
    x: Floats
    """``(d,)``"""
    y: Floats
    """``(t,)``"""
    xx: Floats
    """``(d, d)`` upper triangle in Fortran order, zeros below: what BLAS adds to in place; `about` fills it."""
    xy: Floats
    """``(d, t)``"""
    yy: Floats
    """``(t,)``"""

    @classmethod
    def zeros(cls, d: int, t: int) -> Sums:
        """Return the sums of no rows."""
        return cls(0, np.zeros(d), np.zeros(t), np.zeros((d, d), order="F"), np.zeros((d, t)), np.zeros(t))

    def of_targets(self, columns: NDArray[np.int64]) -> Sums:
        """Return the sums for some targets alone; X'X is shared, not copied."""
        return Sums(self.n, self.x, self.y[columns], self.xx, self.xy[:, columns], self.yy[columns])

    def add(self, X: Floats, Y: Floats) -> None:
        """Add rows; the only expensive line is X'X, one triangle, added where it lies."""
        self.n += len(X)
        self.xx = dsyrk(1.0, X.T, beta=1.0, c=self.xx, overwrite_c=1)
        # a column of ones beside Y: ΣX comes out of the product, without a pass over X of its own
        products = X.T @ np.column_stack((Y, np.ones(len(Y))))
        self.xy += products[:, :-1]
        self.x += products[:, -1]
        self.y += Y.sum(0)
        self.yy += np.einsum("ij,ij->j", Y, Y)

    def plus(self, other: Sums) -> Sums:
        """Return the sums of both sets of rows."""
        return Sums(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def minus(self, other: Sums) -> Sums:
        """Return the sums of the rows that are here and not in `other`."""
        return Sums(
            self.n - other.n,
            self.x - other.x,
            self.y - other.y,
            self.xx - other.xx,
            self.xy - other.xy,
            self.yy - other.yy,
        )

    def about(self, mx: Floats, my: Floats) -> tuple[Floats, Floats, Floats]:
        """Return X'X ``(d, d)``, X'Y ``(d, t)`` and ΣY² ``(t,)`` about other means than the origin."""
        rest = self.x - self.n * mx
        # both outer products as one matrix product: these matrices are large, and each pass over one counts
        xx = self.xx + self.xx.T
        xx.flat[:: len(xx) + 1] /= 2
        xx -= np.column_stack((mx, rest)) @ np.vstack((self.x, mx))
        xy = self.xy - np.outer(mx, self.y) - np.outer(rest, my)
        yy = self.yy - 2 * my * self.y + self.n * my**2
        return xx, xy, yy


class GramAccumulator:
    """Adds blocks of rows, group by group; `Ridge.fit_gram` takes it.

    Memory is one ``(d, d)`` float64 matrix per group (13 MB at d = 1,280), so give it inner folds, not thousands of
    slides: `histostore.heads.splits.inner_folds` merges groups.
    """

    def __init__(self) -> None:
        self.groups: dict[Hashable, Sums] = {}
        self.x_origin: Floats | None = None
        self.y_origin: Floats | None = None
        self._wide = np.empty((0, 0))

    def add(self, X: NDArray[Any], Y: NDArray[Any], group: Hashable = 0) -> None:
        """Add one block of one group.

        Parameters
        ----------
        X
            ``(b, d)`` float16, float32 or float64; accumulated in float64.
        Y
            ``(b, t)`` or ``(b,)`` targets.
        group
            The inner fold the rows belong to.

        Raises
        ------
        DataError
            NaN or infinite values.
        SpecMismatchError
            Another width than the blocks before.
        """
        X, Y = as_rows(X, "X"), np.asarray(Y)
        Y = as_rows(Y[:, None] if Y.ndim == 1 else Y, "y")
        check_lengths(X, Y)
        if self.x_origin is None or self.y_origin is None:
            check_finite(X[:BLOCK_ROWS], Y[:BLOCK_ROWS])
            self.x_origin = X[:BLOCK_ROWS].mean(0, dtype=np.float64)
            self.y_origin = Y[:BLOCK_ROWS].mean(0, dtype=np.float64)
        if (X.shape[1], Y.shape[1]) != (len(self.x_origin), len(self.y_origin)):
            msg = (
                f"a block of {X.shape[1]} features and {Y.shape[1]} targets after blocks of "
                f"{len(self.x_origin)} and {len(self.y_origin)}"
            )
            raise SpecMismatchError(msg)
        sums = self.groups.setdefault(group, Sums.zeros(X.shape[1], Y.shape[1]))
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(X), BLOCK_ROWS):
                rows = slice(start, start + BLOCK_ROWS)
                sums.add(self._widened(X[rows], self.x_origin), Y[rows] - self.y_origin)
        # one value that is not finite shows in the sums: the rows are only looked at to say how many
        if not (np.isfinite(sums.x).all() and np.isfinite(sums.yy).all()):
            check_finite(X, Y)

    def add_folds(self, X: NDArray[Any], Y: NDArray[Any], folds: NDArray[np.int64]) -> None:
        """Add one block whose rows are of several groups, ``(b,)``."""
        for fold in np.unique(folds):
            here = folds == fold
            if here.all():
                self.add(X, Y, int(fold))
            else:
                self.add(X[here], Y[here], int(fold))

    def regrouped(self, groups: Mapping[int, int], targets: NDArray[np.int64]) -> GramAccumulator:
        """Return an accumulator of some groups, merged under new names, and of some targets.

        Sums about one origin add up exactly as if their rows had been added under the new names.
        """
        assert self.y_origin is not None
        made = GramAccumulator()
        made.x_origin, made.y_origin = self.x_origin, self.y_origin[targets]
        for old, new in groups.items():
            part = self.groups[old].of_targets(targets)
            made.groups[new] = made.groups[new].plus(part) if new in made.groups else part
        return made

    def _widened(self, X: NDArray[Any], origin: Floats) -> Floats:
        """Return rows in float64 about an origin, in memory that is used again: float16 is never summed as float16."""
        if self._wide.shape[1:] != origin.shape or len(self._wide) < len(X):
            self._wide = np.empty((len(X), len(origin)))
        wide: Floats = self._wide[: len(X)]
        if X.dtype == wide.dtype:
            np.subtract(X, origin, out=wide)
            return wide
        wide[...] = X
        wide -= origin
        return wide

    @property
    def n_rows(self) -> int:
        """Rows added so far."""
        return sum(s.n for s in self.groups.values())

    def total(self) -> Sums:
        """Return the sums over all groups."""
        if not self.groups:
            msg = "no rows were added to the accumulator"
            raise UsageError(msg)
        return _sum(self.groups.values())


def _sum(parts: Iterable[Sums]) -> Sums:
    first, *rest = parts
    for part in rest:
        first = first.plus(part)
    return first
