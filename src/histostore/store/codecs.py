"""The codecs our arrays use, as Zarr v3 names them, and no others.

Encoding is byte-equal to zarr-python with the same codecs, so plain ``zarr`` reads what we write; decoding needs no
zarr import and refuses anything that is not on the list (a store of others may name a codec that runs code).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import imagecodecs
import numpy as np

from histostore.errors import CorruptionError, FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ALLOWED = ("bytes", "imagecodecs_jpeg", "vlen-utf8", "zstd", "gzip", "crc32c", "sharding_indexed")
CRC_BYTES = 4
MAX_STRINGS = 1 << 28
"""Most bytes that a chunk of strings may decode to."""


type Buffer = bytes | bytearray | memoryview
type Encoded = tuple[Buffer, ...]
"""One chunk as it is stored, in pieces that follow one another: nothing is copied only to be joined."""


def crc32c(data: Buffer | NDArray[np.uint8]) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes, which are not copied."""
    # the library takes an array where it refuses a memoryview
    return int(google_crc32c.value(data if isinstance(data, bytes | np.ndarray) else np.frombuffer(data, np.uint8)))


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
            options = dict(codec.get("configuration") or {})
            if name == "bytes" and options.get("endian", "little") != "little":
                raise FormatError(f"{where}: bytes are {options['endian']}-endian; histostore reads little-endian")
            steps.append((name, tuple(sorted(options.items()))))
        return cls(tuple(steps))

    def fits(self, dtype: str) -> bool:
        """Whether the codecs are in an order that makes sense for a type, and end in a checksum."""
        first = {"string": ["vlen-utf8"], "uint8": ["bytes", "imagecodecs_jpeg"]}.get(dtype, ["bytes"])
        names = [n for n, _ in self.steps]
        return bool(names) and names[0] in first and names[-1] == "crc32c" and {*names[1:-1]} <= {"zstd", "gzip"}

    def to_json(self) -> list[dict[str, Any]]:
        """Return the codecs as a ``zarr.json`` lists them."""
        return [{"name": n, "configuration": dict(c)} if c else {"name": n} for n, c in self.steps]

    @property
    def is_raw(self) -> bool:
        """Whether a chunk is its bytes followed by their checksum: it can be memory-mapped."""
        return [n for n, _ in self.steps] == ["bytes", "crc32c"]

    def encode(self, chunk: NDArray[Any] | Sequence[str]) -> bytes:
        """Return the bytes of one chunk. Errors as of `encode_parts`."""
        return b"".join(self.encode_parts(chunk))

    def encode_parts(self, chunk: NDArray[Any] | Sequence[str]) -> Encoded:
        """Return the bytes of one chunk as buffers that follow one another; one may be the chunk's own memory.

        Raises
        ------
        UsageError
            A string array was given something that is no text.
        """
        data: Any = b""
        checksum: tuple[bytes, ...] = ()
        for name, options in self.steps:
            config = dict(options)
            if name == "vlen-utf8":
                data = _encode_strings(chunk)
            elif name == "zstd":
                data = imagecodecs.zstd_encode(data, level=config.get("level", 1))
            elif name == "gzip":
                data = gzip.compress(data, config.get("level", 5), mtime=0)
            elif name == "crc32c":
                checksum = (struct.pack("<I", crc32c(data)),)
            elif not isinstance(chunk, np.ndarray):
                raise UsageError(f"codec '{name}' takes numbers, got {type(chunk).__name__}")
            elif name == "bytes":
                data = _as_bytes(np.ascontiguousarray(chunk, dtype=chunk.dtype.newbyteorder("<")))
            elif name == "imagecodecs_jpeg":
                image = chunk.reshape(chunk.shape[-3:])
                data = imagecodecs.jpeg8_encode(
                    image, level=config["level"], subsampling=config["subsampling"], optimize=config.get("optimize")
                )
        return (memoryview(data), *checksum)

    def decode(
        self, data: Buffer, *, shape: tuple[int, ...], dtype: np.dtype[Any], where: str, check: bool = True
    ) -> Any:
        """Return one chunk: an array of `shape`, or a list of strings.

        `check` is False for bytes whose checksum was compared before.

        Raises
        ------
        CorruptionError
            The checksum differs, or the bytes do not decode to `shape`.
        """
        for name, _ in reversed(self.steps):
            if name == "crc32c":
                data = _checked(data, where) if check else memoryview(data)[:-CRC_BYTES]
            elif name == "zstd":
                data = _zstd(data, _limit(shape, dtype), where)
            elif name == "gzip":
                data = _bounded_gzip(data, _limit(shape, dtype), where)
            elif name == "vlen-utf8":
                return _decode_strings(data, shape[0], where)
            elif name == "imagecodecs_jpeg":
                image: NDArray[np.uint8] = np.empty(shape[-3:], np.uint8)
                _decode_jpeg(data, image, where)
                return image.reshape(shape)
        expected = int(np.prod(shape)) * dtype.itemsize
        if len(data) != expected:
            raise CorruptionError(f"{where}: a chunk holds {len(data)} bytes instead of {expected}; run verify")
        return np.frombuffer(data, dtype=dtype).reshape(shape)

    def decode_into(self, out: NDArray[Any], data: Buffer, *, where: str, check: bool = True) -> None:
        """Decode one chunk of numbers into the memory of `out`, which is C-contiguous.

        Raises
        ------
        CorruptionError
            As `decode`.
        """
        names = tuple(n for n, _ in self.steps)
        if names not in (("bytes", "zstd", "crc32c"), ("imagecodecs_jpeg", "crc32c")):
            out[...] = self.decode(data, shape=out.shape, dtype=out.dtype, where=where, check=check)
            return
        encoded = _checked(data, where) if check else memoryview(data)[:-CRC_BYTES]
        if names[0] == "imagecodecs_jpeg":
            _decode_jpeg(encoded, out.reshape(out.shape[-3:]), where)
            return
        found = len(_zstd(encoded, _as_bytes(out), where))
        if found != out.nbytes:
            raise CorruptionError(f"{where}: a chunk holds {found} bytes instead of {out.nbytes}; run verify")


