"""Vectors as an index sees them: checked queries, distances of pairs, and which rows can be found at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histostore.errors import DataError, SpecMismatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.index.spec import Metric

BLOCK_ROWS = 16_384


class Vectors(Protocol):
    """Embeddings by row number: an array, a memory map, or something that reads like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, d)``."""
        ...

    @property
    def dtype(self) -> Any:
        """float16 or float32."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Return ``(m, d)`` floats for row numbers or a slice of them."""
        ...


class Picked:
    """Some rows of embeddings, in an order of their own, as if they were all."""

    def __init__(self, values: Vectors, rows: NDArray[np.int64]) -> None:
        self.values = values
        self.rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, d)``."""
        return (len(self.rows), *self.values.shape[1:])

    @property
    def dtype(self) -> Any:
        """Of the embeddings."""
        return self.values.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Any:
        return self.values[self.rows[rows]]


class Joined:
    """Several embeddings one after another, as if they were one."""

    def __init__(self, parts: Sequence[Vectors]) -> None:
        self.parts = parts
        self._bounds = np.cumsum([0, *map(len, parts)])

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, d)``."""
        return (int(self._bounds[-1]), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> Any:
        """The one that holds all of them."""
        return np.result_type(*(part.dtype for part in self.parts))

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, rows: Any) -> Any:
        wanted = np.arange(len(self))[rows]
        out = np.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        for part, start, stop in zip(self.parts, self._bounds, self._bounds[1:], strict=False):
            here = np.flatnonzero((wanted >= start) & (wanted < stop))
            if len(here):
                out[here] = part[wanted[here] - start]
        return out


def checked_queries(queries: NDArray[np.floating], metric: Metric, dim: int | None = None) -> NDArray[np.float32]:
    """Return queries as ``(q, d)`` float32, of length one where the metric is cosine.

    Raises
    ------
    SpecMismatchError
        Another width than the index.
    DataError
        A query is not finite, or is zero where the metric is cosine.
    """
    q = np.ascontiguousarray(np.atleast_2d(np.asarray(queries)), dtype=np.float32)
    if q.ndim != 2:
        raise UsageError(f"queries are {q.ndim}-dimensional, not (q, d)")
    if dim is not None and q.shape[1] != dim:
        raise SpecMismatchError(f"queries have {q.shape[1]} features, the embeddings {dim}")
    if not np.isfinite(q).all():
        raise DataError("a query embedding is not finite (an unreadable tile?); query by another tile")
    if metric != "cosine":
        return q
    norm = np.sqrt(np.vecdot(q, q))
    if (norm == 0).any():
        raise DataError("a query embedding is all zero, which has no direction; use metric 'l2'")
    return np.asarray(q / norm[:, None], dtype=np.float32)


def usable_norms(values: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Return the length of each row ``(n,)``, NaN where the row cannot be found: not finite, or zero under cosine."""
    norm: NDArray[np.float32] = np.sqrt(np.vecdot(values, values))
    norm[~np.isfinite(norm)] = np.nan
    if metric == "cosine":
        norm[norm == 0] = np.nan
    return norm


def distances_of_pairs(
    queries: NDArray[np.float32], values: NDArray[np.float32], metric: Metric
) -> NDArray[np.float32]:
    """Return the distance of each query ``(p, d)`` to its own row ``(p, d)``, summed in float64, as float32.

    One pair's distance depends on that pair alone (no matrix product, whose last bits depend on the block), so equal
    rows tie exactly and every engine and block size ends with the same numbers. Queries as from `checked_queries`.
    """
    q, v = queries.astype(np.float64), values.astype(np.float64)
    if metric == "l2":
        v -= q
        distance = np.vecdot(v, v)
    elif metric == "ip":
        distance = -np.vecdot(q, v)
    else:
        # rounded: rows of one direction are at 0, not at this or that 1e-16
        distance = np.maximum(np.round(1 - np.vecdot(q, v) / np.sqrt(np.vecdot(v, v)), 12), 0)
    return np.asarray(distance, dtype=np.float32)


def row_blocks(
    values: Vectors, rows: NDArray[np.int64] | None = None, size: int = BLOCK_ROWS
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.floating]]]:
    """Yield (row numbers, embeddings) of an array or of some of its rows (sorted); runs of rows are not copied."""
    n = len(values) if rows is None else len(rows)
    for start in range(0, n, size):
        stop = min(n, start + size)
        if rows is None:
            yield np.arange(start, stop, dtype=np.int64), values[start:stop]
            continue
        some = rows[start:stop]
        is_run = some[-1] - some[0] == len(some) - 1
        yield some, values[some[0] : some[-1] + 1] if is_run else values[some]
