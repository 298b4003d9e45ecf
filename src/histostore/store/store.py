"""The Store: a folder (or bucket) of slides, opened by path."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import (
    ConflictError,
    FormatError,
    MissingDependencyError,
    NotFoundError,
    StorageError,
    UsageError,
    near,
)
from histostore.ids import check_name, check_slug
from histostore.schema.kinds import FORMAT, NEWEST, STORE_LEVEL, check_format
from histostore.specs import digest_of
from histostore.store.files import LocalFiles
from histostore.store.manifest import (
    Commit,
    Manifest,
    Ref,
    checked_json,
    commit,
    numbers,
    read_header,
    read_manifest,
    with_check,
)
from histostore.store.object_address import Address, is_object_address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.store.files import Files
    from histostore.store.groups import Group, GroupWriter
    from histostore.store.objects import ObjectFiles

HEADER = "STORE.json"


@dataclass(frozen=True, slots=True)
class Store:
    """An open store. Holds no lock and no snapshot: each read of a manifest sees the newest commit."""

    files: Files
    name: str
    uuid: str
    format: str

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self.files.uri

    def slides(self) -> list[str]:
        """Return the ids of the slides that are there, sorted."""
        from histostore.store.catalog import look, worth_it  # sqlite3 is for stores of many slides

        if worth_it(self):
            return look(self).slides()
        return [s for s in self.owners() if not s.startswith("@") and not self.manifest(s).deleted]

    def owners(self) -> list[str]:
        """Return all that has a manifest, sorted: slides, tombstoned ones too, and ``@heads`` and its like."""
        names = [name[:-1] for name in self.files.children("manifests") if name.endswith("/")]
        return [name for name in names if numbers(self.files, name)]

    def manifest(self, owner: str, number: int | None = None) -> Manifest:
        """Return a slide's newest manifest (the empty one where there is none), or an older one by number."""
        return read_manifest(self.files, owner, number)

    def slide(self, slide: str) -> Manifest:
        """Return a slide's newest manifest.

        Raises
        ------
        NotFoundError
            There is no such slide; near names are suggested.
        """
        found = self.manifest(check_slug(slide, "slide id"))
        if found.deleted or not found.number:
            known = self.slides()
            have = f"; there are {', '.join(known[:5])}{', …' if len(known) > 5 else ''}" if known else "; it is empty"
            raise NotFoundError(f"no slide '{slide}' in {self.uri}{near(slide, known) or have}")
        return found

    def group(self, ref: Ref) -> Group:
        """Open a group for reading."""
        from histostore.store.groups import Group  # brings numpy, which `info` does without

        return Group.open(self.files, ref)

    def header(self, ref: Ref) -> dict[str, Any]:
        """Return a group's GROUP.json without opening its arrays (and without numpy).

        Raises
        ------
        CorruptionError
            It is missing, or not the one that was committed.
        """
        return read_header(self.files, ref)

    def begin(
        self,
        owner: str,
        kind: str,
        name: str,
        *,
        spec: Mapping[str, Any],
        inputs: Mapping[str, Any],
        engine: Mapping[str, Any] | None = None,
    ) -> GroupWriter:
        """Start, or go on with, the group that `spec` and `inputs` define."""
        from histostore.store.attempts import begin

        self._require_writable()
        if owner not in STORE_LEVEL:
            check_slug(owner, "slide id")
        if kind not in NEWEST or NEWEST[kind].owner != (owner if owner in STORE_LEVEL else "slide"):
            raise UsageError(f"'{owner}' holds no groups of kind '{kind}'; kinds are {', '.join(NEWEST)}")
        check_name(name, f"{kind} name")
        return begin(
            self.files, owner=owner, kind=kind, name=name, digest=self.digest(kind, spec=spec, inputs=inputs),
            spec=spec, inputs=inputs, engine=engine,
        )  # fmt: skip

    @staticmethod
    def digest(kind: str, *, spec: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
        """Return what a group is: the digest of its kind, spec and inputs."""
        return digest_of({"kind": kind, "spec": dict(spec), "inputs": dict(inputs)})

    def committed(
        self, owner: str, kind: str, name: str, *, spec: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> Ref | None:
        """Return the group of that name if it is there already with this spec and these inputs."""
        ref = self.manifest(owner).get(kind, name)
        return ref if ref is not None and ref.digest == self.digest(kind, spec=spec, inputs=inputs) else None

    def commit(
        self,
        owner: str,
        refs: Sequence[Ref],
        *,
        replace: bool = False,
        expect: Mapping[str, str | None] | None = None,
        remove: Sequence[str] = (),
    ) -> Commit:
        """Make sealed groups visible. See `histostore.store.manifest.commit`."""
        self._require_writable()
        return commit(self.files, owner, list(refs), replace=replace, expect=expect, remove=tuple(remove))

    def delete_slide(self, slide: str) -> None:
        """Hide a slide by a tombstone; its bytes stay until ``gc --erase``."""
        self._require_writable()
        self.slide(slide)
        commit(self.files, slide, [], delete=True)

    def _require_writable(self) -> None:
        """Refuse a store of a newer format, as its header says now: it may have been moved on since it was opened."""
        check_format(open_files(self.files).format, where=self.uri, writing=True)


def create_store(path: str | Path, *, name: str | None = None) -> Store:
    """Make an empty store in a folder, or under a prefix of a bucket.

    Raises
    ------
    ConflictError
        There is a store already, or the place holds something else.
    StorageError
        The place cannot be written, or cannot publish safely.
    """
    files = _objects_at(path)
    if files is not None:
        name = check_slug(name or files.uri.rpartition("/")[2], "store name")
        if files.size(HEADER) is not None:
            raise ConflictError(f"{files.uri} is a store already; open it, or choose another prefix")
        files.require_empty()
        return _new_store(files, name)
    root = Path(path).absolute()
    name = check_slug(name or root.name, "store name")
    try:
        if (root / HEADER).exists():
            raise ConflictError(f"{root} is a store already; open it, or choose another folder")
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ConflictError(f"{root} is not an empty folder; choose another one")
    except OSError as error:
        raise StorageError(f"cannot look at {root}: {error.strerror or error}") from error
    return _new_store(LocalFiles(root, make=True), name)


def open_store(path: str | Path) -> Store:
    """Open a store for reading and writing.

    Parameters
    ----------
    path
        A folder, or ``s3://bucket/prefix``, ``gs://…``, ``az://…`` as text.

    Raises
    ------
    NotFoundError
        There is no store at `path`.
    CorruptionError
        Its header is damaged.
    FormatError
        It is of a newer major format.
    StorageError
        It cannot be read.
    """
    return open_files(_objects_at(path) or LocalFiles(path), said=str(path))


def open_files(files: Files, *, said: str = "") -> Store:
    """Open the store that lies in these files; `said` is what the user called them. Errors as of `open_store`."""
    said = said or files.uri
    try:
        data = files.get(HEADER)
    except FileNotFoundError:
        raise NotFoundError(f"no store at {said} (no {HEADER}); make one with `histostore init {said}`") from None
    header = checked_json(data, where=f"{said}/{HEADER}")
    try:
        name, uuid, written = str(header["name"]), str(header["uuid"]), str(header["format"])
    except KeyError as error:
        raise FormatError(f"{said}/{HEADER} lacks {error}: not a store's header") from error
    check_format(written, where=said)
    return Store(files, name, uuid, written)


def _new_store(files: LocalFiles | ObjectFiles, name: str) -> Store:
    files.probe_publish()
    header = {"format": FORMAT, "name": name, "uuid": secrets.token_hex(16)}
    if not files.put_new(HEADER, json.dumps(with_check(header), indent=1).encode()):
        raise ConflictError(f"{files.uri} was made a store by another process meanwhile")
    return Store(files, name, header["uuid"], FORMAT)


def _objects_at(path: str | Path) -> ObjectFiles | None:
    """Return the files at an address of an object store, None for a folder."""
    if not is_object_address(path):
        return None
    address = Address.parse(str(path))
    try:
        from histostore.store.objects import open_objects  # brings obstore, which folders do without
    except ImportError as error:
        raise MissingDependencyError(f"{address} needs obstore: pip install 'histostore[s3]'") from error
    return open_objects(str(address))
