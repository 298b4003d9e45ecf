"""Spatial Transcriptomics v1: a text table of counts and a file of spots.

A spot is named ``XxY`` by its array position, column first: ``25x13`` is column 25, row 13. Counts files hold the
detected genes only, so a gene that is absent was not seen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from histostore.errors import DataError
from histostore.io.check import as_counts, check_gene_ids, check_not_empty, check_point_ids, check_xy, first_few
from histostore.io.delimited import read_delimited, read_text
from histostore.tables import Counts, Points

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from histostore.io.delimited import TextTable

PITCH_UM = 200.0
SPOT_UM = 100.0

_SPOT = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*x\s*(-?\d+(?:\.\d+)?)\s*")
_DENSE_VALUES = 8 << 20
"""Counts held as a dense block while parsing (64 MiB)."""


def read_st(
    counts_path: str | Path, spots_path: str | Path, *, allow_normalised: bool = False
) -> tuple[Points, Counts]:
    """Read the counts and the spots of one section.

    Parameters
    ----------
    counts_path
        TSV or CSV, plain or gzip: rows ``XxY``, columns genes (symbols or ENSG accessions).
    spots_path
        See `read_spots`.
    allow_normalised
        Take values that are not counts.

    Returns
    -------
    points
        All spots of the spot file, in its order.
    counts
        All rows of the counts file, in its order; `histostore.io.align.align` joins the two.

    Raises
    ------
    DataError
        A file that is no such table, repeated spots or genes, values that are not counts.
    """
    return read_spots(spots_path), read_st_counts(counts_path, allow_normalised=allow_normalised)


def spot_id(column: float, row: float) -> str:
    """Return the name of the spot at an array position, rounded to the nearest whole one."""
    return f"{int(np.floor(column + 0.5))}x{int(np.floor(row + 0.5))}"


def parse_spot(name: str) -> tuple[float, float] | None:
    """Return the (column, row) that a spot's name says, or None if it is no such name."""
    match = _SPOT.fullmatch(name)
    return (float(match[1]), float(match[2])) if match else None


def read_spots(path: str | Path) -> Points:
    """Read a spot file: which array position lies where on the image.

    Known forms: columns ``x, y`` (array position) and ``pixel_x, pixel_y`` with an optional ``selected``, as the ST
    spot detector and ST-Net's ``.spots.txt`` have them; or a first column of names ``XxY`` with the pixels in
    ``x, y`` (older ``spots.csv``; also ``X, Y``).

    Returns
    -------
    Points
        `xy` in level-0 pixels; `in_tissue` from ``selected`` where the file has it, else None.
    """
    table = read_delimited(path)
    check_not_empty(table.rows, "spots", path)
    names = {name.lower(): name for name in table.columns}
    if {"x", "y", "pixel_x", "pixel_y"} <= names.keys():
        array = np.column_stack([table.floats(names["x"]), table.floats(names["y"])])
        xy = np.column_stack([table.floats(names["pixel_x"]), table.floats(names["pixel_y"])])
    elif {"x", "y"} <= names.keys() and table.columns[0].lower() not in ("x", "y"):
        array = _positions(table.column(table.columns[0]), f"{path} column '{table.columns[0]}'")
        xy = np.column_stack([table.floats(names["x"]), table.floats(names["y"])])
    else:
        msg = (
            f"{path} is no ST spot file: columns are {first_few(table.columns, 8)}; "
            "x, y, pixel_x, pixel_y are needed, or names like 25x13 followed by x, y"
        )
        raise DataError(msg)
    ids = tuple(spot_id(column, row) for column, row in array)
    check_point_ids(ids, path)
    check_xy(xy, ids, path)
    rounded = np.floor(array + 0.5).astype(np.int32)
    return Points(
        ids=ids,
        xy=xy,
        in_tissue=_selected(table, names["selected"]) if "selected" in names else None,
        array_row=rounded[:, 1],
        array_col=rounded[:, 0],
        assay="st-v1",
        pitch_um=PITCH_UM,
        spot_um=SPOT_UM,
    )


