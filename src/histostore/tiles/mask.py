"""Where is tissue? Otsu on saturation, told apart from glass, ink, black borders and smears of dye."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import ndimage as ndi
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu

from histostore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.protocols import Slide
    from histostore.specs import MaskSpec

# Measured on overviews at 8 µm per pixel: glass has a saturation of 0.00-0.12 (0.17 in a pink halo of eosin) and a
# relative local deviation of 0.003-0.007; H&E tissue has 0.18-0.5 and 0.016-0.13.
_SATURATION_FLOOR = 0.05
"""Nothing paler is tissue, whatever Otsu says."""
_SEPARATION = 0.07
"""Classes nearer to each other than this are one class: noise, or the shading of empty glass."""
_GLASS_SATURATION = 0.17
_GLASS_BRIGHTNESS = 0.3
_STRUCTURE = 0.012
"""Local deviation over local brightness: below is smooth."""
_MIN_GLASS = 0.01
"""An image with a smaller share of glass is all tissue: there are no two classes to part."""
_SMEAR_SATURATION = 0.22
"""What is smooth and paler than this is dye in the mounting medium."""
_WHITE = 232
_BLACK = 40
_BLACK_INK = 80
_DARK_FLOOR = 80.0
"""Saturation is measured against at least this brightness, or the noise of black would count as colour."""
_INK_MIN_UM2 = 5_000.0
_INK_HALO_UM = 32.0
_STRIP_PX = 1 << 18
"""Pixels that are looked at together."""
_BLUR_REACH = 4
"""Rows beyond its own that a blurred row depends on: scipy cuts a Gaussian off at four standard deviations."""
_NO_MPP_PX = 1024
"""Longest edge of the overview of a slide of unknown mpp."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TissueMask:
    """What is tissue on an overview of the slide."""

    mask: NDArray[np.bool_]
    """``(h, w)``, (y, x)."""
    overview: NDArray[np.uint8]
    """``(h, w, 3)`` RGB: the picture that the mask was made from."""
    downsample: tuple[float, float]
    """Level-0 pixels per mask pixel in x and in y."""
    threshold: float
    """Saturation (0-1) above which a pixel could be tissue; NaN where the picture has no structure."""

    @property
    def share(self) -> float:
        """Share of the image that is tissue."""
        return float(self.mask.mean())

    @property
    def glass_rgb(self) -> tuple[float, float, float] | None:
        """Median colour of the brighter half of what is not tissue; None where that is under 1 % of the image."""
        glass = self.overview[~self.mask]
        if len(glass) < _MIN_GLASS * self.mask.size:
            return None
        grey = glass.sum(axis=1, dtype=np.int64)
        red, green, blue = np.median(glass[grey >= np.median(grey)], axis=0)
        return float(red), float(green), float(blue)

    def fraction(self, xy0: NDArray[np.float64], edge0: float) -> NDArray[np.float32]:
        """Return the share of tissue in square boxes; what lies outside the image is no tissue.

        Parameters
        ----------
        xy0
            ``(n, 2)`` top-left corners, (x, y), in level-0 pixels; need not be whole.
        edge0
            Edge of every box in level-0 pixels.

        Returns
        -------
        numpy.ndarray
            ``(n,)`` float32 in 0-1, exact for boxes that cut mask pixels.

        Notes
        -----
        Each call makes one integral image of the mask, then costs O(n): pass all boxes at once.
        """
        height, width = self.mask.shape
        integral = np.zeros((height + 1, width + 1), dtype=np.uint32)
        np.cumsum(np.cumsum(self.mask, axis=0, dtype=np.uint32), axis=1, out=integral[1:, 1:])
        low = np.asarray(xy0, dtype=np.float64).reshape(-1, 2) / self.downsample
        size = edge0 / np.asarray(self.downsample)
        high = low + size
        area = (
            _bilinear(integral, high[:, 0], high[:, 1])
            - _bilinear(integral, low[:, 0], high[:, 1])
            - _bilinear(integral, high[:, 0], low[:, 1])
            + _bilinear(integral, low[:, 0], low[:, 1])
        )
        return np.clip(area / size.prod(), 0.0, 1.0).astype(np.float32)

    def contains(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Say of each of ``(n, 2)`` level-0 points (x, y) if it lies on tissue; outside the image it does not."""
        height, width = self.mask.shape
        at = np.floor(np.asarray(xy, dtype=np.float64).reshape(-1, 2) / self.downsample)
        inside = ((at >= 0) & (at < (width, height))).all(axis=1)
        column, row = np.where(inside[:, None], at, 0).astype(np.int64).T
        on_tissue: NDArray[np.bool_] = inside & self.mask[row, column]
        return on_tissue

    def overlay(self, rgb: tuple[int, int, int] = (0, 160, 60)) -> NDArray[np.uint8]:
        """Return the overview with the outline of the tissue in `rgb` and the rest faded: a picture to check."""
        picture = self.overview.copy()
        picture[~self.mask] = picture[~self.mask] // 2 + 127
        outline = self.mask & ~ndi.binary_erosion(self.mask, iterations=max(1, max(self.mask.shape) // 600))
        picture[outline] = rgb
        return picture


def _bilinear(integral: NDArray[np.uint32], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    # the integral of an image of constant pixels is bilinear inside each of them, so this is no approximation
    height, width = integral.shape
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    column = np.minimum(x.astype(np.int64), width - 2)
    row = np.minimum(y.astype(np.int64), height - 2)
    right, down = x - column, y - row
    top = integral[row, column] * (1 - right) + integral[row, column + 1] * right
    bottom = integral[row + 1, column] * (1 - right) + integral[row + 1, column + 1] * right
    mixed: NDArray[np.float64] = top * (1 - down) + bottom * down
    return mixed


def tissue_mask(slide: Slide, spec: MaskSpec, *, mpp: float | None) -> TissueMask:
    """Find the tissue of a slide on an overview of it.

    Parameters
    ----------
    slide
        Gives the overview: ``spec.mpp`` µm per pixel, its longest edge at most ``spec.max_px``, never finer than
        the slide.
    mpp
        Microns per pixel of level 0. None (unknown) takes an overview of 1,024 px and reads the areas of the spec as
        if it had ``spec.mpp``.

    Returns
    -------
    TissueMask
        Empty where the overview shows glass only.
    """
    longest = max(slide.size_px)
    wanted = _NO_MPP_PX if mpp is None else math.ceil(longest * mpp / spec.mpp)
    overview = slide.thumbnail(max(1, min(wanted, spec.max_px, longest)))
    height, width = overview.shape[:2]
    downsample = (slide.size_px[0] / width, slide.size_px[1] / height)
    um_per_px = spec.mpp if mpp is None else mpp * math.sqrt(downsample[0] * downsample[1])
    mask, threshold = mask_of_image(overview, spec, um_per_px)
    return TissueMask(mask=mask, overview=overview, downsample=downsample, threshold=threshold)


def mask_of_image(rgb: NDArray[np.uint8], spec: MaskSpec, um_per_px: float) -> tuple[NDArray[np.bool_], float]:
    """Find the tissue of a picture.

    Parameters
    ----------
    rgb
        ``(h, w, 3)`` uint8 RGB.
    um_per_px
        Resolution of the picture: areas of the spec are in µm².

    Returns
    -------
    mask
        ``(h, w)`` bool.
    threshold
        The saturation that was cut at; NaN where the picture has no structure (the mask is then empty).

    Raises
    ------
    DataError
        `rgb` is no 8-bit RGB picture.

    Notes
    -----
    The cut is Otsu's (IEEE Trans. Syst. Man Cybern. 9, 1979), on the pixels that are neither ink nor black. Otsu
    always parts in two, so three cases are kept from it: a picture without glass is all tissue, one class alone is
    all glass, and a cut that has tissue on both sides is made again among the pixels below it until what lies below
    is mostly glass.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        msg = f"the overview is {rgb.dtype} of shape {rgb.shape}; give (h, w, 3) uint8 RGB"
        raise DataError(msg)
    seen = _look(rgb, pen=spec.reject_pen)
    reject = seen.dark | seen.white
    if spec.reject_pen:
        reject |= _with_halo(seen.ink, um_per_px)
    glass = seen.smooth & (seen.saturation < _GLASS_SATURATION) & seen.bright
    threshold = _threshold(seen.saturation, glass | seen.white, ~reject | seen.white)
    if math.isnan(threshold):
        return np.zeros(rgb.shape[:2], dtype=np.bool_), threshold
    smear = seen.smooth & (seen.saturation < _SMEAR_SATURATION)
    mask = (seen.saturation > threshold) & ~reject & ~smear
    mask = _fill_holes(mask, spec.max_hole_um2 / um_per_px**2) & ~_large(reject, spec.max_hole_um2 / um_per_px**2)
    return _large(mask, spec.min_area_um2 / um_per_px**2), threshold


class _Seen(NamedTuple):
    """What is asked of the pixels of a picture, ``(h, w)`` each: 9 bytes a pixel, where all colours would be 40."""

    saturation: NDArray[np.float32]
    dark: NDArray[np.bool_]
    white: NDArray[np.bool_]
    bright: NDArray[np.bool_]
    """Enough for glass."""
    smooth: NDArray[np.bool_]
    """Without structure."""
    ink: NDArray[np.bool_]
    """As pens and no stain are."""


def _look(rgb: NDArray[np.uint8], *, pen: bool) -> _Seen:
    """Look at a picture strip by strip: the same to the bit as at once."""
    shape = rgb.shape[:2]
    saturation, grey = np.empty(shape, np.float32), np.empty(shape, np.float32)
    dark, white, bright, ink = (np.zeros(shape, np.bool_) for _ in range(4))
    for rows in _strips(*shape):
        above, below = max(0, rows.start - _BLUR_REACH), rows.stop + _BLUR_REACH
        inner = slice(rows.start - above, rows.stop - above)
        red, green, blue = (
            ndi.gaussian_filter(rgb[above:below, :, c].astype(np.float32), 1, mode="nearest")[inner] for c in range(3)
        )
        high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
        saturation[rows] = (high - low) / np.maximum(high, _DARK_FLOOR)
        grey[rows] = (red + green + blue) / 3
        dark[rows], white[rows], bright[rows] = high < _BLACK, low >= _WHITE, high > 255 * _GLASS_BRIGHTNESS
        if pen:
            ink[rows] = _ink((red, green, blue), high, low)
    return _Seen(saturation, dark, white, bright, _smooth(grey), ink)


def _smooth(grey: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Say where the local deviation is small beside the local brightness; `grey` is used up."""
    height, width = grey.shape
    # about the middle of the range, or float32 would lose the small differences of large squares
    grey -= 128
    squares = grey**2
    for columns in _strips(width, height):
        for plane in (grey, squares):
            plane[:, columns] = ndi.uniform_filter1d(plane[:, columns], 7, axis=0, mode="nearest")
    found = np.empty(grey.shape, np.bool_)
    for rows in _strips(height, width):
        mean, square = (ndi.uniform_filter1d(plane[rows], 7, axis=1, mode="nearest") for plane in (grey, squares))
        deviation = np.sqrt(np.maximum(square - mean**2, 0)) / np.maximum(mean + 128, 1)
        found[rows] = deviation < _STRUCTURE
    return found


def _strips(length: int, across: int) -> Iterator[slice]:
    """Cut lines that are `across` pixels long into strips of about `_STRIP_PX`."""
    step = max(1, _STRIP_PX // across)
    return (slice(start, min(length, start + step)) for start in range(0, length, step))


def _threshold(saturation: NDArray[np.float32], glass: NDArray[np.bool_], valid: NDArray[np.bool_]) -> float:
    if not valid.any():
        return math.nan
    values, is_glass = saturation[valid], glass[valid]
    if is_glass.mean() < _MIN_GLASS:
        return _SATURATION_FLOOR
    while True:
        spread = float(values.max() - values.min())
        if spread < _SEPARATION:
            return math.nan if is_glass.mean() > 0.5 else _SATURATION_FLOOR
        cut = float(threshold_otsu(values))  # type: ignore[no-untyped-call]
        below = values <= cut
        if values[~below].mean() - values[below].mean() < _SEPARATION:
            return math.nan if is_glass.mean() > 0.5 else _SATURATION_FLOOR
        if cut <= _SATURATION_FLOOR or is_glass[below].mean() > 0.5:
            return max(cut, _SATURATION_FLOOR)
        values, is_glass = values[below], is_glass[below]


def _ink(
    rgb: tuple[NDArray[np.float32], ...], high: NDArray[np.float32], low: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Strokes of blue, green, red and black pen; hues that no H&E or DAB stain has that strongly."""
    ink = (high < _BLACK_INK) & (high - low < 30)
    coloured = (high > 40) & (high - low > 0.2 * high)
    hue, saturation, _ = rgb2hsv(np.stack([plane[coloured] for plane in rgb], axis=-1) / 255).T
    hue = hue * 360
    green = (hue >= 75) & (hue < 185)
    blue = (hue >= 185) & (hue < 222) & (saturation > 0.35)
    blue |= (hue >= 222) & (hue < 255) & (saturation > 0.62)  # haematoxylin: up to 0.56
    red = ((hue >= 345) | (hue < 12)) & (saturation > 0.75)
    ink[coloured] |= green | blue | red
    return ink


def _with_halo(ink: NDArray[np.bool_], um_per_px: float) -> NDArray[np.bool_]:
    """Return the larger strokes with their halo: a stroke fades into glass through paler shades of itself."""
    halo: NDArray[np.bool_] = ndi.binary_dilation(
        _large(ink, _INK_MIN_UM2 / um_per_px**2), iterations=max(1, round(_INK_HALO_UM / um_per_px))
    )
    return halo


def _large(mask: NDArray[np.bool_], min_px: float) -> NDArray[np.bool_]:
    labels, n = ndi.label(mask, structure=np.ones((3, 3)))
    keep = _sizes(labels, n) >= min_px
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def _fill_holes(mask: NDArray[np.bool_], max_px: float) -> NDArray[np.bool_]:
    labels, n = ndi.label(~mask)
    hole = _sizes(labels, n) <= max_px
    hole[0] = False
    # what touches the border may go on outside: no hole
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    hole[border] = False
    filled: NDArray[np.bool_] = mask | hole[labels]
    return filled


def _sizes(labels: NDArray[np.int32], n: int) -> NDArray[np.int64]:
    """Return ``(n + 1,)`` how many pixels have each label; bincount alone would make a copy of twice the bytes."""
    found = np.zeros(n + 1, np.int64)
    for rows in _strips(*labels.shape):
        found += np.bincount(labels[rows].ravel(), minlength=n + 1)
    return found
