"""Exact nearest neighbours over embeddings that need not fit in memory: blocked products and a running top k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from histostore.errors import DataError, SpecMismatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

type Metric = Literal["cosine", "l2", "ip"]

METRICS = ("cosine", "l2", "ip")


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
        found.
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
    if metric not in METRICS:
        raise UsageError(f"metric is '{metric}', not one of {', '.join(METRICS)}")
    if k < 1:
        raise UsageError(f"k is {k}: ask for at least one neighbour")
    q = _prepared(np.atleast_2d(queries), metric)
    best_d = np.full((len(q), 0), np.inf, dtype=np.float32)
    best_r = np.full((len(q), 0), -1, dtype=np.int64)
    for rows, values in blocks:
        if values.shape[1] != q.shape[1]:
            raise SpecMismatchError(f"queries have {q.shape[1]} features, the embeddings {values.shape[1]}")
        distance = _distances(q, values.astype(np.float32), metric)
        keep = min(k, distance.shape[1])
        if not keep:
            continue
        near = np.argpartition(distance, keep - 1, axis=1)[:, :keep]
        best_d = np.concatenate([best_d, np.take_along_axis(distance, near, axis=1)], axis=1)
        best_r = np.concatenate([best_r, rows[near]], axis=1)
        order = np.lexsort((best_r, best_d), axis=1)[:, :k]
        best_d = np.take_along_axis(best_d, order, axis=1)
        best_r = np.take_along_axis(best_r, order, axis=1)
    best_r[~np.isfinite(best_d)] = -1
    missing = k - best_r.shape[1]
    if missing > 0:
        best_r = np.pad(best_r, ((0, 0), (0, missing)), constant_values=-1)
        best_d = np.pad(best_d, ((0, 0), (0, missing)), constant_values=np.inf)
    return best_r, best_d


def _prepared(queries: NDArray[np.floating], metric: Metric) -> NDArray[np.float32]:
    q = queries.astype(np.float32)
    if not np.isfinite(q).all():
        raise DataError("a query embedding is not finite (an unreadable tile?); query by another tile")
    if metric == "cosine":
        norm = np.linalg.norm(q, axis=1, keepdims=True)
        if (norm == 0).any():
            raise DataError("a query embedding is all zero, which has no direction; use metric 'l2'")
        q = q / norm
    return q


def _distances(q: NDArray[np.float32], values: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore", divide="ignore"):
        product = q @ values.T
        if metric == "cosine":
            distance = 1.0 - product / np.linalg.norm(values, axis=1)
        elif metric == "l2":
            distance = (q**2).sum(axis=1, keepdims=True) - 2 * product + (values**2).sum(axis=1)
            np.maximum(distance, 0, out=distance)
        else:
            distance = -product
    distance[:, ~np.isfinite(values).all(axis=1)] = np.inf  # NaN rows rank last, and are not returned
    distance[np.isnan(distance)] = np.inf
    return distance.astype(np.float32)
