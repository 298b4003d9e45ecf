"""The codes of an index while others make them: an attempt in the store that is never sealed, and gone afterwards.

Codes are as large as the index itself, so they go through files, whole shards of `histostore.index.encode.BLOCK_ROWS`
rows each with a receipt, and not through a scheduler. What a killed run finished is taken over by the next one, where
training gives the same index of the same embeddings; else it is an unsealed attempt like any other, and gc's.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.blocks.address import Address
from histostore.blocks.embedding_blocks import EmbeddingBlock
from histostore.blocks.slide_rows import SlideRows
from histostore.errors import CorruptionError, SpecMismatchError
from histostore.index.encode import BLOCK_ROWS, encode, engine, from_bytes, to_bytes, width_of
from histostore.part import bounds_of
from histostore.stages.index import INDEXES, KIND
from histostore.store.arrays import ArrayReader, ArraySpec
from histostore.store.codecs import RAW

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.index.spec import Metric
    from histostore.store.files import Files
    from histostore.store.groups import GroupWriter
    from histostore.store.receipts import Receipt, Share
    from histostore.store.store import Store
    from histostore.view import View

CODES = "codes"
TRAINED = "trained.faiss"
CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Encoding:
    """What whoever encodes rows is told: where the trained index lies and where codes go. Plain values."""

    share: Share
    sha256: str
    """Of the trained, empty index."""
    metric: Metric
    engine: Mapping[str, str]
    """Of the machine that trained it: others must have the same."""

    def trained(self, files: Files) -> Any:
        """Return the trained index.

        Raises
        ------
        CorruptionError
            It is gone (the run that trained it has ended), or is not the one that was written.
        SpecMismatchError
            This machine would give some rows other codes.
        """
        key = f"{self.share.prefix}/{TRAINED}"
        try:
            data = files.get(key)
        except FileNotFoundError:
            raise CorruptionError(f"{files.uri}/{key} is gone: the run that wrote it has ended") from None
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise CorruptionError(f"{files.uri}/{key} is not the index that was trained; run index again")
        index = from_bytes(data)
        mine = engine(index)
        if mine != self.engine:
            differ = ", ".join(f"{k} {mine.get(k)} (client {v})" for k, v in self.engine.items() if mine.get(k) != v)
            raise SpecMismatchError(
                f"rows get other codes on this worker: {differ}; use workers with the client's kind of processor and "
                "FAISS, or build the index without workers"
            )
        return index

    def write(self, files: Files, trained: Any, block: EmbeddingBlock, shard: int) -> Receipt:
        """Encode the rows of one block and write them; return the receipt, that of an earlier start where it ended."""
        writer = self.share.on(files)
        done = writer.finished(CODES, shard)
        return done or writer.write_rows(CODES, shard, encode(trained, block.read(), self.metric))


@dataclass(frozen=True, slots=True)
class StagedCodes:
    """Codes under way: which blocks are still to be made, and what those that are made hold."""

    encoding: Encoding
    writer: GroupWriter
    rows: View
    chosen: NDArray[np.int64]
    """Numbers of the rows in the view, ascending."""

    def pending(self) -> list[int]:
        """Return the blocks that nobody has made yet."""
        return self.writer.pending(CODES)

    def block(self, shard: int) -> EmbeddingBlock:
        """Return which rows of which embeddings a block is of."""
        start, stop = self.encoding.share.arrays[CODES].shard_range(shard)
        return _block_of(self.rows, self.chosen[start:stop])

    def read(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the codes, block by block in the order of the rows."""
        reader = ArrayReader.open(self.writer.files, self.writer.array_prefix(CODES))
        for shard in range(reader.spec.n_shards):
            yield reader.read(slice(*reader.spec.shard_range(shard)))


@contextmanager
def staged_codes(
    store: Store, name: str, rows: View, index: Any, metric: Metric, chosen: NDArray[np.int64]
) -> Iterator[StagedCodes]:
    """Begin, or go on with, the codes of some rows of a view by an index; they are gone when the block succeeds."""
    (backbone,) = rows.backbones
    data, own = to_bytes(index), engine(index)
    sha256 = hashlib.sha256(data).hexdigest()
    layout = ArraySpec(
        shape=(len(chosen), width_of(index)), dtype="uint8", chunk_rows=CHUNK_ROWS, shard_rows=BLOCK_ROWS, pipeline=RAW,
        dims=("row", "byte"),
    )  # fmt: skip
    spec = {"codes_of": sha256, "metric": metric, "rows": hashlib.sha256(chosen.tobytes()).hexdigest()}
    inputs = {p.slide: {"embeddings": p.embeddings[backbone].sha256} for p in rows.parts}
    with store.begin(INDEXES, KIND, name, spec=spec, inputs=inputs, engine=own) as writer:
        writer.put_file(TRAINED, data)
        writer.create(CODES, layout)
        yield StagedCodes(Encoding(writer.share(), sha256, metric, own), writer, rows, chosen)
        store.files.delete_tree(writer.prefix)


def _block_of(rows: View, chosen: NDArray[np.int64]) -> EmbeddingBlock:
    (backbone,) = rows.backbones
    pieces = []
    bounds = bounds_of(rows.parts)
    for part, (first, last) in zip(rows.parts, pairwise(bounds), strict=True):
        a, b = np.searchsorted(chosen, [first, last])
        if a == b:
            continue
        local, which = chosen[a:b] - first, SlideRows.of(part, backbone)
        if local[-1] - local[0] == len(local) - 1:
            pieces.append((which, int(local[0]), int(local[-1]) + 1))
        else:
            some = local if part.rows is None else part.rows[local]
            pieces.append((replace(which, rows=some, n=len(some)), 0, len(some)))
    source = rows.lazy(backbone)
    return EmbeddingBlock(Address.of(rows.parts[0].store), tuple(pieces), int(source.shape[1]), source.dtype.name)
