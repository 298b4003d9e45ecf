"""Embeddings of a cohort cut into blocks along shards: large slides by shard, small slides many to a block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.blocks.address import Address
from histostore.blocks.gene_lists import stored
from histostore.blocks.slide_rows import SlideRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.part import Part

BLOCK_BYTES = 16 << 20
"""What a block of small shards grows to; a larger shard is a block of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingBlock:
    """Rows that are read as one. Pickles to a few hundred bytes a slide."""

    store: Address
    pieces: tuple[tuple[SlideRows, int, int], ...]
    """Of each slide, rows ``[start, stop)`` of those chosen."""
    dim: int
    dtype: str

    def __len__(self) -> int:
        return sum(stop - start for _, start, stop in self.pieces)

    def read(self) -> NDArray[Any]:
        """Return ``(n, dim)``; rows of unreadable tiles are NaN."""
        store, out, at = self.store.open(), np.empty((len(self), self.dim), self.dtype), 0
        for rows, start, stop in self.pieces:
            out[at : at + stop - start] = rows.open(store).embedding(start, stop, out.dtype)
            at += stop - start
        return out


def read_block(block: EmbeddingBlock) -> NDArray[Any]:
    """Return the rows of a block: what a task calls."""
    return block.read()


def layout(part: Part, backbone: str) -> tuple[int, np.dtype[Any]]:
    """Return the width and the type of a slide's embeddings."""
    group = part.group(part.embeddings[backbone])
    return int(group.attrs["dim"]), group.array("embedding").dtype


def embedding_blocks(parts: Sequence[Part], backbone: str, most: int = BLOCK_BYTES) -> list[EmbeddingBlock]:
    """Cut the rows of some slides into blocks, in order; nothing but headers is read."""
    if not parts:
        return []
    dim, dtype = layout(parts[0], backbone)
    address, row_bytes = Address.of(parts[0].store), max(1, dim * dtype.itemsize)
    blocks: list[EmbeddingBlock] = []
    held: list[tuple[SlideRows, int, int]] = []
    size = 0

    def close() -> None:
        if held:
            blocks.append(EmbeddingBlock(address, tuple(held), dim, dtype.name))
            held.clear()

    for part in parts:
        rows = SlideRows.of(part, backbone)
        for piece in _by_shard(part, rows, backbone):
            more = (piece[2] - piece[1]) * row_bytes
            if size + more > most:
                close()
                size = 0
            held.append(piece)
            size += more
    close()
    return blocks


def _by_shard(part: Part, rows: SlideRows, backbone: str) -> Iterator[tuple[SlideRows, int, int]]:
    """Yield the runs of a slide's rows that lie in one shard; rows in another order by so many as a shard has."""
    group = part.group(part.embeddings[backbone])
    if len(stored(group, "embedding")) <= 1:  # told by the header: most slides of a large cohort need no more
        if rows.n:
            yield rows, 0, rows.n
        return
    step, chosen = group.array("embedding").spec.shard_rows, rows.rows
    if chosen is None or (chosen[1:] < chosen[:-1]).any():
        bounds = [*range(0, rows.n, step), rows.n]
    else:
        bounds = [0, *(np.flatnonzero(np.diff(chosen // step)) + 1).tolist(), rows.n]
    for a, b in pairwise(bounds):
        if a < b:
            # a block takes along only those row numbers that it reads
            yield (rows, a, b) if chosen is None else (replace(rows, rows=chosen[a:b], n=b - a), 0, b - a)
