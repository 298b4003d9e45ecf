"""Bytes of a slide by range, wherever it lies: the one seam under the segment reader."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BLOCK_BYTES = 64 << 10
BLOCKS_KEPT = 256
"""16 MiB: the tables of a slide with a million segments."""


class Ranges(Protocol):
    """An immutable string of bytes that is read by range. Threads may read it together."""

    size: int
    """All of it, in bytes."""

    @property
    def version(self) -> str:
        """A name of this state of the bytes where their keeper gives one, else ``""``."""
        ...

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Return one piece per range, in the order asked; pieces past the end are short.

        A local read that fails raises OSError and may be tried piece by piece. A connection that fails for good raises
        `histostore.errors.SlideError`: an outage must not be taken for damage.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class FileRanges:
    """A local file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size
        self.version = ""

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Return one piece per range; see `Ranges`."""
        number = self._file.fileno()
        return [os.pread(number, n, at) for at, n in zip(offsets, lengths, strict=True)]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class BlockedRanges:
    """Small reads served from blocks of 64 KiB that are kept: for a file's tables, which lie close together."""

    def __init__(self, ranges: Ranges) -> None:
        self.size, self.version = ranges.size, ranges.version
        self._ranges = ranges
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Return one piece per range; see `Ranges`."""
        return [self._read(at, n) for at, n in zip(offsets, lengths, strict=True)]

    def close(self) -> None:
        """Forget the blocks; what lies beneath stays open."""
        self._blocks.clear()

    def _read(self, at: int, n: int) -> bytes:
        stop = min(at + n, self.size)
        if stop <= at:
            return b""
        first, last = at // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        with self._lock:
            held = {i: self._blocks[i] for i in range(first, last + 1) if i in self._blocks}
            missing = [i for i in range(first, last + 1) if i not in held]
            if missing:
                got = self._ranges.read_ranges([i * BLOCK_BYTES for i in missing], [BLOCK_BYTES] * len(missing))
                held.update(zip(missing, got, strict=True))
            for i, block in held.items():
                self._blocks[i] = block
                self._blocks.move_to_end(i)
            while len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        whole = b"".join(held[i] for i in range(first, last + 1))
        return whole[at - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]


class RangeFile(io.RawIOBase):
    """Ranges as a file opened for reading, for libraries that want one."""

    def __init__(self, ranges: Ranges, name: str) -> None:
        self.name = name
        self._ranges = ranges
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ranges.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes, all that are left for -1."""
        n = self._ranges.size - self._at if size is None or size < 0 else size
        (data,) = self._ranges.read_ranges([self._at], [max(0, n)])
        self._at += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer; return how many bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
