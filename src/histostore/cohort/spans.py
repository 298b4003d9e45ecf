"""Cut a cohort into spans, and map a function over them: here, in threads, or on the workers of a cluster.

A span is a run of slides whose rows one task goes over in order, keeping one partial result. How a cohort is cut
depends on its rows alone, and results come back in the order of the spans, so that sums of them are the same to the
last bit whatever ran them. Matrix products run on one thread each, since their last bits depend on how many share them.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from histostore.blocks.address import Address
from histostore.blocks.slide_rows import SlideRows
from histostore.errors import UsageError
from histostore.heads.blas import one_blas_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from histostore.blocks.slide_rows import OpenRows
    from histostore.view import View

SPANS = 64
"""Spans of a cohort, at most. Frozen: the last bits of sums depend on where they are cut."""

SPAN_ROWS = 2048
"""Rows that make a span worth a task. Frozen as well."""

PARTIAL_BYTES = 1 << 29
"""Memory that partial results of all threads of this process may take: 512 MiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Rows that one task goes over. Pickles to a few hundred bytes a slide."""

    store: Address
    slides: tuple[SlideRows, ...]
    keys: tuple[Any, ...]
    """What each slide counts as: a batch, a fold."""

    def open(self) -> Iterator[tuple[Any, OpenRows]]:
        """Yield (key, rows) slide by slide; a slide is let go of before the next is opened."""
        store = self.store.open()
        for key, which in zip(self.keys, self.slides, strict=True):
            yield key, which.open(store)


def cut(view: View, backbone: str | None = None, *, keys: Sequence[Any] | None = None) -> list[Span]:
    """Cut the rows of a view into at most `SPANS` spans of about as many rows, in order.

    A slide of more rows than a span is cut too. `keys` are one a slide.
    """
    if not view.parts:
        return []
    most = max(SPAN_ROWS, -(-len(view) // SPANS))
    spans: list[Span] = []
    held: list[tuple[SlideRows, Any]] = []
    n, address = 0, Address.of(view.parts[0].store)
    for part, key in zip(view.parts, keys if keys is not None else [0] * len(view.parts), strict=True):
        for rows in _no_longer_than(SlideRows.of(part, backbone), most):
            if n + rows.n > most and held:
                spans.append(Span(address, *zip(*held, strict=True)))
                held, n = [], 0
            held.append((rows, key))
            n += rows.n
    if held:
        spans.append(Span(address, *zip(*held, strict=True)))
    return spans


def _no_longer_than(rows: SlideRows, most: int) -> Iterator[SlideRows]:
    import numpy as np

    if rows.n <= most:
        if rows.n:
            yield rows
        return
    chosen = np.arange(rows.n, dtype=np.int64) if rows.rows is None else rows.rows
    for begin in range(0, rows.n, most):
        some = chosen[begin : begin + most]
        yield replace(rows, rows=some, n=len(some))


def in_order[R](
    task: Callable[[Span], R], spans: Sequence[Span], *, client: Any = None, workers: int | None = None,
    partial_bytes: int = 0,
) -> Iterator[R]:  # fmt: skip
    """Yield ``task(span)`` for every span, in order; a few are ahead, never all.

    Parameters
    ----------
    client
        A `distributed.Client`, or any `concurrent.futures.Executor`: what has ``submit``. Its workers must see the
        store under the same address, and have processors of one kind where results are to be equal to the bit.
    workers
        Threads of this process; by default as many as processors, fewer where partial results are large. 1: none.
    partial_bytes
        What one result takes.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}: give 1 or more")
    if client is not None:
        cores = sum(client.ncores().values()) if hasattr(client, "ncores") else os.cpu_count() or 1
        # dask takes tasks of one function and one argument for one task; here they are values without an identity
        options = {"pure": False} if hasattr(client, "ncores") else {}
        yield from _ahead(lambda span: client.submit(_alone, task, span, **options), spans, 2 * max(1, cores))
        return
    threads = min(os.cpu_count() or 1, max(1, PARTIAL_BYTES // max(1, 2 * partial_bytes)), len(spans) or 1)
    threads = workers or threads
    if threads == 1:
        for span in spans:
            yield _alone(task, span)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="histostore-span") as pool:
        yield from _ahead(lambda span: pool.submit(_alone, task, span), spans, threads + 1)


def _ahead(submit: Callable[[Span], Any], spans: Sequence[Span], most: int) -> Iterator[Any]:
    """Yield results in order with at most so many tasks under way or waiting to be taken."""
    left, running = iter(spans), deque[Any]()
    try:
        for span in left:
            running.append(submit(span))
            if len(running) >= most:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _alone[R](task: Callable[[Span], R], span: Span) -> R:
    with one_blas_thread():
        return task(span)
