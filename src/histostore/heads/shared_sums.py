"""One pass over X for all folds of a split: each row's sums are added once, and every fold is made of those it holds.

Two rows belong together when no fold tells them apart: on the same side of every outer fold, in the same inner fold of
each. With whole slides held out there are no more such classes than slides. The sums of a fold are those of its classes
added up, about one common origin, so nothing is approximate; genes that are chosen fold by fold are columns of the
union of all folds' choices, and X'X is the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.heads.gram import GramAccumulator
from histostore.heads.rows import READ_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.heads.rows import Table
    from histostore.heads.targets import Targets

    type Rows = NDArray[np.int64]

SUMS_BYTES = 1 << 28
"""Sums kept at once: 256 MiB, 32 classes at 1,024 features. With more, each fold goes over its own rows."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedSums:
    """Sums by class of rows, and which classes each fold is trained on."""

    sums: GramAccumulator
    columns: Rows
    """Of the targets, ascending: the union over folds."""
    inner_of: tuple[dict[int, int], ...]
    """By fold: the inner fold of each class it is trained on."""

    @classmethod
    def of(
        cls,
        X: Table,
        targets: Targets,
        trains: Sequence[Rows],
        inners: Sequence[Rows],
        columns: Sequence[Rows],
    ) -> SharedSums | None:
        """Go over the rows once; None where the sums would take more than `SUMS_BYTES`.

        Parameters
        ----------
        X, targets
            Of all rows of the cohort.
        trains, inners, columns
            By fold: rows to train on, ``(rows,)`` inner folds, columns ``(t,)`` of the targets.
        """
        union = np.unique(np.concatenate(columns))
        width = X.shape[1]
        limit = SUMS_BYTES // (8 * width * (width + len(union)))
        cut = _classes(len(X), trains, inners, limit)
        if cut is None:
            return None
        of_row, inner_of = cut
        sums = GramAccumulator()
        used = np.flatnonzero(of_row >= 0)
        for begin in range(0, len(used), READ_ROWS):
            rows = used[begin : begin + READ_ROWS]
            run = slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows
            sums.add_folds(X[run], targets.values(rows, union), of_row[rows])
        return cls(sums, union, inner_of)

    def of_fold(self, fold: int, columns: Rows) -> GramAccumulator:
        """Return the sums of one fold's training rows by inner fold, for its own columns."""
        return self.sums.regrouped(self.inner_of[fold], np.searchsorted(self.columns, columns))


def _classes(
    n: int, trains: Sequence[Rows], inners: Sequence[Rows], limit: int
) -> tuple[NDArray[np.int64], tuple[dict[int, int], ...]] | None:
    """Return the class of every row ``(n,)``, -1 where no fold is trained on it, and each fold's classes."""
    code, labels = np.zeros(n, np.int64), np.empty(n, np.int64)
    for rows, inner in zip(trains, inners, strict=True):
        labels[:] = 0
        labels[rows] = 1 + inner
        found, code = np.unique(code * (int(labels.max()) + 1) + labels, return_inverse=True)
        if len(found) > limit + 1:
            return None
    held = []
    for rows, inner in zip(trains, inners, strict=True):
        one, first = np.unique(code[rows], return_index=True)
        held.append(dict(zip(one.tolist(), inner[first].tolist(), strict=True)))
    code[~np.isin(code, [c for fold in held for c in fold])] = -1
    return code, tuple(held)
