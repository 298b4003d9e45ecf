"""Batches of rows: in order, of given rows, or shuffled by (seed, epoch); read ahead in threads, memory bounded."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.store.arrays import ArrayReader, Pending

    type Rows = NDArray[np.int64]


def row_order(n_rows: int, *, seed: int | None = None, epoch: int = 0) -> Rows:
    """Return the numbers 0 to n - 1: in order without a seed, else shuffled by (seed, epoch) alone."""
    order = np.arange(n_rows, dtype=np.int64)
    return order if seed is None else np.random.default_rng([seed, epoch]).permutation(order)


def batches(
    reader: ArrayReader,
    size: int,
    *,
    rows: NDArray[np.integer[Any]] | None = None,
    seed: int | None = None,
    epoch: int = 0,
    threads: int = 2,
    ahead: int = 1,
) -> Iterator[tuple[Rows, NDArray[Any]]]:
    """Yield (row numbers, rows) batch by batch.

    Parameters
    ----------
    size
        Rows per batch; the last one may hold fewer.
    rows
        ``(k,)`` row numbers to go through; all by default.
    seed, epoch
        With a seed, `rows` are shuffled; the order depends on these two alone.
    threads
        Threads that read and decode; they never change a value.
    ahead
        Batches that are read while one is used: memory holds ``ahead + 1`` of them.

    Yields
    ------
    tuple
        ``(k,)`` int64 and ``(k, …)``, both owned by the caller.

    Raises
    ------
    UsageError
        `size` or `threads` is below 1, or `ahead` below 0.
    IndexError, CorruptionError
        As `ArrayReader.read`.
    """
    if size < 1 or threads < 1 or ahead < 0:
        raise UsageError(f"batches of {size} rows, {threads} threads, {ahead} ahead: at least 1, 1 and 0 are needed")
    chosen = None if rows is None else np.asarray(rows, dtype=np.int64)
    order = row_order(len(reader) if chosen is None else len(chosen), seed=seed, epoch=epoch)
    order = order if chosen is None else chosen[order]
    cuts = (order[at : at + size] for at in range(0, len(order), size))
    waiting: deque[tuple[Rows, Pending]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="histostore-rows") as pool:
        try:
            for ids in cuts:
                waiting.append((ids, reader.start(ids, pool=pool)))
                if len(waiting) > ahead:
                    first, pending = waiting.popleft()
                    yield first, pending.result()
            while waiting:
                first, pending = waiting.popleft()
                yield first, pending.result()
        finally:
            pool.shutdown(cancel_futures=True)
