"""Which rows are held out: by slide, patient or another column, never by single rows.

Everything is decided by the values of the columns, so the order of the rows does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError, UsageError, near

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from histostore.specs import SplitSpec

PATIENT = "patient"
SLIDE = "slide"


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """One turn of a split; indices into the rows of the obs it was made from, ascending."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    name: str
    """The values held out, joined by ``+``."""


def folds(split: SplitSpec, obs: pd.DataFrame) -> list[Fold]:
    """Cut rows into folds.

    Parameters
    ----------
    split
        Leave one value of a column out at a time, or deal its values to `n` folds of nearly equal rows.
    obs
        One line per row, with the column `split.by` and, for the check, ``patient``.

    Raises
    ------
    UsageError
        No such column; too few values to split; a patient on both sides, or patients unknown, without
        ``allow_same_patient``.
    DataError
        Rows without a value in that column.
    """
    keys = _column(obs, split.by)
    values = np.unique(keys)
    if len(values) < 2:
        got = f"only '{values[0]}'" if len(values) else "no rows"
        msg = f"cannot split by '{split.by}': it holds {got}, two values are needed"
        raise UsageError(msg)
    if split.rule == "group-kfold":
        n = split.n or 5
        if n > len(values):
            msg = f"{n} folds from {len(values)} values of '{split.by}': give {len(values)} or fewer, or leave-one-out"
            raise UsageError(msg)
        labels = merge_groups(keys, n, seed=split.seed)
    else:
        labels = np.searchsorted(values, keys).astype(np.int64)
    out = []
    for label in np.unique(labels):
        held = labels == label
        name = "+".join(np.unique(keys[held]))
        out.append(Fold(np.flatnonzero(~held), np.flatnonzero(held), name))
    if not split.allow_same_patient:
        _refuse_shared_patients(split, obs, out)
    return out


def leaks(train_obs: pd.DataFrame, test_obs: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return the patients and slides that are on both sides: ``{"patient": ("C",)}``; empty is clean.

    A column that is missing, and rows without a value, cannot be checked: see `patients_known`.
    """
    shared = {}
    for column in (PATIENT, SLIDE):
        if column in train_obs and column in test_obs:
            both = np.intersect1d(_present(train_obs[column]), _present(test_obs[column]))
            if len(both):
                shared[column] = tuple(str(v) for v in both)
    return shared


def patients_known(obs: pd.DataFrame) -> bool:
    """Say whether every row names its patient."""
    return PATIENT in obs and not bool(_missing(obs[PATIENT]).any())


def describe(split: SplitSpec, obs: pd.DataFrame, made: list[Fold]) -> str:
    """Return the sentence that belongs beside every number of this split."""
    what = (
        f"leave one {split.by} out"
        if split.rule == "leave-one-out"
        else f"{len(made)} folds by {split.by} (seed {split.seed})"
    )
    text = f"{what}, {len(made)} folds" if split.rule == "leave-one-out" else what
    if not patients_known(obs):
        return f"{text}; patients not known: the same patient may be on both sides"
    shared = sorted({p for f in made for p in leaks(obs.iloc[f.train], obs.iloc[f.test]).get(PATIENT, ())})
    if shared:
        return f"{text}; same patient on both sides ({_few(shared)}): says nothing about new patients"
    return f"{text}; no patient on both sides"


def inner_folds(obs: pd.DataFrame, by: str, *, n: int = 10, seed: int = 0) -> tuple[NDArray[np.int64], str]:
    """Return inner fold labels ``(rows,)`` of training rows, and how they were made.

    Whole values of `by`, merged into at most `n` folds; with one value only, whole slides; with one slide only, stripes
    across it (rows in order of ``x_um``, so that most neighbours stay together).

    Raises
    ------
    UsageError
        One slide without positions: nothing can be held out honestly.
    """
    for column in dict.fromkeys((by, SLIDE)):
        if column in obs:
            keys = _column(obs, column)
            if len(np.unique(keys)) > 1:
                labels = merge_groups(keys, n, seed=seed)
                return labels, f"{len(np.unique(labels))} inner folds by {column}"
    if "x_um" in obs and len(obs) >= 10 and np.isfinite(obs["x_um"].to_numpy(dtype=float)).all():
        rank = obs["x_um"].rank(method="first").to_numpy() - 1
        return (rank * 5 // len(obs)).astype(np.int64), "5 inner folds of stripes across the only slide"
    msg = f"one {by} and one slide to train on: give one alpha and one feature spec, or more slides"
    raise UsageError(msg)


def merge_groups(keys: NDArray[Any], n: int, *, seed: int) -> NDArray[np.int64]:
    """Return ``(rows,)`` fold labels 0..m-1: whole groups, dealt to at most `n` folds of nearly equal rows.

    Groups are taken largest first, equal ones in an order drawn by `seed`, each to the fold with the fewest rows.
    """
    values, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    if len(values) <= n:
        return inverse.astype(np.int64)
    drawn = np.random.default_rng(seed).permutation(len(values))
    order = drawn[np.argsort(-sizes[drawn], kind="stable")]
    fold_of, filled = np.empty(len(values), np.int64), np.zeros(n, np.int64)
    for group in order:
        fold = int(np.argmin(filled))
        fold_of[group] = fold
        filled[fold] += sizes[group]
    return fold_of[inverse]


def _column(obs: pd.DataFrame, name: str) -> NDArray[Any]:
    if name not in obs:
        msg = f"no column '{name}' to split by (there are {_few(list(obs.columns))}){near(name, map(str, obs.columns))}"
        raise UsageError(msg)
    missing = _missing(obs[name])
    if missing.any():
        msg = f"{int(missing.sum())} of {len(obs)} rows have no '{name}': annotate them or leave them out"
        raise DataError(msg)
    return obs[name].astype(str).to_numpy(dtype=object).astype(str)


def _missing(column: pd.Series[Any]) -> NDArray[np.bool_]:
    empty: NDArray[np.bool_] = (column.isna() | (column.astype(str) == "")).to_numpy(dtype=bool)
    return empty


def _present(column: pd.Series[Any]) -> NDArray[Any]:
    return np.unique(column[~_missing(column)].astype(str).to_numpy(dtype=object).astype(str))


def _refuse_shared_patients(split: SplitSpec, obs: pd.DataFrame, made: list[Fold]) -> None:
    if split.by == PATIENT:
        return
    if not patients_known(obs):
        msg = (
            f"split by '{split.by}': rows do not all name their patient, so the same patient may be on both sides; "
            "annotate patients, or allow it (--allow-same-patient)"
        )
        raise UsageError(msg)
    shared = sorted({p for f in made for p in leaks(obs.iloc[f.train], obs.iloc[f.test]).get(PATIENT, ())})
    if shared:
        msg = (
            f"split by '{split.by}' puts patient {_few(shared)} on both sides: "
            "split by patient, or allow it (--allow-same-patient)"
        )
        raise UsageError(msg)


def _few(values: list[str], limit: int = 5) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(str(v) for v in values[:limit]) + more
