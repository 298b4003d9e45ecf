"""Scanner formats through openslide: SVS, NDPI, MRXS, SCN, tiled TIFF, and whatever else it opens."""

from __future__ import annotations

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
    """A scanner's file as a `Slide`; one per reading thread.

    Coordinates are openslide's: (0, 0) is the corner of level 0, also where the scan's bounds (see
    ``properties["openslide.bounds-x"]``) begin later. What was not scanned is white.
    """

    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        self.reader = f"openslide {openslide.__library_version__}"
        self._handle: openslide.OpenSlide | None = _open(self.uri)
        self.size_px: tuple[int, int] = self._handle.dimensions
        self._level_sizes: tuple[tuple[int, int], ...] = self._handle.level_dimensions
        self.downsamples = (1.0, *(float(d) for d in self._handle.level_downsamples[1:]))
        properties = dict(self._handle.properties)
        self.mpp, origin = _mpp(properties, self.uri)
        self.properties: Mapping[str, str] = {**properties, "histostore.mpp-origin": origin}

    def read(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read many square tiles at once; see `histostore.protocols.Slide.read`."""
        check_level(level, px, self.downsamples)
        at = corners(xy0)
        pixels = np.empty((len(at), px, px, 3), np.uint8)
        status = padding_status(at, px, self._level_sizes[level], self.downsamples[level])
        for i, (x, y) in enumerate(at.tolist()):
            try:
                region = self._live().read_region((x, y), level, (px, px))
            except openslide.OpenSlideError:
                pixels[i], status[i] = 0, TileStatus.UNREADABLE
                self._reopen()
            else:
                pixels[i] = _rgb(region)
        return pixels, status

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Return the whole slide with its longest edge at most `max_px`."""
        return overview(self.read, self._level_sizes, self.downsamples, max_px)

    def close(self) -> None:
        """Release the file."""
        if self._handle is not None:
            self._handle.close()
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _live(self) -> openslide.OpenSlide:
        if self._handle is None:
            msg = f"{self.uri}: read after close"
            raise UsageError(msg)
        return self._handle

    def _reopen(self) -> None:
        # an openslide handle answers nothing but its first error ever after
        self.close()
        self._handle = _open(self.uri)


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
