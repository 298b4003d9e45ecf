"""Microns per pixel as a file says it: what it is, where it was found, why it was not taken."""

from __future__ import annotations

import math

from histostore.errors import SlideError
from histostore.units import MPP_LIMITS

MAX_ANISOTROPY = 0.05
"""Pixels more oblong than this are refused."""

UM_PER_INCH = 25_400.0
UM_PER_CM = 10_000.0


def settle_mpp(x: float, y: float, origin: str, uri: str) -> tuple[float | None, str]:
    """Return the slide's mpp and its origin, or None and the reason.

    A value no optical slide can have (a printer's 72 dpi is 353 µm) is not taken, and said so; the mean of both
    axes is taken otherwise.

    Raises
    ------
    SlideError
        Pixels are oblong by more than 5 %: no one mpp would be right.
    """
    low, high = MPP_LIMITS
    for name, value in (("x", x), ("y", y)):
        if not math.isfinite(value) or not low <= value <= high:
            return None, f"none: {origin} says {value:g} µm per pixel in {name}, outside {low:g}-{high:g}"
    if abs(x - y) > MAX_ANISOTROPY * max(x, y):
        msg = f"{uri}: pixels are not square, {origin} says {x:g} x {y:g} µm; resample the slide to square pixels"
        raise SlideError(msg)
    return (x + y) / 2, origin
