"""Manifests: what a slide is made of, one immutable file per commit.

A manifest maps ``kind/name`` to a group. It is published by exclusive create, so of two writers one wins and the other
re-reads and re-applies its change. No clock decides anything: the highest number is the truth.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from histostore.errors import ConflictError, CorruptionError, NotFoundError
from histostore.schema.kinds import FORMAT, check_format
from histostore.specs import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.files import Files

GROUP = "GROUP.json"
"""A group's header: written last, so a folder without one is no group."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Where a committed group is: enough to open it, and to notice if it changed."""

    owner: str
    """A slide, or ``@heads`` / ``@indexes``."""
    kind: str
    name: str
    digest: str
    """What it is: inputs and spec."""
    attempt: str
    """Who wrote it."""
    sha256: str
    """Of its GROUP.json."""

    @property
    def key(self) -> str:
        """``kind/name``, as the manifest lists it."""
        return f"{self.kind}/{self.name}"

    @property
    def prefix(self) -> str:
        """The group's folder below the store."""
        return f"{group_folder(self.owner, self.kind, self.digest)}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of one owner. Number 0 is the empty one that nobody wrote."""

    owner: str
    number: int
    entries: Mapping[str, Ref]
    deleted: bool = False
    write_id: str = ""
    """Random; tells a writer its own manifest."""
    parent_id: str = ""
    """The `write_id` of the manifest before it."""
    written: str = ""
    """For people; nothing is ordered by it."""

    def find(self, kind: str, name: str | None = None) -> Ref:
        """Return the group of that kind and name; without a name, the only one.

        Raises
        ------
        NotFoundError
            There is none, or several: they are listed.
        """
        if name is not None and f"{kind}/{name}" in self.entries:
            return self.entries[f"{kind}/{name}"]
        names = sorted(r.name for r in self.entries.values() if r.kind == kind)
        if name is None and len(names) == 1:
            return self.entries[f"{kind}/{names[0]}"]
        have = f"it has {', '.join(names)}" if names else "it has none"
        if name is None and names:
            raise NotFoundError(f"slide '{self.owner}' has several {kind}: give one of {', '.join(names)}")
        wanted = f"{kind} '{name}'" if name is not None else kind
        raise NotFoundError(f"slide '{self.owner}' has no {wanted}; {have}")

    def get(self, kind: str, name: str) -> Ref | None:
        """Return the group of that kind and name, or None."""
        return self.entries.get(f"{kind}/{name}")

    def of_kind(self, kind: str) -> list[Ref]:
        """Return all groups of a kind, by name."""
        return [self.entries[f"{kind}/{name}"] for name in self.names(kind)]

    def names(self, kind: str) -> list[str]:
        """Return the names of all groups of a kind, sorted."""
        mine, start = f"{kind}/", len(kind) + 1
        return sorted([key[start:] for key in self.entries if key.startswith(mine)])


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit did."""

    manifest: Manifest
    added: tuple[str, ...]
    already_there: tuple[str, ...]
    """Keys that another writer had committed with the same digest: its group is kept, ours is garbage."""


def owner_folder(owner: str) -> str:
    """Return where an owner's groups lie: ``slides/C2``, ``heads``, ``indexes``."""
    return owner[1:] if owner.startswith("@") else f"slides/{owner}"


def group_folder(owner: str, kind: str, digest: str) -> str:
    """Return the folder of all attempts at one group."""
    folder = owner_folder(owner)
    return f"{folder}/{digest}" if owner.startswith("@") else f"{folder}/{kind}/{digest}"


def manifest_folder(owner: str) -> str:
    """Return where an owner's manifests lie."""
    return f"manifests/{owner}"


def manifest_key(owner: str, number: int) -> str:
    """Return the key of one manifest."""
    return f"{manifest_folder(owner)}/{number:08d}.json"


def numbers(files: Files, owner: str) -> list[int]:
    """Return the numbers of an owner's manifests, in order."""
    names = files.children(manifest_folder(owner))
    return sorted(int(n[:-5]) for n in names if is_manifest_name(n))


def is_manifest_name(name: str) -> bool:
    """Whether a file beside manifests is one."""
    stem = name.removesuffix(".json")
    return stem != name and stem.isascii() and stem.isdigit() and f"{int(stem):08d}" == stem


def read_manifest(files: Files, owner: str, number: int | None = None) -> Manifest:
    """Return an owner's newest manifest, or the one of that number; the empty one where there is none yet.

    Raises
    ------
    CorruptionError
        The manifest's own checksum differs. An older one is never taken in its place silently.
    FormatError
        It is of a newer format.
    """
    if number is None:
        found = numbers(files, owner)
        if not found:
            return Manifest(owner, 0, {})
        number = found[-1]
    key = manifest_key(owner, number)
    where = f"{files.uri}/{key}"
    try:
        data = files.get(key)
    except FileNotFoundError:
        raise NotFoundError(f"{where} is not there") from None
    body = checked_json(data, where=where)
    check_format(body.get("format", "?"), where=where)
    if body.get("number") != number or body.get("owner") != owner:
        raise CorruptionError(f"{where} is manifest {body.get('number')} of '{body.get('owner')}': it was moved here")
    entries = {}
    for entry, (digest, attempt, sha256) in body["entries"].items():
        kind, _, name = entry.partition("/")
        entries[entry] = Ref(owner, kind, name, digest, attempt, sha256)
    return Manifest(
        owner, number, entries, bool(body.get("deleted")), body["write_id"], body["parent"], body.get("written", "")
    )


