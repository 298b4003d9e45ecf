"""Choosing inside the training rows: inner folds, rows held out to stop by, lists of choices, an order of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import UsageError
from histostore.heads.splits import merge_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.heads.rows import Table

    type Rows = NDArray[np.int64]


def check_choices(name: str, value: Sequence[int] | int) -> tuple[int, ...]:
    """Return one or more positive whole numbers, ascending, or raise a `UsageError`."""
    return tuple(sorted(set(check_widths(name, value, least=1))))


def check_widths(name: str, value: Any, *, least: int = 0) -> tuple[int, ...]:
    """Return positive whole numbers in the order given, at least so many, or raise a `UsageError`."""
    given = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(given) < least or not all(isinstance(v, int | np.integer) and v > 0 for v in given):
        msg = f"{name} is {value!r}: give whole numbers above zero"
        raise UsageError(msg)
    return tuple(int(v) for v in given)


def inner_labels(n: int, groups: NDArray[Any] | None, *, inner: int, seed: int) -> NDArray[np.int64]:
    """Return fold labels ``(n,)``: whole groups merged into at most `inner`, else single rows dealt by `seed`.

    Raises
    ------
    UsageError
        One group only: nothing can be left out.
    """
    if inner < 2:
        msg = f"inner is {inner}: give 2 folds or more"
        raise UsageError(msg)
    if groups is None:
        labels = np.arange(n) % min(inner, 5, n)
        np.random.default_rng(seed).shuffle(labels)
    else:
        groups = np.asarray(groups)
        if groups.shape != (n,):
            msg = f"groups has shape {groups.shape} for {n} rows"
            raise UsageError(msg)
        labels = merge_groups(groups, inner, seed=seed)
    if len(np.unique(labels)) < 2:
        msg = "choosing needs two groups of training rows and there is one: give one value, not several"
        raise UsageError(msg)
    return labels


def hold_out(n: int, groups: NDArray[Any] | None, *, share: float = 0.2, seed: int = 0) -> tuple[Rows, Rows]:
    """Return rows to train on and rows to stop by.

    Whole groups, about `share` of the rows, where there are two groups or more; else single rows drawn by `seed`.
    """
    if n < 2:
        msg = f"{n} training row: early stopping needs two"
        raise UsageError(msg)
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != (n,):
            msg = f"groups has shape {groups.shape} for {n} rows"
            raise UsageError(msg)
        if len(np.unique(groups)) > 1:
            labels = merge_groups(groups, max(2, round(1 / share)), seed=seed)
            held = labels == np.argmin(np.bincount(labels))
            return np.flatnonzero(~held), np.flatnonzero(held)
    order = np.random.default_rng(seed).permutation(n)
    cut = max(1, round(share * n))
    return np.sort(order[cut:]), np.sort(order[:cut])


def by_value(X: NDArray[Any], y: NDArray[Any] | None = None) -> Rows:
    """Return an order of rows that depends on their values alone: batches then do not depend on the order given.

    By sixteen features as float32, then by four targets. Frozen: the order decides the minibatches, and so every bit of
    what is trained. `heads.mixed` has one of its own, `by_targets`.
    """
    keys = [np.asarray(X[:, j], dtype=np.float32) for j in range(min(16, X.shape[1]))]
    if y is not None:
        keys += [np.asarray(y[:, j], dtype=np.float32) for j in range(min(4, y.shape[1]))]
    return np.lexsort(keys[::-1]).astype(np.int64)


def column_moments(X: Table, rows: Rows, *, block: int = 4096) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return means and standard deviations ``(d,)`` float64 over some rows, a block of them widened at a time."""
    origin = X[rows[:block]].mean(0, dtype=np.float64)
    total, squares = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for begin in range(0, len(rows), block):
        part = X[rows[begin : begin + block]] - origin
        total += part.sum(0)
        squares += np.einsum("ij,ij->j", part, part)
    shift = total / len(rows)
    return origin + shift, np.sqrt(np.maximum(squares / len(rows) - shift**2, 0.0))
