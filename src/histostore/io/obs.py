"""Tables that arrive beside counts: labels of spots, clinical data of slides, points given by hand.

Every value stays the text it is in its file ("NA" is a tissue source site, not a missing value).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from histostore.errors import AlignmentError, DataError, UsageError
from histostore.io.check import check_not_empty, check_point_ids, check_xy, first_few, repeated
from histostore.io.delimited import read_delimited
from histostore.tables import Points, Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_ID_COLUMNS = ("id", "barcode", "barcodes", "spot", "spot_id", "point", "index", "")
_ARRAY_COLUMNS = (("x", "y"), ("array_col", "array_row"))
_PIXEL_COLUMNS = (("pixel_x", "pixel_y"), ("x", "y"))
PIXEL_TOLERANCE = 1.0
"""Pixels that a coordinate in a table may be off (tables are rounded)."""
MAX_WHOLE = 2**53
"""Above it float64 leaves whole numbers out."""


def read_points(path: str | Path) -> Points:
    """Read given points: a CSV or TSV with columns ``id, x, y`` in level-0 pixels."""
    table = read_delimited(path)
    check_not_empty(table.rows, "points", path)
    ids = table.column("id")
    xy = np.column_stack([table.floats("x"), table.floats("y")])
    check_point_ids(ids, path)
    check_xy(xy, ids, path)
    return Points(ids=tuple(ids), xy=xy)


def read_obs_table(path: str | Path) -> pd.DataFrame:
    """Read a table of spots as text, one row per spot; `join_obs` finds out what its rows are.

    Returns
    -------
    pandas.DataFrame
        All columns are text; a column of row names without a header is called ``""``.
    """
    table = read_delimited(path)
    check_not_empty(table.rows, "rows", path)
    return pd.DataFrame({name: table.column(name) for name in table.columns}, dtype="str")


def read_table(path: str | Path, key: str | None = None) -> pd.DataFrame:
    """Read a clinical table with one row per slide or per patient, as text.

    Parameters
    ----------
    path
        CSV or TSV.
    key
        The column that names the slide or patient; None takes ``slide``, else ``patient``.

    Returns
    -------
    pandas.DataFrame
        Indexed by the key column (the index keeps its name); all columns are text.

    Raises
    ------
    DataError
        No such column, an empty key, or a key on two rows.
    """
    return _keyed(read_obs_table(path), key, path)


def as_table(frame: object, key: str | None = None) -> pd.DataFrame:
    """Return a clinical table that is in memory as `read_table` returns a file.

    Parameters
    ----------
    frame
        One row per slide or per patient. The column that names it may be the index; an index without a name is taken
        for slides where no column names them. None, NaN, NA and NaT are empty cells.
    key
        As of `read_table`.

    Returns
    -------
    pandas.DataFrame
        As of `read_table`.

    Raises
    ------
    DataError
        As of `read_table`, or two columns have the same name.
    UsageError
        It is no DataFrame.
    """
    frame = _in_memory(frame, "a table is")
    if frame.index.nlevels > 1:
        frame = frame.reset_index()
    names = [str(c) for c in frame.columns]
    named = str(frame.index.name) if frame.index.name is not None else None
    if named is None and not {"slide", "patient", key} & set(names):
        named = "slide"
    if named is not None and named not in names:
        frame = frame.set_axis(names, axis=1).rename_axis(named).reset_index()
    _refuse_twice(frame)
    cells = {str(c): ["" if gone else str(v) for v, gone in zip(frame[c], frame[c].isna(), strict=True)] for c in frame}
    return _keyed(pd.DataFrame(cells, dtype="str"), key, "the table")


def as_obs_table(frame: object, slide: str) -> tuple[pd.DataFrame, Report]:
    """Return labels of spots that are in memory, like ``adata.obs[["leiden"]]``, as `read_obs_table` returns a file.

    Parameters
    ----------
    frame
        Indexed by spot, or by ``<slide>:<spot>`` as a cohort is: rows of other slides are left out then.

    Returns
    -------
    pandas.DataFrame
        Numbers as they are, all else as text; the index in the column ``""``, as `read_obs_table` has row names.
    Report
        Counts ``rows of other slides``.

    Raises
    ------
    DataError
        It has no row, or two columns of one name, or one without.
    UsageError
        It is no DataFrame.
    """
    frame = _in_memory(frame, "labels of spots are")
    _refuse_twice(frame)
    names, start = [str(name) for name in frame.index], f"{slide}:"
    own = np.array([name.startswith(start) for name in names])
    chosen = frame[own] if own.any() else frame
    ids = [str(name).removeprefix(start) for name in chosen.index]
    columns = {str(c): measured_or_text(chosen[c]).reset_index(drop=True) for c in chosen}
    if "" in columns:
        msg = "the table has a column without a name; name or drop it"
        raise DataError(msg)
    counts = {"rows of other slides": len(frame) - len(chosen)} if own.any() else {}
    return pd.DataFrame({"": ids, **columns}), Report(counts)


def _in_memory(frame: object, what: str) -> pd.DataFrame:
    if not isinstance(frame, pd.DataFrame):
        msg = f"{what} a CSV or TSV file, or a DataFrame; got {type(frame).__name__}"
        raise UsageError(msg)
    check_not_empty(frame.index, "rows", "the table")
    return frame


def _refuse_twice(frame: pd.DataFrame) -> None:
    twice = repeated([str(c) for c in frame.columns])
    if twice:
        msg = f"the table has {len(twice)} columns twice: {first_few(twice)}"
        raise DataError(msg)


def measured_or_text(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return numbers as float64, and all else (categories, truth values, ids too long for float64) as text."""
    if column.dtype.kind in "iuf":
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if column.dtype.kind == "f" or not (np.abs(numbers) > MAX_WHOLE).any():
            return pd.Series(numbers, index=column.index)
    return column.astype("string")


