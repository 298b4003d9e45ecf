"""Tables of coloured cells: methods by folds, true by predicted classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError
from histostore.pl.style import INK, LABEL, SMALL, TITLE, check_lengths, finish, new_figure, plain, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

MAX_CLASSES = 24


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
    texts = [[f"{v:.{digits}f}" if np.isfinite(v) else "–" for v in row] for row in values]
    bold = np.broadcast_to(np.array([c == "mean" for c in table.columns]), values.shape)
    _draw(ax, values, texts, bold, cmap=cmap, low=low, high=high)
    ax.set_yticks(range(len(table)), [plain(shorten(str(m), 34)) for m in table.index], fontsize=LABEL)
    ax.set_xticks(range(values.shape[1]), [plain(shorten(str(c), 14)) for c in table.columns], fontsize=LABEL)
    ax.xaxis.tick_top()
    ax.set_title(plain(name), fontsize=TITLE, loc="left")
    return finish(figure, save)


def confusion_matrix(
    table: ArrayLike,
    classes: Sequence[str],
    *,
    title: str = "",
    cmap: str = "cividis",
    save: Path | None = None,
) -> Figure:
    """Draw how often each class is called what: counts, and shares of the true class as colour and per cent.

    Parameters
    ----------
    table
        ``(c, c)`` counts, rows the true class and columns the predicted one.
    classes
        ``(c,)`` names. A class that no row has keeps its line, without colour or shares.

    Raises
    ------
    DataError
        No square table of counts, or all of them are zero.
    """
    counts = np.asarray(table)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not 2 <= len(counts) <= MAX_CLASSES:
        msg = f"confusion table of shape {counts.shape}; give (classes, classes) with 2 to {MAX_CLASSES} classes"
        raise DataError(msg)
    check_lengths("class names", len(classes), len(counts), "classes")
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts != np.round(counts)).any() or not counts.any():
        msg = "the confusion table must hold counts, and some above zero"
        raise DataError(msg)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    texts = [[_cell(int(n), float(s)) for n, s in zip(*rows, strict=True)] for rows in zip(counts, share, strict=True)]
    figure = new_figure(max(4.2, 2.4 + 0.85 * len(counts)), 1.5 + 0.62 * len(counts))
    ax = figure.add_subplot()
    _draw(ax, share, texts, np.eye(len(counts), dtype=bool), cmap=cmap, low=0.0, high=1.0)
    names = [plain(shorten(str(c), 16)) for c in classes]
    lean = max(map(len, names)) > 9
    ax.set_xticks(
        range(len(names)), names, fontsize=LABEL, rotation=35 if lean else 0, ha="right" if lean else "center",
        rotation_mode="anchor",
    )  # fmt: skip
    ax.set_yticks(
        range(len(names)), [f"{c} (n = {int(n):,})" for c, n in zip(names, total[:, 0], strict=True)], fontsize=LABEL
    )
    ax.set_xlabel("predicted", fontsize=LABEL)
    ax.set_ylabel("true", fontsize=LABEL)
    # under the mean over the classes that are there: the share of all rows flatters where one class is common
    recall = float(np.nanmean(np.diag(share)))
    said = f"balanced accuracy {recall:.3f}, n = {int(counts.sum()):,}"
    figure.suptitle(plain(f"{shorten(title, 40)}\n{said}" if title else said), fontsize=TITLE)
    return finish(figure, save)


def _cell(n: int, share: float) -> str:
    return f"{n:,}\n{100 * share:.0f} %" if np.isfinite(share) else f"{n:,}\n–"


def _draw(
    ax: Axes,
    values: NDArray[Any],
    texts: Sequence[Sequence[str]],
    bold: NDArray[np.bool_],
    *,
    cmap: str,
    low: float,
    high: float,
) -> None:
    image = ax.imshow(np.ma.masked_invalid(values), cmap=cmap, vmin=low, vmax=high, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        dark = np.isfinite(value) and _luminance(image.to_rgba(value)) < 0.18  # where black and white read alike
        ax.text(
            j, i, texts[i][j], ha="center", va="center", fontsize=SMALL + 0.5, color="white" if dark else INK,
            weight="bold" if bold[i, j] else "normal", linespacing=1.15,
        )  # fmt: skip
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _luminance(rgba: Any) -> float:
    """Return the relative luminance of an sRGB colour (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
