"""A bounded number of threads, a bounded queue before them, and a clock."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from histostore.serve.problems import busy

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future


class Lane:
    """Runs blocking work, `workers` at once; up to `waiting` more wait for their turn."""

    def __init__(self, name: str, *, workers: int, waiting: int, timeout_s: float) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._room = workers + waiting
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self.inside = 0
        """Requests that run or wait."""

    async def run[T](self, work: Callable[[], T]) -> T:
        """Return what `work` returns.

        Work that is out of time and runs already goes on to its end in its thread, which is not free before that.

        Raises
        ------
        Problem
            503: too many wait already, or the time is over.
        """
        with self._lock:
            if self.inside >= self._room:
                raise busy("too many requests are waiting; try again")
            self.inside += 1
        future = self._pool.submit(work)
        future.add_done_callback(self._left)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout_s)
        except TimeoutError:
            what = "took" if future.running() else "waited"
            raise busy(f"the request {what} longer than {self._timeout_s:g} s; ask for less, or try again") from None

    def _left(self, future: Future[Any]) -> None:
        del future
        with self._lock:
            self.inside -= 1

    def close(self) -> None:
        """Take nothing more; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
