"""Searching some rows of an index only: what a filter means, and what it costs to answer.

By the share of rows that pass. Few: their embeddings are gathered and searched exactly. Many: FAISS skips the others (a
bitmap), visiting more cells in proportion, so that about as many passing rows are seen as without a filter.
Exact indexes gather block by block at any share. In no case do fewer than k come back where k pass.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import UsageError
from histostore.index.engine import faiss_module

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALL_SHARE = 0.05
"""Below this share of rows a filter is answered exactly, on the embeddings of the rows that pass."""


def chosen_rows(chosen: NDArray[np.bool_] | NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """Return a mask or row numbers as sorted row numbers, each once.

    Raises
    ------
    UsageError
        A mask of another length, or rows outside the array.
    """
    chosen = np.asarray(chosen)
    if chosen.dtype == bool:
        if chosen.shape != (n,):
            raise UsageError(f"the mask has shape {chosen.shape}, the index {n} rows")
        return np.flatnonzero(chosen)
    rows = np.unique(chosen).astype(np.int64)
    if len(rows) and (rows[0] < 0 or rows[-1] >= n):
        raise UsageError(f"rows {rows[0]} to {rows[-1]} do not all lie in 0-{n - 1}")
    return rows


def effort_under(effort: int, share: float, most: int) -> int:
    """Return the cells to visit (or HNSW's ef) where only `share` of the rows passes."""
    return min(most, max(effort, math.ceil(effort / share)))


def selector(rows: NDArray[np.int64], n: int) -> Any:
    """Return FAISS's selector of some of n positions; a bitmap, the fastest of its kinds nearly everywhere."""
    mask = np.zeros(n, dtype=bool)
    mask[rows] = True
    return faiss_module().IDSelectorBitmap(np.packbits(mask, bitorder="little"))
