"""Which rows belong to which level of a factor, and whether a random effect of it can be estimated at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEW = 8
"""Below this many levels the variance between them is hardly known; it is said, not refused."""

UNSEEN = -1
"""Code of a level that was not there at fit."""


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """The levels of one factor and the rows of each."""

    name: str
    names: tuple[str, ...]
    """``(q,)`` sorted labels; labels are compared as text."""
    codes: NDArray[np.int64]
    """``(n,)`` index of each row's level."""
    sizes: NDArray[np.float64]
    """``(q,)`` rows of each level."""

    @classmethod
    def of(cls, labels: Any, name: str = "groups") -> Levels:
        """Return the levels of ``(n,)`` labels; missing labels are a `DataError`."""
        text, codes = as_text(labels, name)
        found, order = np.unique(text, return_inverse=True)
        codes = order.astype(np.int64)[codes]
        return cls.coded(name, tuple(str(f) for f in found), codes)

    @classmethod
    def coded(cls, name: str, names: tuple[str, ...], codes: NDArray[np.int64]) -> Levels:
        """Return the levels of rows whose codes are known; levels without rows are kept."""
        return cls(name, names, codes, np.bincount(codes, minlength=len(names)).astype(np.float64))

    def on(self, rows: NDArray[np.int64]) -> Levels:
        """Return them with some of the rows; levels without rows are kept."""
        return Levels.coded(self.name, self.names, self.codes[rows])

    def __len__(self) -> int:
        return len(self.names)

    def check(self, *, kind: str = "intercept") -> tuple[str, ...]:
        """Return what must be said of a random effect of this factor.

        Raises
        ------
        DataError
            One level, or no level with two rows: the variances cannot be told apart.
        """
        if len(self) < 2:
            msg = f"{self.name} has one level ('{self.names[0]}'): a random {kind} needs at least two; leave it out"
            raise DataError(msg)
        if self.sizes.max() < 2:
            msg = (
                f"each of the {len(self)} levels of {self.name} has one row: its variance cannot be told from the "
                "residual's; use a coarser grouping or leave it out"
            )
            raise DataError(msg)
        if len(self) < FEW:
            said = (
                f"{self.name} has {len(self)} levels: the variance between so few (below {FEW}) is hardly known, "
                "and intervals for new levels are too narrow"
            )
            return (said,)
        return ()

    def find(self, labels: Any) -> NDArray[np.int64]:
        """Return the codes ``(m,)`` of labels, `UNSEEN` where there was no such level at fit."""
        text, rows = as_text(labels, self.name)
        place = {name: i for i, name in enumerate(self.names)}
        codes = np.array([place.get(str(t), UNSEEN) for t in text], np.int64)
        return codes[rows]


def as_text(labels: Any, name: str) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Return the distinct labels as text, and the index of each row's; missing labels are refused.

    Only distinct ones are turned to text, which for numbers takes longer than a whole fit does.
    """
    values = np.asarray(labels)
    if values.ndim != 1:
        msg = f"{name} is {values.ndim}-D: give one label per row"
        raise UsageError(msg)
    rows, distinct = pd.factorize(values)
    missing = int((rows < 0).sum())
    if missing:
        msg = f"{missing} of {len(values)} rows have no {name}: leave them out, or give them a level of their own"
        raise DataError(msg)
    if distinct.dtype.kind == "f" and (np.abs(distinct) < 2**53).all() and (distinct == np.rint(distinct)).all():
        # a table with a gap elsewhere turns 3 into 3.0, and that must stay the same group
        distinct = distinct.astype(np.int64)
    return np.asarray(distinct).astype(np.str_), rows.astype(np.int64)


def nested(outer: Any, inner: Any) -> NDArray[np.str_]:
    """Return labels ``(n,)`` of an inner factor within an outer one: patient ``1`` of two centres is two levels."""
    (first, i), (second, j) = as_text(outer, "outer"), as_text(inner, "inner")
    if len(i) != len(j):
        msg = f"outer has {len(i)} rows and inner {len(j)}"
        raise UsageError(msg)
    first, second = first[i], second[j]
    joined = np.array([f"{a}/{b}" for a, b in zip(first, second, strict=True)], dtype=np.str_)
    if not len(joined):
        return joined
    if len(np.unique(joined)) != len(set(zip(first.tolist(), second.tolist(), strict=True))):
        msg = "labels hold '/' in a way that makes two different pairs alike: rename them"
        raise DataError(msg)
    return joined


def check_not_collinear(factors: list[Levels]) -> None:
    """Refuse two factors that cut the rows in the same way: their variances cannot be told apart."""
    for i, one in enumerate(factors):
        for other in factors[i + 1 :]:
            if len(one) != len(other):
                continue
            pairs = np.unique(one.codes * len(other) + other.codes)
            if len(pairs) == len(one):
                msg = (
                    f"{one.name} and {other.name} cut the rows in the same {len(one)} parts: their variances cannot "
                    "be told apart; leave one out"
                )
                raise DataError(msg)
