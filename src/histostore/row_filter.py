"""Which rows of which slides pass a filter: slides as a whole where their metadata tell, row by row elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.where import Field, as_numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.part import Part
    from histostore.where import Column, Where

_IDS = ("slide", "library_id")
"""Columns that are one value on a slide and no metadata."""


def passing(parts: Sequence[Part], condition: Where) -> list[Part]:
    """Return every slide with the rows that pass, none where none does; a column that a slide lacks is missing there.

    Raises
    ------
    UsageError
        The filter compares text with numbers.
    """
    names = condition.names
    of_slides = slide_columns(parts, names)
    if of_slides is None:
        fields = {n: Field(n, _texts(part.slide_value(n) for part in parts)) for n in names if n not in _IDS}
        measured = {n for n in names if n not in _IDS and any(part.measures(n) for part in parts)}
        return [_passing(part, condition, fields, measured) for part in parts]
    columns: dict[str, Column] = {
        n: v if n in _IDS else Field(n, _texts(v.tolist())).column(v) for n, v in of_slides.items()
    }
    passed = condition.mask(len(parts), columns.__getitem__)
    none = np.zeros(0, dtype=np.int64)
    return [p if whole else p.selected(none) for p, whole in zip(parts, passed.tolist(), strict=True)]


def which(part: Part, passed: Part) -> NDArray[np.bool_]:
    """Return ``(n,)`` True where a row of a slide is among those that passed."""
    if passed.rows is None:
        return np.ones(len(part), dtype=bool)
    if part.rows is not None:
        return np.isin(part.rows, passed.rows)
    mask = np.zeros(part.n_all, dtype=bool)
    mask[passed.rows] = True
    return mask


def slide_columns(parts: Sequence[Part], names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    """Return one value per slide of each column; None where a column is not of slides as a whole."""
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        values = np.empty(len(parts), dtype=object)
        for at, part in enumerate(parts):
            values[at] = part.slide_value(name)
            if values[at] is ...:
                return None
        found[name] = values
    return found


def _texts(values: Iterable[Any]) -> list[str | None]:
    """Return the values of slides where a column is one of theirs as wholes."""
    return [v for v in values if v is not ...]


def _passing(part: Part, condition: Where, fields: Mapping[str, Field], measured: Collection[str] = ()) -> Part:
    def column(name: str) -> Column:
        values = part.column(name) if part.has(name) else np.full(len(part), None)
        is_field = name in fields and part.slide_value(name) is not ...
        if name in measured and not is_field:
            return as_numbers(values)
        return fields[name].column(values) if is_field else values

    return part.selected(np.flatnonzero(condition.mask(len(part), column)))
