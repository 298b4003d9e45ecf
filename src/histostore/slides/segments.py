"""Which rectangle of which segment goes where: index arithmetic for a whole batch of tiles, and the segments' cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.slides.decode import Image

type Piece = tuple[int, int, int, int, int, int, int, int, int]
"""Tile; its rows from and to, its columns from and to; the segment's rows from and to, its columns from and to."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How an image is cut into segments (tiles or strips of a TIFF), row by row."""

    size_px: tuple[int, int]
    """(width, height)."""
    segment_px: tuple[int, int]

    @property
    def across(self) -> int:
        """Segments per row of segments."""
        return -(-self.size_px[0] // self.segment_px[0])

    @property
    def count(self) -> int:
        """Segments of the image."""
        return self.across * -(-self.size_px[1] // self.segment_px[1])

    def covers(self, segment: int, shape: tuple[int, ...]) -> bool:
        """Tell whether a decoded segment has all pixels that it has of the image."""
        (row, column), (width, height) = divmod(segment, self.across), self.segment_px
        wanted = min(height, self.size_px[1] - row * height), min(width, self.size_px[0] - column * width)
        return shape[0] >= wanted[0] and shape[1] >= wanted[1]

    @property
    def row_bytes(self) -> int:
        """One row of decoded segments."""
        width, height = self.segment_px
        return self.across * width * height * 3


def plan_pieces(grid: Grid, low: NDArray[np.int64], px: int) -> dict[int, list[Piece]]:
    """Cut tiles into pieces that lie in one segment each.

    Parameters
    ----------
    grid
        The segments.
    low
        ``(n, 2)`` top-left corners (x, y) in pixels of the image; may lie outside.
    px
        Edge of the tiles.

    Returns
    -------
    dict of int to list of Piece
        By segment, in file order. What lies outside the image is in no piece.
    """
    edge, size = np.asarray(grid.segment_px), np.asarray(grid.size_px)
    inside_from, inside_to = np.clip(low, 0, size), np.clip(low + px, 0, size)
    first = inside_from // edge
    counts = np.where(inside_to > inside_from, -(-inside_to // edge) - first, 0)
    each = counts[:, 0] * counts[:, 1]
    tile = np.repeat(np.arange(len(low)), each)
    nth = np.arange(len(tile)) - np.repeat(np.cumsum(each) - each, each)
    row, column = np.divmod(nth, np.maximum(counts[tile, 0], 1))
    place = first[tile] + np.stack([column, row], axis=1)
    segment = place[:, 1] * grid.across + place[:, 0]
    order = np.argsort(segment, kind="stable")
    tile, place, segment = tile[order], place[order], segment[order]

    corner = place * edge
    start = np.maximum(inside_from[tile], corner)
    stop = np.minimum(inside_to[tile], corner + edge)
    to, of = start - low[tile], start - corner
    extent = stop - start
    table = np.stack(
        [
            tile,
            to[:, 1],
            to[:, 1] + extent[:, 1],
            to[:, 0],
            to[:, 0] + extent[:, 0],
            of[:, 1],
            of[:, 1] + extent[:, 1],
            of[:, 0],
            of[:, 0] + extent[:, 0],
        ],
        axis=1,
    )
    begins = np.flatnonzero(np.diff(segment, prepend=-1))
    pieces: list[Piece] = list(map(tuple, table.tolist()))
    bounds = pairwise([*begins.tolist(), len(pieces)])
    return {s: pieces[a:b] for s, (a, b) in zip(segment[begins].tolist(), bounds, strict=True)}


def still_wanted(grid: Grid, low: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which segments tiles after these may share with them.

    Tiles that were asked for in the order of rows are taken to go on so: further right in the last row, or at least
    the smallest step between rows below it. What is done with is not held, for decoding into cold memory is slower than
    into memory just used. In other orders all segments may be wanted. A wrong guess costs a second decoding, no pixel.
    """
    steps = np.diff(low[:, 1])
    if len(low) == 0 or (steps < 0).any():
        return np.ones(len(segments), np.bool_)
    x, y = low[-1].tolist()
    row, column = np.divmod(segments, grid.across)
    right, bottom = (column + 1) * grid.segment_px[0], (row + 1) * grid.segment_px[1]
    next_row = y + int(steps[steps > 0].min(initial=np.iinfo(np.int64).max)) if steps.any() else y
    wanted: NDArray[np.bool_] = (bottom > next_row) | ((bottom > y) & (right > x))
    return wanted


class SegmentCache:
    """Decoded segments, the least recently used forgotten first. Threads may use it together."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[int, int], Image | None] = OrderedDict()
        self._lock = threading.Lock()
        self.limit = 0
        """Bytes; at least one segment is kept, whatever its size."""
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: tuple[int, int]) -> tuple[bool, Image | None]:
        """Return whether (level, segment) is held, and it; None is a segment the file leaves out."""
        with self._lock:
            if key not in self._held:
                return False, None
            self._held.move_to_end(key)
            return True, self._held[key]

    def put(self, key: tuple[int, int], image: Image | None) -> None:
        """Hold a segment."""
        with self._lock:
            old = self._held.pop(key, None)
            self.nbytes += _nbytes(image) - _nbytes(old)
            self._held[key] = image
            while self.nbytes > self.limit and len(self._held) > 1:
                _, old = self._held.popitem(last=False)
                self.nbytes -= _nbytes(old)

    def held(self, level: int) -> list[int]:
        """Return the segments of a level that are held."""
        with self._lock:
            return [key[1] for key in self._held if key[0] == level]

    def drop(self, level: int, segments: list[int]) -> None:
        """Forget segments of a level."""
        with self._lock:
            for segment in segments:
                self.nbytes -= _nbytes(self._held.pop((level, segment), None))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._held.clear()
            self.nbytes = 0


def _nbytes(image: Image | None) -> int:
    return 0 if image is None else image.nbytes
