"""Sample sheets: one line per slide, paths relative to the sheet, every other column is metadata."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import DataError, UsageError
from histostore.ids import check_slug
from histostore.io.check import check_not_empty
from histostore.io.delimited import read_delimited

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FILE_COLUMNS = ("image", "st_counts", "st_spots", "visium", "anndata", "points", "obs", "geojson")
NUMBER_COLUMNS = ("mpp", "mag")
_ADDRESS = re.compile(r"(https?|s3|gs|az)://", re.IGNORECASE)
COLUMNS = ("slide", *FILE_COLUMNS, *NUMBER_COLUMNS)
MAX_NAMED = 10
"""Faults that one message names; further ones are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One slide of a cohort: its image, what belongs to it, and its metadata as text."""

    slide: str
    image: Path | str
    """A file, or the address of an SVS or TIFF (http, https, s3, gs, az) that is read in place."""
    image_folder: bool = False
    """`image` is a folder of images in class-named subfolders."""
    mpp: float | None = None
    mag: float | None = None
    st_counts: Path | None = None
    st_spots: Path | None = None
    visium: Path | None = None
    """Space Ranger's outs."""
    anndata: Path | None = None
    points: Path | None = None
    obs: Path | None = None
    geojson: Path | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    """The other columns, as written: "NA" is text; empty fields are left out."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line of a sheet that is no slide: what it is called there, and what is wrong with it."""

    slide: str
    """Its slide id as written; ``line 3`` where that is empty."""
    error: DataError


def read_sheet(path: str | Path) -> list[Sample]:
    """Read a CSV or TSV sample sheet of which every line is a slide that can be ingested.

    Columns ``slide`` and ``image`` are needed; known others are mpp, mag, st_spots (with st_counts, or alone),
    visium, anndata, points, obs, geojson. Any further column is metadata (patient, centre, stain, …). Lines that are
    empty, as spreadsheets write them below a table, are none.

    Raises
    ------
    DataError
        What is wrong with the sheet (see `read_rows`) or with lines of it, the first ten with their line: files that do
        not exist, names that cannot be slides, values that are no numbers, several assays or resolutions for one slide.
    """
    rows = read_rows(path)
    bad = [row for row in rows if isinstance(row, BadRow)]
    if bad:
        raise DataError(_together([str(row.error) for row in bad]))
    return [row for row in rows if isinstance(row, Sample)]


def read_rows(path: str | Path) -> list[Sample | BadRow]:
    """Read a sample sheet as `read_sheet` does, and hand back lines that are no slide as what is wrong with them.

    Raises
    ------
    DataError
        What is wrong with the sheet as a whole, all of it: missing columns, a column without a name or just beside a
        known one, slides listed twice; lines of another length, no slides.
    """
    table = read_delimited(path, skip_blank=True)
    values = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    faults = [*_column_faults(table.columns), *_repeats([of.get("slide", "") for of in values], table.lines)]
    if faults:
        raise DataError(f"{path}{_together(faults)}")
    check_not_empty(table.rows, "slides", path)
    folder = Path(path).parent
    return [_row(of, folder, path, line) for of, line in zip(values, table.lines, strict=True)]


def _together(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - MAX_NAMED:,} more" if len(faults) > MAX_NAMED else ""
    return "; ".join(faults[:MAX_NAMED]) + more


def _repeats(slides: Sequence[str], lines: Sequence[int]) -> Iterator[str]:
    first: dict[str, int] = {}
    for slide, line in zip(slides, lines, strict=True):
        if slide and (earlier := first.setdefault(slide, line)) != line:
            yield f" line {line}: slide '{slide}' is listed twice (first on line {earlier}); names must be unique"


def _row(values: Mapping[str, str], folder: Path, path: str | Path, line: int) -> Sample | BadRow:
    try:
        return _sample(values, folder, f"{path} line {line}")
    except DataError as error:
        return BadRow(values["slide"] or f"line {line}", error)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_").rstrip("s")


def _column_faults(columns: Sequence[str]) -> Iterator[str]:
    known = {_plain(name): name for name in COLUMNS}
    for name in columns:
        meant = known.get(_plain(name))
        # metadata may have any name, but a slide that silently loses its counts is worse than a question
        if meant and name != meant:
            yield f" column '{name}': did you mean '{meant}'? rename it"
        if not name:
            yield ": a column has no name; name it or drop it"
    for name in ("slide", "image"):
        if name not in columns:
            yield f" has no column '{name}'; slide and image are needed, it has {', '.join(columns)}"


def _sample(values: Mapping[str, str], folder: Path, where: str) -> Sample:
    """Return a line as a slide; all that is wrong with it is one error."""
    faults: list[str] = []
    try:
        check_slug(values["slide"], "slide name")
    except UsageError as error:
        faults.append(f" column 'slide': {error}")
    if not values["image"]:
        faults.append(" column 'image' is empty; each slide needs its image")
    fields: dict[str, Any] = {name: _file(values.get(name, ""), name, folder, faults) for name in FILE_COLUMNS}
    fields |= {name: _number(values.get(name, ""), name, faults) for name in NUMBER_COLUMNS}
    given = [name for name in COLUMNS if values.get(name)]
    if "st_counts" in given and "st_spots" not in given:
        faults.append(": st_counts and st_spots belong together, st_spots is empty")
    assays = [name for name in ("st_spots", "visium", "anndata", "points") if name in given]
    if len(assays) > 1:
        faults.append(f": a slide has one assay, here are {' and '.join(assays)}")
    if "mpp" in given and "mag" in given:
        faults.append(": give mpp or mag, one of them")
    if faults:
        raise DataError(f"{where}{_together(faults)}")
    meta = {name: value for name, value in values.items() if name not in COLUMNS and value}
    return Sample(slide=values["slide"], meta=meta, **fields)


def _file(text: str, name: str, folder: Path, faults: list[str]) -> Path | str | None:
    if not text:
        return None
    if "\x00" in text:
        faults.append(f" column '{name}': a path cannot hold NUL")
        return None
    if name == "image" and _ADDRESS.match(text):
        return text
    path = folder / text
    if not path.exists():
        faults.append(f" column '{name}': {path} does not exist (paths are relative to the sheet)")
    return path


def _number(text: str, name: str, faults: list[str]) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        faults.append(f" column '{name}': {text!r} is no positive number")
    return value
