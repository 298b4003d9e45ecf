"""The whole slide, small: averaged block by block, so a slide without a pyramid needs no more memory than one with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from histostore.errors import UsageError
from histostore.protocols import TileStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CANVAS_PX = 1024
"""A smaller overview is made from one of this size."""
BLOCK_PX = 1024
MAX_FACTOR = 256
"""Pixels averaged at once, along an edge; what is left is resampled from the canvas."""
BLOCKS_AT_ONCE = 4
SMALLEST_BLOCK_PX = 64
MAX_REREADS = 64
"""Failed blocks that are looked at more closely: each costs a reopening, and a slide may be bad all over."""


class ReadTiles(Protocol):
    """`histostore.protocols.Slide.read`."""

    def __call__(
        self, xy0: NDArray[np.int64], *, px: int, level: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return pixels and status."""
        ...


def overview(
    read: ReadTiles, level_sizes: Sequence[tuple[int, int]], downsamples: Sequence[float], max_px: int
) -> NDArray[np.uint8]:
    """Return a slide as one ``(h, w, 3)`` uint8 RGB image with its longest edge at most `max_px`.

    The coarsest level that is large enough is averaged over whole blocks of pixels, then resampled to the exact
    size (both edges by the same factor, rounded). A slide smaller than `max_px` is not enlarged. What cannot be
    read is black, in blocks of 64 px where the damage is small.
    """
    if max_px <= 0:
        msg = f"max_px is {max_px}, not positive"
        raise UsageError(msg)
    canvas_px = max(max_px, CANVAS_PX)
    level = max((i for i, size in enumerate(level_sizes) if max(size) >= canvas_px), default=0)
    width, height = level_sizes[level]
    factor = min(MAX_FACTOR, max(1, max(width, height) // canvas_px))
    blocks = _Blocks(read, level, downsamples[level], factor)
    canvas = _average(blocks, (width, height), factor)
    scale = min(1.0, max_px / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return canvas
    box = (0.0, 0.0, width / factor, height / factor)
    picture = Image.fromarray(canvas)  # a copy
    del canvas
    return np.array(picture.resize(size, Image.Resampling.BOX, box=box))


@dataclass(slots=True)
class _Blocks:
    """Squares of one level. One that fails is read again by quarters, so that a bad tile does not blacken it all."""

    read: ReadTiles
    level: int
    downsample: float
    factor: int
    rereads_left: int = MAX_REREADS

    def take(self, at: NDArray[np.int64], px: int) -> NDArray[np.uint8]:
        """Return ``(n, px, px, 3)`` squares at corners (x, y) of the level."""
        corner = np.rint(at * self.downsample).astype(np.int64)
        pixels, status = self.read(corner, px=px, level=self.level)
        half = px // 2
        if half < max(SMALLEST_BLOCK_PX, self.factor) or px % 2:
            return pixels
        for i in np.flatnonzero(status == TileStatus.UNREADABLE):
            if self.rereads_left <= 0:
                break
            self.rereads_left -= 1
            quarters = at[i] + half * np.array([(0, 0), (1, 0), (0, 1), (1, 1)])
            q = self.take(quarters, half)
            pixels[i] = np.vstack([np.hstack([q[0], q[1]]), np.hstack([q[2], q[3]])])
        return pixels


def _average(blocks: _Blocks, size: tuple[int, int], factor: int) -> NDArray[np.uint8]:
    """Return a level with every `factor` x `factor` pixels as their mean; the last ones are averaged with white."""
    width, height = size
    cells = 1
    while 2 * cells * factor <= BLOCK_PX:
        cells *= 2
    px = cells * factor
    columns, rows = -(-width // px), -(-height // px)
    canvas = np.zeros((rows * cells, columns * cells, 3), np.uint8)
    grid = [(x, y) for y in range(rows) for x in range(columns)]
    for start in range(0, len(grid), BLOCKS_AT_ONCE):
        part = np.asarray(grid[start : start + BLOCKS_AT_ONCE], np.int64)
        for block, (x, y) in zip(blocks.take(part * px, px), part.tolist(), strict=True):
            small = Image.fromarray(block).reduce(factor)
            canvas[y * cells : (y + 1) * cells, x * cells : (x + 1) * cells] = np.asarray(small)
    return canvas[: -(-height // factor), : -(-width // factor)]