def read_header(files: Files, ref: Ref) -> dict[str, Any]:
    """Return the GROUP.json of a committed group.

    Raises
    ------
    CorruptionError
        It is missing, or not the one that was committed.
    """
    key = f"{ref.prefix}/{GROUP}"
    try:
        data = files.get(key)
    except FileNotFoundError:
        raise CorruptionError(f"{files.uri}/{key} is missing; run `histostore verify`") from None
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise CorruptionError(f"{files.uri}/{key} differs from what was committed; run `histostore verify`")
    header: dict[str, Any] = json.loads(data)
    header.pop("check", None)  # for attempts that no manifest pins yet
    return header


def with_check(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON document with ``check`` added: the sha256 of the rest."""
    plain: dict[str, Any] = json.loads(json.dumps(body, allow_nan=False))
    return {**plain, "check": _check(plain)}


def checked_json(data: bytes, *, where: str) -> dict[str, Any]:
    """Return the document that `with_check` made, without its check.

    Raises
    ------
    CorruptionError
        It is no such document, or its check differs.
    FormatError
        Its check differs and it says that it is of a newer format, whose rule may be another one.
    """
    try:
        body: dict[str, Any] = json.loads(data)
        check = body.pop("check", None)
        whole = check == _check(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptionError(f"{where} is damaged ({error}); run `histostore verify`") from error
    if not whole:
        if isinstance(text := body.get("format"), str) and text.replace(".", "", 1).isdecimal():
            check_format(text, where=where)
        raise CorruptionError(f"{where}: checksum differs from what was written; run `histostore verify`")
    return body


def commit(
    files: Files,
    owner: str,
    refs: list[Ref],
    *,
    replace: bool = False,
    expect: Mapping[str, str | None] | None = None,
    remove: tuple[str, ...] = (),
    delete: bool = False,
) -> Commit:
    """Publish groups under an owner, re-applied to whatever others have published meanwhile.

    Parameters
    ----------
    refs
        Sealed groups, by ``kind/name``.
    replace
        Let a name move to another digest. Without it that is a conflict.
    expect
        Keys and the digest each must have now (None: absent); for a change computed from the old value.
    remove
        Keys to drop from the manifest.
    delete
        Write a tombstone: the slide is gone for readers, its bytes stay until ``gc --erase``.

    Raises
    ------
    ConflictError
        A name is taken by another digest, or `expect` does not hold.
    """
    write_id = secrets.token_hex(8)
    while True:
        now = read_manifest(files, owner)
        entries = {} if now.deleted and not delete else dict(now.entries)
        for key, digest in (expect or {}).items():
            have = entries[key].digest if key in entries else None
            if have != digest:
                raise ConflictError(f"slide '{owner}': {key} changed meanwhile; run the command again")
        added, kept = [], []
        for ref in refs:
            old = entries.get(ref.key)
            if old is not None and old.digest == ref.digest and not (replace and old.attempt != ref.attempt):
                kept.append(ref.key)
                continue
            if old is not None and old.digest != ref.digest and not replace:
                raise ConflictError(
                    f"slide '{owner}': {ref.kind} '{ref.name}' is there with another spec or other inputs "
                    f"({old.digest[:8]}, not {ref.digest[:8]}); give another name, or --replace to move the name"
                )
            entries[ref.key] = ref
            added.append(ref.key)
        for key in remove:
            entries.pop(key, None)
        if not added and not delete and not any(k in now.entries for k in remove):
            return Commit(now, (), tuple(kept))
        body: dict[str, Any] = {
            "format": FORMAT,
            "owner": owner,
            "number": now.number + 1,
            "parent": now.write_id,
            "write_id": write_id,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "entries": {k: [r.digest, r.attempt, r.sha256] for k, r in sorted(entries.items())},
        }
        if delete:
            body["deleted"] = True
        _require_sealed(files, [entries[key] for key in added])
        text = json.dumps(with_check(body), indent=0).encode()
        done = Manifest(owner, now.number + 1, entries, delete, write_id, now.write_id, body["written"])
        key = manifest_key(owner, done.number)
        if files.put_new(key, text) or _is_ours(files, done):
            if not _overtaken(files, done):
                return Commit(done, tuple(added), tuple(kept))
            files.delete(key)


def _require_sealed(files: Files, refs: list[Ref]) -> None:
    """Refuse to name a group that gc took for an orphan, because it lay uncommitted for longer than the grace."""
    for ref in refs:
        if files.size(f"{ref.prefix}/{GROUP}") is None:
            raise ConflictError(
                f"{files.uri}/{ref.prefix} is not there any more (gc removed it before it was committed?); "
                "run the command again"
            )


def _overtaken(files: Files, done: Manifest) -> bool:
    """Whether our number was free only because gc had removed it: the manifest after it then names another parent."""
    if numbers(files, done.owner)[-1] <= done.number:
        return False
    try:
        return read_manifest(files, done.owner, done.number + 1).parent_id != done.write_id
    except NotFoundError:
        return True


def _is_ours(files: Files, done: Manifest) -> bool:
    """Whether the manifest that won is our own after all (an answer that was lost on the way)."""
    try:
        return read_manifest(files, done.owner, done.number).write_id == done.write_id
    except NotFoundError:  # gc removed it meanwhile: someone else's, and history already
        return False


def _check(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()
