"""Forward passes that are begun now and waited for later, so that a caller gets the next tiles ready meanwhile."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from histostore.protocols import Backbone

    type Waiting = Callable[[], Forwarded]
    """Waits for a forward pass and returns it."""

PART = 16
"""Tiles of one forward pass on the CPU, whatever the batch: a batch is cut into these and the last is filled up."""


class BatchTooLargeError(UsageError):
    """A batch does not fit into the device's memory."""


class Forwarded(NamedTuple):
    """A finished forward pass."""

    rows: NDArray[np.float32]
    """``(b, dim)``, owned by whoever asked for it."""
    seconds: float
    """How long it kept its device busy; of a pool of threads, their mean."""


@runtime_checkable
class Overlapping(Protocol):
    """What a backbone may offer beside `histostore.protocols.Backbone`: forward passes that overlap."""

    def begin(self, tiles: NDArray[np.uint8]) -> Waiting:
        """Begin to embed ``(b, px, px, 3)`` uint8 tiles, which stay as they are until the result is there."""
        ...

    def in_flight(self, batch: int) -> int:
        """Return how many batches of that size keep the device busy when they are begun together."""
        ...


def nothing(dim: int) -> Waiting:
    """Return the forward pass of no tiles: ``(0, dim)`` rows."""
    none = Forwarded(np.empty((0, dim), np.float32), 0.0)
    return lambda: none


def begin(backbone: Backbone, tiles: NDArray[np.uint8]) -> Waiting:
    """Begin a forward pass with any backbone: one that cannot overlap is done with it when this returns."""
    if isinstance(backbone, Overlapping):
        return backbone.begin(tiles)
    begun = time.perf_counter()
    rows = backbone.embed(tiles)
    done = Forwarded(rows, time.perf_counter() - begun)
    return lambda: done


def in_flight(backbone: Backbone, batch: int) -> int:
    """Return how many batches are to be begun before the first is waited for."""
    return backbone.in_flight(batch) if isinstance(backbone, Overlapping) else 1


class PartPool:
    """Embeds batches in parts of one size, each on one thread, several at a time, in order of arrival.

    Which kernels a CPU library takes depends on the batch and on the threads of a call, and with them the last bits.
    Parts that are always alike give the same bits for any batch and any number of threads, and use the cores better.

    Parameters
    ----------
    forward
        Embeds exactly `PART` tiles, ``(16, px, px, 3)`` uint8 to ``(16, dim)`` float32, in any thread.
    threads
        Parts at a time.
    ready
        Called once in each thread before its first part.
    """

    def __init__(
        self,
        forward: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        threads: int,
        ready: Callable[[], None] | None = None,
    ) -> None:
        self._forward = forward
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="histostore-forward", initializer=ready)

    def begin(self, tiles: NDArray[np.uint8]) -> Waiting:
        """Begin to embed one tile or more."""
        parts = [tiles[i : i + PART] for i in range(0, len(tiles), PART)]
        lacking = PART - len(parts[-1])
        if lacking:
            parts[-1] = np.concatenate([parts[-1], np.zeros((lacking, *tiles.shape[1:]), np.uint8)])
        running = [self._pool.submit(self._timed, part) for part in parts]

        def wait() -> Forwarded:
            done = [r.result() for r in running]
            rows = np.concatenate([r for r, _ in done])[: len(tiles)]
            return Forwarded(rows, sum(s for _, s in done) / self._threads)

        return wait

    def in_flight(self, batch: int) -> int:
        """Return how many batches keep every thread busy while one more is made ready."""
        return -(-self._threads * PART // batch) + 1

    def _timed(self, part: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
        begun = time.perf_counter()
        rows = self._forward(part)
        return rows, time.perf_counter() - begun
