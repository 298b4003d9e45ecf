"""Resolution arithmetic: mpp, levels, downsamples, pixels and microns. Pure functions.

Frames: ``xy0`` is (x, y) in level-0 pixels, the slide's own; pixel (0, 0) covers [0, 1) x [0, 1), so the centre
of an n-pixel edge that starts at x0 is ``x0 + n / 2``. ``mpp`` is microns per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

from histostore.errors import SlideError, SpecMismatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

MPP_LIMITS = (0.05, 10.0)
"""What an optical slide or an overview of one can have, in microns per pixel."""

NATIVE_TOLERANCE = 0.02
"""Within this share of the wanted mpp, pixels are taken as they are."""

MAX_UPSAMPLE = 1.05
"""Enlarging beyond this needs ``allow_upsample``."""

MPP_OF_20X = 0.5
"""The convention scanners follow: 20x is 0.5 µm per pixel, 40x is 0.25."""


def check_mpp(mpp: Any, what: str = "mpp") -> float:
    """Return `mpp` if a slide can have it, else raise `SlideError`; `UsageError` for what is no number."""
    low, high = MPP_LIMITS
    if isinstance(mpp, str) or not isinstance(mpp, SupportsFloat):
        raise UsageError(f"{what} is {mpp!r}, no number of µm per pixel")
    value = float(mpp)
    if not math.isfinite(value) or not low <= value <= high:
        msg = f"{what} is {mpp}, outside {low}-{high} µm per pixel; give the right one with --mpp"
        raise SlideError(msg)
    return value


def mpp_of_magnification(magnification: float) -> float:
    """Return the mpp that a magnification stands for by convention (20x is 0.5)."""
    if not math.isfinite(magnification) or not 0.5 <= magnification <= 200:
        msg = f"magnification is {magnification}, outside 0.5-200; give an mpp instead"
        raise UsageError(msg)
    return MPP_OF_20X * 20.0 / magnification


def um_to_px(um: float, mpp: float) -> int:
    """Return the whole number of pixels nearest to a length in microns."""
    return max(1, round(um / mpp))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """How tiles of one slide are read: which level, how many of its pixels, and what they become."""

    level: int
    read_px: float
    """Edge of a tile in pixels of that level; a whole number where `resample` is false."""
    out_px: int
    """Edge of a tile as stored."""
    downsample: float
    """Level-0 pixels per pixel of the level."""
    resample: bool
    mpp: float
    """Microns per pixel of the stored tile: the true one."""

    @property
    def edge0(self) -> float:
        """Edge of a tile in level-0 pixels."""
        return self.read_px * self.downsample


def plan_read(
    slide_mpp: float,
    downsamples: Sequence[float],
    *,
    out_px: int,
    mpp: float | None,
    allow_upsample: bool = False,
) -> ReadPlan:
    """Choose the level to read tiles of `out_px` at `mpp` from.

    Within 2 % of the wanted mpp a level's own pixels are taken and its true mpp is recorded. Otherwise the
    coarsest level that is still at least as fine as wanted is read and reduced. `mpp` None means level 0 as it is.

    Parameters
    ----------
    slide_mpp
        Microns per pixel of level 0.
    downsamples
        Level-0 pixels per level pixel, for each level in order.
    out_px
        Edge of a tile in pixels at `mpp`.
    mpp
        Wanted microns per pixel; None for native.
    allow_upsample
        Permit enlarging by more than 1.05x.

    Raises
    ------
    SpecMismatchError
        The slide is coarser than wanted and `allow_upsample` is false.
    """
    if mpp is None:
        return ReadPlan(level=0, read_px=out_px, out_px=out_px, downsample=1.0, resample=False, mpp=slide_mpp)
    for level, down in enumerate(downsamples):
        level_mpp = slide_mpp * down
        if abs(level_mpp - mpp) <= NATIVE_TOLERANCE * mpp:
            return ReadPlan(level=level, read_px=out_px, out_px=out_px, downsample=down, resample=False, mpp=level_mpp)
    fine = [i for i, down in enumerate(downsamples) if slide_mpp * down <= mpp]
    if not fine and slide_mpp > mpp * MAX_UPSAMPLE and not allow_upsample:
        msg = (
            f"tiles at {mpp:g} mpp from a slide of {slide_mpp:g} mpp would be enlarged {slide_mpp / mpp:.2f}x; "
            f"take mpp >= {slide_mpp / MAX_UPSAMPLE:.4g} or 'native', or pass allow_upsample"
        )
        raise SpecMismatchError(msg)
    level = max(fine, key=lambda i: downsamples[i]) if fine else 0
    down = downsamples[level]
    return ReadPlan(
        level=level,
        read_px=out_px * mpp / (slide_mpp * down),
        out_px=out_px,
        downsample=down,
        resample=True,
        mpp=mpp,
    )
