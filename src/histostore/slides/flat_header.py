"""What a JPEG or PNG says of itself, read without decoding a pixel: size, channels, completeness, orientation.

libjpeg fills what is missing of a cut file with grey and calls that success, so completeness is decided here.

References
----------
ITU-T T.81 (JPEG) annex B; Exif 2.32 section 4.6; W3C PNG third edition, section 5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histostore.errors import SlideError

if TYPE_CHECKING:
    from pathlib import Path

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
END_OF_IMAGE = b"\xff\xd9"
START_OF_SCAN = 0xDA
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
EXIF = b"Exif\0\0"
ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class FlatHeader:
    """Claims of a flat image."""

    size_px: tuple[int, int]
    channels: int
    bits: int
    orientation: int = 1
    """EXIF orientation, 1-8; 1 is upright."""


def is_jpeg(first: bytes) -> bool:
    """Tell by the first bytes."""
    return first[:3] == b"\xff\xd8\xff"


def is_png(first: bytes) -> bool:
    """Tell by the first bytes."""
    return first[:8] == PNG_SIGNATURE


def read_jpeg_header(data: bytes, path: Path) -> FlatHeader:
    """Read the claims of a whole JPEG.

    Raises
    ------
    SlideError
        Cut off in its header or its pixels (no end-of-image marker after the scan), or no JPEG.
    """
    frame: tuple[int, int, int, int] | None = None
    orientation = 1
    at = 2
    while True:
        if at + 4 > len(data):
            msg = f"{path}: truncated JPEG, its header ends at byte {len(data):,}"
            raise SlideError(msg)
        if data[at] != 0xFF:
            msg = f"{path}: not a sound JPEG, no marker at byte {at:,}"
            raise SlideError(msg)
        marker = data[at + 1]
        if marker == 0xFF or marker in STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            msg = f"{path}: a JPEG without an image"
            raise SlideError(msg)
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        if marker in FRAMES and len(body) >= 6:
            frame = struct.unpack_from(">BHHB", body)
        elif marker == 0xE1 and body[:6] == EXIF:
            orientation = _exif_orientation(body[6:])
        elif marker == START_OF_SCAN:
            break
        at += 2 + length
    if frame is None:
        msg = f"{path}: a JPEG whose frame header is missing"
        raise SlideError(msg)
    bits, height, width, channels = frame
    if not ends_whole(data, at):
        msg = f"{path}: truncated JPEG of {width:,} x {height:,} px, no end-of-image marker in {len(data):,} bytes"
        raise SlideError(msg)
    return FlatHeader((width, height), channels, bits, orientation)


def ends_whole(data: bytes, scan: int = 0) -> bool:
    """Tell whether a JPEG has its end-of-image marker after the scan that begins at byte `scan`."""
    return data.rfind(END_OF_IMAGE, scan) >= 0


def read_png_header(data: bytes, path: Path) -> FlatHeader:
    """Read the claims of a whole PNG.

    Raises
    ------
    SlideError
        Cut off (no IEND chunk), or no PNG.
    """
    if len(data) < 33 or data[12:16] != b"IHDR":
        msg = f"{path}: truncated PNG, its header ends at byte {len(data):,}"
        raise SlideError(msg)
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if colour not in PNG_CHANNELS:
        msg = f"{path}: PNG colour type is {colour}, not 0, 2, 3, 4 or 6"
        raise SlideError(msg)
    if b"IEND" not in data[-64:]:
        msg = f"{path}: truncated PNG of {width:,} x {height:,} px, no IEND chunk in {len(data):,} bytes"
        raise SlideError(msg)
    return FlatHeader((width, height), PNG_CHANNELS[colour], bits)


def _exif_orientation(body: bytes) -> int:
    """Return the orientation of an Exif block (a small TIFF); 1 where it says none or nonsense."""
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None or len(body) < 10:
        return 1
    (table,) = struct.unpack_from(order + "I", body, 4)
    if table + 2 > len(body):
        return 1
    (n,) = struct.unpack_from(order + "H", body, table)
    for i in range(min(n, (len(body) - table - 2) // 12)):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", body, table + 2 + 12 * i)
        if (tag, kind, count) == (ORIENTATION, 3, 1) and 1 <= value <= 8:
            return int(value)
    return 1
