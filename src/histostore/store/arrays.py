"""Fast reads of rows of a Zarr v3 array of ours.

A chunk that is missing in a committed group is damage, never fill.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import CorruptionError, UsageError
from histostore.store.layout import STRING, ArraySpec, chunk_rows, encode_shard, small_array
from histostore.store.rows import Asked, RawChunks, gather, raw_chunks, runs
from histostore.store.shards import Shard, open_shard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from histostore.store.files import Files

    type Rows = NDArray[np.int64]

__all__ = ["ArrayReader", "ArraySpec", "Pending", "chunk_rows", "encode_shard", "small_array"]

JOB_CHUNKS = 8
"""Chunks that a thread reads and decodes at a time: it outweighs handing them over, and a batch is shared evenly."""


RELEASE_BYTES = 64 << 20
"""Mapped bytes of compressed chunks that a reader keeps before it gives them back."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Rows that threads are still reading."""

    out: NDArray[Any]
    futures: tuple[Future[None], ...] = ()

    def result(self) -> NDArray[Any]:
        """Return the rows once all are there; raise what went wrong with any of them."""
        try:
            for future in self.futures:
                future.result()
        finally:
            for future in self.futures:
                future.cancel()
        return self.out


@dataclass(slots=True)
class ArrayReader:
    """Rows of one array of a committed group. Safe to share between threads.

    Shards are opened once and their index kept. Where the files are local they are memory-mapped, and each chunk is
    verified when it is first touched; elsewhere the chunks asked for are fetched, neighbours in one request. Compressed
    chunks are decoded straight into the rows that are returned.
    """

    files: Files
    prefix: str
    """The array's folder, below the store."""
    spec: ArraySpec
    _shards: dict[int, Shard] = field(default_factory=dict)
    _raw: dict[int, RawChunks | None] = field(default_factory=dict)
    _touched: int = 0
    """Bytes of compressed chunks that were mapped since memory was last given back."""

    @classmethod
    def open(cls, files: Files, prefix: str, *, document: bytes | None = None) -> ArrayReader:
        """Open the array that lies at `prefix`; `document` is its ``zarr.json`` where that was read and checked."""
        where = f"{files.uri}/{prefix}"
        try:
            document = files.get(f"{prefix}/zarr.json") if document is None else document
        except FileNotFoundError:
            raise CorruptionError(f"{where}/zarr.json is missing; run `histostore verify`") from None
        return cls(files, prefix, ArraySpec.from_zarr_json(document, where=where))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""
        return self.spec.np_dtype

    def __len__(self) -> int:
        return self.spec.n_rows

    def read(
        self,
        rows: slice | NDArray[np.integer[Any]] | None = None,
        *,
        out: NDArray[Any] | None = None,
        pool: Executor | None = None,
    ) -> NDArray[Any]:
        """Return rows, in the order asked for; all of them by default.

        Parameters
        ----------
        rows
            A slice, or ``(k,)`` row numbers in any order, repeats allowed.
        out
            ``(k, …)`` C-contiguous array of the array's type to read into; a new one by default.
        pool
            Threads to read and decode chunks in (only compressed arrays gain).

        Returns
        -------
        numpy.ndarray
            ``(k, …)``, owned by the caller. Strings come as an object array of `str`.

        Raises
        ------
        UsageError
            `rows` are not whole numbers (a mask, say), or `out` does not fit them.
        IndexError
            A row is out of range.
        CorruptionError
            A shard is missing or cut, or a checksum differs.
        """
        return self.start(rows, out=out, pool=pool).result()

    def start(
        self,
        rows: slice | NDArray[np.integer[Any]] | None = None,
        *,
        out: NDArray[Any] | None = None,
        pool: Executor | None = None,
    ) -> Pending:
        """Begin to read rows in the threads of `pool`, and return at once; without threads they are read here.

        Parameters and errors are those of `read`.
        """
        ids = self._numbers(rows)
        if out is None:
            out = np.empty((len(ids), *self.spec.row_shape), dtype=self.dtype)
        elif out.shape != (len(ids), *self.spec.row_shape) or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise UsageError(
                f"rows of {self.prefix} are {self.dtype} {(len(ids), *self.spec.row_shape)}, C-contiguous; "
                f"out is {out.dtype} {out.shape}"
            )
        if not len(ids) or not self.spec.n_shards:
            return Pending(out)
        asked, per_shard = Asked.of(ids, self.spec.chunk_rows), self.spec.chunks_per_shard
        numbers = dict.fromkeys((asked.chunk[asked.bounds[:-1]] // per_shard).tolist())
        if self.spec.pipeline.is_raw:
            raws = {n: raw for n in numbers if (raw := self._raw_chunks(n)) is not None}
            if len(raws) == len(numbers):
                gather(raws, per_shard, asked, out)
                return Pending(out)
        jobs = self._jobs(asked)
        if pool is not None and len(asked.bounds) > 2:
            return Pending(out, tuple(pool.submit(self._decode, asked, a, b, out) for a, b in jobs))
        for a, b in jobs:
            self._decode(asked, a, b, out)
        return Pending(out)

    def blocks(self, n_rows: int, *, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, rows) in order, `n_rows` at a time."""
        stop = self.spec.n_rows if stop is None else stop
        for first in range(start, stop, n_rows):
            yield first, self.read(slice(first, min(stop, first + n_rows)))

    def release(self) -> None:
        """Give back the memory of what was read: mapped pages leave the process, shards that were fetched are dropped.

        The next read finds them again; what was verified stays verified where the file is mapped.
        """
        self._touched = 0
        for number, shard in list(self._shards.items()):
            if not shard.release() and shard.data is not None:
                self._shards.pop(number, None)
                self._raw.pop(number, None)

    def _numbers(self, rows: slice | NDArray[np.integer[Any]] | None) -> Rows:
        n_rows = self.spec.n_rows
        if rows is None or isinstance(rows, slice):
            return np.arange(*(rows or slice(None)).indices(n_rows), dtype=np.int64)
        ids = np.asarray(rows)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise UsageError(f"rows of {self.prefix} are asked for by number, got {ids.dtype} {ids.shape}")
        ids = ids.astype(np.int64, copy=False)
        if len(ids) and (ids.min() < 0 or ids.max() >= n_rows):
            raise IndexError(f"rows {ids.min()}..{ids.max()} of {self.prefix}, which has {n_rows}")
        return ids

    def _shard(self, number: int) -> Shard:
        found = self._shards.get(number)
        if found is None:
            found = open_shard(self.files, f"{self.prefix}/{self.spec.key(number)}", self.spec)
            self._shards[number] = found
        return found

    def _raw_chunks(self, number: int) -> RawChunks | None:
        if number not in self._raw:
            self._raw[number] = raw_chunks(self._shard(number), self.spec)
        return self._raw[number]

    def _jobs(self, asked: Asked) -> list[tuple[int, int]]:
        """Cut the chunks into runs [a, b) of a few, each of one shard."""
        shard = asked.chunk[asked.bounds[:-1]] // self.spec.chunks_per_shard
        return [(a, min(b, a + JOB_CHUNKS)) for start, b in pairwise(runs(shard)) for a in range(start, b, JOB_CHUNKS)]

    def _decode(self, asked: Asked, first: int, last: int, out: NDArray[Any]) -> None:
        """Fetch and decode the chunks [first, last), which lie in one shard, and put their rows where they belong."""
        spec, bounds = self.spec, asked.bounds
        numbers = asked.chunk[bounds[first:last]].tolist()
        shard = self._shard(numbers[0] // spec.chunks_per_shard)
        local = [n % spec.chunks_per_shard for n in numbers]
        shape = (spec.chunk_rows, *spec.row_shape)
        fetched = shard.chunks(self.files, local)
        for at, data, (a, b) in zip(local, fetched, pairwise(bounds[first : last + 1]), strict=True):
            check = shard.checked is None or not shard.checked[at]
            place: Any = slice(a, b) if asked.order is None else asked.order[a:b]
            start = a if asked.order is None else int(asked.order[a])
            if b - a == spec.chunk_rows and (b - a == 1 or asked.contiguous):
                spec.pipeline.decode_into(out[start : start + b - a], data, where=shard.where, check=check)
            else:
                values = spec.pipeline.decode(data, shape=shape, dtype=self.dtype, where=shard.where, check=check)
                out[place] = (np.array(values, dtype=object) if spec.dtype == STRING else values)[asked.within[a:b]]
            if shard.checked is not None:
                shard.checked[at] = True
            self._touched += len(data)
        if self._touched > RELEASE_BYTES:
            self.release()
