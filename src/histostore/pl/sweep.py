"""Studies of settings: runs of every setting and seed, as curves, boxes and means.

All take a long table: one line per run (and epoch), with columns for the settings. What is compared by colour keeps its
colour in all pictures of a study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.errors import DataError, NotFoundError, near
from histostore.pl.pairs import panel_grid
from histostore.pl.style import (
    LABEL,
    LINES,
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
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def sweep_curves(
    runs: pd.DataFrame,
    value: str,
    *,
    x: str = "epoch",
    panel: str = "m",
    colour: str = "loss",
    name: str = "",
    panel_name: str = "",
    x_name: str = "",
    skip: int = 0,
    columns: int = 3,
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw a value along the epochs: a panel per setting, a line per `colour`, with one standard deviation over runs.

    Parameters
    ----------
    runs
        Columns `value`, `x`, `panel` and `colour`; several lines of equal `x`, `panel` and `colour` are runs. A
        `colour` of which no value is finite is left out and named in the legend.
    skip
        So many first values of `x` do not stretch the value axis (a loss may start far off); the title says it.
    """
    kept, absent = _present(runs, value, colour, (x, panel))
    colours, panels = _levels(kept[colour]), _levels(kept[panel])
    figure, axes = panel_grid(len(panels), columns, width=2.9, height=2.3)
    for ax in axes[1:]:
        ax.sharex(axes[0])
        ax.sharey(axes[0])
    low, high = np.inf, -np.inf
    wide = min(columns, len(panels))
    for at, (ax, level) in enumerate(zip(axes, panels, strict=True)):
        for i, (which, ink) in enumerate(zip(colours, categorical(len(colours)), strict=True)):
            part = kept[(kept[panel] == level) & (kept[colour] == which)].groupby(x)[value]
            if not len(part):
                continue
            mean, sd = part.mean(), part.std().fillna(0.0)
            ax.plot(mean.index, mean, color=ink, linestyle=LINES[i % len(LINES)], linewidth=1.6, label=_text(which))
            ax.fill_between(mean.index, mean - sd, mean + sd, color=ink, alpha=0.13, linewidth=0)
            seen = (mean - sd).iloc[skip:], (mean + sd).iloc[skip:]
            if len(seen[0]):
                low, high = min(low, float(seen[0].min())), max(high, float(seen[1].max()))
        ax.set_title(plain(f"{panel_name or panel} = {level}"), fontsize=TITLE - 1)
        light(ax)
        # names of axes stand below each column and beside each row
        ax.tick_params(labelbottom=at + wide >= len(panels), labelleft=at % wide == 0)
        ax.set_xlabel(plain(x_name or x) if at + wide >= len(panels) else "", fontsize=LABEL)
        ax.set_ylabel(plain(name or value) if at % wide == 0 else "", fontsize=LABEL)
    if high > low:
        axes[0].set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    _finish_legend(figure, axes[0], colours, absent)
    heading = _heading(title, kept, [x, panel, colour], "line: mean, band: ± 1 sd of")
    figure.suptitle(heading + (f", axis fitted after the first {skip}" if skip else ""), fontsize=TITLE)
    return finish(figure, save)


