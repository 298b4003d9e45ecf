"""How well each gene is predicted, by every method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError, NotFoundError, near
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
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED_GENES = 60
"""Up to this many genes have their names written out; more are drawn by rank."""


def gene_scores(
    metrics: pd.DataFrame,
    *,
    method: str | None = None,
    score: str = "pearson",
    name: str = "Pearson r",
    save: Path | None = None,
) -> Figure:
    """Draw the score of every gene, best first, with the baselines beside it.

    Parameters
    ----------
    metrics
        Genes x methods; or long, with columns ``gene``, ``method`` and `score` (rows of several folds are
        averaged).
    method
        The one that orders the genes; None is the first.
    name
        What the axis is called.

    Notes
    -----
    A gene whose score is undefined in the ordering method stands last and is counted; above 60 genes names give
    way to ranks.
    """
    table = _wide(metrics, score)
    method = str(table.columns[0]) if method is None else method
    if method not in table.columns:
        msg = f"no method '{method}'{near(method, table.columns)}"
        raise NotFoundError(msg)
    table = table.sort_values(method, ascending=False, na_position="last", kind="stable")
    undefined = int(table[method].isna().sum())
    order = [method, *(c for c in table.columns if c != method)]
    named = len(table) <= NAMED_GENES
    # horizontal names need height, ranks do not
    figure = new_figure(6.4, 1.5 + 0.19 * len(table)) if named else new_figure(7.2, 4.0)
    ax = figure.add_subplot()
    place = np.arange(len(table))
    for column, colour, marker in reversed(
        list(zip(order, categorical(len(order)), _markers(len(order)), strict=True))
    ):
        first = column == method
        values = table[column].to_numpy(np.float64)
        mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        text = f"{plain(shorten(column, 28))} (mean {mean:.3f})"
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "linestyle": "",
            "label": text,
            "zorder": 4 if first else 3,
        }
        size = 6.0 if first else 4.5
        if named:
            ax.plot(values, place, markersize=size, **style)
        else:
            ax.plot(place + 1, values, markersize=size / 2, alpha=0.7, rasterized=len(table) > 2000, **style)
    _score_axes(ax, list(map(str, table.index)), named=named, name=name)
    note = f" · {undefined} undefined" if undefined else ""
    handles, texts = ax.get_legend_handles_labels()
    figure.suptitle(f"{len(table)} gene{'s' * (len(table) > 1)} by {plain(shorten(method, 40))}{note}", fontsize=TITLE)
    figure.legend(
        handles[::-1], texts[::-1], loc="outside lower center", frameon=False, fontsize=SMALL,
        ncols=min(3, len(order)), markerscale=1.0 if named else 2.0, handletextpad=0.2,
    )  # fmt: skip
    return finish(figure, save)


def _markers(n: int) -> list[str]:
    return [MARKERS[i % len(MARKERS)] for i in range(n)]


def _score_axes(ax: Axes, genes: list[str], *, named: bool, name: str) -> None:
    light(ax)
    if named:
        ax.set_yticks(range(len(genes)), [plain(shorten(g, 18)) for g in genes])
        ax.set_ylim(len(genes) - 0.4, -0.6)
        ax.grid(axis="y", color="#EEEEEE", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.axvline(0, color=FAINT, linewidth=0.9, zorder=2)
        ax.set_xlabel(name, fontsize=LABEL)
        ax.margins(x=0.02)
        ax.tick_params(axis="y", length=0)
    else:
        ax.axhline(0, color=FAINT, linewidth=0.9, zorder=2)
        ax.set_xlabel("gene rank", fontsize=LABEL)
        ax.set_ylabel(name, fontsize=LABEL)


def _wide(metrics: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return genes x methods."""
    if {"gene", "method"} <= set(metrics.columns):
        if score not in metrics.columns:
            msg = f"no column '{score}' in the metrics{near(score, map(str, metrics.columns))}"
            raise NotFoundError(msg)
        wide = metrics.pivot_table(
            index="gene", columns="method", values=score, aggfunc=lambda v: v.mean(skipna=False), sort=False,
            dropna=False,
        )  # fmt: skip
        wide = wide[list(dict.fromkeys(metrics["method"]))]
    else:
        wide = metrics.set_index("gene") if "gene" in metrics.columns else metrics
        wide = wide.select_dtypes("number")
    if wide.empty:
        msg = "no scores to draw; give genes x methods, or columns gene, method and the score"
        raise DataError(msg)
    return wide.set_axis([str(c) for c in wide.columns], axis=1)
