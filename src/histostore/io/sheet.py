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
    from collections.abc import Mapping

FILE_COLUMNS = ("image", "st_counts", "st_spots", "visium", "anndata", "points", "obs", "geojson")
NUMBER_COLUMNS = ("mpp", "mag")
_ADDRESS = re.compile(r"(https?|s3|gs|az)://", re.IGNORECASE)
COLUMNS = ("slide", *FILE_COLUMNS, *NUMBER_COLUMNS)


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


def read_sheet(path: str | Path) -> list[Sample]:
    """Read a CSV or TSV sample sheet.

    Columns ``slide`` and ``image`` are needed; known others are mpp, mag, st_counts and st_spots (together),
    visium, anndata, points, obs, geojson. Any further column is metadata (patient, centre, stain, …).

    Raises
    ------
    DataError
        With the line: missing columns, a column name just beside a known one, files that do not exist, a slide
        listed twice, names that cannot be slides, several assays or resolutions for one slide.
    """
    table = read_delimited(path)
    _check_columns(table.columns, path)
    check_not_empty(table.rows, "slides", path)
    samples: list[Sample] = []
    line_of: dict[str, int] = {}
    for row, line in zip(table.rows, table.lines, strict=True):
        values = dict(zip(table.columns, row, strict=True))
        where = f"{path} line {line}"
        sample = _sample(values, Path(path).parent, where)
        earlier = line_of.setdefault(sample.slide, line)
        if earlier != line:
            msg = f"{where}: slide '{sample.slide}' is listed twice (first on line {earlier}); names must be unique"
            raise DataError(msg)
        samples.append(sample)
    return samples


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_").rstrip("s")


def _check_columns(columns: tuple[str, ...], path: str | Path) -> None:
    missing = [name for name in ("slide", "image") if name not in columns]
    known = {_plain(name): name for name in COLUMNS}
    for name in columns:
        meant = known.get(_plain(name))
        # metadata may have any name, but a slide that silently loses its counts is worse than a question
        if meant and name != meant:
            msg = f"{path} column '{name}': did you mean '{meant}'? rename it"
            raise DataError(msg)
        if not name:
            msg = f"{path}: a column has no name; name it or drop it"
            raise DataError(msg)
    if missing:
        msg = f"{path} has no column '{missing[0]}'; slide and image are needed, it has {', '.join(columns)}"
        raise DataError(msg)


def _sample(values: Mapping[str, str], folder: Path, where: str) -> Sample:
    try:
        slide = check_slug(values["slide"], "slide name")
    except UsageError as error:
        msg = f"{where} column 'slide': {error}"
        raise DataError(msg) from None
    if not values["image"]:
        msg = f"{where} column 'image' is empty; each slide needs its image"
        raise DataError(msg)
    fields: dict[str, Any] = {name: _file(values.get(name, ""), name, folder, where) for name in FILE_COLUMNS}
    fields |= {name: _number(values.get(name, ""), name, where) for name in NUMBER_COLUMNS}
    if bool(fields["st_counts"]) != bool(fields["st_spots"]):
        msg = f"{where}: st_counts and st_spots belong together, one of them is empty"
        raise DataError(msg)
    assays = [name for name in ("st_counts", "visium", "anndata") if fields[name]]
    if len(assays) > 1:
        msg = f"{where}: a slide has one assay, here are {' and '.join(assays)}"
        raise DataError(msg)
    if fields["mpp"] and fields["mag"]:
        msg = f"{where}: give mpp or mag, one of them"
        raise DataError(msg)
    meta = {name: value for name, value in values.items() if name not in COLUMNS and value}
    return Sample(slide=slide, meta=meta, **fields)


def _file(text: str, name: str, folder: Path, where: str) -> Path | str | None:
    if not text:
        return None
    if "\x00" in text:
        msg = f"{where} column '{name}': a path cannot hold NUL"
        raise DataError(msg)
    if name == "image" and _ADDRESS.match(text):
        return text
    path = folder / text
    if not path.exists():
        msg = f"{where} column '{name}': {path} does not exist (paths are relative to the sheet)"
        raise DataError(msg)
    return path


def _number(text: str, name: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        msg = f"{where} column '{name}': {text!r} is no positive number"
        raise DataError(msg)
    return value
