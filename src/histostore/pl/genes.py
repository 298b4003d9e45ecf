"""How well genes are predicted: predicted against true, scores of all genes, scores of all folds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.errors import AlignmentError, DataError, NotFoundError, UsageError, near
from histostore.pl.sections import pearson, r_text
from histostore.pl.style import (
    FAINT,
    INK,
    LABEL,
    SMALL,
    TITLE,
    categorical,
    cells,
    check_lengths,
    finish,
    light,
    new_figure,
    plain,
    shorten,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

MAX_PANELS = 64
NAMED_GENES = 60
"""Up to this many genes have their names written out; more are drawn by rank."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


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
    """Draw predicted against true for each gene, with the line y = x and Pearson's r.

    Parameters
    ----------
    truth, prediction
        Spots x genes; joined by index and by column, whatever their order.
    genes
        Which, in this order; None is all columns of `truth`.
    labels
        ``(n,)`` slide or fold of each row of `truth` (a Series is joined by index). Then r is the mean of the
        r within each label: pooled over slides it would reward knowing the slide.
    unit
        Unit of both axes, such as ``log1p(CP10k)``.

    Raises
    ------
    AlignmentError
        The two tables do not hold the same spots, or an id twice.
    NotFoundError
        A gene is in one table only.
    """
    genes = list(truth.columns) if genes is None else list(genes)
    prediction = _joined(truth, prediction, genes)
    if not 1 <= len(genes) <= MAX_PANELS:
        msg = f"{len(genes)} genes to draw, 1 to {MAX_PANELS} fit; name those to show, or take gene_scores"
        raise UsageError(msg)
    groups = _groups(truth, labels)
    rows, columns = cells(len(genes), columns)
    figure = new_figure(2.6 * columns + 0.4, 2.6 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, gene in zip(axes, genes, strict=False):
        _one_gene(ax, truth[gene].to_numpy(np.float64), prediction[gene].to_numpy(np.float64), groups)
        r = float(
            np.mean([pearson(truth[gene].to_numpy()[w], prediction[gene].to_numpy()[w]) for w, _ in groups.values()])
        )
        ax.set_title(f"{plain(shorten(str(gene), 18))}  {r_text(r)}", fontsize=TITLE - 1)
    for ax in axes[len(genes) :]:
        ax.set_axis_off()
    suffix = f" ({plain(unit)})" if unit else ""
    figure.supxlabel(f"measured{suffix}", fontsize=LABEL)
    figure.supylabel(f"predicted{suffix}", fontsize=LABEL)
    if len(groups) > 1:
        handles, text = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, text, loc="outside right center", frameon=False, fontsize=SMALL, markerscale=1.8,
            title=f"r: mean of {len(groups)}", title_fontsize=SMALL,
        )  # fmt: skip
    return finish(figure, save)


def _joined(truth: pd.DataFrame, prediction: pd.DataFrame, genes: list[str]) -> pd.DataFrame:
    for what, table in (("truth", truth), ("prediction", prediction)):
        if not table.index.is_unique:
            msg = f"{what} repeats {int(table.index.duplicated().sum())} row ids; give each spot once"
            raise AlignmentError(msg)
        for gene in genes:
            if gene not in table.columns:
                msg = f"no gene '{gene}' in {what}{near(str(gene), map(str, table.columns))}"
                raise NotFoundError(msg)
    if len(truth) != len(prediction) or not truth.index.isin(prediction.index).all():
        common = int(truth.index.isin(prediction.index).sum())
        msg = f"truth has {len(truth)} spots, prediction {len(prediction)}, {common} in common; select the same ones"
        raise AlignmentError(msg)
    return prediction.loc[truth.index]


def _groups(truth: pd.DataFrame, labels: Any) -> dict[str, tuple[NDArray[np.bool_], str]]:
    """Return label -> (its rows, its colour), in order of first appearance."""
    if labels is None:
        return {"": (np.ones(len(truth), bool), categorical(1)[0])}
    if isinstance(labels, pd.Series):
        if not labels.index.is_unique or not truth.index.isin(labels.index).all():
            msg = f"labels do not name each of the {len(truth)} spots once; index them by the spots' ids"
            raise AlignmentError(msg)
        labels = labels.loc[truth.index]
    text = np.asarray([str(v) for v in labels], dtype=object)
    check_lengths("labels", len(text), len(truth), "spots")
    levels = list(dict.fromkeys(text))
    return {level: (text == level, colour) for level, colour in zip(levels, categorical(len(levels)), strict=True)}


def _one_gene(
    ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], groups: dict[str, tuple[NDArray[np.bool_], str]]
) -> None:
    both = np.concatenate([x, y])
    both = both[np.isfinite(both)]
    low, high = (float(both.min()), float(both.max())) if both.size else (0.0, 1.0)
    pad = 0.05 * (high - low or 1.0)
    ax.plot([low - pad, high + pad], [low - pad, high + pad], color=FAINT, linewidth=0.9, zorder=1, gid="y=x")
    # many points hide each other: smaller and fainter as they grow in number
    size = float(np.clip(4000 / max(len(x), 1), 3, 16))
    for label, (which, colour) in groups.items():
        ax.scatter(
            x[which], y[which], s=size, color=colour, alpha=0.55, linewidths=0, label=plain(shorten(label, 20)),
            rasterized=len(x) > 2000,
        )  # fmt: skip
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(low - pad, high + pad)
    ax.set_aspect("equal")
    ax.locator_params(nbins=4)
    light(ax)


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
    figure.suptitle(f"{len(table)} genes by {plain(shorten(method, 40))}{note}", fontsize=TITLE)
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


def fold_table(
    scores: pd.DataFrame,
    *,
    name: str = "Pearson r",
    digits: int = 3,
    cmap: str = "cividis",
    save: Path | None = None,
) -> Figure:
    """Draw methods x folds as a table of coloured cells, with the mean of the folds.

    Parameters
    ----------
    scores
        Rows are methods, columns folds. A column ``mean`` is added where there is none; it is undefined where a
        fold is.
    """
    if scores.empty:
        msg = "no scores to draw; give methods x folds"
        raise DataError(msg)
    table = scores.astype(np.float64)
    if "mean" not in table.columns:
        table = table.assign(mean=table.mean(axis=1, skipna=False))
    values = table.to_numpy()
    figure = new_figure(2.6 + 0.82 * values.shape[1], 0.85 + 0.36 * len(table))
    ax = figure.add_subplot()
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    image = ax.imshow(np.ma.masked_invalid(values), cmap=cmap, vmin=low, vmax=high, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        dark = np.isfinite(value) and _luminance(image.to_rgba(value)) < 0.18  # where black and white read alike
        text = f"{value:.{digits}f}" if np.isfinite(value) else "–"
        ax.text(
            j, i, text, ha="center", va="center", fontsize=SMALL + 0.5, color="white" if dark else INK,
            weight="bold" if table.columns[j] == "mean" else "normal",
        )  # fmt: skip
    ax.set_yticks(range(len(table)), [plain(shorten(str(m), 34)) for m in table.index], fontsize=LABEL)
    ax.set_xticks(range(values.shape[1]), [plain(shorten(str(c), 14)) for c in table.columns], fontsize=LABEL)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(table) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(plain(name), fontsize=TITLE, loc="left")
    return finish(figure, save)


def _luminance(rgba: Any) -> float:
    """Return the relative luminance of an sRGB colour (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
