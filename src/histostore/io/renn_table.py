"""RENN's published results: one line per epoch of every run, and what its study says of them.

The table is ``results_flat.csv`` of RENN_for_histopathology: four losses, six batch sizes m, ten seeds, sixty epochs.
Any table of those columns will do, also one of new runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from histostore.errors import AlignmentError, DataError
from histostore.io.check import first_few
from histostore.io.delimited import read_delimited

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = {
    "loss_func": "loss",
    "m": "m",
    "run": "run",
    "epoch": "epoch",
    "train_loss": "train",
    "val_loss": "validation",
    "sigma2_e_est": "s2_e",
    "sigma2_b_est": "s2_b",
}
"""Column of the file -> column of the table that is returned."""

RUN = ["loss", "m", "run"]


def read_renn_table(path: str | Path) -> pd.DataFrame:
    """Read a flat table of results.

    Returns
    -------
    pandas.DataFrame
        A line per epoch, by loss (as they come in the file), m, run and epoch: ``loss`` (text), ``m``, ``run``,
        ``epoch`` (int, from 0 as in the file), ``train`` and ``validation`` (loss per row), ``s2_e``, ``s2_b``
        (variances within and between groups). ``s2_b`` is NaN in a run of which no epoch moved it: that loss has no
        such parameter, and what stands in the file is where it was set to start. Other columns are left out.

    Raises
    ------
    DataError
        Columns missing, values that are no finite numbers, variances below zero.
    AlignmentError
        An epoch twice, or runs with a gap or of other lengths.
    """
    text = read_delimited(path)
    if not len(text):
        msg = f"{path} holds no epochs; give the table of all runs"
        raise DataError(msg)
    table = pd.DataFrame({"loss": text.column("loss_func")})
    for name, to in COLUMNS.items():
        if to in ("m", "run", "epoch"):
            table[to] = text.integers(name).astype("int64")
        elif to != "loss":
            table[to] = text.floats(name)
    for name in ("s2_e", "s2_b"):
        below = int((table[name] < 0).sum())
        if below:
            msg = f"{path}: {below} values of '{name}' are negative; a variance cannot be"
            raise DataError(msg)
    _check_epochs(table, path)
    moved = table.groupby(RUN, sort=False)["s2_b"].transform("nunique") > 1
    table["s2_b"] = table["s2_b"].where(moved)
    losses = list(dict.fromkeys(table["loss"]))
    ordered = table.assign(loss=pd.Categorical(table["loss"], losses)).sort_values([*RUN, "epoch"], kind="stable")
    return ordered.astype({"loss": str}).reset_index(drop=True)


def best_epochs(table: pd.DataFrame) -> pd.DataFrame:
    """Return the line of each run with its lowest validation loss, the first of equals, and the last validation loss.

    The epoch is chosen on the rows it is then scored on, as the study does: these numbers flatter, all alike.

    Parameters
    ----------
    table
        As `read_renn_table` returns it.

    Returns
    -------
    pandas.DataFrame
        A line per run, the columns of `table` and ``last_validation``.
    """
    runs = table.groupby(RUN, sort=False)
    best = table.loc[runs["validation"].idxmin()].reset_index(drop=True)
    return best.assign(last_validation=runs["validation"].last().to_numpy())


def run_means(table: pd.DataFrame) -> pd.DataFrame:
    """Return the study's table: the best epoch of each run, averaged over runs.

    Parameters
    ----------
    table
        As `read_renn_table` returns it.

    Returns
    -------
    pandas.DataFrame
        A line per loss and m (the index): ``runs``, ``validation``, ``validation_sd`` (over runs, n - 1),
        ``validation_best`` (of all runs), ``train``, ``epoch``, ``s2_e``, ``s2_b`` at the best epoch, and
        ``last_validation``; all but the sd and the best are means over runs.
    """
    groups = best_epochs(table).groupby(["loss", "m"], sort=False)
    means = groups[["train", "epoch", "s2_e", "s2_b", "last_validation"]].mean()
    validation = groups["validation"].agg(["size", "mean", "std", "min"])
    validation.columns = ["runs", "validation", "validation_sd", "validation_best"]
    return validation.join(means)


def _check_epochs(table: pd.DataFrame, path: str | Path) -> None:
    twice = table.duplicated([*RUN, "epoch"])
    if twice.any():
        loss, m, run, epoch = table.loc[twice, [*RUN, "epoch"]].iloc[0]
        msg = f"{path} holds {int(twice.sum())} epochs twice (first: {loss}, m {m}, run {run}, epoch {epoch})"
        raise AlignmentError(msg)
    runs = table.groupby(RUN, sort=False)["epoch"].agg(["min", "max", "size"])
    whole = (runs["max"] - runs["min"] + 1 == runs["size"]) & (runs["min"] == runs["min"].min())
    whole &= runs["size"] == runs["size"].mode().iloc[0]
    if not whole.all():
        which = [f"{loss} m {m} run {run}" for loss, m, run in runs.index[~whole]]
        msg = f"{path}: {len(which)} of {len(runs)} runs lack epochs ({first_few(which)}); all need the same ones"
        raise AlignmentError(msg)