RAW = Pipeline((("bytes", (("endian", "little"),)), ("crc32c", ())))
ZSTD = Pipeline((("bytes", (("endian", "little"),)), ("zstd", (("checksum", False), ("level", 1))), ("crc32c", ())))
ZSTD_U8 = Pipeline((("bytes", ()), ("zstd", (("checksum", False), ("level", 1))), ("crc32c", ())))
STRINGS = Pipeline((("vlen-utf8", ()), ("zstd", (("checksum", False), ("level", 1))), ("crc32c", ())))


def jpeg(quality: int) -> Pipeline:
    """Return the pipeline of JPEG tiles, 4:4:4 (no chroma is thrown away).

    Each has Huffman tables of its own: the same pixels in a quarter less bytes, for twice the time of encoding.
    """
    options = (("level", quality), ("optimize", True), ("subsampling", "444"))
    return Pipeline((("imagecodecs_jpeg", options), ("crc32c", ())))


def _as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a C-contiguous array's own memory."""
    return values.reshape(-1).view(np.uint8)


def _checked(data: Buffer, where: str) -> memoryview:
    view = memoryview(data)
    if len(view) < CRC_BYTES or crc32c(view[:-CRC_BYTES]) != struct.unpack("<I", view[-CRC_BYTES:])[0]:
        raise CorruptionError(f"{where}: checksum differs from what was written; run `histostore verify`")
    return view[:-CRC_BYTES]


def _limit(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the most bytes a chunk may decode to."""
    return int(np.prod(shape)) * dtype.itemsize if dtype.kind != "O" else MAX_STRINGS


def _zstd(data: Buffer, out: Any, where: str) -> Any:
    """Decode into an array of bytes, or into new bytes of at most `out`, and never more than fit."""
    try:
        return imagecodecs.zstd_decode(data, out=out)
    except (imagecodecs.ZstdError, ValueError, RuntimeError) as error:
        limit = out if isinstance(out, int) else len(out)
        raise CorruptionError(f"{where}: zstd chunk does not decode into {limit} bytes ({error})") from error


def _bounded_gzip(data: Buffer, limit: int, where: str) -> bytes:
    decoder = zlib.decompressobj(wbits=31)
    try:
        out = decoder.decompress(data, limit + 1)
    except zlib.error as error:
        raise CorruptionError(f"{where}: gzip chunk does not decode ({error})") from error
    if len(out) > limit or not decoder.eof or decoder.unused_data:
        raise CorruptionError(f"{where}: gzip chunk does not decode into {limit} bytes; run `histostore verify`")
    return out


def _decode_jpeg(data: Buffer, image: NDArray[np.uint8], where: str) -> None:
    try:
        imagecodecs.jpeg_decode(data, out=image)  # given, so that a huge image is refused by its header
    except (imagecodecs.JpegError, ValueError, RuntimeError) as error:
        raise CorruptionError(f"{where}: JPEG chunk does not decode into {image.shape} ({error})") from error


def _encode_strings(strings: NDArray[Any] | Sequence[str]) -> bytes:
    parts = [struct.pack("<I", len(strings))]
    for text in strings:
        if not isinstance(text, str):
            raise UsageError(f"an array of strings was given {text!r} ({type(text).__name__}); make it text first")
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{text!r} is not valid Unicode text ({error.reason})") from None
        parts += (struct.pack("<I", len(encoded)), encoded)
    return b"".join(parts)


def _decode_strings(data: Buffer, expected: int, where: str) -> list[str]:
    view = bytes(data)
    try:
        (count,) = struct.unpack_from("<I", view, 0)
        if count != expected:
            raise CorruptionError(f"{where}: a chunk holds {count} strings instead of {expected}; run verify")
        out, at = [], 4
        for _ in range(count):
            (length,) = struct.unpack_from("<I", view, at)
            at += 4 + length
            out.append(view[at - length : at].decode())
    except (struct.error, UnicodeDecodeError) as error:
        raise CorruptionError(f"{where}: strings do not decode ({error})") from error
    if at != len(view):
        raise CorruptionError(f"{where}: strings end at byte {at} of {len(view)}; run `histostore verify`")
    return out