def _positions(names: Sequence[str], where: str) -> NDArray[np.float64]:
    parsed = [parse_spot(name) for name in names]
    bad = [name for name, position in zip(names, parsed, strict=True) if position is None]
    if bad:
        msg = f"{where}: {len(bad)} of {len(names)} names are no array position like 25x13: {first_few(bad)}"
        raise DataError(msg)
    return np.array([position for position in parsed if position], dtype=np.float64).reshape(-1, 2)


def _selected(table: TextTable, name: str) -> NDArray[np.bool_]:
    values = table.floats(name)
    bad = np.flatnonzero((values != 0) & (values != 1))
    if bad.size:
        msg = f"{table.path} line {table.lines[bad[0]]} column '{name}': {values[bad[0]]:g} is neither 0 nor 1"
        raise DataError(msg)
    return values.astype(bool)


def read_st_counts(path: str | Path, *, allow_normalised: bool = False) -> Counts:
    """Read a spots x genes text table as sparse counts.

    Rows are parsed in blocks straight from text to numbers: a section of 187 x 15,706 takes about 0.15 s (pandas
    needs 0.3-0.5 s for its dense frame alone), and memory beyond the text stays at one block.
    """
    # universal newlines only: splitlines() would also cut at form feeds and U+2028 inside names
    lines = read_text(path).replace("\r\n", "\n").rstrip("\n").split("\n")
    delimiter = "\t" if "\t" in lines[0] else ","
    genes = [_unquoted(name) for name in lines[0].split(delimiter)]
    body = [line for line in lines[1:] if line]
    check_not_empty(body, "spots", path)
    # R writes no field above the row names, pandas writes one (empty or a title)
    if genes[0] == "" or body[0].count(delimiter) == len(genes) - 1:
        genes = genes[1:]
    check_not_empty(genes, "genes", path)
    names, fields = _split_rows(body, len(genes), delimiter, path)
    if parse_spot(names[0]) is None and all(parse_spot(gene) for gene in genes[:10]):
        msg = f"{path} is genes x spots: columns are named {first_few(genes)}; transpose it"
        raise DataError(msg)
    positions = _positions(names, f"{path} rows")
    ids = tuple(spot_id(column, row) for column, row in positions)
    check_point_ids(ids, path)
    check_gene_ids(genes, path)
    matrix, normalised = as_counts(_parse(fields, len(genes), delimiter, path), path, allow_normalised=allow_normalised)
    return Counts(ids=ids, matrix=matrix, gene_ids=tuple(genes), symbols=tuple(genes), normalised=normalised)


def _unquoted(text: str) -> str:
    return text.strip().strip('"')


def _split_rows(body: list[str], n_genes: int, delimiter: str, path: str | Path) -> tuple[list[str], list[str]]:
    names: list[str] = []
    fields: list[str] = []
    for number, line in enumerate(body):
        name, _, rest = line.partition(delimiter)
        if rest.count(delimiter) != n_genes - 1 or not rest:
            msg = f"{path} row {number + 1} ({name[:40]!r}) has {line.count(delimiter)} values for {n_genes} genes"
            raise DataError(msg)
        names.append(_unquoted(name))
        fields.append(rest)
    return names, fields


def _parse(fields: list[str], n_genes: int, delimiter: str, path: str | Path) -> sp.csr_array:
    step = max(1, _DENSE_VALUES // n_genes)
    blocks: list[Any] = []
    dtype: type = np.int64
    start = 0
    while start < len(fields):
        try:
            block: NDArray[Any] = np.loadtxt(
                fields[start : start + step], dtype=dtype, delimiter=delimiter, comments=None, ndmin=2
            )
        except ValueError:
            if dtype is np.float64:
                raise DataError(_bad_number(fields[start : start + step], start, delimiter, path)) from None
            dtype = np.float64  # '1.0', or values that are no counts: judged later
            continue
        blocks.append(sp.csr_array(block))
        start += step
    return sp.csr_array(sp.vstack(blocks, format="csr"))


def _bad_number(fields: list[str], start: int, delimiter: str, path: str | Path) -> str:
    for row, line in enumerate(fields):
        for column, text in enumerate(line.split(delimiter)):
            try:
                float(text)
            except ValueError:
                return f"{path} row {start + row + 1} gene {column + 1}: {text!r} is no number"
    return f"{path}: rows after {start + 1} hold text that is no number"
