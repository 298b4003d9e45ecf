"""Tissue and tiles on the overview of a slide: the mask, the plan of what is read, and values as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Patch

from histostore.errors import DataError, SpecMismatchError
from histostore.pl.style import (
    LABEL,
    MISSING,
    OKABE_ITO,
    SMALL,
    TITLE,
    bare,
    categorical,
    check_lengths,
    finish,
    new_figure,
    plain,
    scale_bar,
    shorten,
)
from histostore.protocols import TileStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

LONG_IN = 5.6
"""Longest edge of the drawn overview in inches."""

OUTLINE = OKABE_ITO[0]

STATUS_COLOURS = {
    TileStatus.OK: OKABE_ITO[0],
    TileStatus.PADDED: OKABE_ITO[1],
    TileStatus.BLANK: "#6E6E6E",
    TileStatus.UNREADABLE: OKABE_ITO[5],
}


def mask_overlay(
    overview: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    *,
    mpp: float | None = None,
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw the outline of the tissue mask on the overview, with what is left out faded.

    Parameters
    ----------
    overview
        ``(h, w, 3)`` uint8 RGB.
    mask
        ``(h, w)`` bool, True is tissue.
    mpp
        Microns per pixel of the overview, for a scale bar.

    Raises
    ------
    SpecMismatchError
        The mask is not of the overview's size.
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != overview.shape[:2]:
        msg = f"mask is {mask.shape}, overview {overview.shape[:2]} (rows, columns); make the mask on this overview"
        raise SpecMismatchError(msg)
    figure, ax = _overview(overview, mpp)
    veil = np.zeros((*mask.shape, 4), dtype=np.float32)
    veil[~mask] = (1.0, 1.0, 1.0, 0.6)
    ax.imshow(veil, extent=_extent(mask), interpolation="nearest")
    if mask.any() and not mask.all():
        height, width = mask.shape
        # a frame of background closes the outlines of tissue that touches the border
        framed = np.pad(mask, 1).astype(np.float32)
        ax.contour(
            np.arange(-1, width + 1) + 0.5, np.arange(-1, height + 1) + 0.5, framed, levels=[0.5], colors=[OUTLINE],
            linewidths=1.3,
        )  # fmt: skip
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
    heading = f"tissue {100 * mask.mean():.1f} %"
    ax.set_title(plain(f"{shorten(title, 40)} · {heading}" if title else heading), fontsize=TITLE)
    return finish(figure, save)


def plan_overlay(
    overview: NDArray[np.uint8],
    downsample: float,
    xy0: NDArray[np.number[Any]],
    edge0: float,
    *,
    status: ArrayLike | None = None,
    tissue: ArrayLike | None = None,
    mpp0: float | None = None,
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw the tiles of a plan on the overview, with their number in the legend.

    Parameters
    ----------
    overview
        ``(h, w, 3)`` uint8 RGB.
    downsample
        Level-0 pixels per pixel of the overview.
    xy0
        ``(n, 2)`` top-left corners, (x, y), in level-0 pixels.
    edge0
        Edge of a tile in level-0 pixels.
    status
        ``(n,)`` `TileStatus` codes: colours the outlines.
    tissue
        ``(n,)`` share of tissue, 0-1: fills the tiles.
    mpp0
        Microns per level-0 pixel, for a scale bar.
    """
    corners = np.asarray(xy0, dtype=np.float64).reshape(-1, 2) / downsample
    edge = float(edge0) / downsample
    for what, values in (("status codes", status), ("tissue shares", tissue)):
        if values is not None:
            check_lengths(what, len(np.asarray(values)), len(corners), "tiles")
    figure, ax = _overview(overview, None if mpp0 is None else mpp0 * downsample, beside=tissue is not None)
    if tissue is not None:
        shares = np.asarray(tissue, dtype=np.float64)
        norm = Normalize(0.0, 1.0)
        filled = PolyCollection(_squares(corners, edge), cmap="viridis", norm=norm, alpha=0.35, linewidths=0)
        filled.set_array(shares)
        ax.add_collection(filled, autolim=False)
        bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=ax, shrink=0.6, aspect=26, pad=0.02)
        bar.set_label("share of tissue", fontsize=LABEL)
        bar.ax.tick_params(labelsize=SMALL, length=2)
        bar.outline.set_visible(False)
    _outlines(figure, ax, corners, edge, None if status is None else np.asarray(status))
    heading = f"{len(corners):,} tiles"
    ax.set_title(plain(f"{shorten(title, 40)} · {heading}" if title else heading), fontsize=TITLE)
    return finish(figure, save)


