"""Tables as cells of text, ready for the page: numbers at few digits, missing as a dash."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ROWS = 300
"""Longer tables are cut, and say so."""

FOLD_ROWS = 25
"""Longer tables start folded."""

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """What is written, and whether it stands to the right."""

    text: str
    number: bool


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table as the template takes it."""

    caption: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    row_names: bool
    """The first cell of each row is its name."""
    left_out: int
    """Rows beyond `MAX_ROWS`."""

    @property
    def folded(self) -> bool:
        """Whether the table is long enough to start closed."""
        return len(self.rows) > FOLD_ROWS


def page_table(caption: str, frame: pd.DataFrame, *, digits: int = 3) -> PageTable:
    """Return a DataFrame as text.

    Floats get `digits` decimals (powers of ten where that would show nothing but zeros), whole numbers thousands
    separated by a thin space, missing values a dash. The index is left out where it only counts the rows.
    """
    named = not isinstance(frame.index, pd.RangeIndex) or frame.index.name is not None
    shown = frame.iloc[:MAX_ROWS]
    columns = [shown.iloc[:, i].tolist() for i in range(shown.shape[1])]
    if named:
        columns.insert(0, [_name(key) for key in shown.index])
    heads = [_name(c) for c in frame.columns]
    heads = [_name(frame.index.names) if any(frame.index.names) else "", *heads] if named else heads
    right = [_is_numeric(values) and not (named and i == 0) for i, values in enumerate(columns)]
    places = [0 if _is_whole(values) else digits for values in columns]
    cells = [[Cell(format_value(v, d), r) for v in values] for values, d, r in zip(columns, places, right, strict=True)]
    return PageTable(
        caption=caption,
        head=tuple(Cell(h, r) for h, r in zip(heads, right, strict=True)),
        rows=tuple(zip(*cells, strict=True)),
        row_names=named,
        left_out=len(frame) - len(shown),
    )


def format_value(value: Any, digits: int = 3) -> str:
    """Return one value as text."""
    if value is None or value is pd.NA or value is pd.NaT:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}".replace(",", "\u2009")
    if isinstance(value, numbers.Real):
        return _float(float(value), digits)
    return str(value)


def _float(number: float, digits: int) -> str:
    if math.isnan(number):
        return MISSING
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if number and (abs(number) < 0.5 * 10.0**-digits or abs(number) >= 1e9):
        text = f"{number:.{max(digits - 1, 0)}e}"
    else:
        text = f"{number:,.{digits}f}".replace(",", "\u2009")
    return text.replace("-", "−", 1) if text.startswith("-") else text


def _is_numeric(values: Sequence[Any]) -> bool:
    there = [v for v in values if not (v is None or v is pd.NA or v is pd.NaT)]
    return bool(there) and all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in there)


def _is_whole(values: Sequence[Any]) -> bool:
    """Return whether floats are counts in disguise (a column of counts with a missing value is float)."""
    there = [v for v in values if isinstance(v, float) and math.isfinite(v)]
    return bool(there) and all(v.is_integer() for v in there) and max(map(abs, there)) > 1


def _name(key: Any) -> str:
    parts = key if isinstance(key, tuple | list) or type(key).__name__ == "FrozenList" else (key,)
    return " / ".join("" if p is None else str(p) for p in parts)
