"""How an array lies on disk: its ``zarr.json`` (Zarr v3), and shards whole.

Every array is chunked along its first axis alone, so a read is a question of rows.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import CorruptionError, FormatError, UsageError
from histostore.store.codecs import STRINGS, ZSTD, ZSTD_U8, Pipeline, crc32c

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.store.codecs import Buffer, Encoded

STRING = "string"
DTYPES = frozenset(
    ["bool", "float16", "float32", "float64", STRING]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
"""Types an array may have; none of them can hold an object."""

EMPTY = 2**64 - 1
"""What a shard's index holds for a chunk that is not there."""

_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


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
        """Number of files; none where a row has no elements."""
        return math.ceil(self.n_rows / self.shard_rows) if 0 not in self.row_shape else 0

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of a whole shard."""
        return self.shard_rows // self.chunk_rows

    @property
    def np_dtype(self) -> np.dtype[Any]:
        """The numpy type in memory."""
        return np.dtype(object) if self.dtype == STRING else np.dtype(self.dtype)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a shard."""
        start = shard * self.shard_rows
        return start, min(self.n_rows, start + self.shard_rows)

    def chunks_in(self, shard: int) -> int:
        """Return how many chunks a shard holds; the last one holds fewer."""
        start, stop = self.shard_range(shard)
        return math.ceil((stop - start) / self.chunk_rows)

    def key(self, shard: int) -> str:
        """Return a shard's key below the array's folder."""
        return "/".join(["c", str(shard), *("0" for _ in self.row_shape)])

    def to_zarr_json(self) -> bytes:
        """Return the array's ``zarr.json``."""
        row = [max(1, n) for n in self.row_shape]  # Zarr has no chunk of length 0
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [self.chunk_rows, *row],
                "codecs": self.pipeline.to_json(),
                "index_codecs": _INDEX_CODECS,
                "index_location": "end",
            },
        }
        document: dict[str, Any] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, *row]}},
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
            It is laid out in a way histostore does not write.
        """
        try:
            document = json.loads(data)
            shape = tuple(int(n) for n in document["shape"])
            outer = [int(n) for n in document["chunk_grid"]["configuration"]["chunk_shape"]]
            dtype = document["data_type"]
            codecs = document["codecs"]
            sharded = [c["name"] for c in codecs] == ["sharding_indexed"]
            config = codecs[0]["configuration"] if sharded else {}
            inner = [int(n) for n in config["chunk_shape"]] if sharded else outer
            inner_codecs = [(str(c["name"]), dict(c.get("configuration") or {})) for c in config.get("codecs", codecs)]
            attrs = tuple((document.get("attributes") or {}).items())
            dims = tuple(document.get("dimension_names") or ())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptionError(f"{where}/zarr.json is not the description of an array ({error})") from error
        pipeline = Pipeline.from_json([{"name": n, "configuration": c} for n, c in inner_codecs], where=where)
        if not sharded:
            raise FormatError(f"{where}: not sharded; histostore reads arrays in whole shards")
        if config.get("index_location", "end") != "end" or config.get("index_codecs", _INDEX_CODECS) != _INDEX_CODECS:
            raise FormatError(f"{where}: the shards' index is not at their end with a crc32c")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise FormatError(f"{where}: data type {dtype!r} is not one of {', '.join(sorted(DTYPES))}")
        if not pipeline.fits(dtype):
            names = ", ".join(n for n, _ in inner_codecs)
            raise FormatError(f"{where}: codecs {names} of {dtype}: not an encoding that ends in a crc32c")
        row = [max(1, n) for n in shape[1:]]
        if not shape or min(shape) < 0 or min([*outer, *inner]) < 1 or outer[1:] != row or inner[1:] != row:
            raise FormatError(f"{where}: chunks {inner} in shards {outer} of {list(shape)} are not rows")
        if outer[0] % inner[0]:
            raise FormatError(f"{where}: shards of {outer[0]} rows do not hold whole chunks of {inner[0]}")
        return cls(
            shape=shape,
            dtype=dtype,
            chunk_rows=inner[0],
            shard_rows=outer[0],
            pipeline=pipeline,
            fill_value=document.get("fill_value", 0),
            dims=dims,
            attrs=attrs,
        )


def small_array(
    values: NDArray[Any] | Sequence[str], *, dims: tuple[str, ...] = (), attrs: Mapping[str, Any] | None = None
) -> ArraySpec:
    """Return the spec of an array that is one chunk in one file (tables, ids, thumbnails).

    Raises
    ------
    UsageError
        The values are of a type that is not stored (text goes in as a list of `str`).
    """
    if isinstance(values, np.ndarray):
        shape, dtype = values.shape, values.dtype.name
        if dtype not in DTYPES or not shape:
            raise UsageError(f"an array of {dtype} with shape {shape} is not stored; give numbers, or a list of str")
        pipeline = ZSTD_U8 if values.dtype.itemsize == 1 else ZSTD
        fill: str | float | bool = "NaN" if values.dtype.kind == "f" else (False if dtype == "bool" else 0)
    else:
        shape, dtype, pipeline, fill = (len(values),), STRING, STRINGS, ""
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


def encode_shard(spec: ArraySpec, chunks: Sequence[bytes | Encoded]) -> list[Buffer]:
    """Return the parts of a shard's file: its chunks in row order, then the index with its checksum."""
    pieces = [(c,) if isinstance(c, bytes) else c for c in chunks]
    sizes = np.array([sum(map(len, p)) for p in pieces], dtype="<u8")
    index = np.full((spec.chunks_per_shard, 2), EMPTY, dtype="<u8")
    index[: len(chunks), 0] = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(chunks) else sizes
    index[: len(chunks), 1] = sizes
    packed = index.tobytes()
    return [*chain.from_iterable(pieces), packed, struct.pack("<I", crc32c(packed))]


def chunk_rows(spec: ArraySpec, rows: NDArray[Any] | Sequence[str]) -> Iterator[Any]:
    """Cut the rows of one shard into whole chunks; the last is padded with the fill value.

    Raises
    ------
    UsageError
        The rows are not of the array's type and shape.
    """
    step = spec.chunk_rows
    if spec.dtype == STRING:
        for start in range(0, len(rows), step):
            texts = [*rows[start : start + step]]
            yield texts + [""] * (step - len(texts))
        return
    if not isinstance(rows, np.ndarray) or rows.dtype.name != spec.dtype or rows.shape[1:] != spec.row_shape:
        got = f"{rows.dtype} {rows.shape[1:]}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise UsageError(f"rows of this array are {spec.dtype} {spec.row_shape}, got {got}")
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if len(part) < step:
            fill = np.nan if spec.fill_value == "NaN" else spec.fill_value
            whole = np.full((step, *spec.row_shape), fill, part.dtype)
            whole[: len(part)] = part
            part = whole
        yield part