def tile_map(
    overview: NDArray[np.uint8],
    downsample: float,
    xy0: NDArray[np.number[Any]],
    edge0: float,
    values: ArrayLike,
    *,
    classes: Sequence[str] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    alpha: float = 0.6,
    label: str = "",
    mpp0: float | None = None,
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw a heat map: every tile of a grid filled with the colour of its value, on the overview in pale grey.

    Parameters
    ----------
    overview, downsample, xy0, edge0, mpp0
        As in `plan_overlay`.
    values
        ``(n,)`` numbers, or classes where `classes` is given. What has none (NaN, None) is outlined in grey and counted
        in the title.
    classes
        Every class there may be: a class has one colour on all slides.
    vmin, vmax
        Ends of the scale of numbers; None is the extreme.
    alpha
        Opacity of the tiles.
    label
        What the colour bar is called.
    """
    corners = np.asarray(xy0, dtype=np.float64).reshape(-1, 2) / downsample
    edge = float(edge0) / downsample
    array = np.asarray(values, dtype=object if classes is not None else np.float64)
    check_lengths("values", len(array), len(corners), "tiles")
    there = np.array([v is not None for v in array]) if classes is not None else np.isfinite(array)
    figure, ax = _overview(_pale(overview), None if mpp0 is None else mpp0 * downsample, beside=classes is None)
    if classes is None:
        low, high = (float(f(array[there])) if there.any() else d for f, d in ((np.min, 0.0), (np.max, 1.0)))
        norm = Normalize(low if vmin is None else vmin, high if vmax is None else vmax)
        filled = PolyCollection(_squares(corners[there], edge), cmap=cmap, norm=norm, alpha=alpha, linewidths=0)
        filled.set_array(array[there])
        ax.add_collection(filled, autolim=False)
        bar = figure.colorbar(ScalarMappable(norm, cmap), ax=ax, shrink=0.6, aspect=26, pad=0.02)
        bar.set_label(plain(shorten(label, 40)), fontsize=LABEL)
        bar.ax.tick_params(labelsize=SMALL, length=2)
        bar.outline.set_visible(False)
    else:
        _filled_classes(figure, ax, corners, edge, array, classes, alpha)
    if not there.all():
        ax.add_collection(_tiles(corners[~there], edge, MISSING, 0.8), autolim=False)
    missing = int((~there).sum())
    parts = [shorten(title, 40), f"{len(corners):,} tiles", f"{missing:,} without value" if missing else ""]
    ax.set_title(plain(" · ".join(p for p in parts if p)), fontsize=TITLE)
    return finish(figure, save)


def _pale(overview: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture in pale grey: pink under colours would make other colours of them."""
    grey = 96 + overview.astype(np.float32).mean(axis=2, keepdims=True) * (159 / 255)
    return np.repeat(grey.round().astype(np.uint8), 3, axis=2)


def _filled_classes(
    figure: Figure,
    ax: Axes,
    corners: NDArray[np.float64],
    edge: float,
    values: NDArray[Any],
    classes: Sequence[str],
    alpha: float,
) -> None:
    handles = []
    for name, colour in zip(classes, categorical(len(classes)), strict=True):
        which = values == name
        shown = PolyCollection(_squares(corners[which], edge), facecolors=colour, alpha=alpha, linewidths=0)
        ax.add_collection(shown, autolim=False)
        text = f"{plain(shorten(name, 28))} ({int(which.sum()):,})"
        handles.append(Patch(facecolor=colour, alpha=alpha, label=text))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(3, len(handles)), frameon=False, fontsize=SMALL,
        handlelength=1.0, handleheight=1.0, columnspacing=1.2,
    )  # fmt: skip


def _outlines(figure: Figure, ax: Axes, corners: NDArray[np.float64], edge: float, status: NDArray[Any] | None) -> None:
    # thousands of small tiles would be all outline
    width = float(np.clip(edge / 18, 0.25, 1.0))
    if status is None:
        ax.add_collection(_tiles(corners, edge, categorical(1)[0], width), autolim=False)
        return
    handles = []
    for code in sorted({int(c) for c in status}):
        which = status == code
        known = code in TileStatus._value2member_map_
        colour = STATUS_COLOURS[TileStatus(code)] if known else OKABE_ITO[3]
        name = TileStatus(code).name.lower() if known else f"status {code}"
        ax.add_collection(_tiles(corners[which], edge, colour, width if code == TileStatus.OK else 1.6 * width), False)
        handles.append(Patch(facecolor="none", edgecolor=colour, label=f"{name} ({int(which.sum()):,})"))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=SMALL,
            handlelength=1.0, handleheight=1.0, columnspacing=1.2,
        )  # fmt: skip


def _tiles(corners: NDArray[np.float64], edge: float, colour: str, width: float) -> PolyCollection:
    return PolyCollection(_squares(corners, edge), facecolors="none", edgecolors=colour, linewidths=width)


def _squares(corners: NDArray[np.float64], edge: float) -> Any:
    """Return ``(n, 4, 2)`` corners of squares whose top-left corners are given (matplotlib's types miss the array)."""
    return corners[:, None, :] + np.array([[0, 0], [edge, 0], [edge, edge], [0, edge]], dtype=np.float64)


def _overview(overview: NDArray[np.uint8], mpp: float | None, *, beside: bool = False) -> tuple[Figure, Axes]:
    if overview.ndim != 3 or overview.shape[2] != 3:
        msg = f"overview has shape {overview.shape}, expected (height, width, 3) RGB"
        raise DataError(msg)
    height, width = overview.shape[:2]
    longest = max(height, width)
    drawn = (max(3.2, LONG_IN * width / longest), max(1.5, LONG_IN * height / longest))
    figure = new_figure(drawn[0] + beside * 0.9, drawn[1] + 0.7)
    ax = figure.add_subplot()
    # pixel (0, 0) covers [0, 1) x [0, 1), as everywhere
    ax.imshow(overview, extent=_extent(overview), interpolation="antialiased")
    bare(ax)
    if mpp is not None:
        scale_bar(ax, mpp)
    return figure, ax


def _extent(image: NDArray[Any]) -> tuple[float, float, float, float]:
    return 0.0, float(image.shape[1]), float(image.shape[0]), 0.0