def _keyed(frame: pd.DataFrame, key: str | None, path: object) -> pd.DataFrame:
    if key is None:
        key = next((name for name in ("slide", "patient") if name in frame), None)
    if key is None or key not in frame:
        msg = (
            f"{path} has no column '{key or 'slide'}'{'' if key else ' or patient'}; name the one that identifies a row"
        )
        raise DataError(msg)
    keys = list(frame[key])
    if "" in keys:
        msg = f"{path} column '{key}' is empty on row {keys.index('') + 1}"
        raise DataError(msg)
    twice = repeated(keys)
    if twice:
        msg = f"{path} column '{key}': {len(twice)} values on more than one row: {first_few(twice)}"
        raise DataError(msg)
    return frame.set_index(key)


def join_obs(
    points: Points,
    table: pd.DataFrame,
    *,
    by: Literal["id", "array", "pixel"] | None = None,
    min_match: float = 0.9,
) -> tuple[pd.DataFrame, Report]:
    """Bring a table of spots into the order of the points, by what identifies its rows.

    Parameters
    ----------
    points
        Of the slide.
    table
        As `read_obs_table` gives it.
    by
        ``id`` (a column of point ids), ``array`` (columns x, y or array_col, array_row) or ``pixel`` (columns
        pixel_x, pixel_y or x, y; within 1 px). None tries them in this order and takes the first that fits.
    min_match
        Least share of the table's rows that must have a point.

    Returns
    -------
    frame
        Indexed by point id, in the order of the points; the columns that identified the row, and a column of row
        names without a header, are left out. A point without a row is missing (NaN) in all columns.
    report
        Counts ``matched``, ``only_in_points``, ``only_in_table``.

    Raises
    ------
    AlignmentError
        Less than `min_match` of the rows have a point, or two rows have the same one.
    """
    if by not in (None, "id", "array", "pixel"):
        msg = f"by is {by!r}, not id, array or pixel"
        raise UsageError(msg)
    best: tuple[int, tuple[str, ...], NDArray[np.int64]] = (-1, (), np.zeros(0, dtype=np.int64))
    for columns, rows in _candidates(points, table, by):
        matched = int((rows >= 0).sum())
        if matched > best[0]:
            best = (matched, columns, rows)
        if matched and matched >= min_match * len(table):
            break
    matched, columns, point_of_row = best
    unnamed = "the column without a name" if by is None else "the index"
    shown = ", ".join(repr(name) if name else unnamed for name in columns)
    if matched <= 0 or matched < min_match * len(table):
        named = [name or "(one without a name)" for name in table.columns]
        tried = f"best by {shown}" if matched > 0 else f"columns are {first_few(named, 8)}"
        msg = (
            f"{max(matched, 0)} of {len(table)} rows of the table have a spot, at least {min_match:.0%} must ({tried})"
        )
        raise AlignmentError(msg)
    found = point_of_row[point_of_row >= 0]
    if len(np.unique(found)) != len(found):
        twice = repeated([points.ids[i] for i in found])
        msg = f"{len(twice)} spots have more than one row in the table (by {shown}): {first_few(twice)}"
        raise AlignmentError(msg)
    row_of_point = np.full(len(points), -1, dtype=np.int64)
    row_of_point[found] = np.flatnonzero(point_of_row >= 0)
    # row names without a header are R's or pandas' own, no observation
    frame = table.drop(columns=sorted({*columns, ""} & set(table.columns)))
    frame = frame.reset_index(drop=True).reindex(row_of_point)
    frame.index = pd.Index(points.ids, name="id")
    counts = {
        "matched": matched,
        "only_in_points": len(points) - matched,
        "only_in_table": len(table) - matched,
    }
    return frame, Report(counts, (f"table joined by {shown}: {matched} of {len(table)} rows",))


