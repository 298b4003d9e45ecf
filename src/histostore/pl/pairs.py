"""Truth and prediction as pairs: two tables joined by id, their rows in groups, their panels in a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.errors import AlignmentError, DataError, NotFoundError, UsageError, near
from histostore.pl.style import INK, SMALL, categorical, cells, check_lengths, new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

MAX_PANELS = 64


def joined(
    truth: pd.DataFrame, prediction: pd.DataFrame, genes: Sequence[str] | None, *, most: int = MAX_PANELS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both tables with the wanted genes, rows and columns in one order.

    Parameters
    ----------
    genes
        Which, in this order; None is all columns of `truth`.
    most
        How many fit into the picture.

    Raises
    ------
    AlignmentError
        The two tables do not hold the same spots, or an id twice.
    NotFoundError
        A gene is in one table only.
    """
    genes = list(truth.columns) if genes is None else list(genes)
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
    if not 1 <= len(genes) <= most:
        msg = f"{len(genes)} genes to draw, 1 to {most} fit; name those to show, or take gene_scores"
        raise UsageError(msg)
    if not len(truth):
        msg = "no spots to draw: both tables are empty"
        raise DataError(msg)
    return truth[genes].astype(np.float64), prediction.loc[truth.index, genes].astype(np.float64)


def row_groups(truth: pd.DataFrame, labels: Any) -> dict[str, tuple[NDArray[np.bool_], str]]:
    """Return label -> (its rows, its colour), in order of first appearance; one nameless group without labels."""
    if labels is None:
        return {"": (np.ones(len(truth), bool), categorical(1)[0])}
    text = row_labels(truth, labels)
    levels = list(dict.fromkeys(text))
    return {level: (text == level, colour) for level, colour in zip(levels, categorical(len(levels)), strict=True)}


def row_labels(truth: pd.DataFrame, labels: Any) -> NDArray[Any]:
    """Return the label of each row of `truth` as text: a Series is joined by index, a list must have one per row."""
    if isinstance(labels, pd.Series):
        if not labels.index.is_unique or not truth.index.isin(labels.index).all():
            msg = f"labels do not name each of the {len(truth)} spots once; index them by the spots' ids"
            raise AlignmentError(msg)
        labels = labels.loc[truth.index]
    text = np.asarray([str(v) for v in labels], dtype=object)
    check_lengths("labels", len(text), len(truth), "spots")
    return text


def panel_grid(count: int, columns: int, *, width: float = 2.6, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """Return a figure and its `count` axes in rows of `columns`; what remains of the last row is blank."""
    rows, columns = cells(count, columns)
    figure = new_figure(width * columns + 0.4, height * rows + 0.4)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def count_note(ax: Axes, n: int, left_out: int = 0, said: str = "", *, at: str = "upper left") -> None:
    """Write into a corner how many points a panel shows, how many had no value, and what else is `said` of them."""
    text = "\n".join(t for t in (f"n = {n:,}", f"{left_out:,} without value" if left_out else "", said) if t)
    left, top = at.endswith("left"), at.startswith("upper")
    ax.text(
        0.03 if left else 0.97, 0.97 if top else 0.03, text, transform=ax.transAxes, ha="left" if left else "right",
        va="top" if top else "bottom", fontsize=SMALL - 1, color=INK, zorder=0.5,  # under the points: it must hide none
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip
