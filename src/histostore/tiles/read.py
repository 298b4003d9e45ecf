"""From a plan to pixels: exact where pixels are native, placed to a hundredth of a pixel where they are resampled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from histostore.errors import UsageError
from histostore.protocols import TileStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from histostore.protocols import Slide
    from histostore.tiles.stain import StainFit
    from histostore.units import ReadPlan

RESAMPLER = "pillow-bilinear"
"""For the record. Pillow widens its triangle filter by the reduction, so nothing aliases; it has no negative lobes, so
nuclei get no halos (bicubic and Lanczos give some), and unlike a box filter it shifts smoothly with sub-pixel position.
"""

BLANK_DEVIATION = 6.0
"""A tile is blank when no channel deviates more (standard deviation, of 255)."""

_READ_BYTES = 64 << 20
"""Regions to reduce are read this many bytes at a time, whatever the batch."""

_PROBED_ROWS = 16
"""Every how many rows of a tile are looked at first."""

_RUN = 16
"""Tiles that a thread takes on at once."""

_TOUCH = 1e-6
"""Level-0 pixels by which a computed edge may pass the border and still lie on it."""


@runtime_checkable
class Foreseeing(Protocol):
    """A slide that reads faster when it knows what comes next."""

    def expect(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> None:
        """Tell what will be read after the next call of `read`, in batches of the size of that one."""
        ...


def read_tiles(
    slide: Slide,
    read: ReadPlan,
    xy0: NDArray[np.float64],
    *,
    then: NDArray[np.float64] | None = None,
    stain: StainFit | None = None,
    pool: Executor | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read tiles as the plan says.

    Parameters
    ----------
    slide
        Open; used from this thread only.
    read
        Level, size and resampling: `TilePlan.read`.
    xy0
        ``(n, 2)`` top-left corners, (x, y), in level-0 pixels: `TilePlan.xy0`.
    then
        ``(m, 2)`` corners that will be read after these, in batches of `n`; the pixels do not depend on it.
    stain
        Normalise the stain of tiles that show something.
    pool
        Threads for what is done with pixels once they are read (resampling, blank tiles, stain). The slide's own
        threads, which decode, are its reader's. The bytes do not depend on either.

    Returns
    -------
    pixels
        ``(n, out_px, out_px, 3)`` uint8 RGB, owned by the caller.
    status
        ``(n,)`` uint8 `TileStatus`. Only tiles that were read well and lie wholly inside become BLANK; one that
        sticks out stays PADDED, even where all of it is glass, and UNREADABLE ones stay zero.

    Raises
    ------
    UsageError
        Tiles that are not resampled begin at a fraction of a pixel.

    Notes
    -----
    Every tile is made from its own region alone, so the bytes do not depend on the batch. The region of a resampled
    tile has a margin of a few pixels that the filter sees; where that is unreadable the tile is too.
    """
    xy0 = np.asarray(xy0, dtype=np.float64).reshape(-1, 2)
    then = np.asarray(() if then is None else then, dtype=np.float64).reshape(-1, 2)
    if read.resample:
        pixels, status = _read_resampled(slide, read, xy0, then, pool)
    else:
        pixels, status = _read_native(slide, read, xy0, then)

    def finish(i: int) -> None:
        if status[i] == TileStatus.OK and is_blank(pixels[i]):
            status[i] = TileStatus.BLANK
        if stain is not None and status[i] in (TileStatus.OK, TileStatus.PADDED):
            pixels[i] = stain.apply(pixels[i])

    _each(pool, len(pixels), finish)
    return pixels, status


def _each(pool: Executor | None, n: int, do: Callable[[int], None]) -> None:
    """Call `do` with 0 … n - 1, in a pool by runs."""

    def run(some: range) -> None:
        for i in some:
            do(i)

    if pool is None:
        run(range(n))
        return
    for future in [pool.submit(run, range(start, min(start + _RUN, n))) for start in range(0, n, _RUN)]:
        future.result()


def is_blank(tile: NDArray[np.uint8]) -> bool:
    """Say if a ``(px, px, 3)`` uint8 tile has no structure: no channel deviates by more than `BLANK_DEVIATION`.

    The sums are whole numbers below 2**53, so the answer is the same on every machine.
    """
    n = tile.shape[0] * tile.shape[1]
    # a part's deviations from its own mean never exceed those of the whole: a few rows settle most tiles
    return not _deviates(tile[::_PROBED_ROWS], n) and not _deviates(tile, n)


