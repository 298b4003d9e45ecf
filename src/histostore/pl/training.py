"""How a head learned: losses by epoch with the epoch that was kept, and variances by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from histostore.errors import DataError, UsageError
from histostore.pl.style import FAINT, INK, LABEL, SMALL, TITLE, categorical, finish, light, new_figure, plain, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    type Floats = NDArray[np.float64]

WIDE_RANGE = 50.0
"""Positive values that span more than this factor are drawn on a logarithmic axis."""


def loss_curves(
    train: ArrayLike,
    validation: ArrayLike = (),
    *,
    best_epoch: int | None = None,
    name: str = "loss",
    validation_name: str | None = None,
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw losses by epoch, and mark the epoch whose weights were kept.

    Parameters
    ----------
    train, validation
        ``(epochs,)`` losses; no `validation` draws the training loss alone.
    best_epoch
        Counted from 1; 0 is the start, before any epoch. None or 0 marks nothing.
    name
        What is drawn, such as ``mean squared error``.
    validation_name
        Where the validation loss is another quantity, its name: it gets a panel of its own.

    Raises
    ------
    DataError
        No epoch, losses that are not finite, or two losses of other lengths.
    UsageError
        The best epoch is none of those drawn.
    """
    curves = {"training": _curve(train, "training loss")}
    if np.size(np.asarray(validation)):
        curves["validation"] = _curve(validation, "validation loss")
        if len(curves["validation"]) != len(curves["training"]):
            msg = f"{len(curves['training'])} training and {len(curves['validation'])} validation losses; give as many"
            raise DataError(msg)
    epochs = len(curves["training"])
    if best_epoch is not None and not 0 <= best_epoch <= epochs:
        msg = f"best epoch {best_epoch} of {epochs}; epochs are counted from 1"
        raise UsageError(msg)
    apart = validation_name is not None and "validation" in curves
    figure = new_figure(6.0, 5.4 if apart else 3.6)
    axes = list(figure.subplots(1 + apart, 1, sharex=True, squeeze=False)[:, 0])
    for (which, values), colour in zip(curves.items(), categorical(2), strict=False):
        ax = axes[-1] if which == "validation" else axes[0]
        _by_epoch(ax, values, colour, which)
    for ax, label in zip(axes, (name, validation_name), strict=False):
        if best_epoch:
            ax.axvline(best_epoch, color=FAINT, linewidth=1.0, linestyle="--", zorder=1, gid="best")
        ax.set_ylabel(plain(label), fontsize=LABEL)
        _log_where_wide(ax, [line.get_ydata() for line in ax.lines if line.get_gid() != "best"])
        ax.legend(frameon=False, fontsize=SMALL, loc="best")
    _epoch_axis(axes[-1])
    said = _said(curves, best_epoch)
    figure.suptitle(plain(f"{shorten(title, 40)} · {said}" if title else said), fontsize=TITLE)
    return finish(figure, save)


def variance_curves(
    variances: Mapping[str, ArrayLike],
    *,
    reference: Mapping[str, float] | None = None,
    best_epoch: int | None = None,
    unit: str = "",
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw variance components by epoch.

    Parameters
    ----------
    variances
        Name -> ``(epochs,)``, or ``(epochs, targets)``: then the line is the median over targets, and the band
        holds four fifths of them.
    reference
        Name -> a value known otherwise (an exact fit), drawn dashed in the colour of that name.
    best_epoch
        Counted from 1; None or 0 marks nothing.
    unit
        What a variance of one is, such as ``variance of the target``.

    Raises
    ------
    DataError
        Nothing to draw, or variances that are negative or not finite.
    """
    tables = {name: _variances(name, values) for name, values in variances.items()}
    if not tables:
        msg = "no variances to draw; give name -> one value per epoch"
        raise DataError(msg)
    figure = new_figure(6.0, 3.6)
    ax = figure.add_subplot()
    for (name, table), colour in zip(tables.items(), categorical(len(tables)), strict=True):
        epoch = np.arange(1, len(table) + 1)
        middle = np.median(table, axis=1)
        ax.plot(epoch, middle, color=colour, linewidth=1.8, label=f"{plain(name)}  (last {middle[-1]:.3g})")
        if table.shape[1] > 1:
            ax.fill_between(
                epoch, *np.quantile(table, (0.1, 0.9), axis=1), color=colour, alpha=0.18, linewidth=0, gid="band"
            )
        if reference is not None and name in reference:
            label = f"{plain(name)}, exact fit  ({reference[name]:.3g})"
            ax.axhline(reference[name], color=colour, linestyle=":", linewidth=1.4, label=label)
    if best_epoch:
        ax.axvline(best_epoch, color=FAINT, linewidth=1.0, linestyle="--", zorder=1, label=f"kept: epoch {best_epoch}")
    light(ax)
    _log_where_wide(ax, list(tables.values()))
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)
    _epoch_axis(ax)
    ax.set_ylabel(plain(f"variance ({unit})" if unit else "variance"), fontsize=LABEL)
    targets = max(table.shape[1] for table in tables.values())
    heading = [shorten(title, 40)] if title else []
    heading += [f"median and 10–90 % of {targets:,} targets"] if targets > 1 else []
    figure.suptitle(plain(" · ".join(heading)), fontsize=TITLE)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=SMALL)
    return finish(figure, save)


def _curve(values: ArrayLike, what: str) -> Floats:
    curve = np.asarray(values, dtype=np.float64)
    if curve.ndim != 1 or not curve.size or not np.isfinite(curve).all():
        msg = f"{what} of shape {curve.shape}; give one finite number per epoch"
        raise DataError(msg)
    return curve


def _variances(name: str, values: ArrayLike) -> Floats:
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size or not np.isfinite(table).all() or (table < 0).any():
        msg = f"variances '{name}' of shape {np.shape(values)}; give (epochs,) or (epochs, targets), finite and not < 0"
        raise DataError(msg)
    return table


def _by_epoch(ax: Axes, values: Floats, colour: str, label: str) -> None:
    epoch = np.arange(1, len(values) + 1)
    # few epochs make no line: their points are shown
    ax.plot(
        epoch, values, color=colour, linewidth=1.8, label=label, marker="o" if len(values) < 15 else "", markersize=4
    )
    light(ax)
    ax.margins(x=0.02)


def _epoch_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch", fontsize=LABEL)


def _said(curves: Mapping[str, Floats], best_epoch: int | None) -> str:
    epochs = len(curves["training"])
    if best_epoch:
        which = "validation" if "validation" in curves else "training"
        return f"kept epoch {best_epoch} of {epochs}, {which} {curves[which][best_epoch - 1]:.4g}"
    last = ", ".join(f"{which} {values[-1]:.4g}" for which, values in curves.items())
    return f"{epochs} epochs, at the end {last}"


def _log_where_wide(ax: Axes, values: list[Floats]) -> None:
    pooled = np.concatenate([np.ravel(v) for v in values])
    if pooled.min() > 0 and pooled.max() / pooled.min() > WIDE_RANGE:
        ax.set_yscale("log")
        ax.tick_params(which="minor", color=FAINT, labelcolor=INK, labelsize=SMALL - 1)
