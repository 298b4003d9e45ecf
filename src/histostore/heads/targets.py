"""What a head predicts, row by row: genes of a count matrix, or columns of a table.

Both are asked alike: which rows can be used, what is predicted (chosen on training rows alone) and the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histostore.errors import DataError, UsageError
from histostore.heads.panels import as_counts, choose_genes, library_size
from histostore.heads.panels import targets as gene_values
from histostore.heads.rows import RowSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from histostore.head_specs import HeadSpec

    type Rows = NDArray[np.int64]


class Targets(Protocol):
    """Values of all rows of a cohort."""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that could be predicted."""
        ...

    @property
    def library(self) -> NDArray[np.float64] | None:
        """``(n,)`` total counts, where there are counts."""
        ...

    def __len__(self) -> int: ...

    def usable(self) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
        """Return which rows can be used ``(n,)``, and by reason which cannot or are worth a count."""
        ...

    def choose(self, rows: Rows) -> Rows:
        """Return the columns ``(t,)`` to predict, chosen on these rows alone."""
        ...

    def values(self, rows: Rows, columns: Rows) -> NDArray[np.float32]:
        """Return ``(rows, t)`` float32."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class GeneTargets:
    """Genes of ``(n, g)`` raw counts, in the unit of a spec and of its panel."""

    counts: sp.csr_array
    names: tuple[str, ...]
    spec: HeadSpec

    def __len__(self) -> int:
        return int(self.counts.shape[0])

    @property
    def library(self) -> NDArray[np.float64]:
        """``(n,)`` total counts."""
        return library_size(self.counts)

    def usable(self) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
        """Return the rows with enough counts, and the others."""
        library = self.library
        poor = library < self.spec.min_counts
        empty = library == 0
        if self.spec.target == "counts":
            # a rate per library is not defined there
            return ~poor & ~empty, {f"below {self.spec.min_counts} counts": poor & ~empty, "without any counts": empty}
        said = {f"below {self.spec.min_counts} counts": poor, "without any counts, kept as zeros": empty & ~poor}
        return ~poor, said

    def choose(self, rows: Rows) -> Rows:
        """Return the panel's genes, chosen on these rows."""
        assert self.spec.panel is not None
        # a list is chosen on no rows: none are copied
        some = rows[:0] if self.spec.panel.rule == "list" else rows
        return choose_genes(self.spec.panel, self.counts[some], self.names)

    def values(self, rows: Rows, columns: Rows) -> NDArray[np.float32]:
        """Return the genes' values in the spec's unit."""
        return gene_values(self.counts[rows], columns, self.spec.target)


@dataclass(frozen=True, slots=True, eq=False)
class ColumnTargets:
    """Numbers that are given: ``(n, t)`` float64, NaN where a row has none."""

    table: NDArray[np.float64]
    names: tuple[str, ...]
    library: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, table: pd.DataFrame, library: NDArray[np.float64] | None = None) -> ColumnTargets:
        """Read numbers, also where they are texts (metadata); an infinite one or a word is a `DataError`."""
        columns = [_numbers(str(name), table[name].to_numpy(dtype=object)) for name in table.columns]
        return cls(np.column_stack(columns), tuple(map(str, table.columns)), library)

    def __len__(self) -> int:
        return len(self.table)

    def usable(self) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
        """Return the rows that have every value, and the others."""
        missing = np.isnan(self.table).any(axis=1)
        return ~missing, {f"without {' or '.join(self.names[:3])}": missing}

    def choose(self, rows: Rows) -> Rows:
        """Return every column: there is nothing to choose."""
        return np.arange(len(self.names), dtype=np.int64)

    def values(self, rows: Rows, columns: Rows) -> NDArray[np.float32]:
        """Return the numbers as they are."""
        return self.table[np.ix_(rows, columns)].astype(np.float32)


class TargetRows(RowSource):
    """Targets of some rows, made from counts when asked for: one block of them is dense at a time."""

    def __init__(self, targets: Targets, rows: Rows, columns: Rows) -> None:
        self.targets, self.rows, self.columns = targets, rows, columns

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and targets."""
        return len(self.rows), len(self.columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(np.float32)

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        return self.targets.values(self.rows[rows], self.columns)


def targets_of(
    spec: HeadSpec, *, counts: Any = None, symbols: Sequence[str] | None = None, values: pd.DataFrame | None = None
) -> Targets:
    """Return the targets that a spec asks for.

    Raises
    ------
    UsageError
        The arrays of its task are not given.
    """
    library = None if counts is None else library_size(counts)
    if spec.task == "genes":
        if counts is None or symbols is None:
            msg = f"head '{spec.head}' predicts genes: give counts and their symbols"
            raise UsageError(msg)
        return GeneTargets(as_counts(counts), tuple(symbols), spec)
    if values is None:
        msg = f"head '{spec.head}' predicts {', '.join(spec.columns or ('labels',))}: give their values"
        raise UsageError(msg)
    return ColumnTargets.of(values, library)


def _numbers(name: str, column: NDArray[Any]) -> NDArray[np.float64]:
    out = np.full(len(column), np.nan)
    for row, value in enumerate(column):
        # NaN and pandas' NA are the values that are no text of their own
        if value is None or str(value).strip() in ("", "nan", "<NA>"):
            continue
        try:
            out[row] = float(value)
        except (TypeError, ValueError):
            msg = f"column '{name}' holds {value!r}, no number: fit a classifier (labels), or mend the table"
            raise DataError(msg) from None
    if np.isinf(out).any():
        msg = f"column '{name}' holds {int(np.isinf(out).sum())} infinite values: mend the table"
        raise DataError(msg)
    return out
