"""The codecs our arrays use, as Zarr v3 names them, and no others.

Encoding is byte-equal to zarr-python with the same codecs, so plain ``zarr`` reads what we write; decoding needs no
zarr import and refuses anything that is not on the list (a store of others may name a codec that runs code).
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import imagecodecs
import numpy as np

from histostore.errors import CorruptionError, FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ALLOWED = ("bytes", "imagecodecs_jpeg", "vlen-utf8", "zstd", "gzip", "crc32c", "sharding_indexed")
CRC_BYTES = 4


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes."""
    return int(google_crc32c.value(bytes(data) if isinstance(data, memoryview) else data))


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The codecs of one chunk, in the order they encode."""

    steps: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]

    @classmethod
    def from_json(cls, codecs: Sequence[dict[str, Any]], *, where: str) -> Pipeline:
        """Return the pipeline that a ``zarr.json`` names.

        Raises
        ------
        FormatError
            A codec is not one that histostore reads.
        """
        steps = []
        for codec in codecs:
            name = str(codec.get("name"))
            if name not in ALLOWED:
                raise FormatError(f"{where}: codec '{name}' is not allowed here (only {', '.join(ALLOWED)})")
            steps.append((name, tuple(sorted((codec.get("configuration") or {}).items()))))
        return cls(tuple(steps))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the codecs as a ``zarr.json`` lists them."""
        return [{"name": n, "configuration": dict(c)} if c else {"name": n} for n, c in self.steps]

    @property
    def is_raw(self) -> bool:
        """Whether a chunk is its bytes followed by their checksum: it can be memory-mapped."""
        return [n for n, _ in self.steps] == ["bytes", "crc32c"]

    def encode(self, chunk: NDArray[Any]) -> bytes:
        """Return the bytes of one chunk."""
        data: bytes = b""
        for name, options in self.steps:
            config = dict(options)
            if name == "bytes":
                data = np.ascontiguousarray(chunk, dtype=chunk.dtype.newbyteorder("<")).tobytes()
            elif name == "imagecodecs_jpeg":
                image = chunk.reshape(chunk.shape[-3:])
                data = bytes(imagecodecs.jpeg_encode(image, level=config["level"], subsampling=config["subsampling"]))
            elif name == "vlen-utf8":
                data = _encode_strings([str(s) for s in chunk])
            elif name == "zstd":
                data = bytes(imagecodecs.zstd_encode(data, level=config.get("level", 1)))
            elif name == "gzip":
                data = gzip.compress(data, config.get("level", 5), mtime=0)
            elif name == "crc32c":
                data += struct.pack("<I", crc32c(data))
        return data

    def decode(self, data: bytes | memoryview, *, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> Any:
        """Return one chunk: an array of `shape`, or a list of strings.

        Raises
        ------
        CorruptionError
            The checksum differs, or the bytes do not decode to `shape`.
        """
        for name, options in reversed(self.steps):
            if name == "crc32c":
                data = _checked(data, where)
            elif name == "zstd":
                data = _bounded_zstd(data, shape, dtype, where)
            elif name == "gzip":
                data = gzip.decompress(data)
            elif name == "vlen-utf8":
                return _decode_strings(data, where)
            elif name == "imagecodecs_jpeg":
                del options
                return _decode_jpeg(data, shape, where)
        expected = int(np.prod(shape)) * dtype.itemsize
        if len(data) != expected:
            raise CorruptionError(f"{where}: a chunk holds {len(data)} bytes instead of {expected}; run verify")
        return np.frombuffer(data, dtype=dtype).reshape(shape)


RAW = Pipeline((("bytes", (("endian", "little"),)), ("crc32c", ())))
RAW_U8 = Pipeline((("bytes", ()), ("crc32c", ())))
ZSTD = Pipeline((("bytes", (("endian", "little"),)), ("zstd", (("checksum", False), ("level", 1))), ("crc32c", ())))
ZSTD_U8 = Pipeline((("bytes", ()), ("zstd", (("checksum", False), ("level", 1))), ("crc32c", ())))
STRINGS = Pipeline((("vlen-utf8", ()), ("zstd", (("checksum", False), ("level", 1))), ("crc32c", ())))


def jpeg(quality: int) -> Pipeline:
    """Return the pipeline of JPEG tiles, 4:4:4 (no chroma is thrown away)."""
    return Pipeline((("imagecodecs_jpeg", (("level", quality), ("subsampling", "444"))), ("crc32c", ())))


def _checked(data: bytes | memoryview, where: str) -> memoryview:
    view = memoryview(data)
    if len(view) < CRC_BYTES or crc32c(view[:-CRC_BYTES]) != struct.unpack("<I", view[-CRC_BYTES:])[0]:
        raise CorruptionError(f"{where}: checksum differs from what was written; run `histostore verify`")
    return view[:-CRC_BYTES]


def _bounded_zstd(data: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> bytes:
    """Decode, never making more bytes than the chunk can hold (strings: 256 MiB)."""
    limit = int(np.prod(shape)) * dtype.itemsize if dtype.kind != "O" else 1 << 28
    try:
        return bytes(imagecodecs.zstd_decode(bytes(data), out=limit))
    except (imagecodecs.ZstdError, ValueError, RuntimeError) as error:
        raise CorruptionError(f"{where}: zstd chunk does not decode into {limit} bytes ({error})") from error


def _decode_jpeg(data: bytes | memoryview, shape: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    try:
        image: NDArray[np.uint8] = imagecodecs.jpeg_decode(bytes(data))
    except (imagecodecs.JpegError, ValueError, RuntimeError) as error:
        raise CorruptionError(f"{where}: JPEG chunk does not decode ({error})") from error
    if image.shape != shape[-3:]:
        raise CorruptionError(f"{where}: JPEG chunk is {image.shape}, the array says {shape[-3:]}")
    return image.reshape(shape)


def _encode_strings(strings: Sequence[str]) -> bytes:
    encoded = [s.encode() for s in strings]
    return b"".join([struct.pack("<I", len(encoded)), *(struct.pack("<I", len(e)) + e for e in encoded)])


def _decode_strings(data: bytes | memoryview, where: str) -> list[str]:
    view = memoryview(data)
    try:
        (count,) = struct.unpack_from("<I", view, 0)
        out, at = [], 4
        for _ in range(count):
            (length,) = struct.unpack_from("<I", view, at)
            text = bytes(view[at + 4 : at + 4 + length])
            if len(text) != length:
                raise CorruptionError(f"{where}: a string ends early; run `histostore verify`")
            out.append(text.decode())
            at += 4 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise CorruptionError(f"{where}: strings do not decode ({error})") from error
    return out
