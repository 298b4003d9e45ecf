"""Owners as their manifests are now: who there is and who changed, without opening one; and the reading of those."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from histostore.errors import HistostoreError
from histostore.schema.kinds import KINDS
from histostore.specs import canonical_json
from histostore.store.catalog_entries import written_lines
from histostore.store.files import PARTIAL, LocalFiles
from histostore.store.manifest import Manifest, Ref, is_manifest_name, read_header, read_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.files import Files

SETTLED_NS = 2_000_000_000
"""A folder that changed so shortly before it was read may have changed again at the same time by its clock."""
_REQUESTS = 16


class State(NamedTuple):
    """How an owner's manifests look from outside."""

    seen: str
    """Changes whenever an owner's manifests do."""
    settled: bool
    """Whether it was old enough, when it was seen, to change again if the manifests do."""


def states_of(files: Files) -> dict[str, State]:
    """Look at the manifests of all owners without opening one."""
    return _folder_states(files) if isinstance(files, LocalFiles) else _listed_states(files)


def _folder_states(files: LocalFiles) -> dict[str, State]:
    states = {}
    now = time.time_ns()  # before the folders are looked at
    try:
        found = os.scandir(files.root / "manifests")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    with found:
        for entry in found:
            if not entry.is_dir() or entry.name.startswith(PARTIAL):
                continue
            about = entry.stat()
            at = max(about.st_mtime_ns, about.st_ctime_ns)
            seen = f"{about.st_ino}:{about.st_mtime_ns}:{about.st_ctime_ns}"
            states[entry.name] = State(seen, at < now - SETTLED_NS)
    return states


def _listed_states(files: Files) -> dict[str, State]:
    listed: dict[str, list[str]] = {}
    newest: dict[str, float] = {}
    for key, size, mtime in files.walk("manifests"):
        _, owner, name = key.split("/", 2)
        if is_manifest_name(name):
            listed.setdefault(owner, []).append(f"{name}:{size}:{mtime}")
            newest[owner] = max(newest.get(owner, 0.0), mtime)
    now = time.time()
    return {
        owner: State(hashlib.sha256(" ".join(sorted(of)).encode()).hexdigest()[:32], abs(now - newest[owner]) > 5.0)
        for owner, of in listed.items()
    }


@dataclass(slots=True)
class Fresh:
    """Owners as their manifests are now."""

    files: Files
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, HistostoreError] = field(default_factory=dict)

    def read_all(self, stale: Mapping[str, tuple[State, Mapping[str, Any] | None]]) -> None:
        """Read owners; from afar many at a time, because that is a few requests for each, one after the other."""
        if isinstance(self.files, LocalFiles) or len(stale) < 2:
            for owner, (state, old) in stale.items():
                self.read(owner, state, old)
            return
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="histostore-catalog") as pool:
            for _ in pool.map(lambda item: self.read(item[0], *item[1]), stale.items()):
                pass

    def read(self, owner: str, state: State, old: Mapping[str, Any] | None) -> None:
        """Read an owner; one that could not settle and has the same manifest keeps its contents."""
        try:
            manifest = read_manifest(self.files, owner)
        except HistostoreError as error:
            self.unreadable[owner] = error
            return
        identity = _identity(manifest)
        if old is not None and old["identity"] == identity and old["whole"]:
            self.rows[owner] = {**old, "seen": state.seen, "settled": state.settled}
            return
        entries = {} if manifest.deleted else manifest.entries
        known = {key: header for key, ref in entries.items() if (header := self._header(ref)) is not None}
        meta, whole = known.get("meta/meta"), len(known) == len(entries)
        self.rows[owner] = {
            "seen": state.seen,
            "settled": state.settled and whole,
            "whole": whole,
            "number": manifest.number,
            "identity": identity,
            "deleted": manifest.deleted,
            "fields": meta["attrs"].get("fields", {}) if meta is not None else {},
        }
        text = written_lines(identity, manifest, known)
        if text is not None:
            self.contents[owner] = text

    def _header(self, ref: Ref) -> dict[str, Any] | None:
        """Return a header; None where it cannot be read or is of a kind we do not know: opening it says so."""
        try:
            header = read_header(self.files, ref)
        except HistostoreError:
            return None
        known = header["kind"] == ref.kind and (header["kind"], header["version"]) in KINDS
        return header if known else None


def holds(rows: Mapping[str, Mapping[str, Any]], owner: str, state: State) -> bool:
    """Whether a kept row is of the manifests as they look now."""
    row = rows.get(owner)
    return row is not None and bool(row["settled"]) and row["seen"] == state.seen


def _identity(manifest: Manifest) -> str:
    """Return the checksum of what a manifest says."""
    entries = {key: [r.digest, r.attempt, r.sha256] for key, r in manifest.entries.items()}
    body = [manifest.number, manifest.write_id, manifest.parent_id, manifest.written, manifest.deleted, entries]
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()
