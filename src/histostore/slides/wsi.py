"""Scanner formats through openslide: SVS, NDPI, MRXS, SCN, tiled TIFF, and whatever else it opens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
import openslide

from histostore.errors import SlideError, UsageError
from histostore.protocols import TileStatus
from histostore.slides.overview import overview
from histostore.slides.pixels import check_level, corners, over_white, padding_status
from histostore.slides.resolution import settle_mpp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image


def vendor_of(path: Path) -> str | None:
    """Return what openslide takes the file for, None where it does not know it."""
    vendor: str | None = openslide.OpenSlide.detect_format(str(path))
    return vendor


class OpenSlideSlide:
    """A scanner's file as a `Slide`; used from one thread at a time.

    With several `workers` each reads a run of the tiles with a handle of its own. Coordinates are openslide's: (0, 0)
    is the corner of level 0, also where the scan's bounds (see ``properties["openslide.bounds-x"]``) begin later. What
    was not scanned is white.
    """

    def __init__(self, path: Path, *, workers: int = 1) -> None:
        self.uri = str(path)
        self.reader = f"openslide {openslide.__library_version__}"
        handle = _open(self.uri)
        self._handles: list[openslide.OpenSlide | None] = [handle]
        self._workers = max(1, workers)
        self._pool: ThreadPoolExecutor | None = None
        self.size_px: tuple[int, int] = handle.dimensions
        self._level_sizes: tuple[tuple[int, int], ...] = handle.level_dimensions
        self.downsamples = (1.0, *(float(d) for d in handle.level_downsamples[1:]))
        properties = dict(handle.properties)
        self.mpp, origin = _mpp(properties, self.uri)
        self.properties: Mapping[str, str] = {**properties, "histostore.mpp-origin": origin}

    def read(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read many square tiles at once; see `histostore.protocols.Slide.read`."""
        if not self._handles:
            msg = f"{self.uri}: read after close"
            raise UsageError(msg)
        check_level(level, px, self.downsamples)
        at = corners(xy0)
        pixels = np.empty((len(at), px, px, 3), np.uint8)
        status = padding_status(at, px, self._level_sizes[level], self.downsamples[level])
        parts = min(self._workers, max(1, len(at)))
        if parts > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="histostore-openslide")
            self._handles += [None] * (self._workers - 1)
        if self._pool is None:
            self._fill(0, at, px, level, pixels, status)
            return pixels, status
        cuts = np.linspace(0, len(at), parts + 1).astype(int).tolist()
        runs = [(i, slice(a, b)) for i, (a, b) in enumerate(pairwise(cuts))]
        waiting = [self._pool.submit(self._fill, i, at[s], px, level, pixels[s], status[s]) for i, s in runs]
        for future in waiting:
            future.result()
        return pixels, status

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Return the whole slide with its longest edge at most `max_px`."""
        return overview(self.read, self._level_sizes, self.downsamples, max_px)

    def close(self) -> None:
        """Release the file."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None
        for handle in self._handles:
            if handle is not None:
                handle.close()
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _fill(
        self,
        worker: int,
        at: NDArray[np.int64],
        px: int,
        level: int,
        pixels: NDArray[np.uint8],
        status: NDArray[np.uint8],
    ) -> None:
        """Read tiles with a worker's own handle."""
        for i, (x, y) in enumerate(at.tolist()):
            handle = self._handles[worker] or _open(self.uri)
            self._handles[worker] = handle
            try:
                region = handle.read_region((x, y), level, (px, px))
            except openslide.OpenSlideError:
                pixels[i], status[i] = 0, TileStatus.UNREADABLE
                # a handle answers nothing but its first error ever after
                handle.close()
                self._handles[worker] = None
            else:
                pixels[i] = _rgb(region)


def _rgb(region: Image.Image) -> NDArray[np.uint8]:
    """Return a region over white; where all of it is opaque, Pillow drops alpha four times as fast as numpy."""
    if region.getchannel("A").getextrema() == (255, 255):
        return np.asarray(region.convert("RGB"))
    return over_white(np.asarray(region))


def _open(path: str) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        msg = f"{path}: openslide cannot open it, {error}"
        raise SlideError(msg) from error


def _mpp(properties: Mapping[str, str], uri: str) -> tuple[float | None, str]:
    x, y = properties.get(openslide.PROPERTY_NAME_MPP_X), properties.get(openslide.PROPERTY_NAME_MPP_Y)
    if x is None or y is None:
        return None, "none: the file does not say"
    try:
        return settle_mpp(float(x), float(y), "openslide.mpp-x/y", uri)
    except ValueError as error:
        if isinstance(error, SlideError):
            raise
        return None, f"none: openslide.mpp-x/y says {x!r}, {y!r}"
