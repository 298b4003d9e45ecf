"""Which reader opens a file: decided by its bytes, after its claims were checked."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

import tifffile

from histostore.errors import SlideError
from histostore.slides.check import check_tiff, kind_of
from histostore.slides.flat import FlatSlide
from histostore.slides.folder import FolderSlide
from histostore.slides.ranges import BlockedRanges, RangeFile
from histostore.slides.remote import is_remote, open_remote
from histostore.slides.tiff import OPEN_ERRORS, TiffSlide
from histostore.slides.tiff_header import BITS, COMPRESSION, PHOTOMETRIC, PLANAR, SAMPLES, is_tiff
from histostore.slides.wsi import OpenSlideSlide, vendor_of

if TYPE_CHECKING:
    from histostore.protocols import Slide
    from histostore.slides.ranges import Ranges
    from histostore.slides.tiff_header import Directory, TiffHeader
    from histostore.slides.tiff_tables import Form

GENERIC, APERIO = "generic-tiff", "aperio"
OME = "<OME"
RGB, YCBCR = 2, 6
JPEG = 7
SEGMENT_CODECS = frozenset({1, 5, 8, 32946})
"""Uncompressed, LZW, deflate."""
APERIO_JPEG_2000_RGB = 33005
"""Its sibling 33003 keeps its colours as YCbCr at half width, which imagecodecs does not put together."""
NOT_BY_RANGES = ("ndpi", "scn", "bif", "philips")
"""Scanner formats that tifffile tells, and whose levels are not what a plain TIFF's are."""


def open_checked(path: str | Path, *, max_pixels: int | None = None, workers: int = 1) -> Slide:
    """Open a slide; see `histostore.slides.open_slide`."""
    if is_remote(path):
        ranges = open_remote(str(path))
        try:
            return open_ranges(str(path), ranges, max_pixels=max_pixels, workers=workers)
        except BaseException:
            ranges.close()
            raise
    path = Path(path)
    if path.is_dir():
        return FolderSlide(path, open_checked)
    kind = kind_of(path)
    if kind in ("jpeg", "png"):
        return FlatSlide(path, max_pixels=max_pixels)
    header = check_tiff(path, max_pixels=max_pixels) if kind == "tiff" else None
    vendor = vendor_of(path)
    if header is not None:
        if vendor is None or (vendor == GENERIC and not _is_8_bit_rgb(header)):
            return TiffSlide(path, workers=workers)
        if vendor == GENERIC and all(_is_decoded_here(d) for d in header.directories):
            return TiffSlide(path, form="openslide", workers=workers)
        if vendor == APERIO and _is_aperio_decoded_here(header):
            return TiffSlide(path, form="aperio", workers=workers)
    if vendor is None:
        with path.open("rb") as file:
            first = file.read(16)
        msg = f"{path}: not a slide, it begins with {first!r}; give SVS, NDPI, MRXS, TIFF, JPEG, PNG, …"
        raise SlideError(msg)
    return OpenSlideSlide(path, workers=workers)


def open_ranges(uri: str, ranges: Ranges, *, max_pixels: int | None = None, workers: int = 1) -> TiffSlide:
    """Open a TIFF or SVS whose bytes are read by range.

    Parameters
    ----------
    uri
        Its name, for messages and records.
    ranges
        Its bytes; closed with the slide, and left open where this raises.
    max_pixels, workers
        See `histostore.slides.open_slide`.

    Raises
    ------
    SlideError
        No TIFF, or one whose format only openslide reads, and that from a file.
    """
    tables = BlockedRanges(ranges)
    (first,) = tables.read_ranges([0], [16])
    if not is_tiff(first):
        msg = f"{uri}: only TIFF and SVS are read by range, it begins with {first!r}; download it and give its path"
        raise SlideError(msg)
    header = check_tiff(uri, max_pixels=max_pixels, ranges=tables)
    aperio = header.directories[0].description.startswith("Aperio")
    what = "aperio" if aperio and not _is_aperio_decoded_here(header) else None if aperio else _scanner(tables, uri)
    if what is not None:
        msg = f"{uri}: this kind of file ({what}) is not read by range; download it and give its path"
        raise SlideError(msg)
    plain = not all(_is_decoded_here(d) for d in header.directories) or OME in header.directories[0].description
    form: Form = "aperio" if aperio else "plain" if plain else "openslide"
    return TiffSlide(uri, form=form, workers=workers, ranges=ranges)


def _scanner(tables: Ranges, uri: str) -> str | None:
    try:
        with tifffile.TiffFile(BufferedReader(RangeFile(tables, uri))) as file:
            return next((name for name in NOT_BY_RANGES if getattr(file, f"is_{name}")), None)
    except OPEN_ERRORS as error:
        msg = f"{uri}: tifffile cannot open it, {error}"
        raise SlideError(msg) from error


def _is_8_bit_rgb(header: TiffHeader) -> bool:
    """Tell whether openslide would read a nameless tiled TIFF for what it is.

    Of OME-TIFF it knows neither the resolution nor the levels (they are sub-directories), and other pixels than
    8-bit RGB it turns into something.
    """
    first = header.directories[0]
    return _is_rgb(first) and OME not in first.description


def _is_rgb(directory: Directory) -> bool:
    colour = directory.get(PHOTOMETRIC, RGB) in (RGB, YCBCR)
    return colour and directory.get(SAMPLES, 1) == 3 and directory.get(BITS, 1) == 8


def _is_decoded_here(directory: Directory) -> bool:
    """Tell whether the segments of a page become the pixels that openslide makes of them."""
    compression, ycbcr = directory.get(COMPRESSION, 1), directory.get(PHOTOMETRIC, RGB) == YCBCR
    codec = compression == JPEG or (compression in SEGMENT_CODECS and not ycbcr)
    return codec and _is_rgb(directory) and directory.is_tiled and directory.get(PLANAR, 1) == 1


def _is_aperio_decoded_here(header: TiffHeader) -> bool:
    levels = sorted((d for d in header.directories if d.is_tiled), key=lambda d: -d.size_px[0])
    for i, level in enumerate(levels):
        jpeg_2000 = level.get(COMPRESSION, 1) == APERIO_JPEG_2000_RGB and level.get(PHOTOMETRIC, RGB) == RGB
        if not _is_decoded_here(level) and not (jpeg_2000 and _is_rgb(level)):
            return False
        _, counts = level.segments
        if i and counts is not None and not counts.all():
            # openslide fills what a level lacks from the level before it
            return False
    return bool(levels)
