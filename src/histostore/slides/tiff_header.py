"""A TIFF's own tables, read without trusting them: directories, geometry, where the segments lie.

Native decoders believe what a file claims (openslide aborts the process on a tile edge of 2**30), so the claims are
read here first, with bounded reads and no allocation that the file's size does not cover. Classic TIFF, BigTIFF and
NDPI (classic with 64-bit offsets) in either byte order.

References
----------
TIFF revision 6.0 (Adobe, 1992), section 2; the BigTIFF extension (AWare Systems); OpenSlide's notes on NDPI.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import SlideError
from histostore.slides.ranges import FileRanges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.slides.ranges import Ranges

MAX_DIRECTORIES = 65_536
MAX_ENTRIES = 4_096

NDPI_TAG = 65_420
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
DTYPES = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SUB_IFDS = 322, 323, 324, 325, 330
ONE_VALUE = frozenset(
    {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS_PER_STRIP, PLANAR, TILE_WIDTH, TILE_HEIGHT}
)
LISTS = frozenset({STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES, SUB_IFDS})


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag of a directory, its values not yet read."""

    dtype: int
    count: int
    at: int
    """Where in the file the values begin."""


@dataclass(frozen=True, slots=True)
class Directory:
    """One image of the file as its directory describes it."""

    at: int
    values: Mapping[int, int]
    """The first value of the tags in `ONE_VALUE`."""
    lists: Mapping[int, NDArray[np.uint64]]
    """All values of the tags in `LISTS`."""
    description: str = ""

    def get(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        return self.values.get(tag, default)

    @property
    def is_tiled(self) -> bool:
        """Whether it says where tiles lie."""
        return TILE_OFFSETS in self.lists or TILE_WIDTH in self.values or TILE_HEIGHT in self.values

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height)."""
        return self.get(WIDTH, 0), self.get(HEIGHT, 0)

    @property
    def segment_px(self) -> tuple[int, int]:
        """(width, height) of a tile or strip."""
        if self.is_tiled:
            return self.get(TILE_WIDTH, 0), self.get(TILE_HEIGHT, 0)
        width, height = self.size_px
        return width, min(self.get(ROWS_PER_STRIP, height), height)

    @property
    def segments(self) -> tuple[NDArray[np.uint64] | None, NDArray[np.uint64] | None]:
        """Offsets and byte counts of the tiles or strips, None where the directory has none."""
        tags = (TILE_OFFSETS, TILE_BYTES) if self.is_tiled else (STRIP_OFFSETS, STRIP_BYTES)
        return self.lists.get(tags[0]), self.lists.get(tags[1])


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """All directories of a TIFF, in file order, sub-directories after their parents."""

    directories: tuple[Directory, ...]
    file_bytes: int
    is_ndpi: bool


@dataclass(slots=True)
class _Walk:
    """A file being walked: the format's widths and what was seen."""

    ranges: Ranges
    path: Path | str
    size: int
    order: str
    big: bool
    ndpi: bool = False
    seen: set[int] = field(default_factory=set)
    listed: int = 0
    """Bytes of value lists read so far. Lists do not overlap, so more than the file holds is an attack on memory."""

    def take(self, at: int, n: int, what: str) -> bytes:
        if at + n > self.size:
            msg = f"{self.path}: truncated, {what} ends at byte {at + n:,} and the file has {self.size:,}"
            raise SlideError(msg)
        (data,) = self.ranges.read_ranges([at], [n])
        if len(data) != n:
            msg = f"{self.path}: {what} at byte {at:,} could not be read"
            raise SlideError(msg)
        return data

    def number(self, at: int, n: int, what: str) -> int:
        return int.from_bytes(self.take(at, n, what), "little" if self.order == "<" else "big")


