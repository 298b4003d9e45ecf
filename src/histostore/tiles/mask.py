"""Where is tissue? Otsu on saturation, told apart from glass, ink, black borders and smears of dye."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage as ndi
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu

from histostore.errors import DataError

if TYPE_CHECKING:
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
        integral = np.zeros((height + 1, width + 1), dtype=np.float64)
        np.cumsum(np.cumsum(self.mask, axis=0, dtype=np.float64), axis=1, out=integral[1:, 1:])
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


def _bilinear(integral: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
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
    red, green, blue = (ndi.gaussian_filter(rgb[..., c].astype(np.float32), 1, mode="nearest") for c in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    saturation = (high - low) / np.maximum(high, _DARK_FLOOR)
    structure = _local_deviation((red + green + blue) / 3)

    reject = (high < _BLACK) | (low >= _WHITE)
    if spec.reject_pen:
        reject |= _ink((red, green, blue), high, low, um_per_px)
    glass = (structure < _STRUCTURE) & (saturation < _GLASS_SATURATION) & (high > 255 * _GLASS_BRIGHTNESS)
    threshold = _threshold(saturation, glass | (low >= _WHITE), ~reject | (low >= _WHITE))
    if math.isnan(threshold):
        return np.zeros(rgb.shape[:2], dtype=np.bool_), threshold
    smear = (structure < _STRUCTURE) & (saturation < _SMEAR_SATURATION)
    mask = (saturation > threshold) & ~reject & ~smear
    mask = _fill_holes(mask, spec.max_hole_um2 / um_per_px**2) & ~_large(reject, spec.max_hole_um2 / um_per_px**2)
    return _large(mask, spec.min_area_um2 / um_per_px**2), threshold


def _local_deviation(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    # about the middle of the range, or float32 would lose the small differences of large squares
    mean = ndi.uniform_filter(grey - 128, 7, mode="nearest")
    variance = ndi.uniform_filter((grey - 128) ** 2, 7, mode="nearest") - mean**2
    deviation: NDArray[np.float32] = np.sqrt(np.maximum(variance, 0)) / np.maximum(mean + 128, 1)
    return deviation


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
    rgb: tuple[NDArray[np.float32], ...], high: NDArray[np.float32], low: NDArray[np.float32], um_per_px: float
) -> NDArray[np.bool_]:
    """Strokes of blue, green, red and black pen with their halo; hues that no H&E or DAB stain has that strongly."""
    ink = (high < _BLACK_INK) & (high - low < 30)
    coloured = (high > 40) & (high - low > 0.2 * high)
    hue, saturation, _ = rgb2hsv(np.stack([plane[coloured] for plane in rgb], axis=-1) / 255).T
    hue = hue * 360
    green = (hue >= 75) & (hue < 185)
    blue = (hue >= 185) & (hue < 222) & (saturation > 0.35)
    blue |= (hue >= 222) & (hue < 255) & (saturation > 0.62)  # haematoxylin: up to 0.56
    red = ((hue >= 345) | (hue < 12)) & (saturation > 0.75)
    ink[coloured] |= green | blue | red
    # a stroke fades into glass through paler shades of itself
    halo: NDArray[np.bool_] = ndi.binary_dilation(
        _large(ink, _INK_MIN_UM2 / um_per_px**2), iterations=max(1, round(_INK_HALO_UM / um_per_px))
    )
    return halo


def _large(mask: NDArray[np.bool_], min_px: float) -> NDArray[np.bool_]:
    labels, _ = ndi.label(mask, structure=np.ones((3, 3)))
    keep = np.bincount(labels.ravel()) >= min_px
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def _fill_holes(mask: NDArray[np.bool_], max_px: float) -> NDArray[np.bool_]:
    labels, _ = ndi.label(~mask)
    hole = np.bincount(labels.ravel()) <= max_px
    hole[0] = False
    # what touches the border may go on outside: no hole
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    hole[border] = False
    filled: NDArray[np.bool_] = mask | hole[labels]
    return filled
