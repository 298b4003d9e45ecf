"""Embeddings of several slides as one table whose rows are read when asked for."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.heads.rows import RowSource
from histostore.part import bounds_of, by_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.part import Part
    from histostore.store.arrays import ArrayReader

RELEASE_BYTES = 1 << 28
"""Pages of embeddings that a process keeps mapped while it reads on: 256 MiB of what was asked for."""


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

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        n = len(self)
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(n)
            out = np.empty((max(0, stop - start), self._width), dtype=self.dtype)
            for at, (first, last) in enumerate(itertools.pairwise(self._bounds)):
                a, b = max(start, first), min(stop, last)
                if a < b:
                    self._fill(out, slice(a - start, b - start), at, slice(a - first, b - first))
            return out
        if len(rows) and (rows.min() < 0 or rows.max() >= n):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a view of {n}")
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
        chosen = self._parts[at].rows
        out[places] = self._reader(at).read(local if chosen is None else chosen[local])
        self._read += len(out[places]) * self._width * out.itemsize
        if self._read > RELEASE_BYTES:
            self._read = 0
            for reader in list(self._readers.values()):
                reader.release()
