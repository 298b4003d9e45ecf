"""Memory for batches of tiles, used again once nobody holds it.

A fresh array of 38 MB (256 tiles) costs 9,400 page faults on the way to its last byte: up to a third of the time that
decoding into it takes.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_IDLE = 3
"""Blocks kept for use again: a reader works ahead by two batches."""

MAX_BLOCK_BYTES = 128 << 20
"""Larger ones are not kept."""

MAX_WASTE = 4
"""A block at most so many times too large is taken."""


class Blocks:
    """Arrays whose memory comes back when they, and every view of them, are gone. Threads may use it together."""

    def __init__(self) -> None:
        self._idle: list[memoryview] = []
        self._lent: dict[int, weakref.ref[NDArray[np.uint8]]] = {}

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an array of uint8 with whatever values; it is the caller's alone."""
        n = math.prod(shape)
        if not 0 < n <= MAX_BLOCK_BYTES:
            return np.empty(shape, np.uint8)
        block = self._taken(n)
        # numpy lets every view refer to `root`, never to what lies under it, since that is no array
        root = np.frombuffer(block, np.uint8, n)
        idle, lent, key = self._idle, self._lent, id(block)

        def came_back(_: object) -> None:
            lent.pop(key, None)
            if len(idle) < MAX_IDLE:
                idle.append(block)

        # a weak reference that is itself forgotten never calls back
        lent[key] = weakref.ref(root, came_back)
        return root.reshape(shape)

    def clear(self) -> None:
        """Let go of what nobody holds."""
        self._idle.clear()

    def _taken(self, n: int) -> memoryview:
        for _ in range(len(self._idle)):
            try:
                block = self._idle.pop(0)
            except IndexError:
                break
            if n <= block.nbytes <= MAX_WASTE * n:
                return block
        return memoryview(np.empty(n, np.uint8))
