"""Is one group whole? Its header, its files, every chunk, and what its kind promises of the values."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from histostore.errors import CorruptionError, HistostoreError
from histostore.protocols import TileStatus
from histostore.schema.kinds import check_format, kind_of
from histostore.specs import digest_of
from histostore.store.arrays import ArrayReader
from histostore.store.groups import DAMAGED
from histostore.store.manifest import GROUP, read_header
from histostore.store.receipts import TREE
from histostore.store.survey import is_partial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.progress import Progress
    from histostore.store.files import Files
    from histostore.store.layout import ArraySpec
    from histostore.store.manifest import Ref
    from histostore.store.survey import AttemptFolder

_BLOCK = 8 << 20
"""Bytes hashed at a time."""

DAMAGE = (CorruptionError, ValueError)
"""What reading damaged bytes raises. A `StorageError` is none: a medium that refuses says nothing of them."""

_BY_ROW = {
    "points": ("ids", "xy", "in_tissue", "array_row", "array_col"),
    "tiles": ("geometry", "ids"),
    "pixels": ("pixels", "status"),
    "embeddings": ("embedding", "status"),
    "predictions": ("prediction",),
}
"""Arrays with as many rows as the header says."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a group."""

    severity: Literal["error", "warning", "note"]
    kind: str
    path: str
    text: str


