"""How well scores rank: ROC and precision-recall curves with their areas, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import AlignmentError, DataError
from histostore.pl.style import (
    FAINT,
    LABEL,
    LINES,
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
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    type Floats = NDArray[np.float64]
    type Pair = tuple[ArrayLike, ArrayLike]

MAX_CURVES = 24


@dataclass(frozen=True, slots=True)
class _Curve:
    positives: int
    negatives: int
    false_rate: Floats
    recall: Floats
    precision: Floats

    @property
    def auroc(self) -> float:
        return float(np.trapezoid(self.recall, self.false_rate))

    @property
    def average_precision(self) -> float:
        return float(np.sum(np.diff(self.recall) * self.precision[1:]))


def roc_pr(
    curves: Mapping[str, Pair],
    *,
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw ROC curves and precision-recall curves with their areas.

    Parameters
    ----------
    curves
        Name -> (truth ``(n,)``, true where positive; score ``(n,)``, higher where more likely positive). Equal scores
        are one step. A curve whose rows are all of one class has no areas: it is named in the legend, not drawn.

    Returns
    -------
    matplotlib.figure.Figure
        The legend carries the area under the ROC curve and the average precision (precision at each threshold weighed
        by the recall it adds). Dotted lines show chance: on the right the share of positives.

    Raises
    ------
    DataError
        No curve, scores that are not finite, or rows of one class only in all curves.
    """
    if not 1 <= len(curves) <= MAX_CURVES:
        msg = f"{len(curves)} curves to draw; give 1 to {MAX_CURVES}, name -> (truth, score)"
        raise DataError(msg)
    made = {name: _curve(name, *pair) for name, pair in curves.items()}
    if not any(c.positives and c.negatives for c in made.values()):
        msg = "no curve to draw: the rows are of one class only; ROC and precision-recall need positives and negatives"
        raise DataError(msg)
    lines = 1 + (len(made) - 1) // (2 if len(made) > 4 else 1)
    figure = new_figure(8.4, 4.7 + 0.22 * lines)
    roc, pr = figure.subplots(1, 2)
    for i, ((name, curve), colour) in enumerate(zip(made.items(), categorical(len(made)), strict=True)):
        _draw(roc, pr, plain(shorten(name, 28)), curve, colour, LINES[i // 8 % len(LINES)])
    roc.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1.2, zorder=1, gid="chance")
    _unit_axes(roc, "false positive rate", "true positive rate (recall)", "ROC")
    _unit_axes(pr, "recall", "precision", "precision-recall")
    handles, text = roc.get_legend_handles_labels()
    figure.legend(
        handles, text, loc="outside lower center", ncols=2 if len(made) > 4 else 1, frameon=False, fontsize=SMALL
    )
    if title:
        figure.suptitle(plain(shorten(title, 80)), fontsize=TITLE)
    return finish(figure, save)


def _curve(name: str, truth: ArrayLike, score: ArrayLike) -> _Curve:
    positive, value = np.asarray(truth).astype(bool), np.asarray(score, dtype=np.float64)
    if positive.shape != value.shape or positive.ndim != 1:
        msg = f"curve '{name}': truth of shape {positive.shape} and score of shape {value.shape}; give equal (n,)"
        raise AlignmentError(msg)
    if not value.size or not np.isfinite(value).all():
        msg = (
            f"curve '{name}': {int((~np.isfinite(value)).sum())} of {value.size} scores are not finite; leave them out"
        )
        raise DataError(msg)
    order = np.argsort(-value, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(value[order]) != 0, True))  # rows of equal score are called together
    hits = np.append(0, np.cumsum(positive[order])[ends])
    called = np.append(0, ends + 1)
    positives, negatives = int(hits[-1]), int(len(value) - hits[-1])
    precision = np.divide(hits, called, out=np.zeros(len(hits)), where=called > 0)
    precision[0] = precision[1]
    return _Curve(positives, negatives, (called - hits) / max(negatives, 1), hits / max(positives, 1), precision)


def _draw(roc: Axes, pr: Axes, name: str, curve: _Curve, colour: str, line: str) -> None:
    counts = f"{curve.positives:,} of {curve.positives + curve.negatives:,} positive"
    if not curve.positives or not curve.negatives:
        roc.plot([], [], color=colour, linestyle=line, label=f"{name}: one class only ({counts})")
        return
    style: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": 1.8}
    label = f"{name}: AUROC {curve.auroc:.3f}, AP {curve.average_precision:.3f}  ({counts})"
    roc.plot(curve.false_rate, curve.recall, label=label, **style)
    pr.plot(curve.recall, curve.precision, drawstyle="steps-pre", **style)
    share = curve.positives / (curve.positives + curve.negatives)
    pr.axhline(share, color=colour, linestyle=":", linewidth=0.9, alpha=0.7, zorder=1, gid="chance")


def _unit_axes(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set_xlim(-0.01, 1.01)
    ax.set_ylim(-0.01, 1.02)
    ax.set_aspect("equal")
    ax.set_xlabel(x, fontsize=LABEL)
    ax.set_ylabel(y, fontsize=LABEL)
    ax.set_title(title, fontsize=TITLE, loc="left")
    light(ax)