def sweep_boxes(
    runs: pd.DataFrame,
    value: str,
    *,
    x: str = "m",
    colour: str = "loss",
    name: str = "",
    x_name: str = "",
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw boxplots of a value over a setting, beside each other by `colour`, with every run as a point.

    Parameters
    ----------
    runs
        One line per run with the columns `value`, `x` and `colour`. A `colour` of which no value is finite is left
        out and named in the legend.
    """
    kept, absent = _present(runs, value, colour, (x,))
    colours, places = _levels(kept[colour]), _levels(kept[x])
    figure = new_figure(max(5.0, 1.6 + 0.27 * len(places) * len(colours)), 4.0)
    ax = figure.add_subplot()
    step = 0.8 / len(colours)
    for i, (which, ink) in enumerate(zip(colours, categorical(len(colours)), strict=True)):
        at = np.arange(len(places)) + (i - (len(colours) - 1) / 2) * step
        if not (kept[colour] == which).any():
            continue
        values = [kept.loc[(kept[x] == p) & (kept[colour] == which), value].to_numpy() for p in places]
        ax.boxplot(
            values, positions=at, widths=0.75 * step, patch_artist=True, showfliers=False, manage_ticks=False,
            boxprops={"facecolor": ink, "alpha": 0.35, "edgecolor": ink}, medianprops={"color": ink, "linewidth": 2},
            whiskerprops={"color": ink}, capprops={"color": ink},
        )  # fmt: skip
        spots = np.concatenate([np.full(len(v), p) for v, p in zip(values, at, strict=True)])
        ax.plot(
            spots, np.concatenate(values), linestyle="", marker=MARKERS[i % len(MARKERS)], markersize=3.5, color=ink,
            alpha=0.8, markeredgewidth=0, label=_text(which),
        )  # fmt: skip
    _setting_axes(ax, places, name or value, x_name or x)
    _finish_legend(figure, ax, colours, absent)
    figure.suptitle(_heading(title, kept, [x, colour], "box: quartiles, point: one of"), fontsize=TITLE)
    return finish(figure, save)


def sweep_means(
    runs: pd.DataFrame,
    value: str,
    *,
    x: str = "m",
    colour: str = "loss",
    name: str = "",
    x_name: str = "",
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw the mean of a value over a setting, a line by `colour`, with the standard error over runs.

    Parameters
    ----------
    runs
        As in `sweep_boxes`. Settings stand at equal distances, whatever their numbers.
    """
    kept, absent = _present(runs, value, colour, (x,))
    colours, places = _levels(kept[colour]), _levels(kept[x])
    figure = new_figure(5.6, 3.8)
    ax = figure.add_subplot()
    for i, (which, ink) in enumerate(zip(colours, categorical(len(colours)), strict=True)):
        part = kept[kept[colour] == which].groupby(x)[value]
        if not len(part):
            continue
        mean, error = (s.reindex(places) for s in (part.mean(), part.sem().fillna(0.0)))
        # side by side, so that no error bar hides another
        at = np.arange(len(places)) + (i - (len(colours) - 1) / 2) * 0.06
        ax.errorbar(
            at, mean, yerr=error, color=ink, linestyle=LINES[i % len(LINES)], marker=MARKERS[i % len(MARKERS)],
            markersize=6, linewidth=1.6, capsize=2.5, label=_text(which),
        )  # fmt: skip
    _setting_axes(ax, places, name or value, x_name or x)
    _finish_legend(figure, ax, colours, absent)
    figure.suptitle(_heading(title, kept, [x, colour], "mean ± standard error of"), fontsize=TITLE)
    return finish(figure, save)


def _rows(runs: pd.DataFrame, value: str, keys: tuple[str, ...]) -> pd.DataFrame:
    for column in (value, *keys):
        if column not in runs.columns:
            msg = f"no column '{column}' in the runs{near(column, map(str, runs.columns))}"
            raise NotFoundError(msg)
    kept = runs[np.isfinite(runs[value].astype(np.float64))]
    if kept.empty:
        msg = f"no finite '{value}' in {len(runs)} lines of the runs"
        raise DataError(msg)
    return kept


def _present(runs: pd.DataFrame, value: str, colour: str, keys: tuple[str, ...]) -> tuple[pd.DataFrame, list[str]]:
    """Return lines with a value, and the colours that have none (they keep their place in the order of colours)."""
    kept = _rows(runs, value, (*keys, colour))
    absent = [_text(c) for c in _levels(runs[colour]) if not (kept[colour] == c).any()]
    return kept.assign(**{colour: pd.Categorical(kept[colour], categories=_levels(runs[colour]))}), absent


def _levels(column: pd.Series[Any]) -> list[Any]:
    """Return numbers by size, categories and names in their order."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(column.cat.categories)
    return sorted(set(column)) if pd.api.types.is_numeric_dtype(column) else list(dict.fromkeys(column))


def _text(level: object) -> str:
    return plain(shorten(str(level), 28))


def _setting_axes(ax: Axes, places: list[Any], name: str, x_name: str) -> None:
    light(ax)
    ax.set_xticks(range(len(places)), [_text(p) for p in places])
    ax.set_xlim(-0.55, len(places) - 0.45)
    for edge in range(1, len(places)):
        ax.axvline(edge - 0.5, color="#E6E6E6", linewidth=0.8, zorder=0)
    ax.set_xlabel(plain(x_name), fontsize=LABEL)
    ax.set_ylabel(plain(name), fontsize=LABEL)


def _finish_legend(figure: Figure, ax: Axes, colours: list[Any], absent: list[str]) -> None:
    handles, text = ax.get_legend_handles_labels()
    figure.legend(
        handles, text, loc="outside lower center", ncols=min(4, len(colours)), frameon=False, fontsize=SMALL,
        markerscale=1.4, title=f"without a value: {', '.join(absent)}" if absent else None, title_fontsize=SMALL,
    )  # fmt: skip


def _heading(title: str, runs: pd.DataFrame, keys: list[str], what: str) -> str:
    sizes = runs.groupby(keys, observed=True).size()
    n = str(sizes.min()) if sizes.min() == sizes.max() else f"{sizes.min()}–{sizes.max()}"
    said = f"{what} {n} runs"
    return plain(f"{shorten(title, 60)}\n{said}" if title else said)
