"""Zarr v3 arrays of ours: their ``zarr.json``, their shards, and fast reads of rows.

Every array is chunked along its first axis alone, so a read is a question of rows. A chunk that is missing in a
committed group is damage, never fill.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import CorruptionError, FormatError, UsageError
from histostore.store.codecs import CRC_BYTES, STRINGS, ZSTD, ZSTD_U8, Pipeline, crc32c

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from histostore.store.files import Files

_STRING = "string"
_EMPTY = 2**64 - 1
"""What a shard's index holds for a chunk that is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Shape and layout of one array on disk."""

    shape: tuple[int, ...]
    dtype: str
    """A numpy name, or ``string``."""
    chunk_rows: int
    """Rows per inner chunk: the unit of checking and decoding."""
    shard_rows: int
    """Rows per file: the unit of writing and of resume; a multiple of `chunk_rows`."""
    pipeline: Pipeline
    fill_value: str | float | bool = 0
    dims: tuple[str, ...] = ()
    attrs: tuple[tuple[str, Any], ...] = ()

    @property
    def n_rows(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.shape[1:]

    @property
    def n_shards(self) -> int:
        """Number of files."""
        return math.ceil(self.n_rows / self.shard_rows)

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of a whole shard."""
        return self.shard_rows // self.chunk_rows

    @property
    def np_dtype(self) -> np.dtype[Any]:
        """The numpy type in memory."""
        return np.dtype(object) if self.dtype == _STRING else np.dtype(self.dtype)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a shard."""
        start = shard * self.shard_rows
        return start, min(self.n_rows, start + self.shard_rows)

    def key(self, shard: int) -> str:
        """Return a shard's key below the array's folder."""
        return "/".join(["c", str(shard), *("0" for _ in self.row_shape)])

    def to_zarr_json(self) -> bytes:
        """Return the array's ``zarr.json``."""
        inner = [self.chunk_rows, *self.row_shape]
        little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": inner,
                "codecs": self.pipeline.to_json(),
                "index_codecs": [little, {"name": "crc32c"}],
                "index_location": "end",
            },
        }
        document: dict[str, Any] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, *self.row_shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": self.fill_value,
            "codecs": [sharding],
            "attributes": dict(self.attrs),
            "storage_transformers": [],
        }
        if self.dims:
            document["dimension_names"] = list(self.dims)
        return json.dumps(document, indent=1).encode()

    @classmethod
    def from_zarr_json(cls, data: bytes, *, where: str) -> ArraySpec:
        """Return the spec that a ``zarr.json`` describes.

        Raises
        ------
        CorruptionError
            It is not the JSON of an array.
        FormatError
            It is chunked in a way histostore does not write.
        """
        try:
            document = json.loads(data)
            shape = tuple(int(n) for n in document["shape"])
            outer = [int(n) for n in document["chunk_grid"]["configuration"]["chunk_shape"]]
            codecs = document["codecs"]
            dtype = str(document["data_type"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptionError(f"{where}/zarr.json is not the description of an array ({error})") from error
        inner = outer
        if codecs and codecs[0].get("name") == "sharding_indexed":
            config = codecs[0]["configuration"]
            inner, codecs = [int(n) for n in config["chunk_shape"]], config["codecs"]
        else:
            raise FormatError(f"{where}: not sharded; histostore reads arrays in whole shards")
        if min([*outer, *inner, 1]) < 1 or tuple(outer[1:]) != shape[1:] or tuple(inner[1:]) != shape[1:]:
            raise FormatError(f"{where}: chunks {inner} of {list(shape)} are not rows")
        return cls(
            shape=shape,
            dtype=dtype,
            chunk_rows=inner[0],
            shard_rows=outer[0],
            pipeline=Pipeline.from_json(codecs, where=where),
            fill_value=document.get("fill_value", 0),
            dims=tuple(document.get("dimension_names") or ()),
            attrs=tuple((document.get("attributes") or {}).items()),
        )


def small_array(
    values: NDArray[Any] | Sequence[str], *, dims: tuple[str, ...] = (), attrs: Mapping[str, Any] | None = None
) -> ArraySpec:
    """Return the spec of an array that is one chunk in one file (tables, ids, thumbnails)."""
    if isinstance(values, np.ndarray):
        shape, dtype = values.shape, values.dtype.name
        small = values.dtype.itemsize == 1
        pipeline = ZSTD_U8 if small else ZSTD
        fill: str | float | bool = "NaN" if values.dtype.kind == "f" else (False if dtype == "bool" else 0)
    else:
        shape, dtype, pipeline, fill = (len(values),), _STRING, STRINGS, ""
    rows = max(1, shape[0])
    return ArraySpec(
        shape=shape,
        dtype=dtype,
        chunk_rows=rows,
        shard_rows=rows,
        pipeline=pipeline,
        fill_value=fill,
        dims=dims,
        attrs=tuple((attrs or {}).items()),
    )


def encode_shard(spec: ArraySpec, chunks: Sequence[bytes]) -> list[bytes]:
    """Return the parts of a shard's file: its chunks in row order, then the index with its checksum."""
    sizes = np.array([len(c) for c in chunks], dtype="<u8")
    index = np.full((spec.chunks_per_shard, 2), _EMPTY, dtype="<u8")
    index[: len(chunks), 0] = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(chunks) else sizes
    index[: len(chunks), 1] = sizes
    packed = index.tobytes()
    return [*chunks, packed, struct.pack("<I", crc32c(packed))]


def chunk_rows(spec: ArraySpec, rows: NDArray[Any] | Sequence[str]) -> Iterator[Any]:
    """Cut the rows of one shard into whole chunks; the last is padded with the fill value."""
    step = spec.chunk_rows
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if len(part) == step or spec.dtype == _STRING:
            yield [*part, *([""] * (step - len(part)))] if spec.dtype == _STRING else part
            continue
        if not isinstance(part, np.ndarray):
            raise UsageError(f"rows of a {spec.dtype} array must be a numpy array, got {type(part).__name__}")
        whole = np.full((step, *spec.row_shape), np.nan if spec.fill_value == "NaN" else spec.fill_value, part.dtype)
        whole[: len(part)] = part
        yield whole


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
    def open(cls, files: Files, prefix: str) -> ArrayReader:
        """Open the array that lies at `prefix`."""
        where = f"{files.uri}/{prefix}"
        try:
            document = files.get(f"{prefix}/zarr.json")
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
            ids = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(ids), *spec.row_shape), dtype=spec.np_dtype)
        if not len(ids):
            return out
        if ids.min() < 0 or ids.max() >= spec.n_rows:
            raise IndexError(f"rows {ids.min()}..{ids.max()} of {self.prefix}, which has {spec.n_rows}")
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
            if spec.dtype == _STRING:
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
        if start == _EMPTY or start + size > len(shard.data):
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
        used = int((offsets != _EMPTY).sum())
        shard = _Shard(data, offsets, sizes, np.zeros(len(offsets), dtype=np.bool_), None)
        chunk_bytes = spec.chunk_rows * int(np.prod(spec.row_shape)) * (spec.np_dtype.itemsize if used else 1)
        stride = chunk_bytes + CRC_BYTES
        in_order = (sizes[:used] == stride).all() and (offsets[:used] == np.arange(used) * stride).all()
        if spec.pipeline.is_raw and used and in_order and len(data) >= used * stride:
            itemsize, row = spec.np_dtype.itemsize, spec.row_shape
            inner = tuple(int(np.prod(row[i + 1 :])) * itemsize for i in range(len(row)))
            row_bytes = int(np.prod(row)) * itemsize
            shard.rows = np.ndarray(
                (used, spec.chunk_rows, *row), spec.np_dtype, buffer=data, strides=(stride, row_bytes, *inner)
            )
        return shard
