"""One colour scale for several panels: from percentile to percentile, or in bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import BoundaryNorm, Normalize

from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

type Limit = float | str | None
"""A number, a percentile such as ``"p99"``, or None for the extreme."""

MAX_BINS = 12


def shared_norm(arrays: list[NDArray[np.float64]], vmin: Limit, vmax: Limit) -> tuple[Normalize, str]:
    """Return one colour scale for several panels, and which ends of it are cut (matplotlib's ``extend``)."""
    pooled = _pooled(arrays)
    if not pooled.size:
        return Normalize(0.0, 1.0), "neither"
    low, high = _limit(vmin, pooled, 0.0), _limit(vmax, pooled, 100.0)
    if low > high:
        msg = f"colour scale runs from {low:g} to {high:g}; give vmin below vmax"
        raise UsageError(msg)
    cut = (bool(pooled.min() < low), bool(pooled.max() > high))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[cut]
    return Normalize(low, high if high > low else low + 1.0), extend


def shared_bins(
    measured: NDArray[np.float64], arrays: list[NDArray[np.float64]], bins: int | Sequence[float]
) -> BoundaryNorm:
    """Return a colour scale in bins that all panels share.

    Parameters
    ----------
    measured
        What a number of bins is cut from: at its quantiles, so that each holds as many measured values; values that
        are all alike (zeros of a rare gene) stay in one bin, and there are fewer.
    arrays
        All panels: the outer bins reach to their extremes.
    bins
        How many, or the inner edges themselves, rising.

    Raises
    ------
    UsageError
        Fewer than two bins or more than twelve, edges that do not rise.
    """
    count = bins if isinstance(bins, int) else len(bins) + 1
    if not 2 <= count <= MAX_BINS:
        msg = f"{count} bins of a colour scale; give 2 to {MAX_BINS}, or the edges between them"
        raise UsageError(msg)
    if isinstance(bins, int):
        inner = _quantile_edges(_pooled([measured]), bins)
    else:
        inner = np.asarray(bins, dtype=np.float64)
        if not np.isfinite(inner).all() or (np.diff(inner) <= 0).any():
            msg = f"edges of the colour scale are {list(bins)}; give finite numbers that rise"
            raise UsageError(msg)
    pooled = _pooled([*arrays, inner])
    low, high = (float(pooled.min()), float(pooled.max())) if pooled.size else (0.0, 1.0)
    step = 1e-6 * ((high - low) or 1.0)  # the outer edges lie outside of all values, and of the inner edges
    return BoundaryNorm([low - step, *inner, high + step], 256)


def _quantile_edges(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Return inner edges, none of them on the lowest value: those go half-way to the next."""
    if not values.size or values.min() == values.max():
        return np.empty(0)
    inner = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    lowest = values.min()
    inner[inner <= lowest] = (lowest + values[values > lowest].min()) / 2
    return np.unique(inner)


def _pooled(arrays: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    pooled = np.concatenate([np.ravel(a) for a in arrays])
    return pooled[np.isfinite(pooled)]


def _limit(limit: Limit, values: NDArray[np.float64], extreme: float) -> float:
    if limit is None:
        return float(np.percentile(values, extreme))
    if isinstance(limit, str):
        number = limit.removeprefix("p")
        if number == limit or not number.replace(".", "", 1).isdigit() or float(number) > 100:
            msg = f"'{limit}' is no end of a colour scale; give a number or a percentile such as 'p99'"
            raise UsageError(msg)
        return float(np.percentile(values, float(number)))
    return float(limit)
