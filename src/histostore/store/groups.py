"""Write-once groups: an attempt is filled shard by shard, each with a receipt, and sealed by its GROUP.json."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from histostore.errors import CorruptionError, NotFoundError, StorageError, UsageError
from histostore.schema.kinds import FORMAT, NEWEST, kind_of
from histostore.store.arrays import ArrayReader, ArraySpec, chunk_rows, encode_shard, small_array
from histostore.store.manifest import GROUP, Ref, group_folder, read_header, with_check
from histostore.store.receipts import (
    ATTEMPT,
    RECEIPTS,
    TREE,
    ShardWriter,
    Share,
    load_receipts,
    put_receipt,
    receipt_key,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.store.codecs import Encoded
    from histostore.store.files import Buffer, Files, Lock

LOCK = "LOCK"
WORKING = (ATTEMPT, LOCK)
"""Files that a sealed group no longer needs."""
DAMAGED = "DAMAGED"
"""Marks an attempt that was found damaged and put aside: it is never adopted."""


@dataclass(frozen=True, slots=True)
class Group:
    """A committed group, open for reading. Its header was checked against the manifest."""

    files: Files
    ref: Ref
    header: Mapping[str, Any]

    @classmethod
    def open(cls, files: Files, ref: Ref) -> Group:
        """Open the group that a manifest names.

        Raises
        ------
        CorruptionError
            Its GROUP.json is missing or not the one that was committed.
        FormatError
            It is of a kind or version that this package does not know.
        """
        header = read_header(files, ref)
        kind_of(header["kind"], header["version"])
        files.pin(ref.prefix, header["files"])
        return cls(files, ref, header)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """What the kind says of the group beside its arrays."""
        found: Mapping[str, Any] = self.header["attrs"]
        return found

    @property
    def rows(self) -> int:
        """Number of rows, by the header."""
        return int(self.header["rows"])

    @property
    def path(self) -> str:
        """Where plain zarr opens it."""
        return f"{self.files.uri}/{self.ref.prefix}/{TREE}"

    def has(self, name: str) -> bool:
        """Whether the group holds an array of that name."""
        return f"{TREE}/{name}/zarr.json" in self.header["files"]

    def array(self, name: str) -> ArrayReader:
        """Open one array."""
        document = self.bytes(f"{TREE}/{name}/zarr.json")
        return ArrayReader.open(self.files, f"{self.ref.prefix}/{TREE}/{name}", document=document)

    def read(self, name: str) -> NDArray[Any]:
        """Return one array whole."""
        return self.array(name).read()

    def bytes(self, name: str) -> bytes:
        """Return a plain file of the group, checked against its sha256."""
        where = f"{self.files.uri}/{self.ref.prefix}/{name}"
        if name not in self.header["files"]:
            raise NotFoundError(f"{where}: the group has no such file")
        size, sha256 = self.header["files"][name]
        try:
            data = self.files.get(f"{self.ref.prefix}/{name}")
        except FileNotFoundError:
            raise CorruptionError(f"{where} is missing; run `histostore verify`") from None
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptionError(f"{where} differs from what was committed; run `histostore verify`")
        return data


@dataclass(slots=True, kw_only=True)
class GroupWriter:
    """One attempt at one group: arrays are declared, shards written in any order, then it is sealed.

    An attempt belongs to one process, which holds its lock; an attempt whose process died is adopted, and what its
    receipts vouch for is not written again. Use it with ``with``: leaving gives the lock back.
    """

    files: Files
    owner: str
    kind: str
    name: str
    digest: str
    attempt: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, Any]
    engine: Mapping[str, Any]
    sealed: Ref | None = None
    """Set when the attempt was found sealed, or once it is."""
    resumed: bool = False
    _lock: Lock | None = None
    _donor: str = ""
    """Prefix of an attempt whose finished shards are copied, where attempts are not gone on with in place."""
    _arrays: dict[str, ArraySpec] = field(default_factory=dict)
    _files: dict[str, tuple[int, str]] = field(default_factory=dict)
    _receipts: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """The attempt's folder below the store."""
        return f"{group_folder(self.owner, self.kind, self.digest)}/{self.attempt}"

    def array_prefix(self, name: str) -> str:
        """Return where an array lies: for the writer itself, to read back what it has finished."""
        return f"{self.prefix}/{TREE}/{name}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def create(self, name: str, spec: ArraySpec) -> None:
        """Declare an array that will be written shard by shard."""
        self._arrays[name] = spec
        key, document = f"{TREE}/{name}/zarr.json", spec.to_zarr_json()
        if self.resumed and self._current(key) != document:
            for _, shard in [k for k in self._receipts if k[0] == name]:  # of another layout: they vouch for nothing
                del self._receipts[name, shard]
                self.files.delete(receipt_key(self.prefix, name, shard))
        self.put_file(key, document)
        if self._donor:
            self._copy_shards(name, spec, document)

    def pending(self, name: str) -> list[int]:
        """Return the shards of an array that have no valid receipt."""
        spec = self._arrays[name]
        return [s for s in range(spec.n_shards) if not self._is_done(name, s)]

    def receipt(self, name: str, shard: int) -> Mapping[str, Any] | None:
        """Return what was noted when a shard was finished, or None."""
        return self._receipts[name, shard] if self._is_done(name, shard) else None

    def write_shard(
        self, name: str, shard: int, chunks: Sequence[bytes | Encoded], *, note: Mapping[str, Any] | None = None
    ) -> None:
        """Write one whole shard from its encoded chunks, then its receipt. Errors as of `ShardWriter.write_shard`."""
        self._receipts[name, shard] = self._shards.write_shard(name, shard, chunks, note=note)

    def write_rows(self, name: str, shard: int, rows: NDArray[Any], *, note: Mapping[str, Any] | None = None) -> None:
        """Encode and write the rows of one whole shard."""
        self._receipts[name, shard] = self._shards.write_rows(name, shard, rows, note=note)

    def share(self) -> Share:
        """Return what lets other processes write shards of the arrays declared so far, while this one holds the lock.

        They hand back receipts, which `accept` takes; sealing stays with this writer.
        """
        return Share(self.prefix, dict(self._arrays))

    def accept(self, receipt: Mapping[str, Any]) -> None:
        """Take the receipt of a shard that a helper wrote.

        Raises
        ------
        StorageError
            The shard is not there, or of another size: the helper does not see the store that we see.
        """
        name, shard = str(receipt["array"]), int(receipt["shard"])
        if name not in self._arrays or not self._shards.vouches(dict(receipt)):
            raise StorageError(
                f"shard {shard} of '{name}' was reported as written ({receipt['bytes']:,} bytes), and is not in "
                f"{self.files.uri}/{self.prefix}; workers must see the store under the same path as this machine"
            )
        self._receipts[name, shard] = dict(receipt)

    def put_array(
        self,
        name: str,
        values: NDArray[Any] | Sequence[str],
        *,
        dims: tuple[str, ...] = (),
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a small array as one chunk in one file."""
        spec = small_array(values, dims=dims, attrs=attrs or {})
        self.put_file(f"{TREE}/{name}/zarr.json", spec.to_zarr_json())
        for shard in range(spec.n_shards):
            parts = encode_shard(spec, [spec.pipeline.encode(c) for c in chunk_rows(spec, values)])
            self.put_file(f"{TREE}/{name}/{spec.key(shard)}", b"".join(parts))

    def put_node(self, name: str, attrs: Mapping[str, Any]) -> None:
        """Write the ``zarr.json`` of a (sub)group; an empty name is the group itself."""
        about: dict[str, Any] = dict(attrs)
        if not name:
            kind = NEWEST[self.kind]
            about["histostore"] = {"kind": self.kind, "version": kind.version, "digest": self.digest}
        node = {"zarr_format": 3, "node_type": "group", "attributes": about}
        self.put_file(f"{TREE}/{name}/zarr.json" if name else f"{TREE}/zarr.json", json.dumps(node, indent=1).encode())

    def put_file(self, name: str, data: Buffer) -> None:
        """Write a plain file of the group."""
        self.files.put(f"{self.prefix}/{name}", data, sync=False)
        self._files[name] = (len(data), hashlib.sha256(data).hexdigest())

    def take_file(self, name: str, source: str, size: int, sha256: str) -> bool:
        """Take a file of another sealed group over as it is, without reading it where links can be had.

        Returns
        -------
        bool
            False where it is gone.
        """
        taken = self.files.copy(source, f"{self.prefix}/{name}")
        if taken:
            self._files[name] = (size, sha256)
        return taken

    def seal(self, *, rows: int, attrs: Mapping[str, Any] | None = None) -> Ref:
        """Write GROUP.json, after which the attempt is never changed.

        Files that nobody declared (of a writer that was killed) are removed first, so a sealed group holds what its
        header lists and nothing else.

        Raises
        ------
        UsageError
            A shard or an array of the kind is missing.
        CorruptionError
            A file that was written is gone or of another size.
        """
        if self.sealed is not None:
            return self.sealed
        for name in self._arrays:
            if missing := self.pending(name):
                raise UsageError(f"cannot seal {self.kind} of '{self.owner}': {name} lacks shards {missing[:5]}")
        kind = NEWEST[self.kind]
        for name in kind.arrays:
            if f"{TREE}/{name}/zarr.json" not in self._files:
                raise UsageError(f"cannot seal {self.kind} of '{self.owner}': it must have an array '{name}'")
        if f"{TREE}/zarr.json" not in self._files:
            self.put_node("", {})
        files = dict(self._files)
        for (name, shard), receipt in self._receipts.items():
            if name in self._arrays:
                files[f"{TREE}/{name}/{self._arrays[name].key(shard)}"] = (receipt["bytes"], receipt["sha256"])
        self._tidy({name: size for name, (size, _) in files.items()})
        self.files.sync_tree(self.prefix)
        header = {
            "format": FORMAT,
            "kind": self.kind,
            "version": kind.version,
            "digest": self.digest,
            "attempt": self.attempt,
            "spec": dict(self.spec),
            "inputs": dict(self.inputs),
            "engine": dict(self.engine),
            "rows": rows,
            "attrs": dict(attrs or {}),
            "files": {k: list(v) for k, v in sorted(files.items())},
        }
        data = json.dumps(with_check(header), indent=1).encode()
        self.files.put(f"{self.prefix}/{GROUP}", data)
        self.sealed = Ref(self.owner, self.kind, self.name, self.digest, self.attempt, hashlib.sha256(data).hexdigest())
        self.files.delete_tree(f"{self.prefix}/{RECEIPTS}")
        for leftover in WORKING:
            self.files.delete(f"{self.prefix}/{leftover}")
        return self.sealed

    def _copy_shards(self, name: str, spec: ArraySpec, document: bytes) -> None:
        """Take over an array's shards that the donor has receipts of. What is gone meanwhile is written again."""
        donor, key = self._donor, f"{TREE}/{name}/zarr.json"
        try:
            if self.files.get(f"{donor}/{key}") != document:
                return
        except FileNotFoundError:
            return
        for (array, shard), receipt in load_receipts(self.files, donor).items():
            shard_key = f"{TREE}/{name}/{spec.key(shard)}"
            if array == name and self.files.copy(f"{donor}/{shard_key}", f"{self.prefix}/{shard_key}"):
                self._receipts[name, shard] = receipt
                if self._is_done(name, shard):
                    put_receipt(self.files, self.prefix, receipt)

    def _is_done(self, name: str, shard: int) -> bool:
        receipt = self._receipts.get((name, shard))
        return receipt is not None and self._shards.vouches(receipt)

    @property
    def _shards(self) -> ShardWriter:
        return ShardWriter(self.files, self.prefix, self._arrays)

    def _current(self, name: str) -> bytes | None:
        try:
            return self.files.get(f"{self.prefix}/{name}")
        except FileNotFoundError:
            return None

    def _tidy(self, declared: Mapping[str, int]) -> None:
        """Hold the attempt's folder against what the header will list."""
        found = {key[len(self.prefix) + 1 :]: size for key, size, _ in self.files.walk(self.prefix)}
        for name, size in declared.items():
            if found.get(name) != size:
                raise CorruptionError(
                    f"{self.files.uri}/{self.prefix}/{name} was written with {size} bytes and has {found.get(name)}; "
                    "run the command again"
                )
        for name in found.keys() - declared.keys():
            if name not in WORKING and not name.startswith(f"{RECEIPTS}/"):
                self.files.delete(f"{self.prefix}/{name}")
