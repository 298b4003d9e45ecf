"""Many genes at every spot: measured above predicted, spot under spot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Normalize

from histostore.errors import DataError
from histostore.pl.pairs import joined, row_labels
from histostore.pl.scale import shared_norm
from histostore.pl.style import INK, LABEL, SMALL, TITLE, finish, new_figure, plain, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    type Floats = NDArray[np.float64]

MAX_GENES = 100
Z_LIMIT = 2.5


def gene_heatmap(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    genes: Sequence[str] | None = None,
    *,
    slides: pd.Series[Any] | ArrayLike | None = None,
    standardise: bool = True,
    unit: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw genes x spots as measured, and below it as predicted, in one order and on one colour scale.

    Parameters
    ----------
    truth, prediction
        Spots x genes; joined by index and by column. Spots of which any value is NaN are left out and counted.
    genes
        Which, in this order; None is all columns of `truth`.
    slides
        ``(n,)`` slide of each row of `truth` (a Series is joined by index): spots stand slide by slide, in order of
        first appearance. Within a slide they are ordered by the first principal component of the measured genes.
    standardise
        Each gene minus its measured mean, over its measured standard deviation, in both panels: a prediction that
        varies too little stays pale. Else values as they are.
    unit
        Of the values where they are not standardised.

    Raises
    ------
    DataError
        No spot has all values.
    """
    truth, prediction = joined(truth, prediction, genes, most=MAX_GENES)
    there = np.isfinite(truth.to_numpy()).all(axis=1) & np.isfinite(prediction.to_numpy()).all(axis=1)
    if not there.any():
        msg = f"none of {len(truth)} spots has all {truth.shape[1]} genes, measured and predicted"
        raise DataError(msg)
    of = row_labels(truth, slides)[there] if slides is not None else np.full(int(there.sum()), "", dtype=object)
    a, b = truth.to_numpy()[there], prediction.to_numpy()[there]
    z = _scaled(a, a)
    norm, extend, cmap, label = Normalize(-Z_LIMIT, Z_LIMIT), "both", "RdBu_r", "standard deviations from the mean"
    if standardise:
        a, b = z, _scaled(truth.to_numpy()[there], b)
    else:
        norm, extend = shared_norm([a, b], "p1", "p99")
        cmap, label = "viridis", unit
    order, starts = _order(of, z)
    row = float(np.clip(3.6 / truth.shape[1], 0.085, 0.17))
    figure = new_figure(8.4, 1.7 + 2 * max(row * truth.shape[1], 0.8))
    axes = list(figure.subplots(2, 1, sharex=True))
    for ax, values, name in zip(axes, (a, b), ("measured", "predicted"), strict=True):
        image = ax.imshow(values[order].T, aspect="auto", cmap=cmap, norm=norm, interpolation="nearest")
        _gene_axis(ax, list(map(str, truth.columns)), name, size=min(SMALL - 1.5, 58 * row))
        for start in list(starts.values())[1:]:
            ax.axvline(start - 0.5, color=INK, linewidth=1.1, gid="slide")
    _slide_axis(axes, starts, len(order))
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=28, pad=0.02, extend=extend)
    bar.set_label(plain(label), fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)
    left_out = int((~there).sum())
    note = f" · {left_out:,} spots without all values" if left_out else ""
    figure.suptitle(f"{truth.shape[1]} genes, {len(order):,} spots{note}", fontsize=TITLE)
    return finish(figure, save)


def _scaled(reference: Floats, values: Floats) -> Floats:
    """Return values in standard deviations of the reference; a gene that does not vary becomes its distance."""
    spread = reference.std(axis=0)
    out: Floats = (values - reference.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return out


def _order(of: NDArray[Any], z: Floats) -> tuple[NDArray[np.intp], dict[str, int]]:
    """Return rows slide by slide, along the first principal component, and where each slide starts."""
    axis = np.linalg.svd(z, full_matrices=False)[2][0] if z.shape[1] > 1 and len(z) > 1 else np.ones(z.shape[1])
    along = z @ (axis * (np.sign(axis.sum()) or 1.0))  # an axis has no sign of its own: more expression comes later
    parts, starts, at = [], {}, 0
    for slide in dict.fromkeys(of):
        rows = np.flatnonzero(of == slide)
        parts.append(rows[np.argsort(along[rows], kind="stable")])
        starts[str(slide)], at = at, at + len(rows)
    return np.concatenate(parts), starts


def _gene_axis(ax: Axes, genes: list[str], name: str, *, size: float) -> None:
    ax.set_yticks(range(len(genes)), [plain(shorten(g, 16)) for g in genes], fontsize=size)
    ax.set_title(name, fontsize=LABEL, loc="left")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _slide_axis(axes: list[Axes], starts: dict[str, int], n: int) -> None:
    ends = [*list(starts.values())[1:], n]
    middle = [(start + end - 1) / 2 for start, end in zip(starts.values(), ends, strict=True)]
    if list(starts) == [""]:
        axes[-1].set_xticks([])
        axes[-1].set_xlabel("spots", fontsize=LABEL)
        return
    # names of many slides would run into each other
    lean = len(starts) > 6
    named = len(starts) <= 40
    names = [plain(shorten(s, 14)) for s in starts] if named else [""] * len(starts)
    axes[-1].set_xticks(
        middle, names, fontsize=SMALL, rotation=45 if lean else 0, ha="right" if lean else "center",
        rotation_mode="anchor",
    )  # fmt: skip
    axes[-1].set_xlabel("spots by slide" if named else f"spots of {len(starts)} slides", fontsize=LABEL)
