"""Where the chunks of a shard lie in its file, and their bytes: mapped where the file is local, else ranges of it.

A shard's index is read once. A chunk's checksum is compared once where the file is mapped, and each time where its
bytes come over a network again.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import CorruptionError
from histostore.store.codecs import CRC_BYTES, crc32c
from histostore.store.layout import EMPTY, STRING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.store.codecs import Buffer
    from histostore.store.files import Files
    from histostore.store.layout import ArraySpec

WHOLE_BYTES = 8 << 20
"""A shard that is one chunk of at most so many decoded bytes is read by one request, index and all."""

GAP_BYTES = 16 << 10
"""Bytes between two chunks that are read along rather than skipped."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of an array, with its index read and checked."""

    key: str
    where: str
    """For messages: the file, with the store it lies in."""
    index: NDArray[np.uint64]
    """``(chunks, 2)`` offset and length of each chunk; `EMPTY` where there is none."""
    data: memoryview | None
    """The whole file: mapped, or fetched where it is small."""
    checked: bytearray | None
    """One per chunk: whether its checksum was compared. None where every read brings other bytes."""

    @property
    def is_mapped(self) -> bool:
        """Whether `data` is the file itself and takes no memory of its own."""
        return self.data is not None and isinstance(self.data.obj, mmap.mmap)

    def chunks(self, files: Files, numbers: Sequence[int]) -> list[Buffer]:
        """Return the bytes of some chunks, checksum included; neighbours are read together.

        Parameters
        ----------
        numbers
            Chunks of this shard, ascending.

        Raises
        ------
        CorruptionError
            A chunk is not there, or the file ends before it does.
        """
        places = [self._place(n) for n in numbers]
        if self.data is not None:
            self._announce(numbers, places)
            return [self._whole(self.data[a : a + size], size, n) for n, (a, size) in zip(numbers, places, strict=True)]
        runs: list[tuple[int, int]] = []
        run_of = []
        for start, size in places:
            if runs and 0 <= start - sum(runs[-1]) <= GAP_BYTES:
                runs[-1] = runs[-1][0], start + size - runs[-1][0]
            else:
                runs.append((start, size))
            run_of.append(len(runs) - 1)
        try:
            found = [memoryview(b) for b in files.read_ranges(self.key, runs)]
        except FileNotFoundError:
            raise CorruptionError(f"{self.where} is missing; run `histostore verify`") from None
        out: list[Buffer] = []
        for number, run, (start, size) in zip(numbers, run_of, places, strict=True):
            begin = start - runs[run][0]
            out.append(self._whole(found[run][begin : begin + size], size, number))
        return out

    def release(self) -> bool:
        """Let mapped pages leave the process; return whether that was possible. What was checked stays checked."""
        memory = self.data.obj if self.data is not None else None
        if not isinstance(memory, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return False
        memory.madvise(mmap.MADV_DONTNEED)
        return True

    def _announce(self, numbers: Sequence[int], places: Sequence[tuple[int, int]]) -> None:
        """Have the kernel begin to fetch chunks that were not read before, all at once."""
        memory = self.data.obj if self.data is not None else None
        if not isinstance(memory, mmap.mmap) or self.checked is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        for number, (start, size) in zip(numbers, places, strict=True):
            if not self.checked[number] and start + size <= len(memory):
                page = start - start % mmap.PAGESIZE
                memory.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    def _place(self, number: int) -> tuple[int, int]:
        start, size = self.index[number].tolist()
        if start == EMPTY:
            raise self._lost(number)
        return start, size

    def _whole(self, data: memoryview, size: int, number: int) -> memoryview:
        if len(data) != size:
            raise self._lost(number)
        return data

    def _lost(self, number: int) -> CorruptionError:
        return CorruptionError(f"{self.where}: chunk {number} is missing or cut; run `histostore verify`")


def open_shard(files: Files, key: str, spec: ArraySpec) -> Shard:
    """Open one shard of an array: read its index, and compare the index's checksum.

    Raises
    ------
    CorruptionError
        The file is missing, or its index is cut or damaged.
    """
    where = f"{files.uri}/{key}"
    try:
        data = files.map(key)
        if data is None and _is_small(spec):
            data = memoryview(files.get(key))
        tail = _tail(files, key, 16 * spec.chunks_per_shard + CRC_BYTES, data)
    except FileNotFoundError:
        raise CorruptionError(f"{where} is missing; run `histostore verify`") from None
    packed = tail[:-CRC_BYTES]
    if len(packed) != 16 * spec.chunks_per_shard or crc32c(packed) != struct.unpack("<I", tail[-CRC_BYTES:])[0]:
        raise CorruptionError(f"{where}: the shard's index is cut or damaged; run `histostore verify`")
    index = np.frombuffer(bytes(packed), dtype="<u8").reshape(-1, 2)
    return Shard(key, where, index, data, bytearray(len(index)) if data is not None else None)


def _is_small(spec: ArraySpec) -> bool:
    row_bytes = int(np.prod(spec.row_shape)) * spec.np_dtype.itemsize
    return spec.chunks_per_shard == 1 and (spec.dtype == STRING or spec.chunk_rows * row_bytes <= WHOLE_BYTES)


def _tail(files: Files, key: str, length: int, data: memoryview | None) -> memoryview:
    """Return the last bytes of a file, fewer where it is shorter."""
    if data is not None:
        return data[-length:]
    size = files.size(key)
    if size is None:
        raise FileNotFoundError(key)
    start = max(0, size - length)
    return memoryview(files.read_ranges(key, [(start, size - start)])[0])
