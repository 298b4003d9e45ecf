"""TIFF and SVS by segment: a batch of tiles is planned, every segment read and decoded once, and scattered.

Memory: the tiles asked for, a cache of decoded segments (`MAX_CACHE_BYTES` at most), and per thread one segment and
`BLOCK` stored ones.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import imagecodecs
import numpy as np
import tifffile

from histostore.errors import SlideError, UsageError
from histostore.protocols import TileStatus
from histostore.slides.blocks import Blocks
from histostore.slides.decode import DECODE_ERRORS, decoder_of, planes_of
from histostore.slides.overview import overview
from histostore.slides.pixels import WHITE, check_level, corners, cut, padding_status
from histostore.slides.ranges import BlockedRanges, FileRanges, RangeFile
from histostore.slides.segments import Grid, SegmentCache, plan_pieces, still_wanted
from histostore.slides.tiff_tables import aperio_properties, find_pages, tiff_mpp, tiff_properties

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.slides.decode import Decode
    from histostore.slides.ranges import Ranges
    from histostore.slides.segments import Image, Plan
    from histostore.slides.tiff_tables import Form

MIN_CACHE_BYTES, MAX_CACHE_BYTES = 16 << 20, 256 << 20
"""Bounds of the cache. Between them it holds the rows of segments that tiles read row by row come back to."""

BLOCK, REMOTE_BLOCK = 8, 64
"""Segments that a thread takes on at once: few, so that all threads end together; more where a request costs."""

OPEN_ERRORS = (tifffile.TiffFileError, ArithmeticError, AttributeError, OSError, *DECODE_ERRORS)
"""What tifffile raises on tables that make no sense (found by mutating headers)."""


@dataclass(frozen=True, slots=True)
class _Level:
    grid: Grid
    offsets: Sequence[int]
    lengths: Sequence[int]
    planes: int
    decode: Decode
    mapped: NDArray[np.uint8] | None
    """The pixels themselves where they are stored as they are."""

    def ranges(self, segments: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return offsets and lengths of segments, all planes of one after the other."""
        index = [s + k * self.grid.count for s in segments for k in range(self.planes)]
        return [self.offsets[i] for i in index], [self.lengths[i] for i in index]


class TiffSlide:
    """A TIFF as a `Slide`: uint8 RGB, RGBA (laid over white) or grey (repeated); used from one thread at a time.

    Levels are the sub-directories of OME-TIFF, the reduced pages of plain TIFF, or the tiled pages of SVS. Resolution
    is OME's PhysicalSizeX and Y, SVS's MPP, else the resolution tags where their unit is a length and the value is
    one a slide can have.

    Parameters
    ----------
    path
        The file; a name for messages where `ranges` is given.
    form
        ``"openslide"``: what openslide takes for its generic-tiff, and ``"aperio"``; both give the bits that openslide
        gives at whole pixels of a level (between them openslide interpolates, and here the nearest pixel counts).
        ``"plain"``: OME-TIFF and what openslide does not know.
    workers
        Threads that decode; the bits do not depend on it.
    ranges
        Where the bytes come from, closed with the slide; None is the file at `path`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        form: Form = "plain",
        workers: int = 1,
        ranges: Ranges | None = None,
    ) -> None:
        self.uri = str(path)
        self.reader = f"tifffile {tifffile.__version__}, imagecodecs {imagecodecs.__version__}"
        self._cache = SegmentCache()
        self._blocks = Blocks()
        self._workers = max(1, workers)
        self._block = BLOCK if ranges is None else REMOTE_BLOCK
        self._ranges: Ranges = FileRanges(Path(path)) if ranges is None else ranges
        # opened here, since a TiffFile that fails in its constructor leaves its file open
        tables = self._ranges if ranges is None else BlockedRanges(ranges)
        self._raw = BufferedReader(RangeFile(tables, self.uri))
        self._pool: ThreadPoolExecutor | None = None
        self._file: tifffile.TiffFile | None = None
        try:
            self._file = tifffile.TiffFile(self._raw)
            found = find_pages(self._file, self.uri, form=form)
            self._levels = tuple(_level(p, local=ranges is None, trust=form != "plain") for p in found.pages)
            self.mpp, origin = tiff_mpp(self._file, found, self.uri)
        except SlideError:
            self.close()
            raise
        except OPEN_ERRORS as error:
            self.close()
            msg = f"{path}: tifffile cannot open it, {error}"
            raise SlideError(msg) from error
        self.size_px = self._levels[0].grid.size_px
        self.downsamples = _downsamples(self._levels)
        more = aperio_properties(found.pages[0].description) if found.is_aperio else {}
        self.properties: Mapping[str, str] = {**tiff_properties(found), **more, "histostore.mpp-origin": origin}

    def read(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read many square tiles at once, each segment decoded once; see `histostore.protocols.Slide.read`.

        A batch is best a run of tiles in the order of rows: what the next row shares is then still in the cache.
        """
        if self._file is None:
            msg = f"{self.uri}: read after close"
            raise UsageError(msg)
        check_level(level, px, self.downsamples)
        at = corners(xy0)
        this = self._levels[level]
        status = padding_status(at, px, this.grid.size_px, self.downsamples[level])
        low = np.rint(at / self.downsamples[level]).astype(np.int64)
        pixels = self._blocks.empty((len(at), px, px, 3))
        if this.mapped is not None:
            for tile, (x, y) in zip(pixels, low.tolist(), strict=True):
                cut(this.mapped, x, y, px, tile)
            return pixels, status
        pixels[((low < 0) | (low + px > np.asarray(this.grid.size_px))).any(axis=1)] = WHITE
        rows = -(-px // this.grid.segment_px[1]) + 2
        self._cache.limit = min(max(MIN_CACHE_BYTES, rows * this.grid.row_bytes), MAX_CACHE_BYTES)
        plan = plan_pieces(this.grid, low, px)
        keep = still_wanted(this.grid, low, np.array(plan.segments, np.int64)).tolist()
        self._run(_Batch(level, this, plan, keep, pixels, status, self._cache, self._ranges))
        if len(at) > 1:
            held = np.array(self._cache.held(level), np.int64)
            self._cache.drop(level, held[~still_wanted(this.grid, low, held)].tolist())
        pixels[status == TileStatus.UNREADABLE] = 0
        return pixels, status

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Return the whole slide with its longest edge at most `max_px`."""
        return overview(self.read, [level.grid.size_px for level in self._levels], self.downsamples, max_px)

    def close(self) -> None:
        """Release the file."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None
        if self._file is not None:
            self._file.close()
        self._file = None
        self._raw.close()
        self._ranges.close()
        self._cache.clear()
        self._blocks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, batch: _Batch) -> None:
        n = len(batch.plan.segments)
        todo = deque(range(start, min(start + self._block, n)) for start in range(0, n, self._block))
        helpers = min(self._workers, len(todo)) - 1
        if helpers > 0 and self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers - 1, thread_name_prefix="histostore-decode")
        started = [self._pool.submit(batch.work, todo) for _ in range(helpers)] if self._pool is not None else []
        try:
            batch.work(todo)
        finally:
            todo.clear()
            for future in started:
                future.result()


