"""Fast reads of rows of a Zarr v3 array of ours.

A chunk that is missing in a committed group is damage, never fill.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import CorruptionError, UsageError
from histostore.store.codecs import CRC_BYTES, crc32c
from histostore.store.layout import EMPTY, STRING, ArraySpec, chunk_rows, encode_shard, small_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from histostore.store.files import Files

__all__ = ["ArrayReader", "ArraySpec", "chunk_rows", "encode_shard", "small_array"]


@dataclass(slots=True)
class _Shard:
    data: memoryview
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    checked: NDArray[np.bool_]
    rows: NDArray[Any] | None
    """Raw shards: ``(chunks, chunk_rows, …)`` over the mapped file; else None."""


@dataclass(slots=True)
class ArrayReader:
    """Rows of one array of a committed group. Safe to share between threads.

    Shards are opened once and their index kept; raw arrays are memory-mapped and each chunk's checksum is verified when
    it is first touched.
    """

    files: Files
    prefix: str
    """The array's folder, below the store."""
    spec: ArraySpec
    _shards: dict[int, _Shard] = field(default_factory=dict)

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
        self, rows: slice | NDArray[np.integer[Any]] | None = None, *, pool: Executor | None = None
    ) -> NDArray[Any]:
        """Return rows, in the order asked for; all of them by default.

        Parameters
        ----------
        rows
            A slice of step 1, or ``(k,)`` row numbers in any order, repeats allowed.
        pool
            Threads to decode chunks in (only compressed arrays gain).

        Returns
        -------
        numpy.ndarray
            ``(k, …)``, owned by the caller. Strings come as an object array of `str`.

        Raises
        ------
        UsageError
            `rows` are not whole numbers (a mask, say).
        IndexError
            A row is out of range.
        CorruptionError
            A shard is missing or cut, or a checksum differs.
        """
        spec = self.spec
        if rows is None or isinstance(rows, slice):
            start, stop, step = (rows or slice(None)).indices(spec.n_rows)
            ids = np.arange(start, stop, step, dtype=np.int64)
        else:
            ids = np.asarray(rows)
            if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
                raise UsageError(f"rows of {self.prefix} are asked for by number, got {ids.dtype} {ids.shape}")
            ids = ids.astype(np.int64, copy=False)
        out = np.empty((len(ids), *spec.row_shape), dtype=spec.np_dtype)
        if not len(ids):
            return out
        if ids.min() < 0 or ids.max() >= spec.n_rows:
            raise IndexError(f"rows {ids.min()}..{ids.max()} of {self.prefix}, which has {spec.n_rows}")
        if not spec.n_shards:
            return out
        shard_of = ids // spec.shard_rows
        if shard_of[0] == shard_of[-1] and (shard_of == shard_of[0]).all():
            self._read_shard(int(shard_of[0]), ids, slice(None), out, pool)
        else:
            order = np.argsort(shard_of, kind="stable")
            bounds = np.flatnonzero(np.diff(shard_of[order], prepend=-1))
            for at, begin in enumerate(bounds):
                end = bounds[at + 1] if at + 1 < len(bounds) else len(order)
                places = order[begin:end]
                self._read_shard(int(shard_of[places[0]]), ids[places], places, out, pool)
        return out

    def blocks(self, n_rows: int, *, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, rows) in order, `n_rows` at a time."""
        stop = self.spec.n_rows if stop is None else stop
        for first in range(start, stop, n_rows):
            yield first, self.read(slice(first, min(stop, first + n_rows)))

    def _read_shard(
        self, number: int, ids: NDArray[np.int64], places: Any, out: NDArray[Any], pool: Executor | None
    ) -> None:
        spec = self.spec
        shard = self._open(number)
        local = ids - number * spec.shard_rows
        chunk_of, within = local // spec.chunk_rows, local % spec.chunk_rows
        needed = np.unique(chunk_of)
        if shard.rows is not None:
            for chunk in needed[~shard.checked[needed]]:
                self._check_raw(shard, number, int(chunk))
            contiguous = len(ids) > 1 and local[-1] - local[0] == len(local) - 1 and (np.diff(local) == 1).all()
            if contiguous and isinstance(places, slice) and len(needed) == 1:
                out[places] = shard.rows[needed[0], within[0] : within[0] + len(ids)]
            else:
                out[places] = shard.rows[chunk_of, within]
            return
        index = np.arange(len(ids))[places] if isinstance(places, slice) else places

        def fill(chunk: int) -> None:
            values = self._decode(shard, number, chunk)
            mine = np.flatnonzero(chunk_of == chunk)
            if spec.dtype == STRING:
                out[index[mine]] = np.array(values, dtype=object)[within[mine]]
            elif spec.chunk_rows == 1:
                out[index[mine]] = values
            else:
                out[index[mine]] = values[within[mine]]

        run: Callable[..., Any] = pool.map if pool is not None else map
        for _ in run(fill, needed.tolist()):
            pass

    def _where(self, number: int) -> str:
        return f"{self.files.uri}/{self.prefix}/{self.spec.key(number)}"

    def _decode(self, shard: _Shard, number: int, chunk: int) -> Any:
        spec = self.spec
        data = self._chunk_bytes(shard, number, chunk)
        shape = (spec.chunk_rows, *spec.row_shape)
        return spec.pipeline.decode(data, shape=shape, dtype=spec.np_dtype, where=self._where(number))

    def _chunk_bytes(self, shard: _Shard, number: int, chunk: int) -> memoryview:
        start, size = int(shard.offsets[chunk]), int(shard.sizes[chunk])
        if start == EMPTY or start + size > len(shard.data):
            raise CorruptionError(f"{self._where(number)}: chunk {chunk} is missing or cut; run `histostore verify`")
        return shard.data[start : start + size]

    def _check_raw(self, shard: _Shard, number: int, chunk: int) -> None:
        data = self._chunk_bytes(shard, number, chunk)
        (expected,) = struct.unpack("<I", data[-CRC_BYTES:])
        if crc32c(data[:-CRC_BYTES]) != expected:
            raise CorruptionError(
                f"{self._where(number)}: checksum of chunk {chunk} differs from what was written; run verify"
            )
        shard.checked[chunk] = True

    def _open(self, number: int) -> _Shard:
        found = self._shards.get(number)
        if found is None:
            found = self._shards[number] = self._load(number)
        return found

    def _load(self, number: int) -> _Shard:
        spec, where = self.spec, self._where(number)
        try:
            data = self.files.map(f"{self.prefix}/{spec.key(number)}")
        except FileNotFoundError:
            raise CorruptionError(f"{where} is missing; run `histostore verify`") from None
        length = 16 * spec.chunks_per_shard
        packed = data[-length - CRC_BYTES : -CRC_BYTES]
        tail = data[-CRC_BYTES:]
        if len(packed) != length or crc32c(packed) != struct.unpack("<I", tail)[0]:
            raise CorruptionError(f"{where}: the shard's index is cut or damaged; run `histostore verify`")
        index = np.frombuffer(packed, dtype="<u8").reshape(-1, 2)
        offsets, sizes = index[:, 0], index[:, 1]
        used = int((offsets != EMPTY).sum())
        shard = _Shard(data, offsets, sizes, np.zeros(len(offsets), dtype=np.bool_), None)
        itemsize, row = spec.np_dtype.itemsize, spec.row_shape
        row_bytes = int(np.prod(row)) * itemsize
        stride = spec.chunk_rows * row_bytes + CRC_BYTES
        in_order = (sizes[:used] == stride).all() and (offsets[:used] == np.arange(used) * stride).all()
        if spec.pipeline.is_raw and used and in_order and len(data) >= used * stride:
            inner = tuple(int(np.prod(row[i + 1 :])) * itemsize for i in range(len(row)))
            shard.rows = np.ndarray(
                (used, spec.chunk_rows, *row), spec.np_dtype, buffer=data, strides=(stride, row_bytes, *inner)
            )
        return shard
