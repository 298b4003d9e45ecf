"""Values on the H&E: a gene, a label or a prediction drawn at the spots, at their true size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import BoundaryNorm, to_rgba
from matplotlib.lines import Line2D

from histostore.errors import NotFoundError, UsageError, near
from histostore.pl.canvas import Canvas, Values, canvas, gene_values, given_values, plain_array, table_values
from histostore.pl.scale import Limit, shared_bins, shared_norm
from histostore.pl.style import (
    LABEL,
    MISSING,
    SMALL,
    TITLE,
    bare,
    categorical,
    finish,
    new_figure,
    plain,
    scale_bar,
    shorten,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PANEL_IN = 4.4
HOLLOW = (1.0, 1.0, 1.0, 0.5)


def spatial(
    adata: AnnData,
    color: Values | None,
    *,
    slide: str | None = None,
    layer: str | None = None,
    image_key: str | None = "hires",
    spot_scale: float = 1.0,
    cmap: str = "viridis",
    vmin: Limit = "p1",
    vmax: Limit = "p99",
    alpha: float = 1.0,
    fade: float = 0.25,
    crop: bool = True,
    title: str | None = None,
    label: str | None = None,
    save: Path | None = None,
) -> Figure:
    """Draw a gene, an obs column or given values on one slide's image.

    Parameters
    ----------
    adata
        ``obs["slide"]``, ``obsm["spatial"]`` = spot centres (x, y) in full-resolution pixels, and
        ``uns["spatial"][slide]`` with images and scalefactors, as scanpy keeps them.
    color
        A column of obs, a gene (then `layer` may name a layer or a table in obsm), a Series indexed by obs
        names, an array with a value per spot, or None for the image alone.
    slide
        Which slide; None where there is only one.
    image_key
        Which image; None draws none.
    spot_scale
        1 draws spots at the size the assay gives them.
    vmin, vmax
        Ends of the colour scale: a number, a percentile such as ``"p99"``, or None for the extreme. Where values
        lie beyond, the colour bar ends in a point.
    alpha
        Opacity of the spots.
    fade
        How far the image is faded to white under the spots: 0 not at all, 1 wholly.
    crop
        Show the spots and a margin rather than the whole image.

    Raises
    ------
    NotFoundError
        Nothing of that name, with the nearest names.
    UsageError
        The name is a gene and an obs column at once.
    """
    place = canvas(adata, slide, image_key)
    figure = new_figure(PANEL_IN + 1.2, PANEL_IN * _aspect(place, crop=crop) + 0.45)
    ax = figure.add_subplot()
    draw_image(ax, place, crop=crop, fade=0.0 if color is None else fade)
    heading = shorten(place.slide, 40)
    if color is not None:
        values, name = _resolve(adata, place, color, layer)
        name = label or name
        if _is_categorical(values):
            _draw_categories(ax, place, values, _palette(adata, color, values), spot_scale, alpha)
        else:
            numbers = np.asarray(values, dtype=np.float64)
            norm, extend = shared_norm([numbers], vmin, vmax)
            spots = draw_numbers(ax, place, numbers, norm, cmap, spot_scale, alpha)
            _colour_bar(figure, spots, [ax], name, extend)
        missing = int(pd.isna(pd.Series(values)).sum())
        heading = f"{heading} · {shorten(name, 40)}" if name else heading
        heading += f" · {missing} spots without value" if missing else ""
    ax.set_title(plain(title if title is not None else heading), fontsize=TITLE)
    return finish(figure, save)


def truth_and_prediction(
    adata: AnnData,
    gene: str,
    *,
    slide: str | None = None,
    truth: Values | None = None,
    prediction: Values,
    baseline: Values | None = None,
    image_key: str | None = "hires",
    histology: bool = True,
    spot_scale: float = 1.0,
    cmap: str = "viridis",
    vmin: Limit = "p1",
    vmax: Limit = "p99",
    bins: int | Sequence[float] | None = None,
    alpha: float = 1.0,
    fade: float = 0.4,
    label: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw a gene as measured beside the same gene as predicted, all panels on one colour scale.

    Parameters
    ----------
    truth, prediction, baseline
        The name of a layer or of a table in obsm (columns are genes), a DataFrame or Series indexed by obs
        names, or an array with a value per spot. `truth` None is ``adata.X``.
    histology
        Put the bare image first, at full strength.
    vmin, vmax, alpha, fade
        As in `spatial`; percentiles are taken over all panels together.
    bins
        Colours in bins that all panels share, instead of from `vmin` to `vmax`: so many, cut at quantiles of the
        measured values, or the inner edges.
    label
        Unit of the colour bar, such as ``log1p(CP10k)``.

    Returns
    -------
    matplotlib.figure.Figure
        The title of each prediction carries Pearson's r on this slide, over the spots where both are finite.
    """
    place = canvas(adata, slide, image_key)
    measured = _layer_values(adata, place, truth, gene, "truth")
    panels = [("measured", measured), ("predicted", _layer_values(adata, place, prediction, gene, "prediction"))]
    if baseline is not None:
        panels.append(("baseline", _layer_values(adata, place, baseline, gene, "baseline")))
    every = [values for _, values in panels]
    norm, extend = shared_norm(every, vmin, vmax) if bins is None else (shared_bins(measured, every, bins), "neither")
    histology = histology and place.image is not None
    count = len(panels) + histology
    figure = new_figure(3.3 * count + 0.8, 3.3 * _aspect(place, crop=True) + 0.55)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    if histology:
        draw_image(axes[0], place, crop=True)
        axes[0].set_title("H&E", fontsize=TITLE)
    for ax, (name, values) in zip(axes[histology:], panels, strict=True):
        draw_image(ax, place, crop=True, fade=fade, bar=not histology and values is measured)
        spots = draw_numbers(ax, place, values, norm, cmap, spot_scale, alpha)
        r = "" if values is measured else f"  {r_text(pearson(measured, values))}"
        ax.set_title(name + r, fontsize=TITLE)
    _colour_bar(figure, spots, axes, label, extend)
    heading = plain(f"{shorten(place.slide, 40)} · {shorten(gene, 40)}")
    figure.suptitle(heading, fontsize=TITLE, weight="bold")
    return finish(figure, save)


