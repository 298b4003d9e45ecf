"""OME-TIFF and plain TIFF, tiled or stripped: only the segments that tiles need, each decoded once per call."""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import imagecodecs
import numpy as np
import tifffile

from histostore.errors import SlideError, UsageError
from histostore.protocols import TileStatus
from histostore.slides.flat_header import ends_whole
from histostore.slides.overview import overview
from histostore.slides.pixels import WHITE, check_level, corners, cut, padding_status, to_rgb
from histostore.slides.tiff_tables import Pages, code_name, find_pages, tiff_mpp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

CACHE_BYTES = 64 * 1024**2
"""Decoded segments kept between calls; at least one is, whatever its size."""

DECODE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, struct.error, OSError)
"""What codecs raise on damaged segments (imagecodecs' own errors are RuntimeErrors)."""

OPEN_ERRORS = (tifffile.TiffFileError, ArithmeticError, AttributeError, *DECODE_ERRORS)
"""What tifffile raises on tables that make no sense (found by mutating headers)."""

JPEG_COMPRESSIONS = frozenset({6, 7, 34892})


@dataclass(frozen=True, slots=True)
class _Level:
    page: Any
    """`tifffile.TiffPage`."""
    size_px: tuple[int, int]
    segment_px: tuple[int, int]
    across: int
    """Segments per row of segments."""
    per_plane: int
    """Segments per colour plane."""
    planes: int
    """3 where colours are kept apart, else 1."""
    mapped: NDArray[np.uint8] | None
    """The pixels themselves where they are stored as they are."""


