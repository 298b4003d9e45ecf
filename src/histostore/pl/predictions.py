"""Predicted beside true, gene by gene: scatter, residuals against fitted values, distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm

from histostore.pl.pairs import count_note, joined, panel_grid, row_groups
from histostore.pl.sections import pearson, r_text
from histostore.pl.style import FAINT, LABEL, OKABE_ITO, SMALL, TITLE, finish, light, plain, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    type Floats = NDArray[np.float64]
    type Groups = dict[str, tuple[NDArray[np.bool_], str]]

DENSE = 5000
"""From so many points on, and without labels, cells coloured by their count take the place of points."""

TREND = OKABE_ITO[5]
TREND_BINS, TREND_POINTS = 12, 8


def scatter(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    genes: Sequence[str] | None = None,
    *,
    labels: pd.Series[Any] | ArrayLike | None = None,
    columns: int = 4,
    unit: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw predicted against true for each gene, with the line y = x, Pearson's r and the number of points.

    Parameters
    ----------
    truth, prediction
        Spots x genes; joined by index and by column, whatever their order. Pairs of which one is NaN are left out
        and counted in the panel.
    genes
        Which, in this order; None is all columns of `truth`.
    labels
        ``(n,)`` slide or fold of each row of `truth` (a Series is joined by index). Then r is the mean of the
        r within each label: pooled over slides it would reward knowing the slide. A label without any pair takes no
        part, and the panel says how many did.
    unit
        Unit of both axes, such as ``log1p(CP10k)``.

    Raises
    ------
    AlignmentError
        The two tables do not hold the same spots, or an id twice.
    NotFoundError
        A gene is in one table only.
    """
    truth, prediction = joined(truth, prediction, genes)
    groups = row_groups(truth, labels)
    figure, axes = panel_grid(truth.shape[1], columns)
    dense = []
    for ax, gene in zip(axes, truth.columns, strict=True):
        x, y = truth[gene].to_numpy(), prediction[gene].to_numpy()
        dense += _against(ax, x, y, groups)
        ax.set_title(f"{plain(shorten(str(gene), 18))}  {_within(x, y, groups)}", fontsize=TITLE - 1)
    suffix = f" ({plain(unit)})" if unit else ""
    figure.supxlabel(f"measured{suffix}", fontsize=LABEL)
    figure.supylabel(f"predicted{suffix}", fontsize=LABEL)
    _legend(figure, axes, groups, title=f"r: mean of {len(groups)}")
    _count_bar(figure, axes, dense)
    return finish(figure, save)


