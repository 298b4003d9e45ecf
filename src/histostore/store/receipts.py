"""Whole shards of an attempt and their receipts: written by its owner, or by a helper in another process.

A receipt comes after its shard, always. Two starts of one task write the same bytes, each file whole, so that either of
them may be the last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histostore.errors import ConflictError, CorruptionError, FormatError, UsageError
from histostore.store.layout import chunk_rows, encode_shard
from histostore.store.manifest import GROUP, checked_json, with_check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.store.codecs import Buffer, Encoded
    from histostore.store.files import Files
    from histostore.store.layout import ArraySpec

    type Receipt = dict[str, Any]
    """``array``, ``shard``, ``rows``, ``bytes``, ``sha256`` and ``note``."""

ATTEMPT = "ATTEMPT.json"
RECEIPTS = "receipts"
TREE = "zarr"
"""The Zarr hierarchy lies in a folder of its own, so that plain zarr meets nothing else in it."""
HASH_BESIDE_BYTES = 1 << 20
"""A shard of at least this size is hashed in a thread while it is written."""


@dataclass(frozen=True, slots=True)
class Share:
    """What lets another process write whole shards of an attempt. It can be pickled and holds no lock."""

    prefix: str
    """The attempt's folder below the store."""
    arrays: Mapping[str, ArraySpec]

    def on(self, files: Files) -> SharedShards:
        """Return the writer in this process; `files` are those of the same store."""
        return SharedShards(files, self.prefix, self.arrays)


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """Writes whole shards of one attempt, each with its receipt."""

    files: Files
    prefix: str
    arrays: Mapping[str, ArraySpec]

    def write_shard(
        self, name: str, shard: int, chunks: Sequence[bytes | Encoded], *, note: Mapping[str, Any] | None = None
    ) -> Receipt:
        """Write one whole shard from its encoded chunks, then its receipt, which is returned.

        Raises
        ------
        UsageError
            The number of chunks is not what the shard holds: two writers share it, or rows went missing.
        """
        spec = self.arrays[name]
        start, stop = spec.shard_range(shard)
        expected = spec.chunks_in(shard)
        if len(chunks) != expected:
            raise UsageError(f"shard {shard} of '{name}' holds {expected} chunks, got {len(chunks)}")
        parts = encode_shard(spec, chunks)
        sha256 = self._put_hashed(self.shard_key(name, shard), parts)
        receipt = {
            "array": name,
            "shard": shard,
            "rows": stop - start,
            "bytes": sum(map(len, parts)),
            "sha256": sha256,
            "note": dict(note or {}),
        }
        put_receipt(self.files, self.prefix, receipt)
        return receipt

    def write_rows(
        self, name: str, shard: int, rows: NDArray[Any], *, note: Mapping[str, Any] | None = None
    ) -> Receipt:
        """Encode and write the rows of one whole shard; return its receipt."""
        spec = self.arrays[name]
        start, stop = spec.shard_range(shard)
        if len(rows) != stop - start:
            raise UsageError(f"shard {shard} of '{name}' holds {stop - start} rows, got {len(rows)}")
        return self.write_shard(name, shard, [spec.pipeline.encode_parts(c) for c in chunk_rows(spec, rows)], note=note)

    def shard_key(self, name: str, shard: int) -> str:
        """Return where a shard lies, below the store."""
        return f"{self.prefix}/{TREE}/{name}/{self.arrays[name].key(shard)}"

    def vouches(self, receipt: Receipt) -> bool:
        """Whether the shard that a receipt is of is there, with the rows and bytes that it says."""
        spec = self.arrays[receipt["array"]]
        start, stop = spec.shard_range(receipt["shard"])
        size = self.files.size(self.shard_key(receipt["array"], receipt["shard"]))
        return bool(receipt["rows"] == stop - start and receipt["bytes"] == size)

    def _put_hashed(self, key: str, parts: Sequence[Buffer]) -> str:
        """Write a file and return its sha256, computed beside the writing where that takes long."""
        if sum(map(len, parts)) < HASH_BESIDE_BYTES:
            self.files.put(key, *parts, sync=False)
            return _sha256(parts)
        found: list[str] = []
        beside = threading.Thread(target=lambda: found.append(_sha256(parts)), name="histostore-sha256")
        beside.start()
        try:
            self.files.put(key, *parts, sync=False)
        finally:
            beside.join()
        return found[0]


@dataclass(frozen=True, slots=True)
class SharedShards(ShardWriter):
    """A helper's writes into an attempt that another process holds."""

    def finished(self, name: str, shard: int) -> Receipt | None:
        """Return the receipt of a shard that an earlier start of the same task finished."""
        try:
            receipt = read_receipt(self.files, receipt_key(self.prefix, name, shard))
        except (FileNotFoundError, CorruptionError, FormatError):  # a damaged receipt is none
            return None
        return receipt if self.vouches(receipt) else None

    def write_shard(
        self, name: str, shard: int, chunks: Sequence[bytes | Encoded], *, note: Mapping[str, Any] | None = None
    ) -> Receipt:
        """Write one whole shard. Errors as of `ShardWriter`.

        Raises
        ------
        ConflictError
            The attempt was sealed or removed meanwhile: its owner no longer waits for this shard.
        """
        sealed = self.files.size(f"{self.prefix}/{GROUP}") is not None
        if sealed or self.files.size(f"{self.prefix}/{ATTEMPT}") is None:
            raise ConflictError(f"{self.files.uri}/{self.prefix} is no longer being written; nothing was changed")
        if (done := self.finished(name, shard)) is not None:  # another start of the same task came first
            return done
        return ShardWriter.write_shard(self, name, shard, chunks, note=note)


def receipt_key(prefix: str, name: str, shard: int) -> str:
    """Return where the receipt of a shard lies, below the store."""
    return f"{prefix}/{RECEIPTS}/{name.replace('/', '~')}.{shard}.json"


def put_receipt(files: Files, prefix: str, receipt: Receipt) -> None:
    """Write a receipt."""
    key = receipt_key(prefix, receipt["array"], receipt["shard"])
    files.put(key, json.dumps(with_check(receipt)).encode(), sync=False)


def read_receipt(files: Files, key: str) -> Receipt:
    """Read a receipt; raises where there is none, or it is damaged."""
    return checked_json(files.get(key), where=key)


def load_receipts(files: Files, prefix: str) -> dict[tuple[str, int], Receipt]:
    """Return the receipts of an attempt, by array and shard."""
    found = {}
    for child in files.children(f"{prefix}/{RECEIPTS}"):
        with contextlib.suppress(CorruptionError, FormatError, FileNotFoundError):  # a damaged receipt is none
            receipt = read_receipt(files, f"{prefix}/{RECEIPTS}/{child}")
            found[str(receipt["array"]), int(receipt["shard"])] = receipt
    return found


def _sha256(parts: Sequence[Buffer]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()
