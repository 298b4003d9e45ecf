"""Sums that linear heads are fitted from, so that the rows themselves need not stay in memory.

For each group (an inner fold) of rows ``X (n, d)``, ``Y (n, t)``: n, ΣX, ΣY, X'X, X'Y and ΣY². All in float64, after
subtracting the first block's means: centring later then loses no digits to large offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import SpecMismatchError, UsageError
from histostore.heads.estimator import check_pair

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

BLOCK_ROWS = 4096
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
    """``(d, d)``"""
    xy: Floats
    """``(d, t)``"""
    yy: Floats
    """``(t,)``"""

    @classmethod
    def zeros(cls, d: int, t: int) -> Sums:
        """Return the sums of no rows."""
        return cls(0, np.zeros(d), np.zeros(t), np.zeros((d, d)), np.zeros((d, t)), np.zeros(t))

    def add(self, X: Floats, Y: Floats) -> None:
        """Add rows; the only expensive line is X'X, which BLAS computes as one triangle."""
        self.n += len(X)
        self.x += X.sum(0)
        self.y += Y.sum(0)
        self.xx += X.T @ X
        self.xy += X.T @ Y
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
        xx = self.xx - np.column_stack((mx, rest)) @ np.vstack((self.x, mx))
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
        X, Y = check_pair(X, Y)
        if self.x_origin is None or self.y_origin is None:
            self.x_origin = X[:BLOCK_ROWS].mean(0, dtype=np.float64)
            self.y_origin = Y[:BLOCK_ROWS].mean(0, dtype=np.float64)
        if (X.shape[1], Y.shape[1]) != (len(self.x_origin), len(self.y_origin)):
            msg = (
                f"a block of {X.shape[1]} features and {Y.shape[1]} targets after blocks of "
                f"{len(self.x_origin)} and {len(self.y_origin)}"
            )
            raise SpecMismatchError(msg)
        sums = self.groups.setdefault(group, Sums.zeros(X.shape[1], Y.shape[1]))
        for start in range(0, len(X), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            # subtracting a float64 vector widens the block: float16 is never summed as float16
            sums.add(X[rows] - self.x_origin, Y[rows] - self.y_origin)

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
