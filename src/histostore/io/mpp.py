"""Microns per pixel: from the spot pitch, and which of several values holds.

The array of an assay is a ruler: neighbours are a known distance apart, and the spot file says where they lie in
pixels. Fitting all spots at once averages the jitter of single spots; the median distance to the nearest
neighbour does not, it is biased low (by 6 % on ST v1 sections).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import SlideError
from histostore.units import MPP_LIMITS, check_mpp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.tables import Points

SPOT_DIAMETER_UM = 65.0
"""What spot_diameter_fullres of Space Ranger stands for (a spot's nominal diameter is 55 µm)."""

TOLERANCE = 0.05
"""Two values further apart than this contradict each other."""

MAX_ANISOTROPY = 0.1
MAX_RESIDUAL = 0.35
"""Spots further than this share of the pitch from where the array says (RMS): the two do not belong together."""


def array_steps_um(points: Points) -> tuple[float, float] | None:
    """Return the distance in µm that one array column and one array row stand for, or None if unknown.

    Visium is hexagonal: neighbours in a row are two columns and the pitch apart, rows are pitch x sqrt(3) / 2
    apart. ST v1 and the bins of Visium HD are square.
    """
    if points.pitch_um is None:
        return None
    if points.assay == "visium":
        return points.pitch_um / 2, points.pitch_um * math.sqrt(3) / 2
    return points.pitch_um, points.pitch_um


def mpp_from_pitch(points: Points) -> float | None:
    """Return µm per level-0 pixel from where the spots of an array lie.

    Fits ``pixel = A @ position_um + b`` to all spots by least squares (twice: the second time without spots that
    lie far off), so rotation and mirroring do not matter, and returns ``1 / sqrt(|det A|)``.

    Parameters
    ----------
    points
        With array positions and a pitch.

    Returns
    -------
    float or None
        None where the array says nothing: no positions, spots on one line, axes of different scale (over 10 %),
        or pixels that do not follow the array.
    """
    steps = array_steps_um(points)
    if steps is None or points.array_row is None or points.array_col is None or len(points) < 4:
        return None
    position_um = np.column_stack([points.array_col * steps[0], points.array_row * steps[1]])
    finite = np.isfinite(points.xy).all(axis=1)
    fit = _fit(position_um[finite], points.xy[finite])
    if fit is None:
        return None
    matrix, residual = fit
    scales = np.linalg.svd(matrix, compute_uv=False)
    if scales[1] <= 0 or scales[0] / scales[1] > 1 + MAX_ANISOTROPY:
        return None
    mpp = float(1 / np.sqrt(scales[0] * scales[1]))
    if residual * mpp > MAX_RESIDUAL * float(points.pitch_um or 0):
        return None
    return mpp


def _fit(position: NDArray[np.float64], xy: NDArray[np.float64]) -> tuple[NDArray[np.float64], float] | None:
    """Return the 2 x 2 part of the affine fit and its RMS residual, after leaving out far outliers."""
    design = np.column_stack([position, np.ones(len(position))])
    keep = np.ones(len(position), dtype=bool)
    for _ in range(2):
        if np.linalg.matrix_rank(design[keep]) < 3:
            return None
        solution = np.linalg.lstsq(design[keep], xy[keep], rcond=None)[0]
        distance = np.linalg.norm(design @ solution - xy, axis=1)
        used = keep
        keep = distance <= max(5 * float(np.median(distance)), 1e-6)
    rms = float(np.sqrt(np.mean(distance[used] ** 2)))
    return solution[:2].T, rms


def resolve_mpp(
    *,
    given: float | None,
    file: float | None,
    pitch: float | None,
    spot_diameter_px: float | None = None,
    force: bool = False,
) -> tuple[float, str, tuple[str, ...]]:
    """Decide a slide's mpp: given by the user, else the file's, else from the spot pitch.

    Parameters
    ----------
    given, file, pitch
        The values there are; None where there is none.
    spot_diameter_px
        ``spot_diameter_fullres`` of Visium, which stands for 65 µm and checks the others.
    force
        Take the first of them although another contradicts it (noted).

    Returns
    -------
    mpp
        µm per level-0 pixel.
    origin
        ``given``, ``file``, ``spot pitch`` or ``spot diameter``.
    notes
        What else there was and how far off.

    Raises
    ------
    SlideError
        None is known; the one taken is outside what a slide can have; or two are more than 5 % apart.
    """
    diameter = SPOT_DIAMETER_UM / spot_diameter_px if spot_diameter_px else None
    known = {"given": given, "file": file, "spot pitch": pitch, "spot diameter": diameter}
    there = {origin: float(value) for origin, value in known.items() if value is not None}
    if not there:
        msg = "mpp is unknown: the file has none and there is no spot pitch; give it with --mpp"
        raise SlideError(msg)
    origin, mpp = next(iter(there.items()))
    check_mpp(mpp, _label(origin))
    notes = []
    for other, value in list(there.items())[1:]:
        if not (math.isfinite(value) and MPP_LIMITS[0] <= value <= MPP_LIMITS[1]):
            notes.append(f"{_label(other)} is {value:g}, which no slide has: not used")
            continue
        apart = abs(value / mpp - 1)
        if apart <= TOLERANCE:
            continue
        words = f"{_label(origin)} is {mpp:.4g} but {_label(other)} is {value:.4g} µm per pixel"
        if not force:
            msg = f"{words} ({apart:.1%} apart, at most {TOLERANCE:.0%}); find out which is right, then pass force_mpp"
            raise SlideError(msg)
        notes.append(f"{words}: {_label(origin)} was taken by force")
    return mpp, origin, tuple(notes)


def _label(origin: str) -> str:
    return {
        "given": "the mpp given",
        "file": "the file's mpp",
        "spot pitch": "the mpp from the spot pitch",
        "spot diameter": "the mpp from the spot diameter",
    }[origin]