@dataclass(frozen=True, slots=True)
class _Batch:
    """The tiles of one call, which threads fill block by block."""

    number: int
    level: _Level
    plan: Plan
    keep: list[bool]
    """Which segments are held in the cache."""
    pixels: NDArray[np.uint8]
    status: NDArray[np.uint8]
    cache: SegmentCache
    ranges: Ranges

    def work(self, todo: deque[range]) -> None:
        """Take blocks of segments until none is left."""
        while True:
            try:
                block = todo.popleft()
            except IndexError:
                return
            missing = []
            for i in block:
                held, image = self.cache.get((self.number, self.plan.segments[i]))
                if held:
                    self._scatter(i, image)
                else:
                    missing.append(i)
            if missing:
                self._decode(missing)

    def _decode(self, places: list[int]) -> None:
        segments = [self.plan.segments[i] for i in places]
        stored = self._stored(*self.level.ranges(segments))
        planes = self.level.planes
        for k, (i, segment) in enumerate(zip(places, segments, strict=True)):
            parts = stored[k * planes : (k + 1) * planes]
            try:
                if None in parts:
                    msg = f"segment {segment} could not be read"
                    raise SlideError(msg)
                image = self.level.decode([p for p in parts if p is not None], segment)
                if image is not None and not self.level.grid.covers(segment, image.shape):
                    msg = f"segment {segment} is {image.shape}, too small"
                    raise SlideError(msg)
            except DECODE_ERRORS:
                for tile, *_ in self.plan.pieces[self.plan.bounds[i] : self.plan.bounds[i + 1]]:
                    self.status[tile] = TileStatus.UNREADABLE
                continue
            self._scatter(i, image)
            if self.keep[i]:
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

    def _scatter(self, i: int, image: Image | None) -> None:
        pixels = self.pixels
        for tile, y0, y1, x0, x1, v0, v1, u0, u1 in self.plan.pieces[self.plan.bounds[i] : self.plan.bounds[i + 1]]:
            pixels[tile, y0:y1, x0:x1] = WHITE if image is None else image[v0:v1, u0:u1]


def _level(page: Any, *, local: bool, trust: bool) -> _Level:
    width, height = page.imagewidth, page.imagelength
    across_px, down_px = (page.tilewidth, page.tilelength) if page.is_tiled else (width, page.rowsperstrip)
    grid = Grid((width, height), (across_px, down_px if page.is_tiled else min(down_px, height)))
    planes = planes_of(page)
    mapped = None
    if local and page.is_memmappable and planes == 1:
        mapped = page.asarray(out="memmap").reshape(height, width, page.samplesperpixel)
    if min(len(page.dataoffsets), len(page.databytecounts)) < grid.count * planes:
        msg = f"a page of {width:,} x {height:,} px has {grid.count * planes:,} segments and does not list them all"
        raise ValueError(msg)
    decode = decoder_of(page, per_plane=grid.count, trust_photometric=trust)
    return _Level(grid, page.dataoffsets, page.databytecounts, planes, decode, mapped)


def _downsamples(levels: tuple[_Level, ...]) -> tuple[float, ...]:
    width, height = levels[0].grid.size_px
    return tuple((width / level.grid.size_px[0] + height / level.grid.size_px[1]) / 2 for level in levels)