def _deviates(part: NDArray[np.uint8], n: int) -> bool:
    """Say if a channel deviates, within a part of a tile of `n` pixels, by more than a blank tile may in all."""
    flat = part.reshape(-1, 3)
    for channel in range(3):
        value = flat[:, channel].astype(np.float64)
        total = float(value.sum())
        if len(value) * float(value @ value) - total * total > BLANK_DEVIATION**2 * n * len(value):
            return True
    return False


def _read_native(
    slide: Slide, read: ReadPlan, xy0: NDArray[np.float64], then: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    corner = np.floor(xy0).astype(np.int64)
    if (corner != xy0).any():
        msg = "native tiles begin at whole level-0 pixels, got fractions; take corners from plan_tiles"
        raise UsageError(msg)
    if len(then) and isinstance(slide, Foreseeing):
        slide.expect(np.floor(then).astype(np.int64), px=read.out_px, level=read.level)
    return slide.read(corner, px=read.out_px, level=read.level)


def _read_resampled(
    slide: Slide, read: ReadPlan, xy0: NDArray[np.float64], then: NDArray[np.float64], pool: Executor | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    # the filter looks this far beyond the tile, so neighbours join without a seam
    margin = math.ceil(max(1.0, read.read_px / read.out_px)) + 1
    region_px = math.ceil(read.read_px) + 1 + 2 * margin
    level_xy = xy0 / read.downsample
    first = np.floor(level_xy).astype(np.int64) - margin
    corner = _region_corners(first, read)
    at = level_xy - first
    sticks_out = ((xy0 < -_TOUCH) | (xy0 + read.edge0 > np.asarray(slide.size_px) + _TOUCH)).any(axis=1)

    pixels = np.zeros((len(xy0), read.out_px, read.out_px, 3), dtype=np.uint8)
    status = np.zeros(len(xy0), dtype=np.uint8)
    at_once = max(1, _READ_BYTES // (region_px * region_px * 3))
    if len(then) and len(xy0) <= at_once and isinstance(slide, Foreseeing):
        later = np.floor(then / read.downsample).astype(np.int64) - margin
        slide.expect(_region_corners(later, read), px=region_px, level=read.level)
    for start in range(0, len(xy0), at_once):
        regions, got = slide.read(corner[start : start + at_once], px=region_px, level=read.level)
        status[start : start + at_once] = got

        def reduce(
            k: int,
            start: int = start,
            regions: NDArray[np.uint8] = regions,
        ) -> None:
            i = start + k
            if status[i] == TileStatus.UNREADABLE:
                return
            # the region has a margin, so its own status says nothing of the tile
            status[i] = TileStatus.PADDED if sticks_out[i] else TileStatus.OK
            low, high = (0, 0), (region_px, region_px)
            if not sticks_out[i]:
                low, high = _image_part(slide, read, first[i], region_px)
            pixels[i] = _reduce(regions[k, low[1] : high[1], low[0] : high[0]], at[i] - low, read)

        _each(pool, len(regions), reduce)
    return pixels, status


def _region_corners(first: NDArray[np.int64], read: ReadPlan) -> NDArray[np.int64]:
    corner: NDArray[np.int64] = np.floor(first * read.downsample + 0.5).astype(np.int64)
    return corner


def _image_part(
    slide: Slide, read: ReadPlan, first: NDArray[np.int64], region_px: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    # a tile that lies inside must not take white from the margin beyond the border
    size = np.floor(np.asarray(slide.size_px) / read.downsample + 0.5).astype(np.int64)
    low, high = np.maximum(0, -first), np.minimum(region_px, size - first)
    return (int(low[0]), int(low[1])), (int(high[0]), int(high[1]))


def _reduce(region: NDArray[np.uint8], at: NDArray[np.float64], read: ReadPlan) -> NDArray[np.uint8]:
    height, width = region.shape[:2]
    x0, y0 = float(at[0]), float(at[1])
    # a level may be a fraction of a pixel smaller than level 0 says
    box = (x0, y0, min(x0 + read.read_px, width), min(y0 + read.read_px, height))
    picture = Image.fromarray(np.ascontiguousarray(region))
    return np.asarray(picture.resize((read.out_px, read.out_px), Image.Resampling.BILINEAR, box=box))