def _candidates(
    points: Points, table: pd.DataFrame, by: str | None
) -> Iterator[tuple[tuple[str, ...], NDArray[np.int64]]]:
    """Yield ways to read the table's rows: the columns used, and the point of each row (-1: none)."""
    if by in (None, "id"):
        row_of_id = {point: i for i, point in enumerate(points.ids)}
        for name in (c for c in table.columns if c.lower() in _ID_COLUMNS):
            yield (name,), _lookup(row_of_id, list(table[name]))
    if by in (None, "array") and points.array_row is not None and points.array_col is not None:
        row_of_place = {place: i for i, place in enumerate(zip(points.array_col, points.array_row, strict=True))}
        for pair in (p for p in _ARRAY_COLUMNS if set(p) <= set(table.columns)):
            xy = _floats(table, pair)
            # a pixel that is rounded would hit an array position by chance
            whole = np.isfinite(xy).all(axis=1) & (xy == np.round(xy)).all(axis=1)
            places = [tuple(v.astype(int)) if ok else None for v, ok in zip(np.nan_to_num(xy), whole, strict=True)]
            yield pair, _lookup(row_of_place, places)
    if by in (None, "pixel"):
        for pair in (p for p in _PIXEL_COLUMNS if set(p) <= set(table.columns)):
            yield pair, _nearest(points, _floats(table, pair))


def _lookup(row_of: Mapping[Any, int], keys: Iterable[object]) -> NDArray[np.int64]:
    return np.array([row_of.get(key, -1) for key in keys], dtype=np.int64)


def _floats(table: pd.DataFrame, columns: tuple[str, str]) -> NDArray[np.float64]:
    return np.column_stack([pd.to_numeric(table[c], errors="coerce").to_numpy(np.float64) for c in columns])


def _nearest(points: Points, xy: NDArray[np.float64]) -> NDArray[np.int64]:
    order = np.argsort(points.xy[:, 0], kind="stable")
    xs = points.xy[order, 0]
    rows = np.full(len(xy), -1, dtype=np.int64)
    for i, (x, y) in enumerate(xy):
        low, high = np.searchsorted(xs, [x - PIXEL_TOLERANCE, x + PIXEL_TOLERANCE], side="left")
        near = order[low : high + 1]
        if len(near):
            distance = np.hypot(points.xy[near, 0] - x, points.xy[near, 1] - y)
            if distance.min() <= PIXEL_TOLERANCE:
                rows[i] = near[int(distance.argmin())]
    return rows
