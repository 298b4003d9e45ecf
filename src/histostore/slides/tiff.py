"""TIFF and SVS by segment: a batch of tiles is planned, every segment read and decoded once, and scattered.

Memory: the tiles asked for, those begun for later calls (`MAX_BEGUN_BYTES` at most), a cache of decoded segments
(`MAX_CACHE_BYTES` at most), and per thread one segment and `BLOCK` stored ones.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
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
from histostore.slides.fill import Fill, Level, Tiles
from histostore.slides.overview import overview
from histostore.slides.pixels import WHITE, check_level, corners, cut, padding_status
from histostore.slides.ranges import BlockedRanges, FileRanges, RangeFile
from histostore.slides.segments import Grid, SegmentCache, plan_pieces, still_wanted
from histostore.slides.tiff_tables import aperio_properties, find_pages, tiff_mpp, tiff_properties

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.slides.ranges import Ranges
    from histostore.slides.tiff_tables import Form

MIN_CACHE_BYTES, MAX_CACHE_BYTES = 16 << 20, 256 << 20
"""Bounds of the cache. Between them it holds the rows of segments that tiles read row by row come back to."""

MAX_BEGUN_BYTES = 128 << 20
"""Most pixels of tiles that are begun before they are asked for."""

BLOCK, REMOTE_BLOCK = 8, 64
"""Segments that a thread takes on at once: few, so that all threads end together; more where a request costs."""

OPEN_ERRORS = (tifffile.TiffFileError, ArithmeticError, AttributeError, OSError, *DECODE_ERRORS)
"""What tifffile raises on tables that make no sense (found by mutating headers)."""


type _Expected = tuple[int, int, NDArray[np.int64]]
"""Level, edge and corners."""


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
        self._begun: list[Tiles] = []
        self._expected: _Expected | None = None
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

    def expect(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> None:
        """Tell what will be read after the next call of `read`, in batches of the size of that one.

        The next call then begins the tiles that share segments with its own, and no segment has to be held or decoded
        again for them. They are dropped when something else is read; pixels and status never depend on it.

        Parameters
        ----------
        xy0
            ``(n, 2)`` corners in level-0 pixels, as for `read`; at most `MAX_BEGUN_BYTES` of tiles are begun.
        px, level
            As for `read`.
        """
        check_level(level, px, self.downsamples)
        self._expected = (level, px, corners(xy0))

    def read(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read many square tiles at once, each segment decoded once; see `histostore.protocols.Slide.read`.

        A batch is best a run of tiles in the order of rows: what the next row shares is then still in the cache, or
        begun where it was told by `expect`.
        """
        if self._file is None:
            msg = f"{self.uri}: read after close"
            raise UsageError(msg)
        check_level(level, px, self.downsamples)
        at = corners(xy0)
        this = self._levels[level]
        (begun, self._begun), (expected, self._expected) = (self._begun, []), (self._expected, None)
        if this.mapped is not None:
            pixels = self._blocks.empty((len(at), px, px, 3))
            low = np.rint(at / self.downsamples[level]).astype(np.int64)
            for tile, (x, y) in zip(pixels, low.tolist(), strict=True):
                cut(this.mapped, x, y, px, tile)
            return pixels, padding_status(at, px, this.grid.size_px, self.downsamples[level])
        tiles = self._tiles(level, at, px, begun)
        later = self._later(tiles, expected, begun)
        rows = -(-px // this.grid.segment_px[1]) + 2
        self._cache.limit = min(max(MIN_CACHE_BYTES, rows * this.grid.row_bytes), MAX_CACHE_BYTES)
        known = np.concatenate([tiles.low, *(t.low for t in later)])
        segments = np.fromiter(tiles.pieces, np.int64, len(tiles.pieces))
        keep = segments[still_wanted(this.grid, known, segments)].tolist()
        self._run(Fill(this, level, [tiles, *later], frozenset(keep), self._cache, self._ranges, this.buffers))
        self._begun = later
        if len(at) > 1:
            held = np.array(self._cache.held(level), np.int64)
            self._cache.drop(level, held[~still_wanted(this.grid, tiles.low, held)].tolist())
        tiles.pixels[tiles.status == TileStatus.UNREADABLE] = 0
        return tiles.pixels, tiles.status

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Return the whole slide with its longest edge at most `max_px`."""
        found = overview(self.read, [level.grid.size_px for level in self._levels], self.downsamples, max_px)
        self._blocks.clear()  # squares of an overview are larger than batches of tiles
        self._cache.clear()
        return found

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
        self._begun = []
        self._cache.clear()
        self._blocks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _tiles(self, level: int, at: NDArray[np.int64], px: int, begun: list[Tiles]) -> Tiles:
        """Return tiles as far as they are there, taking them from those that were begun."""
        for i, tiles in enumerate(begun):
            if tiles.are(level, at, px):
                return begun.pop(i)
        grid, downsample = self._levels[level].grid, self.downsamples[level]
        low = np.rint(at / downsample).astype(np.int64)
        pixels = self._blocks.empty((len(at), px, px, 3))
        pixels[((low < 0) | (low + px > np.asarray(grid.size_px))).any(axis=1)] = WHITE
        status = padding_status(at, px, grid.size_px, downsample)
        return Tiles(level, at, low, pixels, status, plan_pieces(grid, low, px))

    def _later(self, tiles: Tiles, expected: _Expected | None, begun: list[Tiles]) -> list[Tiles]:
        """Return the expected batches that tiles may share segments with."""
        later: list[Tiles] = []
        n, known, left = len(tiles.low), tiles.low, MAX_BEGUN_BYTES
        if expected is None or n == 0 or expected[0] != tiles.level:
            return later
        level, px, at = expected
        grid, segments = self._levels[level].grid, np.fromiter(tiles.pieces, np.int64, len(tiles.pieces))
        for start in range(0, len(at), n):
            part = at[start : start + n]
            left -= len(part) * px * px * 3
            shares = (np.diff(known[:, 1]) >= 0).all() and still_wanted(grid, known, segments).any()
            # what a call before this one began is kept, though this one may add nothing to it
            if not (left >= 0 and shares) and not any(t.are(level, part, px) for t in begun):
                break
            later.append(self._tiles(level, part, px, begun))
            known = np.concatenate([known, later[-1].low])
        return later

    def _run(self, fill: Fill) -> None:
        segments = list(fill.tiles[0].pieces)
        todo = deque(segments[i : i + self._block] for i in range(0, len(segments), self._block))
        helpers = min(self._workers, len(todo)) - 1
        if helpers > 0 and self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers - 1, thread_name_prefix="histostore-decode")
        started = [self._pool.submit(fill.work, todo) for _ in range(helpers)] if self._pool is not None else []
        try:
            fill.work(todo)
        finally:
            todo.clear()
            for future in started:
                future.result()


def _level(page: Any, *, local: bool, trust: bool) -> Level:
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
    return Level(grid, page.dataoffsets, page.databytecounts, planes, decode, mapped, [])


def _downsamples(levels: tuple[Level, ...]) -> tuple[float, ...]:
    width, height = levels[0].grid.size_px
    return tuple((width / level.grid.size_px[0] + height / level.grid.size_px[1]) / 2 for level in levels)