@dataclass(slots=True)
class GroupCheck:
    """Checks one group that a manifest names; `run` fills `findings` and `counts`."""

    files: Files
    ref: Ref
    folder: AttemptFolder | None
    deep: bool
    progress: Progress
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _bad: set[str] = field(default_factory=set)
    """Files that are gone or of another size: no use in reading them."""
    _told: int = 0
    """Files that progress knows of."""

    def run(self) -> None:
        """Check the group, from the header down."""
        self._check()
        if self.folder is not None:
            self.progress.advance(len(self.folder.files) - self._told)

    def _check(self) -> None:
        header = self._header()
        if header is None:
            return
        listed: dict[str, list[Any]] = header["files"]
        self._listed_files(listed)
        self._other_files(listed)
        if self.deep:
            specs = {name: spec for name in _arrays(listed) if (spec := self._spec(name, listed)) is not None}
            self._rows(header, specs)
            for name, spec in specs.items():
                self._values(name, spec, listed, header)

    def _say(self, severity: Literal["error", "warning", "note"], kind: str, name: str, text: str) -> None:
        path = f"{self.ref.prefix}/{name}" if name else self.ref.prefix
        self.findings.append(Finding(severity, kind, path, text))

    def _header(self) -> Mapping[str, Any] | None:
        if self.folder is None:
            self._say("error", "missing", "", "the group's folder is gone")
            return None
        try:
            header = read_header(self.files, self.ref)
        except DAMAGE as error:
            self._say("error", "header", GROUP, str(error))
            return None
        try:
            check_format(header["format"], where=self.ref.prefix)
            kind_of(header["kind"], header["version"])
        except HistostoreError as error:
            self._say("error", "format", GROUP, str(error))
            return None
        made = digest_of({key: header[key] for key in ("kind", "spec", "inputs")})
        named = (self.ref.kind, self.ref.digest, self.ref.attempt)
        if (header["kind"], header["digest"], header["attempt"]) != named or made != self.ref.digest:
            self._say("error", "header", GROUP, "its kind, digest or attempt is not what the manifest says")
        if self.folder.damaged:
            self._say("error", "quarantined", DAMAGED, "marked as damaged, and still named; run `histostore repair`")
        return header

    def _listed_files(self, listed: Mapping[str, list[Any]]) -> None:
        folder = self.folder.files if self.folder is not None else {}
        for name, (size, sha256) in listed.items():
            self.counts["files"] += 1
            self.counts["bytes"] += size
            found = folder.get(name)
            if found is None:
                self._say("error", "missing", name, "the file is gone")
                self._bad.add(name)
            elif found.size != size:
                self._say("error", "size", name, f"{found.size} bytes instead of {size}")
                self._bad.add(name)
            elif self.deep:
                self._hash(name, size, sha256)
            self._told += found is not None
            self.progress.advance(int(found is not None))

    def _hash(self, name: str, size: int, sha256: str) -> None:
        sha = hashlib.sha256()
        try:
            for start in range(0, size, _BLOCK):
                sha.update(self.files.read_ranges(f"{self.ref.prefix}/{name}", [(start, min(_BLOCK, size - start))])[0])
        except (CorruptionError, FileNotFoundError) as error:
            self._say("error", "missing", name, f"the file cannot be read ({error})")
            self._bad.add(name)
            return
        if sha.hexdigest() != sha256:
            self._say("error", "sha256", name, "its bytes differ from what was committed")

    def _other_files(self, listed: Mapping[str, list[Any]]) -> None:
        if self.folder is None:
            return
        leftovers = self.folder.leftovers()
        if leftovers:
            self._say("note", "leftover", "", f"{len(leftovers)} working files; `histostore gc` removes them")
        for name in self.folder.files:
            if name in listed or name in (GROUP, DAMAGED) or name in leftovers:
                continue
            if is_partial(name):
                self._say("warning", "partial", name, "left by a killed writer; `histostore gc` removes it")
            else:
                self._say("warning", "undeclared", name, "in a sealed group, and not in its header")

    def _spec(self, name: str, listed: Mapping[str, list[Any]]) -> ArraySpec | None:
        key = f"{TREE}/{name}/zarr.json"
        if key in self._bad:
            return None
        try:
            document = self.files.get(f"{self.ref.prefix}/{key}")
            if json.loads(document).get("node_type") == "group":
                return None
            spec = ArrayReader.open(self.files, f"{self.ref.prefix}/{TREE}/{name}", document=document).spec
        except (*DAMAGE, FileNotFoundError, AttributeError, RecursionError) as error:
            self._say("error", "format", key, str(error))
            return None
        wanted = {f"{TREE}/{name}/{spec.key(s)}" for s in range(spec.n_shards)}
        for shard in sorted(wanted - listed.keys()):
            self._say("error", "missing", shard, "a shard that the header does not list")
            self._bad.add(shard)
        return spec

    def _rows(self, header: Mapping[str, Any], specs: Mapping[str, ArraySpec]) -> None:
        for name in _BY_ROW.get(self.ref.kind, ()):
            if name in specs and specs[name].n_rows != header["rows"]:
                text = f"{specs[name].n_rows} rows, the header says {header['rows']}"
                self._say("error", "rows", f"{TREE}/{name}", text)

    def _values(
        self, name: str, spec: ArraySpec, listed: Mapping[str, list[Any]], header: Mapping[str, Any]
    ) -> None:  # fmt: skip
        status = self._status(header) if (self.ref.kind, name) == ("embeddings", "embedding") else None
        wrong: list[int] = []
        for start, rows in self._chunks(name, spec):
            if status is not None and len(status) >= start + len(rows):
                wrong += (start + _wrong_rows(rows, status[start : start + len(rows)])).tolist()
        if wrong:
            shown = ", ".join(map(str, wrong[:5]))
            text = f"{len(wrong)} rows are not NaN exactly where their tile is unreadable (rows {shown})"
            self._say("error", "values", f"{TREE}/{name}", text)

    def _status(self, header: Mapping[str, Any]) -> NDArray[np.uint8] | None:
        try:
            reader = ArrayReader.open(self.files, f"{self.ref.prefix}/{TREE}/status")
            return reader.read() if len(reader) == header["rows"] else None
        except DAMAGE:
            return None  # reported where the array itself is checked

    def _chunks(self, name: str, spec: ArraySpec) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, rows) of every chunk that decodes; report the others."""
        for shard in range(spec.n_shards):
            key = f"{TREE}/{name}/{spec.key(shard)}"
            if key in self._bad:
                continue
            # a reader of its own, so that no more than one shard is mapped at a time
            reader = ArrayReader(self.files, f"{self.ref.prefix}/{TREE}/{name}", spec)
            start, stop = spec.shard_range(shard)
            for first in range(start, stop, spec.chunk_rows):
                last = min(stop, first + spec.chunk_rows)
                try:
                    rows = reader.read(slice(first, last))
                except DAMAGE as error:
                    self._say("error", "chunk", key, f"rows {first}-{last - 1}: {error}")
                    continue
                self.counts["chunks"] += 1
                yield first, rows


def _arrays(listed: Mapping[str, list[Any]]) -> list[str]:
    """Return the names of the nodes (arrays and subgroups) of a group, but for its root."""
    names = [n[len(TREE) + 1 : -len("/zarr.json")] for n in listed if n.startswith(TREE) and n.endswith("/zarr.json")]
    return [n for n in names if n]


def _wrong_rows(rows: NDArray[Any], status: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the rows that are not all NaN where unreadable, or not all finite elsewhere."""
    unreadable = status == TileStatus.UNREADABLE
    good = np.where(unreadable, np.isnan(rows).all(axis=1), np.isfinite(rows).all(axis=1))
    return np.flatnonzero(~good)