def is_tiff(first: bytes) -> bool:
    """Tell by the first four bytes."""
    return first[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff_header(path: Path | str, ranges: Ranges | None = None) -> TiffHeader:
    """Walk the directories of a TIFF: the file at `path`, or the bytes of `ranges`, which stay open.

    Raises
    ------
    SlideError
        A table lies outside the file, directories form a loop, or there are absurdly many.
    """
    if ranges is not None:
        return _walked(ranges, path)
    file = FileRanges(Path(path))
    try:
        return _walked(file, path)
    finally:
        file.close()


def _walked(ranges: Ranges, path: Path | str) -> TiffHeader:
    (first,) = ranges.read_ranges([0], [16])
    order = "<" if first[:2] == b"II" else ">"
    walk = _Walk(ranges, path, ranges.size, order, big=first[2:4] in (b"+\0", b"\0+"))
    at = _first_directory(walk)
    found: list[Directory] = []
    while at:
        directory, at = _directory(walk, at, f"directory {len(found)}")
        found.append(directory)
        pending = [int(offset) for offset in directory.lists.get(SUB_IFDS, ())]
        for offset in pending:
            # a sub-directory's own chain is not followed: every level has its offset in the parent
            found.append(_directory(walk, offset, f"sub-directory of {len(found) - 1}")[0])
    if not found:
        msg = f"{path}: a TIFF without an image (no directory)"
        raise SlideError(msg)
    return TiffHeader(tuple(found), ranges.size, walk.ndpi)


def _first_directory(walk: _Walk) -> int:
    if walk.big:
        return walk.number(8, 8, "header")
    at = walk.number(4, 4, "header")
    # NDPI keeps 64-bit offsets in a classic file; only beyond 4 GiB do the upper halves say anything
    return walk.number(4, 8, "header") if walk.size > 2**32 and walk.order == "<" else at


def _directory(walk: _Walk, at: int, what: str) -> tuple[Directory, int]:
    if at in walk.seen:
        msg = f"{walk.path}: directories form a loop ({what} at byte {at:,} was there before)"
        raise SlideError(msg)
    if len(walk.seen) >= MAX_DIRECTORIES:
        msg = f"{walk.path}: more than {MAX_DIRECTORIES:,} directories"
        raise SlideError(msg)
    walk.seen.add(at)
    count_bytes, entry_bytes = (8, 20) if walk.big else (2, 12)
    n = walk.number(at, count_bytes, what)
    if not 0 < n <= MAX_ENTRIES:
        msg = f"{walk.path}: {what} has {n:,} entries, outside 1-{MAX_ENTRIES:,}"
        raise SlideError(msg)
    table = at + count_bytes
    raw = walk.take(table, n * entry_bytes, what)
    after = table + n * entry_bytes
    tags = [struct.unpack_from(walk.order + "HH", raw, i * entry_bytes) for i in range(n)]
    walk.ndpi = walk.ndpi or (not walk.big and any(tag == NDPI_TAG for tag, _ in tags))
    values: dict[int, int] = {}
    lists: dict[int, NDArray[np.uint64]] = {}
    description = ""
    for i, (tag, kind) in enumerate(tags):
        if tag not in ONE_VALUE and tag not in LISTS and tag != DESCRIPTION:
            continue
        entry = _entry(walk, raw, table, after, i, kind, n)
        if entry is None:
            continue
        if tag == DESCRIPTION:
            description = walk.take(entry.at, min(entry.count, 4096), f"{what}, description").decode("latin-1")
        elif kind not in DTYPES:
            msg = f"{walk.path}: {what}, tag {tag} has type {kind}, not a whole number"
            raise SlideError(msg)
        elif tag in LISTS:
            walk.listed += SIZES[kind] * entry.count
            if walk.listed > walk.size:
                msg = f"{walk.path}: {what}, tag {tag} lists {entry.count:,} segments, more than the file can hold"
                raise SlideError(msg)
            lists[tag] = _numbers(walk, entry, entry.count, f"{what}, tag {tag}")
        else:
            values[tag] = int(_numbers(walk, entry, 1, f"{what}, tag {tag}")[0])
    following = walk.number(after, 8 if walk.big or walk.ndpi else 4, f"the end of {what}")
    return Directory(at, values, lists, description), following


def _entry(walk: _Walk, raw: bytes, table: int, after: int, i: int, kind: int, n: int) -> Entry | None:
    width, head, inline = (20, "Q", 8) if walk.big else (12, "I", 4)
    (count,) = struct.unpack_from(walk.order + head, raw, i * width + 4)
    value_at = i * width + (12 if walk.big else 8)
    length = SIZES.get(kind, 0) * count
    if length == 0:
        return None
    if length <= inline:
        return Entry(kind, count, table + value_at)
    (at,) = struct.unpack_from(walk.order + head, raw, value_at)
    if walk.ndpi and walk.size > 2**32:
        # the upper halves of all values follow the offset of the next directory
        at |= walk.number(after + 8 + 4 * i, 4, "upper halves of offsets") << 32
    return Entry(kind, count, at)


def _numbers(walk: _Walk, entry: Entry, count: int, what: str) -> NDArray[np.uint64]:
    raw = walk.take(entry.at, SIZES[entry.dtype] * count, what)
    return np.frombuffer(raw, dtype=walk.order + DTYPES[entry.dtype]).astype(np.uint64)
