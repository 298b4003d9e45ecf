"""Pictures out and in: overviews and tiles as PNG or JPEG, and an uploaded tile as an array, its size checked first."""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from histostore.content.tables import read_points
from histostore.errors import DataError, NotFoundError, UsageError, near
from histostore.protocols import TileStatus
from histostore.serve.operations import FORMATS, SMALLEST_PX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.serve.limits import Limits
    from histostore.serve.snapshot import Snapshot
    from histostore.store.groups import Group
    from histostore.store.manifest import Manifest

JPEG_QUALITY = 90
_TILE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image."""

    data: bytes
    media: str
    etag: str
    """Changes when the pixels do."""


def thumbnail(store: Snapshot, *, slide: str, max_px: int, format: str) -> Picture:
    """Return a slide's stored overview with its longest edge at most `max_px`."""
    ref = store.slide(slide).find("source", "image")
    pixels = store.group(ref).read("thumbnail")
    height, width = pixels.shape[:2]
    scale = max_px / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    return _encoded(pixels, format, f"{ref.sha256[:24]}-{max_px}")


def tile(store: Snapshot, *, slide: str, tiles: str, id: str, format: str) -> Picture:
    """Return one tile's pixels, by its spot or its tile_id.

    Raises
    ------
    NotFoundError
        There is no such slide, tile set or tile, or its pixels are not stored.
    DataError
        The tile could not be read from its slide when the pixels were stored: there are none.
    """
    manifest = store.slide(slide)
    row = _row_of(store, manifest, tiles, id)
    ref = manifest.get("pixels", tiles)
    if ref is None:
        raise NotFoundError(f"the pixels of tiles '{tiles}' on slide '{slide}' are not stored (codec slide)")
    group, rows = store.group(ref), np.array([row])
    if group.array("status").read(rows)[0] == TileStatus.UNREADABLE:
        raise DataError(f"tile '{id}' of slide '{slide}' could not be read when its pixels were stored")
    return _encoded(group.array("pixels").read(rows)[0], format, f"{ref.sha256[:24]}-{row}")


def _row_of(store: Snapshot, manifest: Manifest, tiles: str, id: str) -> int:
    group: Group = store.group(manifest.find("tiles", tiles))
    ids = group.read("ids")
    known: tuple[str, ...] = ()
    if _TILE_ID.fullmatch(id):
        found = np.flatnonzero((ids[:, 0] == np.uint64(int(id[:16], 16))) & (ids[:, 1] == np.uint64(int(id[16:], 16))))
    else:
        known = read_points(store.group(manifest.find("points", str(group.attrs["points"])))).ids
        at = known.index(id) if id in known else -1
        found = np.flatnonzero(ids[:, 2] == np.uint64(at)) if at >= 0 else np.zeros(0, dtype=np.int64)
    if not len(found):
        raise NotFoundError(f"no tile '{id}' in '{tiles}' of slide '{manifest.owner}'{near(id, known)}")
    return int(found[0])


def _encoded(pixels: NDArray[np.uint8], format: str, version: str) -> Picture:
    out = io.BytesIO()
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if format == "jpeg" else {"compress_level": 1}
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format.upper(), **options)
    return Picture(out.getvalue(), FORMATS[format], f'"{version}-{format}"')


def uploaded(text: str, limits: Limits) -> NDArray[np.uint8]:
    """Return an image in base64 as ``(h, w, 3)`` uint8 RGB.

    Raises
    ------
    UsageError
        It is not base64, or its edges are outside the limits.
    DataError
        It is no PNG or JPEG, is damaged, or has not three channels of 8 bits (alpha only where it is opaque).
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("query.image is not base64") from None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if not all(SMALLEST_PX <= edge <= limits.max_image_px for edge in image.size):
                size = " x ".join(map(str, image.size))
                raise UsageError(f"query.image is {size} px: edges must be in {SMALLEST_PX}-{limits.max_image_px}")
            mode, pixels = image.mode, np.asarray(image)
    except UsageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError):
        raise DataError("query.image is no PNG or JPEG that can be read") from None
    if mode == "RGBA" and (pixels[..., 3] == 255).all():
        mode, pixels = "RGB", pixels[..., :3]
    if mode != "RGB":
        raise DataError(f"query.image has the mode {mode}; make it 8-bit RGB")
    return np.ascontiguousarray(pixels)
