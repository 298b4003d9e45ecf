"""From what decoders give to what slides promise: uint8 RGB, white outside the image, a status per tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import UsageError
from histostore.protocols import TileStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

WHITE = 255


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay ``(…, 4)`` uint8 RGBA (straight alpha) over white; opaque pixels keep their bits."""
    alpha = rgba[..., 3:]
    rgb = rgba[..., :3]
    if int(alpha.min(initial=WHITE)) == WHITE:
        return rgb
    wide = alpha.astype(np.uint16)
    blended = (rgb * wide + WHITE * (WHITE - wide) + WHITE // 2) // WHITE
    return blended.astype(np.uint8)


def to_rgb(image: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return a decoded image of 1-4 channels as ``(h, w, 3)`` uint8 RGB.

    Grey is repeated, alpha is laid over white, and of 16 bits the upper eight are kept.
    """
    image8 = (image >> 8 if image.dtype == np.uint16 else image).astype(np.uint8, copy=False)
    if image8.ndim == 2:
        image8 = image8[..., None]
    channels = image8.shape[2]
    if channels == 1:
        return np.repeat(image8, 3, axis=2)
    if channels == 2:
        return over_white(image8[..., [0, 0, 0, 1]])
    return image8 if channels == 3 else over_white(image8)


def corners(xy0: ArrayLike) -> NDArray[np.int64]:
    """Return corners as ``(n, 2)`` int64.

    Raises
    ------
    UsageError
        Another shape, or not whole numbers.
    """
    array = np.asarray(xy0)
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        msg = f"xy0 is {array.dtype} of shape {array.shape}; give whole numbers of shape (n, 2)"
        raise UsageError(msg)
    return array.astype(np.int64, copy=False)


def check_level(level: int, px: int, downsamples: Sequence[float]) -> None:
    """Raise `UsageError` for a level that is not there or an edge that is not positive."""
    if not 0 <= level < len(downsamples):
        msg = f"level is {level}, outside 0-{len(downsamples) - 1}"
        raise UsageError(msg)
    if px <= 0:
        msg = f"px is {px}, not positive"
        raise UsageError(msg)


def padding_status(
    xy0: NDArray[np.int64], px: int, size_px: tuple[int, int], downsample: float = 1.0
) -> NDArray[np.uint8]:
    """Return PADDED for tiles that stick out of a level by half a pixel or more, else OK.

    Parameters
    ----------
    xy0
        ``(n, 2)`` corners in level-0 pixels.
    px
        Edge in pixels of the level.
    size_px
        (width, height) of the level.
    downsample
        Level-0 pixels per pixel of the level.
    """
    low = xy0 / downsample
    # scanners round the sizes of levels down, so a tile that ends with level 0 may pass a level's edge by a sliver
    out = (low < 0) | (low + px >= np.asarray(size_px) + 0.5)
    return np.where(out.any(axis=1), TileStatus.PADDED, TileStatus.OK).astype(np.uint8)


def cut(image: NDArray[np.uint8], x: int, y: int, px: int, out: NDArray[np.uint8]) -> None:
    """Copy the window at (x, y) of ``(h, w, c)`` `image` into ``(px, px, 3)`` `out`, white where it lies outside."""
    height, width = image.shape[:2]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + px, width), min(y + px, height)
    if (left, top, right, bottom) != (x, y, x + px, y + px):
        out[...] = WHITE
    if right > left and bottom > top:
        out[top - y : bottom - y, left - x : right - x] = to_rgb(image[top:bottom, left:right])
