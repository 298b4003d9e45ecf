"""What someone gives as `groups`, as the random terms that it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import UsageError
from histostore.heads.mixed.effects import OneFactor
from histostore.heads.mixed.levels import Levels, check_not_collinear
from histostore.heads.mixed.several import Several
from histostore.heads.mixed.system import notes_of, rows_in
from histostore.heads.mixed.terms import Intercept, Slopes, Spatial

if TYPE_CHECKING:
    from histostore.heads.mixed.terms import Term

type Grouping = OneFactor | Several


def as_terms(groups: Any, n: int) -> dict[str, Term]:
    """Return the random terms that someone gave as `groups` of n rows.

    Parameters
    ----------
    groups
        ``(n,)`` labels; ``(n, k)`` labels of k factors, crossed or nested as they come; a table, a factor per column;
        or a mapping from names to labels or terms.

    Raises
    ------
    UsageError
        No factor, or another number of rows.
    """
    terms = _named(groups)
    if not terms:
        msg = "groups hold no factor: give at least one"
        raise UsageError(msg)
    if rows_in(terms) != n:
        msg = f"X has {n} rows and groups {rows_in(terms)}"
        raise UsageError(msg)
    return terms


def grouping_of(terms: Mapping[str, Term], seed: int) -> tuple[Grouping, tuple[str, ...]]:
    """Return what training needs of the terms, and what must be said of them.

    Raises
    ------
    DataError
        A factor of one level or of single rows, or two that cut the rows alike.
    """
    name, first = next(iter(terms.items()))
    if len(terms) == 1 and isinstance(first, Intercept):
        levels = Levels.of(first.labels, name)
        return OneFactor(levels), levels.check()
    built = [term.build(name) for name, term in terms.items()]
    check_not_collinear([t.levels for t in built])
    return Several(built, seed), notes_of(built)


def ungrouped(terms: Mapping[str, Term]) -> OneFactor:
    """Return one factor unchecked, for a loss that estimates nothing of it; several are a `UsageError`."""
    (name, first), *others = terms.items()
    if others or not isinstance(first, Intercept):
        msg = "loss 'no_re' has no random effects: give one factor or none"
        raise UsageError(msg)
    return OneFactor(Levels.of(first.labels, name))


def _named(groups: Any) -> dict[str, Term]:
    if isinstance(groups, Mapping):
        return {str(name): _as_term(given) for name, given in groups.items()}
    if hasattr(groups, "columns"):
        return {str(name): Intercept(groups[name].to_numpy()) for name in groups.columns}
    labels = np.asarray(groups)
    if labels.ndim == 2 and labels.shape[1]:
        names = ["groups"] if labels.shape[1] == 1 else [f"groups[{k}]" for k in range(labels.shape[1])]
        return {name: Intercept(column) for name, column in zip(names, labels.T, strict=True)}
    return {"groups": Intercept(labels)}


def _as_term(given: Any) -> Term:
    return given if isinstance(given, Intercept | Slopes | Spatial) else Intercept(given)
