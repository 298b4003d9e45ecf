"""Which rows are held out: by slide, patient, another column or squares of tissue, never by single rows.

Everything is decided by the values of the columns, so the order of the rows does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from histostore.errors import DataError, UsageError, near

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from histostore.head_specs import SplitSpec

PATIENT = "patient"
SLIDE = "slide"


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """One turn of a split; indices into the rows of the obs it was made from, ascending."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    name: str
    """The values held out, joined by ``+``; a number where that would say little."""
    buffered: int = 0
    """Rows left out of training because they lie beside test rows."""


def folds(split: SplitSpec, obs: pd.DataFrame) -> list[Fold]:
    """Cut rows into folds.

    Parameters
    ----------
    split
        See `histostore.head_specs.SplitSpec`.
    obs
        One line per row, with the column `split.by`, ``x_um`` and ``y_um`` for squares, and, for the check,
        ``patient``.

    Raises
    ------
    UsageError
        No such column; too few values to split; a patient on both sides, or patients unknown, without
        ``allow_same_patient``.
    DataError
        Rows without a value in that column.
    """
    if split.rule == "spatial-block":
        out = _squares(split, obs)
    elif split.rule == "stratified-kfold":
        labels = _stratified(split, obs)
        out = [_fold(labels == k, f"fold {k + 1}") for k in range(int(labels.max()) + 1)]
    else:
        out = _by_value(split, obs)
    if not split.allow_same_patient:
        _refuse_shared_patients(split, obs, out)
    return out


def _by_value(split: SplitSpec, obs: pd.DataFrame) -> list[Fold]:
    keys = level_column(obs, split.by)
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
    held = [labels == label for label in np.unique(labels)]
    return [_fold(rows, "+".join(np.unique(keys[rows]))) for rows in held]


def _fold(held: NDArray[np.bool_], name: str) -> Fold:
    return Fold(np.flatnonzero(~held), np.flatnonzero(held), name)


def _stratified(split: SplitSpec, obs: pd.DataFrame) -> NDArray[np.int64]:
    """Return fold labels ``(rows,)``: whole patients (slides, where patients are not known), strata spread evenly.

    The largest patients come first, equal ones in an order drawn by the seed; each goes to the fold that has least of
    what it holds.
    """
    n, stratum = split.n or 5, np.unique(level_column(obs, split.by), return_inverse=True)[1]
    unit = level_column(obs, kept_whole(split, obs))
    units, of = np.unique(unit, return_inverse=True)
    if len(units) < n:
        msg = f"{n} folds from {len(units)} patients (slides where not known): give {len(units)} folds or fewer"
        raise UsageError(msg)
    held = np.zeros((len(units), int(stratum.max()) + 1))
    np.add.at(held, (of, stratum), 1)
    share = held / held.sum(0)
    drawn = np.random.default_rng(split.seed).permutation(len(units))
    fold_of, filled, rows = np.empty(len(units), np.int64), np.zeros((n, held.shape[1])), np.zeros(n)
    for one in drawn[np.argsort(-held[drawn].sum(1), kind="stable")]:
        # what it would add to, by stratum; then the smallest fold
        fold = int(np.lexsort((rows, np.round(filled @ share[one], 9)))[0])
        fold_of[one] = fold
        filled[fold] += share[one]
        rows[fold] += held[one].sum()
    return fold_of[of]


def _squares(split: SplitSpec, obs: pd.DataFrame) -> list[Fold]:
    if "x_um" not in obs or "y_um" not in obs:
        msg = "a split by squares needs x_um and y_um in obs"
        raise UsageError(msg)
    slide, xy = level_column(obs, SLIDE), obs[["x_um", "y_um"]].to_numpy(dtype=np.float64)
    square = np.floor(xy / float(split.block_um or 1)).astype(np.int64)
    keys = np.array([f"{s}:{x}:{y}" for s, (x, y) in zip(slide, square.tolist(), strict=True)])
    n, there = split.n or 5, len(np.unique(keys))
    if there < n:
        msg = f"{n} folds from {there} squares of {split.block_um:g} µm: give fewer folds or smaller squares"
        raise UsageError(msg)
    labels = merge_groups(keys, n, seed=split.seed)
    out = []
    for k in range(int(labels.max()) + 1):
        held = labels == k
        near_test = _beside(slide, xy, held, split.buffer_um or 0.0)
        train = ~held & ~near_test
        if not train.any():
            msg = f"the buffer of {split.buffer_um:g} µm leaves no training row: give a smaller one, or larger squares"
            raise UsageError(msg)
        out.append(Fold(np.flatnonzero(train), np.flatnonzero(held), f"fold {k + 1}", int((near_test & ~held).sum())))
    return out


def _beside(
    slide: NDArray[Any], xy: NDArray[np.float64], held: NDArray[np.bool_], buffer_um: float
) -> NDArray[np.bool_]:
    """Return ``(rows,)`` True within `buffer_um` of a held row of the same slide."""
    out = np.zeros(len(xy), dtype=bool)
    for name in np.unique(slide[held]) if buffer_um else ():
        here = np.flatnonzero(slide == name)
        tree = cKDTree(xy[here[held[here]]])
        out[here] = tree.query(xy[here], distance_upper_bound=buffer_um * (1 + 1e-9))[0] <= buffer_um
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
    if split.rule == "leave-one-out":
        text = f"leave one {split.by} out, {len(made)} folds"
    elif split.rule == "group-kfold":
        text = f"{len(made)} folds by {split.by} (seed {split.seed})"
    elif split.rule == "stratified-kfold":
        text = f"{len(made)} folds of whole {kept_whole(split, obs)}s, each with every {split.by} (seed {split.seed})"
    else:
        left = np.mean([f.buffered for f in made])
        text = f"{len(made)} folds of squares of {split.block_um:g} µm (seed {split.seed})"
        text += f", {split.buffer_um:g} µm around them left out ({left:.0f} rows a fold)" if split.buffer_um else ""
    if not patients_known(obs):
        return f"{text}; patients not known: the same patient may be on both sides"
    shared = sorted({p for f in made for p in leaks(obs.iloc[f.train], obs.iloc[f.test]).get(PATIENT, ())})
    if shared:
        return f"{text}; same patient on both sides ({_few(shared)}): says nothing about new patients"
    return f"{text}; no patient on both sides"


def kept_whole(split: SplitSpec, obs: pd.DataFrame) -> str:
    """Return the column whose values the split never parts, which inner folds are to keep whole too.

    That is `split.by`, but where folds shall hold its values alike: then patients are (slides, where not known).
    """
    if split.rule != "stratified-kfold":
        return split.by
    return PATIENT if patients_known(obs) else SLIDE


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
            keys = level_column(obs, column)
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


def level_column(obs: pd.DataFrame, name: str, use: str = "split by") -> NDArray[Any]:
    """Return a column as texts ``(rows,)``; a missing column is a `UsageError`, a missing value a `DataError`."""
    if name not in obs:
        msg = f"no column '{name}' to {use} (there are {_few(list(obs.columns))}){near(name, map(str, obs.columns))}"
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
    if split.by == PATIENT or split.rule == "stratified-kfold":
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
