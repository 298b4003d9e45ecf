"""Filling batches of tiles: a segment is read and decoded once, and copied at once to all tiles that need it.

A segment that a batch shares with batches after it is copied to their tiles too where they are known: to hold it would
take as much memory, and it would have to come back from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import SlideError
from histostore.protocols import TileStatus
from histostore.slides.decode import DECODE_ERRORS, buffer_for
from histostore.slides.pixels import WHITE

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.slides.decode import Decode, Image
    from histostore.slides.ranges import Ranges
    from histostore.slides.segments import Grid, Piece, SegmentCache


@dataclass(frozen=True, slots=True)
class Level:
    """One image of a pyramid, and how its segments are had."""

    grid: Grid
    offsets: Sequence[int]
    lengths: Sequence[int]
    planes: int
    decode: Decode
    mapped: NDArray[np.uint8] | None
    """The pixels themselves where they are stored as they are."""
    buffers: list[Image]
    """Memory for one segment each, used again by later calls."""

    def ranges(self, segments: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return offsets and lengths of segments, all planes of one after the other."""
        index = [s + k * self.grid.count for s in segments for k in range(self.planes)]
        return [self.offsets[i] for i in index], [self.lengths[i] for i in index]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles in the making."""

    level: int
    corners: NDArray[np.int64]
    """``(n, 2)`` top-left corners, (x, y), in level-0 pixels."""
    low: NDArray[np.int64]
    """The same in pixels of the level."""
    pixels: NDArray[np.uint8]
    """``(n, px, px, 3)``."""
    status: NDArray[np.uint8]
    pieces: dict[int, list[Piece]]
    """By segment, in file order: what is still to be copied."""

    def are(self, level: int, corners: NDArray[np.int64], px: int) -> bool:
        """Tell whether these are the tiles that somebody asks for."""
        return level == self.level and px == self.pixels.shape[1] and np.array_equal(corners, self.corners)

    def put(self, segment: int, image: Image | None) -> None:
        """Copy a segment, white where the file leaves it out."""
        pixels = self.pixels
        for tile, y0, y1, x0, x1, v0, v1, u0, u1 in self.pieces.pop(segment, ()):
            pixels[tile, y0:y1, x0:x1] = WHITE if image is None else image[v0:v1, u0:u1]

    def spoil(self, segment: int) -> None:
        """Mark the tiles that need a segment which cannot be had."""
        for tile, *_ in self.pieces.pop(segment, ()):
            self.status[tile] = TileStatus.UNREADABLE


@dataclass(frozen=True, slots=True)
class Fill:
    """The tiles of one call, which threads fill block by block."""

    level: Level
    number: int
    """Of the level."""
    tiles: list[Tiles]
    """Those of the call, and the batches begun with them."""
    keep: frozenset[int]
    """Segments that the cache is to hold."""
    cache: SegmentCache
    ranges: Ranges
    buffers: list[Image]
    """Memory for one segment each, for threads to take and bring back."""

    def work(self, todo: deque[list[int]]) -> None:
        """Take blocks of segments until none is left."""
        try:
            buffer = self.buffers.pop()
        except IndexError:
            buffer = self._buffer()
        while True:
            try:
                block = todo.popleft()
            except IndexError:
                self.buffers.append(buffer)
                return
            missing = []
            for segment in block:
                held, image = self.cache.get((self.number, segment))
                if held:
                    self._put(segment, image)
                else:
                    missing.append(segment)
            if missing:
                self._decode(missing, buffer)

    def _buffer(self) -> Image:
        width, height = self.level.grid.segment_px
        return buffer_for((height, width))

    def _put(self, segment: int, image: Image | None) -> None:
        for tiles in self.tiles:
            tiles.put(segment, image)

    def _decode(self, segments: list[int], buffer: Image) -> None:
        stored = self._stored(*self.level.ranges(segments))
        planes = self.level.planes
        for k, segment in enumerate(segments):
            parts = stored[k * planes : (k + 1) * planes]
            try:
                if None in parts:
                    msg = f"segment {segment} could not be read"
                    raise SlideError(msg)
                out = self._buffer() if segment in self.keep else buffer
                image = self.level.decode([p for p in parts if p is not None], segment, out)
                if image is not None and not self.level.grid.covers(segment, image.shape):
                    msg = f"segment {segment} is {image.shape}, too small"
                    raise SlideError(msg)
            except DECODE_ERRORS:
                for tiles in self.tiles:
                    tiles.spoil(segment)
                continue
            self._put(segment, image)
            if segment in self.keep:
                self.cache.put((self.number, segment), image)

    def _stored(self, offsets: list[int], lengths: list[int]) -> list[bytes | None]:
        """Return the stored bytes of each range, None where they cannot be had."""
        try:
            got: list[bytes | None] = list(self.ranges.read_ranges(offsets, lengths))
        except OSError:
            if len(offsets) == 1:
                return [None]
            # one bad sector must not cost the segments around it
            return [self._stored([at], [n])[0] for at, n in zip(offsets, lengths, strict=True)]
        return [d if d is not None and len(d) == n else None for d, n in zip(got, lengths, strict=True)]