class TiffSlide:
    """A TIFF as a `Slide`: uint8 RGB, RGBA (laid over white) or grey (repeated); one per reading thread.

    Levels are the sub-directories of OME-TIFF or the reduced pages of plain TIFF. Resolution is OME's PhysicalSizeX
    and Y, else the resolution tags where their unit is a length and the value is one a slide can have.
    """

    def __init__(self, path: Path, *, max_pixels: int | None = None) -> None:
        self.uri = str(path)
        self.reader = f"tifffile {tifffile.__version__}, imagecodecs {imagecodecs.__version__}"
        self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8] | None] = OrderedDict()
        self._cached_bytes = 0
        # opened here, since a TiffFile that fails in its constructor leaves its file open
        self._raw = path.open("rb")
        self._file: tifffile.TiffFile | None = None
        try:
            self._file = tifffile.TiffFile(self._raw)
            found = find_pages(self._file, self.uri)
            self._levels = tuple(_level(page) for page in found.pages)
            self.mpp, origin = tiff_mpp(self._file, found, self.uri)
        except SlideError:
            self.close()
            raise
        except OPEN_ERRORS as error:
            self.close()
            msg = f"{path}: tifffile cannot open it, {error}"
            raise SlideError(msg) from error
        self.size_px = self._levels[0].size_px
        self.downsamples = _downsamples(self._levels)
        self.properties: Mapping[str, str] = {**_properties(found), "histostore.mpp-origin": origin}

    def read(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read many square tiles at once, each segment decoded once; see `histostore.protocols.Slide.read`."""
        if self._file is None:
            msg = f"{self.uri}: read after close"
            raise UsageError(msg)
        check_level(level, px, self.downsamples)
        at = corners(xy0)
        this = self._levels[level]
        status = padding_status(at, px, this.size_px, self.downsamples[level])
        pixels = np.full((len(at), px, px, 3), WHITE, np.uint8)
        low = np.rint(at / self.downsamples[level]).astype(np.int64)
        if this.mapped is not None:
            for tile, (x, y) in zip(pixels, low.tolist(), strict=True):
                cut(this.mapped, x, y, px, tile)
            return pixels, status
        for segment, tiles in sorted(_needed(this, low, px).items()):
            try:
                image = self._segment(level, segment)
            except DECODE_ERRORS:
                status[tiles] = TileStatus.UNREADABLE
                continue
            if image is not None:
                _scatter(this, segment, image, tiles, low, px, pixels)
        pixels[status == TileStatus.UNREADABLE] = 0
        return pixels, status

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Return the whole slide with its longest edge at most `max_px`."""
        return overview(self.read, [level.size_px for level in self._levels], self.downsamples, max_px)

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._raw.close()
        self._cache.clear()
        self._cached_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _segment(self, level: int, segment: int) -> NDArray[np.uint8] | None:
        """Return a segment as ``(h, w, 3)`` RGB, None where the file leaves it out (sparse)."""
        key = (level, segment)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        image = self._decode(self._levels[level], segment)
        self._cache[key] = image
        self._cached_bytes += 0 if image is None else image.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cached_bytes -= 0 if old is None else old.nbytes
        return image

    def _decode(self, level: _Level, segment: int) -> NDArray[np.uint8] | None:
        parts = [self._plane(level.page, segment + k * level.per_plane) for k in range(level.planes)]
        present = [part for part in parts if part is not None]
        if not present:
            return None
        if len(present) != len(parts):
            msg = f"{self.uri}: a colour plane of segment {segment} is missing"
            raise SlideError(msg)
        return to_rgb(np.concatenate(present, axis=2))

    def _plane(self, page: Any, index: int) -> NDArray[np.uint8] | None:
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0:
            return None
        data = os.pread(self._raw.fileno(), count, offset)
        if len(data) != count:
            msg = f"{self.uri}: segment {index} could not be read"
            raise SlideError(msg)
        if int(page.compression) in JPEG_COMPRESSIONS and not ends_whole(data):
            msg = f"{self.uri}: segment {index} is a truncated JPEG"
            raise SlideError(msg)
        image, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        # tiles at the edge are stored whole, strips at the end are not
        return np.asarray(image[0, : shape[1], : shape[2]])


def _level(page: Any) -> _Level:
    width, height = page.imagewidth, page.imagelength
    across_px, down_px = (page.tilewidth, page.tilelength) if page.is_tiled else (width, page.rowsperstrip)
    across = -(-width // across_px)
    per_plane = across * -(-height // min(down_px, height))
    planes = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
    mapped = None
    if page.is_memmappable and planes == 1:
        mapped = page.asarray(out="memmap").reshape(height, width, page.samplesperpixel)
    return _Level(page, (width, height), (across_px, min(down_px, height)), across, per_plane, planes, mapped)


def _downsamples(levels: tuple[_Level, ...]) -> tuple[float, ...]:
    width, height = levels[0].size_px
    return tuple((width / level.size_px[0] + height / level.size_px[1]) / 2 for level in levels)


def _properties(found: Pages) -> dict[str, str]:
    first = found.pages[0]
    return {
        "histostore.format": "OME-TIFF" if found.is_ome else "TIFF",
        "tiff.Compression": code_name(first.compression),
        "tiff.Photometric": code_name(first.photometric),
        **({"tiff.ImageDescription": first.description} if first.description else {}),
        **({"tiff.Software": first.software} if first.software else {}),
    }


def _ranges(low: int, px: int, edge: int, end: int) -> range:
    """Return which segments of `edge` pixels the pixels low to low + px touch, of an axis of `end` pixels."""
    first, last = max(low, 0), min(low + px, end)
    return range(first // edge, -(-last // edge)) if last > first else range(0)


def _needed(level: _Level, low: NDArray[np.int64], px: int) -> dict[int, list[int]]:
    """Return for each segment which tiles want a part of it."""
    wanted: dict[int, list[int]] = {}
    for tile, (x, y) in enumerate(low.tolist()):
        for segment in _segments_of(level, x, y, px):
            wanted.setdefault(segment, []).append(tile)
    return wanted


def _segments_of(level: _Level, x: int, y: int, px: int) -> Iterator[int]:
    for row in _ranges(y, px, level.segment_px[1], level.size_px[1]):
        for column in _ranges(x, px, level.segment_px[0], level.size_px[0]):
            yield row * level.across + column


def _scatter(
    level: _Level,
    segment: int,
    image: NDArray[np.uint8],
    tiles: list[int],
    low: NDArray[np.int64],
    px: int,
    pixels: NDArray[np.uint8],
) -> None:
    """Copy a decoded segment into every tile that touches it."""
    row, column = divmod(segment, level.across)
    x0, y0 = column * level.segment_px[0], row * level.segment_px[1]
    height, width = image.shape[:2]
    x1, y1 = min(x0 + width, level.size_px[0]), min(y0 + height, level.size_px[1])
    for tile in tiles:
        x, y = (int(v) for v in low[tile])
        left, top, right, bottom = max(x, x0), max(y, y0), min(x + px, x1), min(y + px, y1)
        pixels[tile, top - y : bottom - y, left - x : right - x] = image[top - y0 : bottom - y0, left - x0 : right - x0]