def pearson(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return Pearson's r over the pairs where both are finite; NaN where one side does not vary."""
    both = np.isfinite(a) & np.isfinite(b)
    x, y = np.asarray(a, np.float64)[both], np.asarray(b, np.float64)[both]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def r_text(r: float) -> str:
    """Return Pearson's r as a title has it."""
    return f"r = {r:.2f}" if np.isfinite(r) else "r undefined"


def draw_image(ax: Axes, place: Canvas, *, crop: bool, fade: float = 0.0, bar: bool = True) -> None:
    """Show the slide's image in level-0 coordinates, with a scale bar where the resolution is known."""
    if not 0 <= fade <= 1:
        msg = f"fade is {fade}; give a share from 0 (image as it is) to 1 (white)"
        raise UsageError(msg)
    ax.set_facecolor("white")
    if place.image is not None:
        ax.imshow(place.image, extent=place.extent(), interpolation="antialiased", aspect="equal", alpha=1 - fade)
    left, right, bottom, top = _view(place, crop=crop)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_aspect("equal")
    bare(ax)
    if bar and place.mpp is not None:
        scale_bar(ax, place.mpp)


def _view(place: Canvas, *, crop: bool) -> tuple[float, float, float, float]:
    """Return (left, right, bottom, top); bottom is the larger y, as images have it."""
    if place.image is not None and not crop:
        return place.extent()
    margin = 1.5 * place.diameter
    (x0, y0), (x1, y1) = place.xy.min(axis=0) - margin, place.xy.max(axis=0) + margin
    if place.image is not None:
        left, right, bottom, top = place.extent()
        # a spot off the image stays in view: it is a finding, not an accident to hide
        inside = (place.xy[:, 0] < right).all() and (place.xy[:, 1] < bottom).all() and (place.xy >= 0).all()
        if inside:
            x0, x1, y0, y1 = max(x0, left), min(x1, right), max(y0, top), min(y1, bottom)
    return float(x0), float(x1), float(y1), float(y0)


def _aspect(place: Canvas, *, crop: bool) -> float:
    """Return height over width of what is shown, within reason."""
    left, right, bottom, top = _view(place, crop=crop)
    return float(np.clip(abs(bottom - top) / abs(right - left), 0.4, 2.5))


def _circles(ax: Axes, place: Canvas, which: NDArray[np.bool_], spot_scale: float, **style: Any) -> EllipseCollection:
    size = np.full(int(which.sum()), place.diameter * spot_scale)
    spots = EllipseCollection(
        size, size, np.zeros_like(size), units="xy", offsets=place.xy[which], offset_transform=ax.transData, **style
    )
    ax.add_collection(spots, autolim=False)
    return spots


def draw_numbers(
    ax: Axes,
    place: Canvas,
    values: NDArray[np.float64],
    norm: Normalize,
    cmap: str,
    spot_scale: float = 1.0,
    alpha: float = 1.0,
) -> EllipseCollection:
    """Draw spots in the colours of a scale; those without a value are hollow and grey."""
    there = np.isfinite(values)
    if not there.all():
        _circles(ax, place, ~there, spot_scale, facecolors=HOLLOW, edgecolors=MISSING, linewidths=1.0)
    spots = _circles(
        ax, place, there, spot_scale, norm=norm, cmap=cmap, alpha=alpha, edgecolors="white", linewidths=0.4
    )
    spots.set_array(values[there])
    return spots


def _draw_categories(
    ax: Axes, place: Canvas, values: NDArray[Any], palette: Mapping[str, str], spot_scale: float, alpha: float
) -> None:
    missing = np.asarray(pd.isna(pd.Series(values)))
    text = np.array([str(v) for v in values], dtype=object)
    handles = []
    for name, colour in palette.items():
        which = (text == name) & ~missing
        if which.any():
            _circles(
                ax, place, which, spot_scale, facecolors=[to_rgba(colour, alpha)], edgecolors="white", linewidths=0.4
            )
            handles.append(_dot(plain(f"{shorten(name, 28)} ({int(which.sum())})"), colour))
    if missing.any():
        _circles(ax, place, missing, spot_scale, facecolors=HOLLOW, edgecolors=MISSING, linewidths=1.0)
        handles.append(_dot(f"no value ({int(missing.sum())})", "none", edge=MISSING))
    ax.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL,
        handletextpad=0.3, ncols=1 + len(handles) // 18,
    )  # fmt: skip


