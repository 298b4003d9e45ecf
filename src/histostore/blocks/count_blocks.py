"""Counts of a cohort cut into blocks of rows, over one list of genes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from histostore.blocks.address import Address
from histostore.blocks.slide_rows import SlideRows
from histostore.errors import DataError
from histostore.genes import Listed, check_naming, join_genes, stack_counts
from histostore.part import with_rows
from histostore.tables import Counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histostore.blocks.gene_lists import GeneList
    from histostore.blocks.slide_rows import OpenRows
    from histostore.genes import JoinedGenes
    from histostore.part import Part

SPARSE_BYTES = 256 << 20
"""What a block of counts would take as dense float32; a tenth of that as CSR, for counts of spots."""


@dataclass(frozen=True, slots=True, eq=False)
class CountBlock:
    """Rows of counts that are read as one; the genes they are told by are sent once, not with each block."""

    store: Address
    pieces: tuple[tuple[SlideRows, int, int], ...]
    """Of each slide, rows ``[start, stop)`` of those chosen."""
    dtype: str

    def __len__(self) -> int:
        return sum(stop - start for _, start, stop in self.pieces)

    def read(self, genes: JoinedGenes) -> sp.csr_array:
        """Return ``(n, genes)``; explicit NaN where a targeted panel did not measure a gene."""
        store, parts = self.store.open(), []
        for which, start, stop in self.pieces:
            rows = which.open(store)
            parts.append((which.slide, _counts(rows, start, stop), np.arange(stop - start)))
        return stack_counts(genes, parts).matrix.astype(self.dtype)


def read_counts_block(block: CountBlock, genes: JoinedGenes) -> sp.csr_array:
    """Return the rows of a block: what a task calls."""
    return block.read(genes)


@dataclass(frozen=True, slots=True, eq=False)
class CountBlocks:
    """The counts of a cohort, unread."""

    blocks: tuple[CountBlock, ...]
    genes: JoinedGenes
    unmeasured: dict[str, int]
    """By slide, how many of the genes its assay did not measure."""
    dtype: str
    """``int32``, or ``float32`` where something is missing or was normalised."""


def count_blocks(parts: Sequence[Part], how: str | tuple[str, ...], most: int = SPARSE_BYTES) -> CountBlocks:
    """Cut the counts of some slides into blocks of at most so many bytes, were they dense; no count is read yet.

    Raises
    ------
    DataError
        A row has no counts.
    AlignmentError
        Two slides name genes differently.
    """
    opened = [SlideRows.of(p).open(p.store) for p in with_rows(parts) if p.expression is not None or len(p)]
    for rows in opened:
        without = 0 if rows.all_counted else int((rows.count_row < 0).sum())
        if without:
            slide = rows.which.slide
            raise DataError(f"{without} of {len(rows)} rows of slide '{slide}' have no counts; take view.with_counts()")
    check_naming((Listed(r.which.slide, r.genes.ids, r.whole_transcriptome) for r in opened if len(r)), how)
    lists = {id(rows.genes): rows.genes for rows in opened}
    genes = join_genes([_named(one) for one in lists.values()], how)
    has = {key: len(set(genes.ids) & set(one.ids)) for key, one in lists.items()}
    unmeasured = {
        rows.which.slide: len(genes.ids) - has[id(rows.genes)]
        for rows in opened
        if not rows.whole_transcriptome and has[id(rows.genes)] < len(genes.ids)
    }
    dtype = "float32" if unmeasured or any(rows.normalised for rows in opened) else "int32"
    most_rows = max(1, most // (4 * max(1, len(genes.ids))))
    return CountBlocks(tuple(_cut(opened, parts, most_rows, dtype)), genes, unmeasured, dtype)


def _cut(opened: Sequence[OpenRows], parts: Sequence[Part], most_rows: int, dtype: str) -> list[CountBlock]:
    blocks: list[CountBlock] = []
    held: list[tuple[SlideRows, int, int]] = []
    n = 0
    address = Address.of(parts[0].store)

    def close() -> None:
        if held:
            blocks.append(CountBlock(address, tuple(held), dtype))
            held.clear()

    for rows in opened:
        which = rows.which
        for a in range(0, which.n, most_rows):
            b = min(a + most_rows, which.n)
            if n + b - a > most_rows:
                close()
                n = 0
            n += b - a
            some = which.rows
            held.append((which, a, b) if some is None else (replace(which, rows=some[a:b], n=b - a), 0, b - a))
    close()
    return blocks


def _counts(rows: OpenRows, start: int, stop: int) -> Counts:
    matrix = rows.counts(rows.count_row[start:stop])
    return replace(_named(rows.genes), matrix=matrix, whole_transcriptome=rows.whole_transcriptome)


def _named(genes: GeneList) -> Counts:
    """Return counts of no rows: a list of genes in the shape that `histostore.genes` takes."""
    empty = sp.csr_array((0, len(genes)), dtype=np.int32)
    return Counts(ids=(), matrix=empty, gene_ids=genes.ids, symbols=genes.symbols)
