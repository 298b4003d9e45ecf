"""From the bytes of one segment to RGB, by what its page says of them. No state: threads may decode together."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import tifffile

from histostore.errors import SlideError
from histostore.slides.flat_header import ends_whole
from histostore.slides.pixels import to_rgb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

DECODE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, struct.error)
"""What codecs raise on damaged segments (imagecodecs' own errors are RuntimeErrors)."""

JPEG = 7
JPEG_COMPRESSIONS = frozenset({6, JPEG, 34892})
JPEG_COLOURS = {2: "RGB", 6: "YCBCR"}
"""By photometric interpretation."""

type Image = NDArray[np.uint8]
"""A decoded segment, ``(h, w, 3)`` uint8 RGB."""

type Decode = Callable[[Sequence[bytes], int, Image | None], Image | None]
"""From the stored planes (one, unless colours are kept apart) of the segment of a number to RGB. An image of the
segment's shape that is given may be decoded into (JPEG is) and returned: see `buffer_for`.
"""


def decoder_of(page: Any, *, per_plane: int, trust_photometric: bool) -> Decode:
    """Return the decoder for a page's segments.

    Parameters
    ----------
    page
        `tifffile.TiffPage` of uint8 pixels.
    per_plane
        Segments of one colour plane.
    trust_photometric
        JPEG is RGB or YCbCr as the page's tag says (libtiff's and openslide's rule); else a JFIF marker in the
        segment is believed before the tag (what writers of OME-TIFF need).

    Returns
    -------
    Decode
        None where all planes are empty (sparse files). It raises `DECODE_ERRORS` on damage.
    """
    colours = JPEG_COLOURS.get(int(page.photometric))
    if trust_photometric and int(page.compression) == JPEG and page.samplesperpixel == 3 and colours is not None:
        return _jpeg_decoder(page.jpegtables, colours, (page.tilelength, page.tilewidth) if page.is_tiled else None)
    return lambda stored, segment, _out: _decoded(page, stored, segment, per_plane)


def buffer_for(shape: tuple[int, int]) -> Image:
    """Return memory for a segment of (height, width) that a JPEG is decoded into fast.

    Where its rows begin at multiples of 16 or 32 bytes, libjpeg-turbo writes them past the caches: decoding is 15-40 %
    slower, and whoever reads the pixels next waits for them to come back. So they begin 8 bytes further.
    """
    height, width = shape
    n = height * width * 3
    raw = np.empty(n + 64, np.uint8)
    start = (8 - int(raw.ctypes.data)) % 64
    return raw[start : start + n].reshape(height, width, 3)


def planes_of(page: Any) -> int:
    """Return 3 (or how many channels there are) where colours are kept apart, else 1."""
    return int(page.samplesperpixel) if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1


def _jpeg_decoder(tables: bytes | None, colours: str, shape: tuple[int, int] | None) -> Decode:
    decode = imagecodecs.jpeg8_decode

    def run(stored: Sequence[bytes], segment: int, out: Image | None) -> Image | None:
        data = stored[0]
        if not data:
            return None
        if not ends_whole(data):
            msg = f"segment {segment} is a truncated JPEG"
            raise SlideError(msg)
        if shape is None:
            out = None
        image: Image = decode(data, tables=tables, colorspace=colours, outcolorspace="RGB", out=out)
        if image.ndim != 3 or image.shape[2] != 3 or (shape is not None and image.shape[:2] != shape):
            msg = f"segment {segment} is {image.shape}, not {shape}"
            raise SlideError(msg)
        return image

    return run


def _decoded(page: Any, stored: Sequence[bytes], segment: int, per_plane: int) -> NDArray[np.uint8] | None:
    if not any(stored):
        return None
    if not all(stored):
        msg = f"a colour plane of segment {segment} is missing"
        raise SlideError(msg)
    return to_rgb(np.concatenate([_plane(page, d, segment + k * per_plane) for k, d in enumerate(stored)], axis=2))


def _plane(page: Any, data: bytes, index: int) -> NDArray[np.uint8]:
    if int(page.compression) in JPEG_COMPRESSIONS and not ends_whole(data):
        msg = f"segment {index} is a truncated JPEG"
        raise SlideError(msg)
    image, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
    # tiles at the edge are stored whole, strips at the end are not
    return np.asarray(image[0, : shape[1], : shape[2]])
