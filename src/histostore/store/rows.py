"""Rows of raw shards, straight from the mapped file.

A chunk is its rows and their checksum, so all chunks of a shard have one length, the stride. Where a shard is laid out
so, its rows are memory; where it is not (another writer's), `raw_chunks` says so and rows are read as of any array.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import CorruptionError
from histostore.store.codecs import CRC_BYTES, crc32c
from histostore.store.layout import EMPTY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.store.layout import ArraySpec
    from histostore.store.shards import Shard

    type Words = NDArray[np.uint8] | NDArray[np.uint32]
    """``(rows, words of a row)``: a checksum has four bytes, so words of four are aligned wherever a row lies."""


SPARSE = 4
"""Fewer rows of a chunk than this, on average, are gathered shard by shard, more chunk by chunk."""

SCRATCH_BYTES = 1 << 19
"""Rows that go to scattered places are gathered this much at a time, so that they stay in the processor's cache."""


@dataclass(slots=True)
class RawChunks:
    """Chunks of one mapped raw shard as ``(chunk_rows, row_bytes)``; each is verified when it is first asked for."""

    shard: Shard
    rows: int
    row_bytes: int
    anywhere: Words
    """A row at every word of the file, as a view: ``anywhere[offsets]`` gathers rows of many chunks at once."""
    _sound: list[Words | None] = field(init=False)

    def __post_init__(self) -> None:
        self._sound = [None] * len(self.shard.index)

    def __getitem__(self, number: int) -> Words:
        found = self._sound[number]
        if found is None:
            found = self._sound[number] = self._verified(number)
        return found

    @property
    def stride(self) -> int:
        """Bytes from one chunk to the next."""
        return self.rows * self.row_bytes + CRC_BYTES

    def _verified(self, number: int) -> Words:
        size = self.rows * self.row_bytes
        data, start = self.shard.data, number * self.stride
        if data is None or self.shard.index[number, 0] == EMPTY:
            raise CorruptionError(f"{self.shard.where}: chunk {number} is missing or cut; run `histostore verify`")
        rows = np.frombuffer(data, np.uint8, size, start)
        if crc32c(rows) != struct.unpack_from("<I", data, start + size)[0]:
            raise CorruptionError(
                f"{self.shard.where}: checksum of chunk {number} differs from what was written; run verify"
            )
        return rows.view(self.anywhere.dtype).reshape(self.rows, -1)


def raw_chunks(shard: Shard, spec: ArraySpec) -> RawChunks | None:
    """Return the chunks of a shard as memory; None unless it is mapped, raw, in row order and of one stride."""
    if not shard.is_mapped or not spec.pipeline.is_raw or shard.data is None:
        return None
    row_bytes = int(np.prod(spec.row_shape)) * spec.np_dtype.itemsize
    stride = spec.chunk_rows * row_bytes + CRC_BYTES
    offsets, sizes = shard.index[:, 0], shard.index[:, 1]
    used = int((offsets != EMPTY).sum())
    in_order = (sizes[:used] == stride).all() and (offsets[:used] == np.arange(used) * stride).all()
    if not in_order or not used or len(shard.data) < used * stride:
        return None
    word = np.dtype(np.uint8 if row_bytes % CRC_BYTES else np.uint32)
    file = np.frombuffer(shard.data, word, len(shard.data) // word.itemsize)
    anywhere = np.lib.stride_tricks.sliding_window_view(file, row_bytes // word.itemsize)
    return RawChunks(shard, spec.chunk_rows, row_bytes, anywhere)


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows that are asked for, in ascending order, and where they go."""

    chunk: NDArray[np.int64]
    """``(k,)`` chunk of the array that each row lies in."""
    within: NDArray[np.int64]
    """``(k,)`` row of that chunk."""
    order: NDArray[np.int64] | None
    """``(k,)`` where each row goes; None: row i goes to place i."""
    bounds: list[int]
    """Where the rows of each chunk begin, and the end of the last."""
    contiguous: bool
    """Whether the rows follow each other without gap or repeat."""

    @classmethod
    def of(cls, ids: NDArray[np.int64], per_chunk: int) -> Asked:
        """Return some row numbers, of chunks of so many rows, in the order in which they lie."""
        steps = ids[1:] - ids[:-1]
        contiguous = bool((steps == 1).all())
        order = None if contiguous or (steps >= 0).all() else np.argsort(ids, kind="stable")
        chunk, within = np.divmod(ids if order is None else ids[order], per_chunk)
        return cls(chunk, within, order, runs(chunk), contiguous)

    def numbers(self) -> list[int]:
        """Return the chunks, each once."""
        return list(self.chunk[self.bounds[:-1]].tolist())


def runs(numbers: NDArray[np.int64]) -> list[int]:
    """Return where each run of equal numbers begins, and the end of the last."""
    return [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]


def gather(raws: Mapping[int, RawChunks], per_shard: int, asked: Asked, out: NDArray[Any]) -> None:
    """Copy rows out of mapped raw shards, by number of shard, of so many chunks, into their places in `out`."""
    word = next(iter(raws.values())).anywhere.dtype
    into = out.reshape(len(out), -1).view(word)
    bounds, numbers = asked.bounds, asked.numbers()
    if len(into) < SPARSE * len(numbers):
        _gather_by_shard(raws, per_shard, asked, into)
        return
    if asked.order is None:
        _gather_by_chunk(raws, per_shard, asked, range(len(numbers)), into)
        return
    ends, first = np.asarray(bounds), 0
    most = max(SCRATCH_BYTES // (into.shape[1] * word.itemsize), int(np.diff(ends).max()))
    scratch = np.empty((most, into.shape[1]), word)
    while first < len(numbers):
        last = int(np.searchsorted(ends, bounds[first] + most, side="right")) - 1
        _gather_by_chunk(raws, per_shard, asked, range(first, last), scratch)
        places = asked.order[bounds[first] : bounds[last]]
        into[places] = scratch[: len(places)]
        first = last


def _gather_by_chunk(raws: Mapping[int, RawChunks], per_shard: int, asked: Asked, chunks: range, into: Words) -> None:
    """Copy the rows of some of the chunks, one after the other."""
    bounds, within, begin = asked.bounds, asked.within, asked.bounds[chunks.start]
    for i, number in zip(chunks, asked.chunk[bounds[chunks.start : chunks.stop]].tolist(), strict=True):
        a, b = bounds[i], bounds[i + 1]
        rows = raws[number // per_shard][number % per_shard]
        if asked.contiguous:
            into[a:b] = rows[within[a] : within[a] + b - a]
        else:
            rows.take(within[a:b], 0, into[a - begin : b - begin], "clip")


def _gather_by_shard(raws: Mapping[int, RawChunks], per_shard: int, asked: Asked, into: Words) -> None:
    """Copy few rows of each of many chunks."""
    for number in asked.numbers():
        raws[number // per_shard][number % per_shard]  # verified before it is used
    shard, local = np.divmod(asked.chunk, per_shard)
    for a, b in pairwise(runs(shard)):
        raw = raws[int(shard[a])]
        places = slice(a, b) if asked.order is None else asked.order[a:b]
        offsets = local[a:b] * raw.stride + asked.within[a:b] * raw.row_bytes
        into[places] = raw.anywhere[offsets // into.itemsize]
