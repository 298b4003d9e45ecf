"""Which reader opens a file: decided by its bytes, after its claims were checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import SlideError
from histostore.slides.check import check_tiff, kind_of
from histostore.slides.flat import FlatSlide
from histostore.slides.tiff import TiffSlide
from histostore.slides.tiff_header import BITS, PHOTOMETRIC, SAMPLES, TiffHeader
from histostore.slides.wsi import OpenSlideSlide, vendor_of

if TYPE_CHECKING:
    from histostore.protocols import Slide

GENERIC = "generic-tiff"
OME = "<OME"
RGB, YCBCR = 2, 6


def open_checked(path: str | Path, *, max_pixels: int | None = None) -> Slide:
    """Open a slide; see `histostore.slides.open_slide`."""
    path = Path(path)
    kind = kind_of(path)
    if kind in ("jpeg", "png"):
        return FlatSlide(path, max_pixels=max_pixels)
    header = check_tiff(path, max_pixels=max_pixels) if kind == "tiff" else None
    vendor = vendor_of(path)
    if header is not None and (vendor is None or (vendor == GENERIC and not _suits_openslide(header))):
        return TiffSlide(path, max_pixels=max_pixels)
    if vendor is None:
        with path.open("rb") as file:
            first = file.read(16)
        msg = f"{path}: not a slide, it begins with {first!r}; give SVS, NDPI, MRXS, TIFF, JPEG, PNG, …"
        raise SlideError(msg)
    return OpenSlideSlide(path)


def _suits_openslide(header: TiffHeader) -> bool:
    """Tell whether openslide would read a nameless tiled TIFF for what it is.

    Of OME-TIFF it knows neither the resolution nor the levels (they are sub-directories), and other pixels than
    8-bit RGB it turns into something.
    """
    first = header.directories[0]
    rgb = first.get(PHOTOMETRIC, RGB) in (RGB, YCBCR) and first.get(SAMPLES, 1) == 3 and first.get(BITS, 1) == 8
    return rgb and OME not in first.description
