"""May a native decoder be let near this file? One clear line where not.

Every limit is on what a file *claims*, read from its own tables by `histostore.slides.tiff_header` and
`histostore.slides.flat_header`; no pixel is decoded here.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

import numpy as np

from histostore.errors import SlideError
from histostore.slides.flat_header import is_jpeg, is_png
from histostore.slides.tiff_header import (
    BITS,
    COMPRESSION,
    PLANAR,
    SAMPLES,
    Directory,
    TiffHeader,
    is_tiff,
    read_tiff_header,
)

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.slides.ranges import Ranges

type Kind = Literal["jpeg", "png", "tiff", "other"]

MAX_PIXELS = 2**36
"""Level 0 of a slide read by segment: 262,144 x 262,144; the largest scans are a quarter of it."""

MAX_WHOLE_PIXELS = 2**28
"""What is decoded whole: 16,384 x 16,384, 0.8 GB as RGB."""

MAX_TILE_EDGE = 65_536
MAX_TILE_PIXELS = 2**26
"""One tile of a tiled TIFF: 8,192 x 8,192, 0.2 GB as RGB."""

MAX_PIXELS_PER_BYTE = 2048
"""JPEG spends two bits on 64 pixels at least, deflate a byte on 1032; codecs without such a floor are left out."""

FLOORED_COMPRESSIONS = frozenset({1, 5, 6, 7, 8, 32946})
SEPARATE_PLANES = 2
UNCOMPRESSED = 1


def kind_of(path: Path) -> Kind:
    """Tell a file's kind by its first bytes, never by its name.

    Raises
    ------
    SlideError
        There is no such file, it is a folder, it is empty, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            first = file.read(16)
    except FileNotFoundError:
        msg = f"{path}: no such file"
        raise SlideError(msg) from None
    except OSError as error:
        what = "a folder, not a slide file" if path.is_dir() else f"cannot be read ({error.strerror})"
        msg = f"{path}: {what}"
        raise SlideError(msg) from None
    if not first:
        msg = f"{path}: not a slide, the file is empty (0 bytes)"
        raise SlideError(msg)
    if is_jpeg(first):
        return "jpeg"
    if is_png(first):
        return "png"
    return "tiff" if is_tiff(first) else "other"


def check_pixels(path: Path | str, size_px: tuple[int, int], limit: int, what: str = "image") -> None:
    """Raise `SlideError` for an empty image and for one of more pixels than `limit`."""
    width, height = size_px
    if width <= 0 or height <= 0:
        msg = f"{path}: {what} is {width} x {height} px, an empty image"
        raise SlideError(msg)
    if width * height > limit:
        msg = (
            f"{path}: {what} claims {width:,} x {height:,} = {width * height:,} pixels, the limit is {limit:,}; "
            f"raise max_pixels if that is right"
        )
        raise SlideError(msg)


def check_tiff(path: Path | str, *, max_pixels: int | None = None, ranges: Ranges | None = None) -> TiffHeader:
    """Read the header of a TIFF (of `ranges`, where they are given) and hold its claims against the file.

    Raises
    ------
    SlideError
        Truncated, looped, empty, larger than the limit, tiles of an impossible size, segment tables that do not
        cover the image, or segments outside the file.
    """
    header = read_tiff_header(path, ranges)
    for i, directory in enumerate(header.directories):
        what = f"directory {i}"
        check_pixels(path, directory.size_px, MAX_PIXELS if max_pixels is None else max_pixels, what)
        if header.is_ndpi and not directory.is_tiled:
            # one huge strip with restart markers, which openslide reads by parts; its sizes obey other rules
            continue
        _check_segment_size(path, directory, what, max_pixels)
        _check_segment_table(path, directory, what, header.file_bytes)
    return header


def _check_segment_size(path: Path | str, directory: Directory, what: str, max_pixels: int | None) -> None:
    width, height = directory.segment_px
    if directory.is_tiled:
        if not (0 < width <= MAX_TILE_EDGE and 0 < height <= MAX_TILE_EDGE and width * height <= MAX_TILE_PIXELS):
            msg = (
                f"{path}: {what}, tile size is {width:,} x {height:,}, outside 1-{MAX_TILE_EDGE:,} or above "
                f"{MAX_TILE_PIXELS:,} pixels"
            )
            raise SlideError(msg)
    elif height <= 0:
        msg = f"{path}: {what}, rows per strip is {height}, not positive"
        raise SlideError(msg)
    elif directory.get(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED:
        limit = MAX_WHOLE_PIXELS if max_pixels is None else max_pixels
        check_pixels(path, (width, height), limit, f"{what}, one compressed strip")


def _check_segment_table(path: Path | str, directory: Directory, what: str, file_bytes: int) -> None:
    offsets, counts = directory.segments
    name = "tile" if directory.is_tiled else "strip"
    if offsets is None:
        msg = f"{path}: {what} has no {name} offsets"
        raise SlideError(msg)
    (width, height), (across, down) = directory.size_px, directory.segment_px
    wanted = ceil(width / across) * ceil(height / down)
    if directory.get(PLANAR, 1) == SEPARATE_PLANES:
        wanted *= directory.get(SAMPLES, 1)
    if len(offsets) < wanted or (counts is not None and len(counts) < wanted):
        got = len(offsets) if counts is None else min(len(offsets), len(counts))
        msg = f"{path}: {what} claims {width:,} x {height:,} px, {wanted:,} {name}s, and lists {got:,}"
        raise SlideError(msg)
    if counts is None:
        counts = np.ones_like(offsets)
    else:
        _check_plausible(path, directory, what, int((counts > 0).sum()) * across * down, int(counts.sum()))
    offsets, counts = offsets[:wanted], counts[:wanted]
    # a segment of no bytes is legal (sparse files: glass that was not scanned)
    limit = np.uint64(file_bytes)
    outside = (counts > 0) & ((offsets > limit) | (counts > limit - np.minimum(offsets, limit)))
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        msg = (
            f"{path}: truncated, {what}, {name} {first} ends at byte {int(offsets[first]) + int(counts[first]):,} "
            f"and the file has {file_bytes:,} ({int(outside.sum()):,} {name}s lie outside)"
        )
        raise SlideError(msg)


def _check_plausible(path: Path | str, directory: Directory, what: str, pixels: int, stored: int) -> None:
    floored = directory.get(COMPRESSION, UNCOMPRESSED) in FLOORED_COMPRESSIONS and directory.get(BITS, 1) >= 8
    if floored and pixels > MAX_PIXELS_PER_BYTE * stored:
        msg = (
            f"{path}: {what} claims {pixels:,} pixels in {stored:,} bytes, the limit is "
            f"{MAX_PIXELS_PER_BYTE:,} per byte"
        )
        raise SlideError(msg)
