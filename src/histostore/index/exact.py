"""Exact nearest neighbours over embeddings that need not fit in memory: blocked products and a running top k.

A block's scores are one matrix product; only scores above a query's k-th best so far are looked at. What may be among
the best k, rounding allowed for, is measured again pair by pair, so answers depend neither on block size nor on engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import SpecMismatchError
from histostore.index.filters import chosen_rows
from histostore.index.products import NumpyProducts, products_on
from histostore.index.spec import METRICS, Metric, check_k, check_metric
from histostore.index.topk import TopK
from histostore.index.vectors import BLOCK_ROWS, checked_queries, row_blocks, usable_norms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from histostore.index.products import Products
    from histostore.index.spec import Device
    from histostore.index.vectors import Vectors

__all__ = ["METRICS", "ExactIndex", "Metric", "search_blocks"]

FIRST_ROWS = 128
"""The first block is small: it sets the bar that later ones are held against."""

SCORES = 1 << 23
"""Scores per block: 32 MB."""

QUERY_BATCH = 1024


def search_blocks(
    queries: NDArray[np.floating],
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.floating]]],
    k: int,
    *,
    metric: Metric = "cosine",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `k` nearest rows of each query.

    Parameters
    ----------
    queries
        ``(q, d)``, finite; not zero for cosine.
    blocks
        Pairs of row numbers ``(b,)`` and their embeddings ``(b, d)``. Rows that hold NaN (unreadable tiles) are never
        found, nor are zero rows under cosine.
    k
        Neighbours wanted; fewer come back when there are fewer rows.

    Returns
    -------
    rows
        ``(q, k)`` row numbers, nearest first; equal distances by row number; -1 where there are too few rows.
    distance
        ``(q, k)`` float32: 1 - cosine, squared Euclidean distance, or minus the inner product.

    Raises
    ------
    SpecMismatchError
        A block has another width than the queries.
    DataError
        A query is not finite, or is zero where the metric is cosine.
    """
    check_metric(metric)
    check_k(k)
    q = checked_queries(queries, metric)
    top = TopK(q, k, metric, NumpyProducts(q, metric))
    for rows, values in blocks:
        if values.shape[1] != q.shape[1]:
            raise SpecMismatchError(f"queries have {q.shape[1]} features, the embeddings {values.shape[1]}")
        _feed(top, rows, values, None)
    return top.result()


class ExactIndex:
    """Rows of an array ``(n, d)``, float16 or float32, searched as they are; memory-mapped is fine.

    Lengths of rows are measured once and kept (4 bytes a row). On a CUDA device blocks are sent there.
    """

    def __init__(self, values: Vectors, *, metric: Metric = "cosine", device: Device = "cpu") -> None:
        check_metric(metric)
        self.values = values
        self.metric: Metric = metric
        self.device = device
        self._norms: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return int(self.values.shape[1])

    @property
    def norms(self) -> NDArray[np.float32]:
        """Length of each row ``(n,)``, NaN where it cannot be found (not finite; zero under cosine)."""
        if self._norms is None:
            parts = [usable_norms(_float32(v), self.metric) for _, v in row_blocks(self.values, size=4096)]
            self._norms = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
        return self._norms

    def search(
        self, queries: NDArray[np.floating], k: int, *, rows: NDArray[np.bool_] | NDArray[np.integer] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the `k` nearest rows of each query, as `search_blocks` does, among `rows` (a mask, or row numbers)."""
        check_k(k)
        q = checked_queries(queries, self.metric, self.dim)
        some = None if rows is None else chosen_rows(rows, len(self))
        found = [self._search(q[at : at + QUERY_BATCH], k, some) for at in range(0, len(q), QUERY_BATCH)]
        if not found:
            return np.zeros((0, k), dtype=np.int64), np.zeros((0, k), dtype=np.float32)
        return np.concatenate([r for r, _ in found]), np.concatenate([d for _, d in found])

    def _search(
        self, q: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        products: Products = products_on(self.device, q, self.metric)
        top = TopK(q, k, self.metric, products, take=lambda some: _float32(self.values[some]))
        for numbers, values in row_blocks(self.values, rows):
            _feed(top, numbers, values, self.norms[numbers])
        return top.result()


def _feed(top: TopK, rows: NDArray[np.int64], values: NDArray[np.floating], norms: NDArray[np.float32] | None) -> None:
    """Hand a block to `top` in parts: small at first, then of about `SCORES` scores, at most `BLOCK_ROWS` rows."""
    most = min(BLOCK_ROWS, max(2048, SCORES // max(1, len(top.queries))))
    start = 0
    while start < len(rows):
        stop = start + min(max(FIRST_ROWS, top.seen), most)
        part = _float32(values[start:stop])
        length = usable_norms(part, top.metric) if norms is None else norms[start:stop]
        top.add(rows[start:stop], part, length)
        start = stop


def _float32(values: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)
