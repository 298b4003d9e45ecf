"""The rows that a view takes from one slide: as a value to send, and open for reading."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from histostore.blocks.gene_lists import read_genes, stored
from histostore.content.tables import counts_of
from histostore.errors import CorruptionError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.blocks.gene_lists import GeneList
    from histostore.part import Part
    from histostore.store.groups import Group
    from histostore.store.manifest import Ref
    from histostore.store.store import Store

    type Rows = NDArray[np.int64]

READ_VALUES = 1 << 24
"""Stored counts that are held at a time: 16.8 million, 128 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideRows:
    """Which groups of one slide, and which of their rows. Holds no open file; pickles to a few hundred bytes."""

    n: int
    points: Ref
    tiles: Ref | None
    embeddings: Ref | None
    expression: Ref | None
    rows: Rows | None
    """Selected rows, in order; None means all of them."""

    @classmethod
    def of(cls, part: Part, backbone: str | None = None) -> SlideRows:
        """Return what a part of a view reads, with the embeddings of one backbone or none."""
        return cls(
            n=len(part), points=part.points, tiles=part.tiles,
            embeddings=part.embeddings[backbone] if backbone is not None else None,
            expression=part.expression, rows=part.rows,
        )  # fmt: skip

    @property
    def slide(self) -> str:
        """The slide's id."""
        return self.points.owner

    def open(self, store: Store) -> OpenRows:
        """Open the rows for reading."""
        return OpenRows(self, store)


class OpenRows:
    """Rows of one slide, read piece by piece; what was read is not kept."""

    def __init__(self, which: SlideRows, store: Store) -> None:
        self.which = which
        self._store = store

    def __len__(self) -> int:
        return self.which.n

    def embedding(self, start: int, stop: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return ``(stop - start, d)`` embeddings; NaN where a tile is unreadable."""
        reader, chosen = self._vectors, self.which.rows
        if not np.can_cast(reader.dtype, dtype, "safe"):
            raise DataError(
                f"embeddings of slide '{self.which.slide}' are {reader.dtype} and those of others {dtype}: embed them "
                "again with one type"
            )
        rows = slice(start, stop) if chosen is None else chosen[start:stop]
        values: NDArray[Any] = reader.read(rows).astype(dtype, copy=False)
        return values

    @cached_property
    def _vectors(self) -> Any:
        assert self.which.embeddings is not None
        return self._store.group(self.which.embeddings).array("embedding")

    @cached_property
    def expression(self) -> Group:
        """The group of the slide's counts.

        Raises
        ------
        DataError
            It has none.
        """
        if self.which.expression is None:
            raise DataError(f"rows of slide '{self.which.slide}' have no counts: only tiles at spots have them")
        return self._store.group(self.which.expression)

    @cached_property
    def genes(self) -> GeneList:
        """The genes of the slide's counts."""
        return read_genes(self.expression)

    @property
    def whole_transcriptome(self) -> bool:
        """Whether a gene that is absent was not seen, rather than not measured."""
        return bool(self.expression.attrs["whole_transcriptome"])

    @property
    def normalised(self) -> bool:
        """Whether the values were normalised before they came in."""
        return bool(self.expression.attrs["normalised"])

    @cached_property
    def all_counted(self) -> bool:
        """Whether the counts are of all points, in their order: found out without reading either's ids."""
        points = self._store.group(self.which.points)
        return stored(points, "ids") == stored(self.expression, "obs/_index")

    @cached_property
    def count_row(self) -> Rows:
        """``(n,)`` row in the counts of every row, joined by id; -1 where the spot has none."""
        which = self.which
        if which.tiles is None:
            points = np.arange(which.n, dtype=np.int64) if which.rows is None else which.rows
        else:
            points = self._store.group(which.tiles).read("ids")[:, 2].astype(np.int64)
            points = points if which.rows is None else points[which.rows]
        if self.all_counted:
            return points
        ids = self._store.group(which.points).read("ids")
        return counts_of(points, ids, self.expression.read("obs/_index"))

    @cached_property
    def _indptr(self) -> Rows:
        indptr: Rows = self.expression.read("X/indptr")
        if len(indptr) != int(self.expression.attrs["n_obs"]) + 1 or (np.diff(indptr) < 0).any():
            raise CorruptionError(f"{self.expression.path}/X is no CSR matrix; run `histostore verify`")
        return indptr

    def counts(self, rows: Rows) -> sp.csr_array:
        """Return some rows of the counts ``(k, genes of the slide)``, by their number in the counts.

        Rows that follow each other are read alone; for others all that lies between them is read too.
        """
        indptr, width = self._indptr, len(self.genes)
        low, high = (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)
        values = slice(int(indptr[low]), int(indptr[high]))
        data, indices = (self.expression.array(f"X/{name}").read(values) for name in ("data", "indices"))
        if len(indices) and (indices.min() < 0 or indices.max() >= width):
            raise CorruptionError(f"{self.expression.path}/X has columns beyond its {width}; run `histostore verify`")
        block = sp.csr_array((data, indices, indptr[low : high + 1] - indptr[low]), shape=(high - low, width))
        in_order = len(rows) == high - low and bool((rows[1:] - rows[:-1] == 1).all())
        return block if in_order else block[rows - low]

    def runs(self, most_rows: int, *, counts: bool) -> list[tuple[int, int]]:
        """Cut the rows into runs ``[start, stop)`` of so many; with counts, also of about `READ_VALUES` of those."""
        step = max(1, most_rows)
        if counts and len(self._indptr) > 1:
            mean = max(1.0, float(self._indptr[-1]) / (len(self._indptr) - 1))
            step = min(step, max(1, int(READ_VALUES / mean)))
        return [(a, min(a + step, self.which.n)) for a in range(0, self.which.n, step)]
