"""JPEG and PNG images: decoded once, whole, then sliced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import imagecodecs
import numpy as np

from histostore.errors import SlideError, UsageError
from histostore.slides.check import MAX_WHOLE_PIXELS, check_pixels
from histostore.slides.flat_header import FlatHeader, is_png, read_jpeg_header, read_png_header
from histostore.slides.overview import overview
from histostore.slides.pixels import check_level, corners, cut, padding_status, to_rgb

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

CMYK_CHANNELS = 4
JPEG_BITS = 8


class FlatSlide:
    """A JPEG or PNG as a `Slide` of one level. Threads may read it together.

    Pixels are as stored: an EXIF orientation is told in ``properties["exif.Orientation"]`` and not applied, since
    spot coordinates are in the frame of the stored pixels. Densities (JFIF, pHYs) are those of a screen or a
    printer, so `mpp` is None.
    """

    def __init__(self, path: Path, *, max_pixels: int | None = None) -> None:
        self.uri = str(path)
        self.reader = f"imagecodecs {imagecodecs.__version__}"
        self.mpp: float | None = None
        self.downsamples: tuple[float, ...] = (1.0,)
        image, header, form = _decode(path, MAX_WHOLE_PIXELS if max_pixels is None else max_pixels)
        self._image: NDArray[np.uint8] | None = image
        self.size_px = header.size_px
        self.properties: Mapping[str, str] = {
            "histostore.format": form,
            "histostore.mpp-origin": f"none: a {form} file does not say",
            "histostore.channels": str(header.channels),
            "histostore.bits": str(header.bits),
            **({"exif.Orientation": str(header.orientation)} if header.orientation != 1 else {}),
        }

    def read(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read many square tiles at once; see `histostore.protocols.Slide.read`."""
        if self._image is None:
            msg = f"{self.uri}: read after close"
            raise UsageError(msg)
        check_level(level, px, self.downsamples)
        at = corners(xy0)
        pixels = np.empty((len(at), px, px, 3), np.uint8)
        for tile, (x, y) in zip(pixels, at.tolist(), strict=True):
            cut(self._image, x, y, px, tile)
        return pixels, padding_status(at, px, self.size_px)

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Return the whole image with its longest edge at most `max_px`."""
        return overview(self.read, (self.size_px,), self.downsamples, max_px)

    def close(self) -> None:
        """Release the pixels."""
        self._image = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _decode(path: Path, max_pixels: int) -> tuple[NDArray[np.uint8], FlatHeader, str]:
    data = path.read_bytes()
    png = is_png(data)
    form = "PNG" if png else "JPEG"
    header = read_png_header(data, path) if png else read_jpeg_header(data, path)
    check_pixels(path, header.size_px, max_pixels, form)
    if not png and header.channels == CMYK_CHANNELS:
        msg = f"{path}: a CMYK JPEG; save it as RGB first (CMYK has no one meaning in RGB without its profile)"
        raise SlideError(msg)
    if not png and header.bits != JPEG_BITS:
        msg = f"{path}: a JPEG of {header.bits} bits per channel, only {JPEG_BITS} is read"
        raise SlideError(msg)
    try:
        image = imagecodecs.png_decode(data) if png else imagecodecs.jpeg_decode(data)
    except (RuntimeError, ValueError) as error:
        msg = f"{path}: damaged {form}, {error}"
        raise SlideError(msg) from error
    # 8-bit grey stays one channel and becomes RGB tile by tile
    grey = image.ndim == 2 and image.dtype == np.uint8
    return np.asarray(image[..., None], np.uint8) if grey else to_rgb(image), header, form
