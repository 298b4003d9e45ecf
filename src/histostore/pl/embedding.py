"""Embeddings at a glance: the first two principal components, coloured by slide, label or value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from histostore.errors import DataError
from histostore.pl.style import (
    LABEL,
    MISSING,
    SMALL,
    TITLE,
    categorical,
    check_lengths,
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
    from numpy.typing import ArrayLike, NDArray


def pca_map(
    X: NDArray[np.floating[Any]],
    colours: ArrayLike | pd.Series[Any] | None = None,
    *,
    name: str = "",
    title: str = "",
    cmap: str = "viridis",
    seed: int = 0,
    save: Path | None = None,
) -> Figure:
    """Draw rows of embeddings on their first two principal components.

    Parameters
    ----------
    X
        ``(n, d)``, n >= 3; rows that are not finite (unreadable tiles) are left out and counted in the title.
    colours
        ``(n,)`` slide, label (text) or value (numbers) of each row.
    name
        What `colours` are.
    seed
        Order of drawing, so that no slide lies on top of the others.
    """
    rows = np.asarray(X, dtype=np.float64)
    if rows.ndim != 2:
        msg = f"embeddings have shape {rows.shape}, expected (rows, features)"
        raise DataError(msg)
    finite = np.isfinite(rows).all(axis=1)
    points, share = principal_components(rows[finite])
    figure = new_figure(5.6, 4.2)
    ax = figure.add_subplot()
    # drawn in random order: no slide lies on top of the others
    order = np.random.default_rng(seed).permutation(len(points))
    if colours is None:
        ax.scatter(points[:, 0], points[:, 1], s=_size(points), color=categorical(1)[0], alpha=0.7, linewidths=0)
    else:
        values = pd.Series(np.asarray(colours))
        check_lengths("colours", len(values), len(rows), "rows")
        _draw(figure, ax, points[order], values[finite].iloc[order], name, cmap)
    for axis, number in ((ax.xaxis, 0), (ax.yaxis, 1)):
        axis.set_label_text(f"PC{number + 1} ({100 * share[number]:.1f} % of variance)", fontsize=LABEL)
        axis.set_ticks([])
    light(ax)
    left_out = int((~finite).sum())
    heading = [*([shorten(title, 40)] if title else []), f"{len(points):,} rows"]
    heading += [f"{left_out:,} not finite, left out"] if left_out else []
    ax.set_title(plain(" · ".join(heading)), fontsize=TITLE)
    return finish(figure, save)


def principal_components(X: NDArray[np.float64], k: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``(n, k)`` scores on the first components, and the ``(k,)`` share of variance of each.

    The sign of a component is fixed by its largest loading, so equal input gives an equal picture.
    """
    if len(X) < 3 or X.shape[1] < k:
        msg = f"{len(X)} finite rows of {X.shape[1]} features; a map needs 3 rows and {k} features"
        raise DataError(msg)
    centred = X - X.mean(axis=0)
    # the singular vectors of X are those of the small square matrix: 100,000 rows cost as little as 1,000
    small = np.linalg.svd(centred.T @ centred if len(X) > X.shape[1] else centred, full_matrices=False)
    variance = small.S if len(X) > X.shape[1] else small.S**2
    loadings = small.Vh[:k].T
    loadings = loadings * np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(k)])
    total = variance.sum()
    return centred @ loadings, variance[:k] / total if total > 0 else np.zeros(k)


def _size(points: NDArray[np.float64]) -> float:
    return float(np.clip(12000 / len(points), 2, 18))


def _draw(figure: Figure, ax: Axes, points: NDArray[np.float64], values: pd.Series[Any], name: str, cmap: str) -> None:
    style: dict[str, Any] = {"s": _size(points), "linewidths": 0, "alpha": 0.75, "rasterized": len(points) > 5000}
    missing = values.isna().to_numpy()
    if missing.any():
        ax.scatter(points[missing, 0], points[missing, 1], **{**style, "color": MISSING})
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        drawn = ax.scatter(points[~missing, 0], points[~missing, 1], c=values.to_numpy()[~missing], cmap=cmap, **style)
        bar = figure.colorbar(drawn, ax=ax, shrink=0.75, aspect=28, pad=0.02)
        bar.solids.set_alpha(1.0)  # type: ignore[union-attr]
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=SMALL, length=2)
        bar.set_label(plain(shorten(name, 30)), fontsize=LABEL)
        return
    text = values.astype(str).to_numpy()
    levels = sorted(set(text[~missing]))
    palette = dict(zip(levels, categorical(len(levels)), strict=True))
    ax.scatter(points[~missing, 0], points[~missing, 1], c=[palette[t] for t in text[~missing]], **style)
    handles = [_dot(f"{shorten(v, 24)} ({int((text[~missing] == v).sum()):,})", c) for v, c in palette.items()]
    handles += [_dot(f"no value ({int(missing.sum()):,})", MISSING)] if missing.any() else []
    figure.legend(
        handles=handles, title=plain(shorten(name, 30)) or None, loc="outside right center", frameon=False,
        fontsize=SMALL, title_fontsize=LABEL, handletextpad=0.2, ncols=1 + len(handles) // 20,
    )  # fmt: skip


def _dot(label: str, colour: str) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", markersize=7, color=colour, label=plain(label))
