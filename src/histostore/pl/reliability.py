"""Whether probabilities mean what they say: predicted against observed share, with the rows behind each point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import AlignmentError, DataError, UsageError
from histostore.pl.style import (
    FAINT,
    LABEL,
    MARKERS,
    SMALL,
    TITLE,
    categorical,
    finish,
    light,
    new_figure,
    plain,
    shorten,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    type Floats = NDArray[np.float64]
    type Pair = tuple[ArrayLike, ArrayLike]

MAX_CURVES = 8
Z95 = 1.959963984540054


def calibration(
    curves: Mapping[str, Pair],
    *,
    bins: int = 10,
    name: str = "probability of the positive class",
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw a reliability diagram: observed against predicted share by bins, and how many rows each bin holds.

    Parameters
    ----------
    curves
        Name -> (truth ``(n,)``, true where the event happened; probability ``(n,)`` in 0-1).
    bins
        Of equal width.
    name
        What was predicted.

    Returns
    -------
    matplotlib.figure.Figure
        Bars are Wilson's 95 % intervals, taking rows as independent (spots of one slide are not: they are then too
        short). The legend carries the expected calibration error: the mean over rows of |observed − predicted| of
        their bin.

    Raises
    ------
    DataError
        No curve, no rows, or probabilities outside 0-1.
    """
    if not 1 <= len(curves) <= MAX_CURVES:
        msg = f"{len(curves)} curves to draw; give 1 to {MAX_CURVES}, name -> (truth, probability)"
        raise DataError(msg)
    if bins < 2:
        msg = f"{bins} bins; give 2 or more"
        raise UsageError(msg)
    figure = new_figure(4.8, 6.0 + 0.2 * len(curves))
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    top.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, zorder=1, gid="y=x")
    for i, ((which, pair), colour) in enumerate(zip(curves.items(), categorical(len(curves)), strict=True)):
        n, predicted, observed = _binned(which, *pair, bins=bins)
        there = n > 0
        error = float(np.sum(n[there] * np.abs(observed - predicted)[there]) / n.sum())
        top.errorbar(
            predicted[there], observed[there], yerr=_interval(n[there], observed[there]), color=colour,
            marker=MARKERS[i], markersize=5.5, linewidth=1.6, elinewidth=0.9, capsize=2,
            label=f"{plain(shorten(which, 28))}: calibration error {error:.3f}  (n = {int(n.sum()):,})",
        )  # fmt: skip
        below.stairs(n, np.linspace(0, 1, bins + 1), color=colour, linewidth=1.5, fill=len(curves) == 1, alpha=0.9)
    top.set_ylim(-0.03, 1.03)
    top.set_xlim(-0.02, 1.02)
    for ax, label in ((top, "observed share"), (below, "rows in the bin")):
        light(ax)
        ax.set_ylabel(label, fontsize=LABEL)
    below.set_xlabel(plain(name), fontsize=LABEL)
    figure.legend(loc="outside lower center", frameon=False, fontsize=SMALL)
    if title:
        figure.suptitle(plain(shorten(title, 60)), fontsize=TITLE)
    return finish(figure, save)


def _binned(name: str, truth: ArrayLike, probability: ArrayLike, *, bins: int) -> tuple[Floats, Floats, Floats]:
    """Return rows, mean probability and observed share of each bin; NaN where a bin is empty."""
    event, p = np.asarray(truth).astype(bool), np.asarray(probability, dtype=np.float64)
    if event.shape != p.shape or p.ndim != 1:
        msg = f"curve '{name}': truth of shape {event.shape} and probability of shape {p.shape}; give equal (n,)"
        raise AlignmentError(msg)
    if not p.size or not ((p >= 0) & (p <= 1)).all():
        msg = f"curve '{name}': {int((~((p >= 0) & (p <= 1))).sum())} of {p.size} probabilities are not in 0-1"
        raise DataError(msg)
    which = np.minimum((p * bins).astype(np.int64), bins - 1)
    n = np.bincount(which, minlength=bins).astype(np.float64)
    empty = np.full(bins, np.nan)
    mean = np.divide(np.bincount(which, weights=p, minlength=bins), n, out=empty.copy(), where=n > 0)
    share = np.divide(np.bincount(which, weights=event.astype(float), minlength=bins), n, out=empty, where=n > 0)
    return n, mean, share


def _interval(n: Floats, share: Floats) -> Floats:
    """Return ``(2, bins)`` distances to the ends of Wilson's interval (Wilson, JASA 1927)."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return np.maximum([share - (centre - half), centre + half - share], 0.0)
