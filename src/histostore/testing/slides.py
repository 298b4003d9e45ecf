"""Synthetic slides: H&E whose morphology follows known fields, and pyramids that openslide opens.

The picture is Beer-Lambert: optical densities of haematoxylin and eosin add up and are exponentiated, with the stain
vectors of Ruifrok and Johnston (Anal. Quant. Cytol. Histol. 2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
FACTORS = ("cellularity", "nuclear_size", "eosin")
"""What each latent field does to the picture."""

STEP_PX = 8
"""Truth maps have one value per square of this many pixels."""
NUCLEUS_SPACING_PX = 14.0
RADII_PX = (2.2, 2.8, 3.4, 4.2, 5.0)
SMALLEST_LEVEL_PX = 256


@dataclass(frozen=True, slots=True)
class TruthMaps:
    """The fields behind a synthetic picture, one value per square of `step_px` pixels."""

    tissue: NDArray[np.bool_]
    """``(h, w)`` (y, x)."""
    latents: NDArray[np.float32]
    """``(3, h, w)``, in the order of `FACTORS`; mean 0 and variance 1 over the tissue."""
    step_px: int = STEP_PX

    def at(self, xy: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the latents, ``(n, 3)``, at ``(n, 2)`` points (x, y) in pixels."""
        cell = self._cells(xy)
        return np.ascontiguousarray(self.latents[:, cell[:, 1], cell[:, 0]].T)

    def on_tissue(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which of ``(n, 2)`` points (x, y) in pixels lie on tissue."""
        cell = self._cells(xy)
        return self.tissue[cell[:, 1], cell[:, 0]]

    def _cells(self, xy: NDArray[np.float64]) -> NDArray[np.int64]:
        height, width = self.tissue.shape
        cell = np.floor(np.asarray(xy) / self.step_px).astype(np.int64)
        return np.clip(cell, 0, (width - 1, height - 1))


def synthetic_histology(
    width: int,
    height: int,
    *,
    seed: int,
    tissue_share: float = 0.5,
    smooth_px: float = 160.0,
    stain: tuple[float, float] = (1.0, 1.0),
) -> tuple[NDArray[np.uint8], TruthMaps]:
    """Draw tissue on glass, with nuclei and stroma that follow three smooth latent fields.

    Parameters
    ----------
    width, height
        Size in pixels.
    seed
        Fixes every pixel.
    tissue_share
        Share of the picture that is tissue, 0-1.
    smooth_px
        Length over which the fields change (sigma of a Gaussian).
    stain
        Strength of haematoxylin and of eosin.

    Returns
    -------
    image
        ``(height, width, 3)`` uint8 RGB.
    truth
        Tissue and latents.
    """
    if width < 2 * STEP_PX or height < 2 * STEP_PX or not 0 < tissue_share <= 1:
        msg = f"{width} x {height} px with a tissue share of {tissue_share}: at least 16 x 16 px and 0 < share <= 1"
        raise UsageError(msg)
    rng = np.random.default_rng(seed)
    truth = _truth(-(-width // STEP_PX), -(-height // STEP_PX), rng, tissue_share, smooth_px / STEP_PX)
    fields = {name: _enlarged(truth.latents[i], width, height) for i, name in enumerate(FACTORS)}
    tissue = _enlarged(truth.tissue.astype(np.float32), width, height)
    texture = ndimage.gaussian_filter(rng.standard_normal((height, width), np.float32), 1.5) * 3.0
    eosin = tissue * (0.42 + 0.14 * np.clip(fields["eosin"], -2.2, 2.2) + 0.06 * texture)
    nuclei = _nuclei(truth, width, height, rng)
    pink = np.maximum(eosin * (1 - 0.6 * nuclei), 0) * np.float32(stain[1])
    purple = (0.10 * tissue + nuclei) * np.float32(stain[0])
    glass = 244.0 + 1.5 * texture
    image = np.empty((height, width, 3), np.uint8)
    for c in range(3):
        light = glass * np.exp(-(EOSIN[c] * pink + HAEMATOXYLIN[c] * purple))
        image[..., c] = np.clip(np.rint(light), 0, 255)
    return image, truth


def _truth(width: int, height: int, rng: np.random.Generator, share: float, sigma: float) -> TruthMaps:
    y, x = np.mgrid[0:height, 0:width]
    middle = np.hypot((x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5)
    wish = _field(width, height, rng, sigma * 0.75) * 0.12 - middle * 2.0
    tissue = wish >= np.quantile(wish, 1 - share)
    latents = np.stack([_field(width, height, rng, sigma) for _ in FACTORS])
    latents -= latents[:, tissue].mean(axis=1)[:, None, None]
    latents /= latents[:, tissue].std(axis=1)[:, None, None]
    return TruthMaps(tissue, latents.astype(np.float32))


def _field(width: int, height: int, rng: np.random.Generator, sigma: float) -> NDArray[np.float64]:
    field = ndimage.gaussian_filter(rng.standard_normal((height, width)), sigma, mode="reflect")
    return np.asarray(field / field.std())


def _enlarged(field: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Return a truth map at full size, linear between the centres of its squares."""
    rows, columns = ((np.arange(n) + 0.5) / STEP_PX - 0.5 for n in (height, width))
    return _lerp(_lerp(field, columns, 1), rows, 0)


def _lerp(values: NDArray[np.float32], at: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    last = values.shape[axis] - 1
    at = np.clip(at, 0, last)
    low = np.minimum(at.astype(np.int64), max(last - 1, 0))
    weight = (at - low).astype(np.float32)
    weight = weight[:, None] if axis == 0 else weight
    first = values.take(low, axis=axis)
    step: NDArray[np.float32] = values.take(np.minimum(low + 1, last), axis=axis)
    step -= first
    step *= weight
    step += first
    return step


def _nuclei(truth: TruthMaps, width: int, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the haematoxylin of nuclei, 0-1: their number follows the first latent, their size the second."""
    spacing = NUCLEUS_SPACING_PX
    columns, rows = int(width / spacing), int(height / spacing)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    xy = (grid + rng.uniform(0.1, 0.9, grid.shape)) * spacing
    latent = truth.at(xy)
    # a site is taken with a probability that rises with cellularity
    chance = 1 / (1 + np.exp(-(1.6 * latent[:, 0] - 0.4)))
    taken = truth.on_tissue(xy) & (rng.random(len(xy)) < chance)
    xy, latent = xy[taken], latent[taken]
    size = np.clip(np.rint(2 + 1.1 * latent[:, 1] + 0.4 * rng.standard_normal(len(xy))), 0, len(RADII_PX) - 1)
    drawn = np.zeros((height, width), np.float32)
    for k, radius in enumerate(RADII_PX):
        _stamp(drawn, xy[size == k], radius, rng.uniform(0.7, 1.0, int((size == k).sum())).astype(np.float32))
    return drawn


def _stamp(drawn: NDArray[np.float32], xy: NDArray[np.float64], radius: float, strength: NDArray[np.float32]) -> None:
    """Draw soft discs around points, in place."""
    height, width = drawn.shape
    whole = np.floor(xy).astype(np.int64)
    reach = int(radius) + 2
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            x, y = whole[:, 0] + dx, whole[:, 1] + dy
            away = np.hypot(x + 0.5 - xy[:, 0], y + 0.5 - xy[:, 1])
            ink = strength * np.clip(radius + 0.5 - away, 0, 1).astype(np.float32)
            use = (ink > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            np.maximum.at(drawn, (y[use], x[use]), ink[use])


def write_pyramid_tiff(
    path: Path,
    image: NDArray[np.uint8] | Callable[[int, int], NDArray[np.uint8]],
    *,
    size_px: tuple[int, int] | None = None,
    mpp: float | None = None,
    tile: int = 256,
    quality: int = 90,
    levels: Sequence[int] | None = None,
    compression: Literal["jpeg", "deflate", "lzw"] | None = "jpeg",
    vendor: Literal["generic", "aperio"] = "generic",
) -> Path:
    """Write a tiled pyramidal TIFF, band by band: beside `image` it needs a few bands of memory.

    Parameters
    ----------
    path
        ``.tif``, or ``.svs`` for the Aperio flavour.
    image
        ``(h, w, 3)`` uint8 RGB, or ``image(top, bottom)`` that gives these rows, called once per level and band.
    size_px
        (width, height), where `image` is a function.
    mpp
        Microns per pixel, written as resolution tags (generic) or in the description (Aperio).
    tile
        Edge of the tiles, a multiple of 16.
    quality
        Of JPEG.
    levels
        Downsamples, whole numbers, the first 1. None: 1, 4, 16, … while the longest edge is at least 256 px.
    compression
        None writes the pixels as they are.
    vendor
        Whose conventions to follow.

    Returns
    -------
    pathlib.Path
        `path`.
    """
    rows, (width, height) = _source(image, size_px)
    downs = tuple(levels) if levels is not None else _default_levels(max(width, height))
    if not downs or downs[0] != 1 or any(b <= a for a, b in pairwise(downs)):
        msg = f"levels are {downs}; give rising whole numbers, the first 1"
        raise UsageError(msg)
    options: dict[str, Any] = {
        "tile": (tile, tile),
        "photometric": "rgb",
        "compression": compression,
        "compressionargs": {"level": quality} if compression == "jpeg" else None,
        "metadata": None,
        "software": False,
    }
    if vendor == "aperio":
        options["description"] = _aperio_text(width, height, tile, quality, mpp)
    elif mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    # classic TIFF ends at 4 GiB; JPEG makes about a tenth of the raw size
    big = width * height * 3 > 2**32
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        for i, down in enumerate(downs):
            shape = (max(1, height // down), max(1, width // down), 3)
            kind = 1 if i and vendor == "generic" else 0
            file.write(_tiles(rows, shape, down, tile), shape=shape, dtype=np.uint8, subfiletype=kind, **options)
    return path


def _source(
    image: NDArray[np.uint8] | Callable[[int, int], NDArray[np.uint8]], size_px: tuple[int, int] | None
) -> tuple[Callable[[int, int], NDArray[np.uint8]], tuple[int, int]]:
    if isinstance(image, np.ndarray):
        array = image
        return (lambda top, bottom: array[top:bottom]), (array.shape[1], array.shape[0])
    if size_px is None:
        msg = "give size_px with a function"
        raise UsageError(msg)
    return image, size_px


def _default_levels(longest: int) -> tuple[int, ...]:
    downs = [1]
    while longest // (downs[-1] * 4) >= SMALLEST_LEVEL_PX:
        downs.append(downs[-1] * 4)
    return tuple(downs)


def _tiles(
    rows: Callable[[int, int], NDArray[np.uint8]], shape: tuple[int, int, int], down: int, tile: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of one level in file order; those at the edge are filled up with the last pixels."""
    height, width, _ = shape
    for top in range(0, height, tile):
        bottom = min(top + tile, height)
        band = _band(rows, top, bottom, width, down)
        fill = ((0, tile - (bottom - top)), (0, -width % tile), (0, 0))
        band = np.pad(band, fill, mode="edge")
        for left in range(0, width, tile):
            yield np.ascontiguousarray(band[:, left : left + tile])


def _band(
    rows: Callable[[int, int], NDArray[np.uint8]], top: int, bottom: int, width: int, down: int
) -> NDArray[np.uint8]:
    """Return rows of a level as means of `down` x `down` pixels, a few rows of the source at a time."""
    if down == 1:
        return rows(top, bottom)[:, :width]
    out = np.empty((bottom - top, width, 3), np.uint8)
    step = max(1, 256 // down)
    for start in range(top, bottom, step):
        end = min(start + step, bottom)
        part = rows(start * down, end * down)[:, : width * down]
        if part.shape[:2] != ((end - start) * down, width * down):
            # a level is at least one pixel, also of an image smaller than its downsample
            part = np.pad(
                part,
                ((0, (end - start) * down - part.shape[0]), (0, width * down - part.shape[1]), (0, 0)),
                mode="edge",
            )
        out[start - top : end - top] = np.asarray(Image.fromarray(np.ascontiguousarray(part)).reduce(down))
    return out


def _aperio_text(width: int, height: int, tile: int, quality: int, mpp: float | None) -> str:
    resolution = f"|AppMag = {10.0 / mpp:g}|MPP = {mpp:g}" if mpp is not None else ""
    return (
        f"Aperio Image Library v0 (synthetic)\r\n{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}) "
        f"JPEG/RGB Q={quality}{resolution}"
    )