def residuals(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    genes: Sequence[str] | None = None,
    *,
    labels: pd.Series[Any] | ArrayLike | None = None,
    columns: int = 4,
    unit: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw true minus predicted against predicted for each gene, with their mean along the fitted values.

    Parameters
    ----------
    truth, prediction, genes, labels, unit
        As in `scatter`.

    Returns
    -------
    matplotlib.figure.Figure
        Panels carry mean (bias) and standard deviation of the residuals. The line joins means of bins of equal
        count: where it leaves zero, predictions are off on average.
    """
    truth, prediction = joined(truth, prediction, genes)
    groups = row_groups(truth, labels)
    figure, axes = panel_grid(truth.shape[1], columns, width=2.9)
    dense = []
    for ax, gene in zip(axes, truth.columns, strict=True):
        fitted, left = prediction[gene].to_numpy(), (truth[gene] - prediction[gene]).to_numpy()
        dense += _points(ax, fitted, left, groups)
        ax.axhline(0, color=FAINT, linewidth=0.9, zorder=1, gid="zero")
        there = np.isfinite(left)
        ax.plot(
            *_trend(fitted[there], left[there]), color=TREND, marker="o", markersize=3, linewidth=1.4, zorder=5,
            gid="trend",
        )  # fmt: skip
        ax.set_title(plain(shorten(str(gene), 24)), fontsize=TITLE - 1)
        said = _signed(left[there].mean(), left[there].std()) if there.any() else ""
        count_note(ax, int(there.sum()), int((~there).sum()), said, at="upper right")
        ax.margins(y=0.2)
        ax.locator_params(nbins=5)
        light(ax)
    suffix = f" ({plain(unit)})" if unit else ""
    figure.supxlabel(f"predicted{suffix}", fontsize=LABEL)
    figure.supylabel("measured − predicted", fontsize=LABEL)
    _legend(figure, axes, groups, title="")
    _count_bar(figure, axes, dense)
    return finish(figure, save)


def distributions(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    genes: Sequence[str] | None = None,
    *,
    bins: int = 30,
    columns: int = 4,
    unit: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw how true and predicted values of each gene are distributed, in the same bins.

    Parameters
    ----------
    truth, prediction, genes, unit
        As in `scatter`; values that are not finite are left out of their own histogram.
    bins
        Of equal width, over the range of both.
    """
    truth, prediction = joined(truth, prediction, genes)
    figure, axes = panel_grid(truth.shape[1], columns, width=2.9, height=2.4)
    for ax, gene in zip(axes, truth.columns, strict=True):
        two = [t[gene].to_numpy()[np.isfinite(t[gene].to_numpy())] for t in (truth, prediction)]
        low, high = _range(np.concatenate(two))
        edges = np.linspace(low, high, bins + 1)
        shares = [100 * np.histogram(values, edges)[0] / max(len(values), 1) for values in two]
        ax.stairs(shares[0], edges, label="measured", color=FAINT, alpha=0.45, fill=True)
        ax.stairs(shares[1], edges, label="predicted", color=OKABE_ITO[0], linewidth=1.6)
        ax.set_title(plain(shorten(str(gene), 24)), fontsize=TITLE - 1)
        spread = "\n".join(
            f"{name} sd {v.std():.2f}" for name, v in zip(("measured", "predicted"), two, strict=True) if v.size
        )
        count_note(ax, len(truth), max(len(truth) - len(v) for v in two), spread, at="upper right")
        ax.set_ylim(0, 1.5 * max(1.0, *shares[0], *shares[1]))  # room for what is said above the bars
        ax.locator_params(nbins=4)
        light(ax)
    suffix = f" ({plain(unit)})" if unit else ""
    figure.supxlabel(f"value{suffix}", fontsize=LABEL)
    figure.supylabel("share of spots (%)", fontsize=LABEL)
    handles, text = axes[0].get_legend_handles_labels()
    figure.legend(handles, text, loc="outside upper left", ncols=2, frameon=False, fontsize=SMALL)
    return finish(figure, save)


def _within(x: Floats, y: Floats, groups: Groups) -> str:
    """Return the mean r within the groups that have any pair, and how many those are where some have none."""
    both = np.isfinite(x) & np.isfinite(y)
    found = [pearson(x[which], y[which]) for which, _ in groups.values() if both[which].any()]
    some = f" ({len(found)} of {len(groups)})" if len(found) < len(groups) else ""
    return r_text(float(np.mean(found)) if found else np.nan) + some


def _signed(mean: float, sd: float) -> str:
    text = f"{mean:+.2f}"
    return f"bias {'0.00' if text in ('+0.00', '-0.00') else text}\nsd {sd:.2f}"


def _against(ax: Axes, x: Floats, y: Floats, groups: Groups) -> list[PolyCollection]:
    low, high = _range(np.concatenate([x, y]))
    pad = 0.05 * (high - low)
    ax.plot([low - pad, high + pad], [low - pad, high + pad], color=FAINT, linewidth=0.9, zorder=4, gid="y=x")
    dense = _points(ax, x, y, groups)
    both = np.isfinite(x) & np.isfinite(y)
    # predictions are drawn towards the mean, so the upper left corner is where points are not
    count_note(ax, int(both.sum()), int((~both).sum()))
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(low - pad, high + pad)
    ax.set_aspect("equal")
    ax.locator_params(nbins=4)
    light(ax)
    return dense


def _range(values: Floats) -> tuple[float, float]:
    """Return lowest and highest finite value; a range of one around a constant."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _points(ax: Axes, x: Floats, y: Floats, groups: Groups) -> list[PolyCollection]:
    """Draw points, or cells coloured by count where there are too many; return the latter."""
    if len(groups) == 1 and len(x) > DENSE:
        both = np.isfinite(x) & np.isfinite(y)
        return [ax.hexbin(x[both], y[both], gridsize=40, mincnt=1, cmap="cividis", linewidths=0, zorder=3)]
    # many points hide each other: smaller and fainter as they grow in number
    size = float(np.clip(4000 / max(len(x), 1), 3, 16))
    for label, (which, colour) in groups.items():
        ax.scatter(
            x[which], y[which], s=size, color=colour, alpha=0.55, linewidths=0, label=plain(shorten(label, 20)),
            rasterized=len(x) > 2000,
        )  # fmt: skip
    return []


def _trend(x: Floats, y: Floats) -> tuple[list[float], list[float]]:
    """Return means of bins of equal count along x; rows of one x stay in one bin."""
    count = int(np.clip(len(x) // TREND_POINTS, 1, TREND_BINS))
    edges = np.unique(np.quantile(x, np.linspace(0, 1, count + 1)[1:-1])) if len(x) else np.empty(0)
    which = np.searchsorted(edges, x, side="right")
    parts = [which == k for k in np.unique(which)]
    return [float(x[p].mean()) for p in parts], [float(y[p].mean()) for p in parts]


def _legend(figure: Figure, axes: list[Axes], groups: Groups, *, title: str) -> None:
    if len(groups) > 1:
        handles, text = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, text, loc="outside right center", frameon=False, fontsize=SMALL, markerscale=1.8, title=title,
            title_fontsize=SMALL,
        )  # fmt: skip


def _count_bar(figure: Figure, axes: list[Axes], dense: list[PolyCollection]) -> None:
    """Give all panels one colour scale of counts."""
    if not dense:
        return
    most = max(float(np.max(np.asarray(cells.get_array()), initial=1)) for cells in dense)
    for cells in dense:
        cells.set_norm(LogNorm(1, max(most, 2.0)))
    bar = figure.colorbar(dense[0], ax=axes, shrink=0.75, aspect=28, pad=0.02)
    bar.set_label("points in a cell", fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)
