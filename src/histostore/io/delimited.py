"""CSV and TSV as text: strict, every value as written, every complaint with its line."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import DataError, near
from histostore.io.check import first_few, repeated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_BYTES = 2 << 30
"""Unpacked size of a text file; a gzip bomb ends here."""

_GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: str | Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return a file's bytes, unpacked where it is gzip (told by its first bytes, not by its name).

    Raises
    ------
    DataError
        The file is absent, damaged, or larger than `max_bytes` once unpacked.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    content = unpacked.read(max_bytes + 1)
            else:
                content = file.read(max_bytes + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        msg = f"{path} is a damaged or truncated gzip file ({error}); copy it again"
        raise DataError(msg) from None
    except FileNotFoundError:
        msg = f"{path} does not exist; check the path"
        raise DataError(msg) from None
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise DataError(msg) from None
    if len(content) > max_bytes:
        msg = f"{path} holds more than {max_bytes} bytes, the limit for this kind of file"
        raise DataError(msg)
    return content


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Return a UTF-8 text file, without its byte order mark."""
    content = read_bytes(path, max_bytes=max_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{path} is no UTF-8 text (byte {error.start}); export it as CSV or TSV in UTF-8"
        raise DataError(msg) from None


def first_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of `names` that is a file in `folder`, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table whose values are the text of its file, without spaces at either end."""

    path: Path
    columns: tuple[str, ...]
    """Unique; a row-name column without a header is called ``""``."""
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    """Line of the file that each row ends on."""

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[str]:
        """Return the values of one column; a column that is not there is a `DataError`."""
        if name not in self.columns:
            msg = f"{self.path} has no column '{name}'{near(name, self.columns)}; it has {', '.join(self.columns)}"
            raise DataError(msg)
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def floats(self, name: str) -> NDArray[np.float64]:
        """Return one column as ``(n,)`` float64, all finite; else a `DataError` names the lines."""
        text = self.column(name)
        values = np.array([_float(value) for value in text], dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            where = ", ".join(f"line {self.lines[i]} ({text[i]!r})" for i in bad[:3])
            more = f" and {bad.size - 3} more" if bad.size > 3 else ""
            msg = f"{self.path} column '{name}': {bad.size} values are no finite number: {where}{more}"
            raise DataError(msg)
        return values

    def integers(self, name: str) -> NDArray[np.int32]:
        """Return one column as ``(n,)`` int32; else a `DataError` names the lines."""
        values = self.floats(name)
        bad = np.flatnonzero((values != np.round(values)) | (np.abs(values) >= 2**31))
        if bad.size:
            i = int(bad[0])
            msg = f"{self.path} line {self.lines[i]} column '{name}': {values[i]:g} is no whole number"
            raise DataError(msg)
        return values.astype(np.int32)


def _float(text: str) -> float:
    try:
        # float() would also take '1_000'
        return float(text) if "_" not in text else math.nan
    except ValueError:
        return math.nan


def read_delimited(path: str | Path, *, header: Sequence[str] | None = None, skip_blank: bool = False) -> TextTable:
    """Read a CSV or TSV file, plain or gzip, without guessing at its values.

    The delimiter is the tab if the first line holds one, else the semicolon if it holds no comma, else the comma.
    A header that is one field shorter than the rows (as R writes it) gets ``""`` as the name of the first column.

    Parameters
    ----------
    path
        The file.
    header
        Names of the columns of a file that has no header line.
    skip_blank
        Leave out lines of delimiters alone, as spreadsheets write them below a table.

    Raises
    ------
    DataError
        Not UTF-8, no header, repeated column names, or a row of another length.
    """
    path = Path(path)
    text = read_text(path)
    first = text.partition("\n")[0]
    delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    try:
        for row in reader:
            values = tuple(value.strip() for value in row)
            if any(values) or (row and not skip_blank):
                rows.append(values)
                lines.append(reader.line_num)
    except csv.Error as error:
        msg = f"{path} line {reader.line_num}: {error}"
        raise DataError(msg) from None
    if header is None:
        if not rows:
            msg = f"{path} is empty: a header line was expected"
            raise DataError(msg)
        header, rows, lines = rows[0], rows[1:], lines[1:]
        if rows and len(rows[0]) == len(header) + 1:
            header = ("", *header)
    _check_shape(path, header, rows, lines)
    return TextTable(path, tuple(header), tuple(rows), tuple(lines))


def _check_shape(path: Path, header: Sequence[str], rows: list[tuple[str, ...]], lines: list[int]) -> None:
    twice = repeated(header)
    if twice:
        msg = f"{path}: column names repeat: {first_few(twice)}"
        raise DataError(msg)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            msg = f"{path} line {line} has {len(row)} fields where the header has {len(header)}"
            raise DataError(msg)