def _dot(label: str, colour: str, edge: str = "none") -> Line2D:
    return Line2D([], [], linestyle="", marker="o", markersize=7, color=colour, markeredgecolor=edge, label=label)


def _palette(adata: AnnData, color: Values | None, values: NDArray[Any]) -> dict[str, str]:
    """Return category -> colour, the same on every slide of the AnnData."""
    if isinstance(color, str):
        column = adata.obs[color].astype("category")
        levels = [str(c) for c in column.cat.categories]
        kept = adata.uns.get(f"{color}_colors")  # where scanpy keeps them
        if kept is not None and len(kept) >= len(levels):
            return dict(zip(levels, map(str, kept), strict=False))
    else:
        levels = sorted({str(v) for v in values if not pd.isna(v)})
    return dict(zip(levels, categorical(len(levels)), strict=True))


def _is_categorical(values: NDArray[Any]) -> bool:
    return not np.issubdtype(values.dtype, np.number)


def _resolve(adata: AnnData, place: Canvas, color: Values, layer: str | None) -> tuple[NDArray[Any], str]:
    """Return the values of the slide's rows and what they are called."""
    if not isinstance(color, str):
        name = str(color.name) if isinstance(color, pd.Series) and color.name is not None else ""
        return given_values(adata, place.rows, color), name
    in_obs = color in adata.obs.columns
    in_var = color in adata.var_names or (layer is not None and layer in adata.obsm)
    if in_obs and color in adata.var_names and layer is None:
        msg = f"'{color}' is a column of obs and a gene; pass the values themselves or rename the column"
        raise UsageError(msg)
    if in_obs and layer is None:
        return plain_array(adata.obs[color].iloc[place.rows]), color
    if in_var:
        return gene_values(adata, place.rows, color, layer), color
    msg = f"'{color}' is no column of obs and no gene{near(color, [*adata.obs.columns, *adata.var_names])}"
    raise NotFoundError(msg)


def _layer_values(adata: AnnData, place: Canvas, source: Values | None, gene: str, what: str) -> NDArray[np.float64]:
    if source is None or isinstance(source, str):
        return gene_values(adata, place.rows, gene, None if source in (None, "X") else str(source))
    if isinstance(source, pd.DataFrame):
        return table_values(adata, place.rows, source, gene, what)
    return np.asarray(given_values(adata, place.rows, source, what), dtype=np.float64)


def _colour_bar(figure: Figure, spots: EllipseCollection, axes: list[Axes], label: str, extend: str) -> None:
    # a mappable of its own: the bar must be opaque whatever the spots are
    solid = ScalarMappable(norm=spots.norm, cmap=spots.cmap)
    bar = figure.colorbar(solid, ax=axes, shrink=0.75, aspect=28, pad=0.02, extend=extend)
    if isinstance(spots.norm, BoundaryNorm):
        edges = spots.norm.boundaries
        bar.set_ticks(list(edges), labels=[f"{e:.3g}" for e in edges])
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.set_label(plain(shorten(label, 40)), fontsize=LABEL)
