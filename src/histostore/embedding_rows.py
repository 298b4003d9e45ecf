"""Embeddings of several slides as one table whose rows are read when asked for."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import SpecMismatchError, UsageError
from histostore.heads.rows import RowSource
from histostore.part import bounds_of, by_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.part import Part
    from histostore.store.arrays import ArrayReader

RELEASE_BYTES = 1 << 28
"""Pages of embeddings that a process keeps mapped while it reads on: 256 MiB of what was asked for."""


def row_numbers(rows: Any, n: int) -> NDArray[np.int64]:
    """Return the numbers of some of n rows, given as numbers or as a mask of all.

    Raises
    ------
    UsageError
        They are neither, or a mask of another length.
    IndexError
        There is no such row; numbers from the end are not understood.
    """
    given = np.asarray(rows)
    if given.dtype == np.bool_:
        if given.shape != (n,):
            raise UsageError(f"a mask of shape {given.shape} for {n} rows")
        return np.flatnonzero(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise UsageError(f"rows are {given.dtype} of shape {given.shape}: give whole numbers (k,), or a mask ({n},)")
    if given.size and (given.min() < 0 or given.max() >= n):
        raise IndexError(f"rows {given.min()}..{given.max()} of a view of {n}")
    return given.astype(np.int64)


class EmbeddingRows(RowSource):
    """Rows of a view's slides, one after the other; the memory of what was read is given back as it goes on.

    A slide's embeddings are opened when its first row is read: of thousands of slides a search reads a few.
    """

    def __init__(self, parts: Sequence[Part], backbone: str) -> None:
        self._parts = parts
        self._backbone = backbone
        self._readers: dict[int, ArrayReader] = {}
        self._bounds = bounds_of(parts)
        self._width = int(parts[0].attrs(parts[0].embeddings[backbone])["dim"])
        self._read = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return int(self._bounds[-1]), self._width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type that the embeddings are stored in."""
        return self._reader(0).dtype

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}  # open files stay here

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        n = len(self)
        if isinstance(rows, slice) and rows.step not in (None, 1):
            rows = np.arange(n)[rows]
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(n)
            out = np.empty((max(0, stop - start), self._width), dtype=self.dtype)
            for at, (first, last) in enumerate(itertools.pairwise(self._bounds)):
                a, b = max(start, first), min(stop, last)
                if a < b:
                    self._fill(out, slice(a - start, b - start), at, slice(a - first, b - first))
            return out
        rows = row_numbers(rows, n)
        out = np.empty((len(rows), self._width), dtype=self.dtype)
        for at, mine, local in by_part(self._bounds, rows):
            self._fill(out, mine, at, local)
        return out

    def _reader(self, at: int) -> ArrayReader:
        found = self._readers.get(at)
        if found is None:
            part = self._parts[at]
            found = self._readers[at] = part.group(part.embeddings[self._backbone]).array("embedding")
        return found

    def _fill(self, out: NDArray[Any], places: Any, at: int, local: Any) -> None:
        """Read rows of one slide into their places, and let go of old pages from time to time."""
        part, reader = self._parts[at], self._reader(at)
        if not np.can_cast(reader.dtype, out.dtype):
            raise SpecMismatchError(
                f"embeddings '{self._backbone}' of slide '{part.slide}' are {reader.dtype} and those of slide "
                f"'{self._parts[0].slide}' {out.dtype}, which would cut them; embed again with one --dtype, or name "
                f"'{part.slide}' first"
            )
        chosen = part.rows
        out[places] = reader.read(local if chosen is None else chosen[local])
        self._read += len(out[places]) * self._width * out.itemsize
        if self._read > RELEASE_BYTES:
            self._read = 0
            for reader in list(self._readers.values()):
                reader.release()
