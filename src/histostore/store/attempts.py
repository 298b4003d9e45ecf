"""Who writes a group: a new attempt, or one that a killed writer left and that can be gone on with."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from histostore.errors import CorruptionError, FormatError
from histostore.schema.kinds import FORMAT, check_format
from histostore.store.groups import DAMAGED, LOCK, GroupWriter
from histostore.store.manifest import GROUP, Ref, checked_json, group_folder, read_manifest, with_check
from histostore.store.receipts import ATTEMPT, RECEIPTS, load_receipts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.store.files import Files, Lock


def begin(
    files: Files,
    *,
    owner: str,
    kind: str,
    name: str,
    digest: str,
    spec: Mapping[str, Any],
    inputs: Mapping[str, Any],
    engine: Mapping[str, Any] | None = None,
) -> GroupWriter:
    """Start an attempt at a group, or go on with one whose writer died.

    An unsealed attempt is adopted when its lock is free and its engine is the same; a sealed one is returned as it is,
    `sealed` set, unless it was found damaged. Where attempts are not gone on with in place (an object store), a new one
    is begun, into which the finished shards of the unsealed one that has most are copied.
    """
    engine = dict(engine or {})
    folder = group_folder(owner, kind, digest)
    fields: dict[str, Any] = {
        "files": files, "owner": owner, "kind": kind, "name": name, "digest": digest,
        "spec": spec, "inputs": inputs, "engine": engine,
    }  # fmt: skip
    attempts = [child.rstrip("/") for child in files.children(folder)]
    for attempt in attempts:
        found = _adopt(files, f"{folder}/{attempt}", attempt, fields)
        if found is not None:
            return found
    donor = "" if files.in_place else _donor(files, [f"{folder}/{attempt}" for attempt in attempts], engine)
    writer = GroupWriter(attempt=secrets.token_hex(6), resumed=bool(donor), _donor=donor, **fields)
    writer._lock = files.lock(f"{writer.prefix}/{LOCK}")
    files.put(f"{writer.prefix}/{ATTEMPT}", _note(fields), sync=False)
    return writer


def _note(fields: Mapping[str, Any]) -> bytes:
    note = {"format": FORMAT, **{key: fields[key] for key in ("kind", "digest", "engine")}}
    return json.dumps(with_check(note)).encode()


def _adopt(files: Files, prefix: str, attempt: str, fields: dict[str, Any]) -> GroupWriter | None:
    engine = json.loads(json.dumps(fields["engine"]))
    if files.size(f"{prefix}/{DAMAGED}") is not None:
        return None
    if (sealed := _sealed(files, prefix, engine)) is not None:
        if all(ref.attempt != attempt for ref in read_manifest(files, fields["owner"]).entries.values()):
            # young again: gc leaves it alone until it is committed
            files.put(f"{prefix}/{ATTEMPT}", _note(fields), sync=False)
            if files.size(f"{prefix}/{GROUP}") is None:
                return None
        ref = Ref(fields["owner"], fields["kind"], fields["name"], fields["digest"], attempt, sealed)
        return GroupWriter(attempt=attempt, sealed=ref, resumed=True, **fields)
    if not files.in_place or not _same_engine(files, prefix, engine):
        return None
    lock = _lock(files, f"{prefix}/{LOCK}")
    if lock is None:
        return None
    if files.size(f"{prefix}/{GROUP}") is not None or files.size(f"{prefix}/{ATTEMPT}") is None:
        lock.release()  # its writer sealed it, or gc removed it, between the look and the lock
        return None
    writer = GroupWriter(attempt=attempt, resumed=True, **fields)
    writer._lock = lock
    writer._receipts = load_receipts(files, prefix)
    return writer


def _same_engine(files: Files, prefix: str, engine: Mapping[str, Any]) -> bool:
    """Whether an attempt's finished shards are what we would write."""
    try:
        note = checked_json(files.get(f"{prefix}/{ATTEMPT}"), where=prefix)
        check_format(str(note["format"]), where=prefix, writing=True)
    except (FileNotFoundError, CorruptionError, FormatError):
        return False
    return bool(note["engine"] == engine)


def _donor(files: Files, prefixes: Sequence[str], engine: Mapping[str, Any]) -> str:
    """Return the unsealed attempt with most finished shards that are what we would write, or ``""``."""
    engine = json.loads(json.dumps(engine))
    best, most = "", 0
    for prefix in prefixes:
        finished = len(files.children(f"{prefix}/{RECEIPTS}"))
        if finished > most and files.size(f"{prefix}/{DAMAGED}") is None and _same_engine(files, prefix, engine):
            best, most = prefix, finished
    return best


def _lock(files: Files, key: str) -> Lock | None:
    """Take a lock; a moment is waited for someone who only looks whether it is held."""
    for _ in range(3):
        if (lock := files.lock(key)) is not None:
            return lock
        time.sleep(0.01)
    return None


def _sealed(files: Files, prefix: str, engine: Mapping[str, Any]) -> str | None:
    """Return the sha256 of a sealed attempt's header if all its files are there in full."""
    try:
        data = files.get(f"{prefix}/{GROUP}")
        header = checked_json(data, where=prefix)
        check_format(header["format"], where=prefix, writing=True)
    except (FileNotFoundError, CorruptionError, FormatError):
        return None
    whole = all(files.size(f"{prefix}/{name}") == size for name, (size, _) in header["files"].items())
    return hashlib.sha256(data).hexdigest() if whole and header["engine"] == engine else None
