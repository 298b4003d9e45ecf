"""What goes on while something else does: reading ahead, encoding one batch longer, writing behind."""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Future

    from histostore.progress import Stopwatch


def ahead[T](items: Iterator[T], depth: int = 2) -> Generator[T]:
    """Yield items that a thread computes up to `depth` ahead; its error is raised here, and leaving early stops it."""
    done = object()
    waiting: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def run() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(done)
        except BaseException as error:  # noqa: BLE001  (handed over, and raised where the items are used)
            put(error)

    thread = threading.Thread(target=run, name="histostore-reader", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def one_later[T](items: Iterable[T]) -> Iterator[T]:
    """Yield items after the next one has begun: what each set going has had that long."""
    held: deque[T] = deque()
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.popleft()
    yield from held


@contextmanager
def behind(watch: Stopwatch) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Run what it is handed in one thread, in order, while the caller goes on; at most one piece waits.

    The first error is raised where the next piece is handed over or at the end, and nothing is run after it.

    >>> with behind(watch) as later:                                # doctest: +SKIP
    ...     for made in embed_shards(source, shards, read_batch=64, watch=watch):
    ...         later(partial(write, made))
    """
    running: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="histostore-writer") as pool:

        def later(work: Callable[[], None]) -> None:
            if len(running) > 1:
                with watch.timed("waiting for writes"):
                    running.popleft().result()
            running.append(pool.submit(_after, running[-1] if running else None, work))

        try:
            yield later
            while running:
                running.popleft().result()
        finally:
            for one in running:
                one.cancel()


def _after(before: Future[None] | None, work: Callable[[], None]) -> None:
    """Do a piece of work, unless the one before it failed: that error is on its way to the caller."""
    if before is None or before.exception() is None:
        work()
