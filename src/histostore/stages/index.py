"""Search indexes of a store: built over the embeddings of a tile set, kept up to date by adding and deleting.

An index is one write-once group at a time, ``@indexes/indexes/<tiles>/<backbone>``: a snapshot and its files. Bringing
it up to date seals a new group, which shares the files of segments that did not change, and moves the name: readers of
the old one go on reading it. It is derived data: deleting it loses nothing.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import ConflictError, NotFoundError, UsageError, near
from histostore.index import life
from histostore.index.reader import IndexReader
from histostore.index.snapshot import Snapshot
from histostore.index.spec import IndexSpec
from histostore.progress import Stopwatch
from histostore.stages.index_places import ById, Places
from histostore.store.files import LocalFiles
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from histostore.index.copies import Copies
    from histostore.index.encode import EncodeRows
    from histostore.index.spec import Device
    from histostore.store.groups import Group, GroupWriter
    from histostore.store.manifest import Ref
    from histostore.store.store import Store
    from histostore.view import View

    type EncodeOn = Callable[[str, View], EncodeRows]
    """Of the name of an index and the rows that it takes in: who encodes them."""

INDEXES = "@indexes"
KIND = "indexes"
SNAPSHOT = "snapshot.json"


@dataclass(frozen=True, slots=True)
class IndexResult:
    """What bringing an index up to date did."""

    name: str
    ref: Ref
    done: str
    """``built``, ``updated``, ``compacted`` or ``already there``."""
    rows: int
    """Rows that can be found."""
    added: int
    removed: int
    recall: float
    """recall@10 against exact search, as measured when the segments were built."""
    bytes: int
    segments: tuple[str, ...]
    """Kind and rows of each."""
    skipped: int
    """Rows without an embedding that could be placed (unreadable tiles)."""
    seconds: Mapping[str, float]
    left_out: Mapping[str, str]
    """Slides that nobody named and that have no such embeddings, and what they are without."""
    note: str | None
    """A line that says so."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {k: getattr(self, k) for k in ("name", "done", "rows", "added", "removed", "recall", "bytes")} | {
            "segments": list(self.segments), "skipped": self.skipped, "digest": self.ref.digest,
            "seconds": dict(self.seconds), "slides_left_out": dict(self.left_out),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """A snapshot that can be searched, and where its rows lie."""

    name: str
    group: Group
    snapshot: Snapshot
    places: Places
    folder: Path
    _copies: Copies | None
    """Holds the files where they are copies; None where they lie in the store."""

    def reader(self, rows: View, *, device: Device = "auto") -> IndexReader:
        """Check the files and open them; `rows` are all rows the index may name."""
        return IndexReader(self.folder, self.snapshot, embeddings=ById(rows, self.places), device=device)


def index(
    store: Store,
    *,
    backbone: str,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    spec: IndexSpec | None = None,
    name: str | None = None,
    rebuild: bool = False,
    compact: bool = False,
    device: Device = "auto",
    encode_on: EncodeOn | None = None,
) -> IndexResult:
    """Build the index of a backbone's embeddings, or bring it up to date.

    New slides are added without building again what is there, slides that are gone or were embedded anew are deleted;
    a second call is a no-op.

    Parameters
    ----------
    slides
        Which slides it is of; all of them by default.
    spec
        Kind, metric and recall; that of the index where there is one, else `IndexSpec`'s defaults.
    name
        Instead of ``<tiles>/<backbone>``: several indexes of the same embeddings live side by side.
    rebuild
        Build everything again.
    compact
        Build small and hollow segments again as one.
    encode_on
        Who encodes the rows of new IVF segments; this process by default, to the same bytes.

    Raises
    ------
    ConflictError
        The index is there with another spec, and `rebuild` is not asked for.
    """
    watch = Stopwatch()
    todo = plan_index(store, backbone=backbone, tiles=tiles, slides=slides, spec=spec, name=name, rebuild=rebuild)
    old, rows = todo.old, todo.rows
    if old is not None and todo.is_current and not compact:
        return _result(todo, old.group.ref, "already there", old.snapshot, 0, 0, watch)
    with tempfile.TemporaryDirectory(prefix="histostore-index-") as made:
        folder = Path(made)
        if old is not None:
            _borrow(old, folder)
        with watch.timed("build"):
            snapshot, after, added, removed = _changed(todo, spec, folder, device, encode_on)
            if compact and old is not None:
                snapshot = life.compact(folder, snapshot, embeddings=ById(rows, after), device=device)
        if old is not None and snapshot == old.snapshot:
            return _result(todo, old.group.ref, "already there", snapshot, 0, 0, watch)
        with watch.timed("write"):
            ref = _seal(store, todo.name, snapshot, after, old, folder, backbone=rows.backbones[0],
                        tiles=todo.embedded["tiles"], backbone_digest=todo.embedded["backbone_digest"])  # fmt: skip
            expect = {ref.key: todo.held.digest} if todo.held is not None else None
            store.commit(INDEXES, [ref], replace=True, expect=expect)
    done = "built" if old is None else "compacted" if not (added or removed) else "updated"
    return _result(todo, ref, done, snapshot, added, removed, watch)


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """What bringing an index up to date comes to."""

    name: str
    rows: View
    """All that it is to hold."""
    embedded: Mapping[str, Any]
    """Attributes of the embeddings."""
    held: Ref | None
    """The index of that name, also where it is to be built again."""
    old: OpenIndex | None
    """What is brought up to date; None where all is built."""
    gone: tuple[str, ...]
    """Slides whose rows are deleted."""
    new: tuple[str, ...]
    """Slides whose rows are added, in the order of the view."""

    @property
    def is_current(self) -> bool:
        """Whether no slide comes or goes."""
        return not self.gone and not self.new

    @property
    def places(self) -> Places:
        """Where the rows that are there lie."""
        return self.old.places if self.old is not None else Places.none()


def plan_index(
    store: Store,
    *,
    backbone: str,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    spec: IndexSpec | None = None,
    name: str | None = None,
    rebuild: bool = False,
) -> IndexPlan:
    """Say which slides come and go, without reading their rows. Parameters and errors as of `index`."""
    rows = view(store, backbone=backbone, tiles=tiles, slides=slides)
    first = rows.parts[0]
    embedded = first.group(first.embeddings[rows.backbones[0]]).attrs
    name = name or f"{embedded['tiles']}/{rows.backbones[0]}"
    held = store.manifest(INDEXES).get(KIND, name)
    old = open_index(store, name) if held is not None and not rebuild else None
    if old is not None and spec is not None and spec != old.snapshot.spec:
        raise ConflictError(f"index '{name}' is there with another spec ({old.snapshot.spec.kind}, "
                            f"{old.snapshot.spec.metric}); give another name, or rebuild it (--rebuild)")  # fmt: skip
    places = old.places if old is not None else Places.none()
    now = {p.slide: p.embeddings[rows.backbones[0]].digest for p in rows.parts}
    gone = tuple(s for s, digest in places.digests.items() if now.get(s) != digest)
    new = tuple(s for s, digest in now.items() if places.digests.get(s) != digest)
    return IndexPlan(name, rows, embedded, held, old, gone, new)


def _changed(
    todo: IndexPlan, spec: IndexSpec | None, folder: Path, device: Device, encode_on: EncodeOn | None
) -> tuple[Snapshot, Places, int, int]:
    """Return the snapshot with some slides deleted and others added, where its rows lie, and how many rows went."""
    rows, places = todo.rows, todo.places
    (name,) = rows.backbones
    starts, digests, next_id = dict(places.starts), dict(places.digests), places.next_id
    removed = 0
    snapshot = todo.old.snapshot if todo.old is not None else None
    if snapshot is not None and todo.gone:
        ends = sorted([*places.starts.values(), places.next_id])
        dead = [np.arange(starts[s], ends[ends.index(starts[s]) + 1]) for s in todo.gone]
        deleted = life.delete(folder, snapshot, np.concatenate(dead))
        snapshot, removed = deleted.snapshot, deleted.deleted
    for slide in todo.gone:
        del starts[slide], digests[slide]
    new = frozenset(todo.new)
    for part in rows.parts:
        if part.slide in new:
            starts[part.slide], digests[part.slide] = next_id, part.embeddings[name].digest
            next_id += part.n_all
    after, added = Places(starts, digests, next_id), 0
    if new:
        chosen = rows.of_slides(new)
        values, ids, added = chosen.lazy(name), after.ids(chosen), len(chosen)
        groups = np.repeat(np.arange(len(chosen.parts)), [len(p) for p in chosen.parts])
        encode = encode_on(todo.name, chosen) if encode_on is not None else None
        if snapshot is None:
            spec = spec or IndexSpec()
            snapshot = life.create(folder, values, spec, ids=ids, groups=groups, device=device, encode=encode)
        else:
            snapshot = life.append(folder, snapshot, values, ids=ids, groups=groups, device=device, encode=encode)
    assert snapshot is not None
    return snapshot, after, added, removed


def find_index(store: Store, backbone: str, tiles: str | None = None, name: str | None = None) -> str | None:
    """Return the name of the index of a backbone (and tile set), None where there is none.

    Raises
    ------
    NotFoundError
        An index was named that is not there.
    UsageError
        The backbone has several.
    """
    refs = store.manifest(INDEXES).of_kind(KIND)
    if name is not None:
        known = [r.name for r in refs]
        if name not in known:
            have = f"there are {', '.join(known)}" if known else "there is none; run index"
            raise NotFoundError(f"no index '{name}'{near(name, known)}; {have}")
        return name
    found = []
    for ref in refs:
        attrs = store.group(ref).attrs
        if attrs["backbone"] == backbone and tiles in (None, attrs["tiles"]):
            found.append(ref.name)
    if len(found) > 1:
        raise UsageError(f"backbone '{backbone}' has several indexes: give one of {', '.join(found)}")
    return found[0] if found else None


def open_index(store: Store, name: str) -> OpenIndex:
    """Open an index as it is now; what is published later does not change it.

    Raises
    ------
    NotFoundError
        There is none of that name.
    CorruptionError
        A file is gone or differs (when it is searched).
    """
    manifest = store.manifest(INDEXES)
    ref = manifest.get(KIND, name)
    if ref is None:
        known = [r.name for r in manifest.of_kind(KIND)]
        raise NotFoundError(f"no index '{name}'{near(name, known)}; run index")
    group = store.group(ref)
    snapshot = Snapshot.from_json(json.loads(group.bytes(SNAPSHOT)))
    copies = _copies(store, group, snapshot)
    folder = copies.folder if copies is not None else Path(store.uri) / ref.prefix
    return OpenIndex(name, group, snapshot, Places.of(group.attrs), folder, copies)


def stale_slides(opened: OpenIndex, rows: View) -> list[str]:
    """Return the slides of a view that the index does not hold as they are now."""
    (name,) = rows.backbones
    return [p.slide for p in rows.parts if opened.places.digests.get(p.slide) != p.embeddings[name].digest]


def _seal(
    store: Store, name: str, snapshot: Snapshot, places: Places, old: OpenIndex | None, folder: Path, **about: Any
) -> Ref:
    inputs = {slide: {"embeddings": digest} for slide, digest in places.digests.items()}
    inputs["snapshot"] = {"digest": snapshot.digest}
    attrs = {**about, **places.to_json(), "recall": snapshot.recall, "kind": snapshot.spec.kind,
             "metric": snapshot.spec.metric, "segments": len(snapshot.segments)}  # fmt: skip
    with store.begin(INDEXES, KIND, name, spec=snapshot.spec.to_json(), inputs=inputs) as writer:
        if writer.sealed is None:
            shared = {f.name for f in old.snapshot.files()} if old is not None else set()
            for record in snapshot.files():
                _put(writer, folder / record.name, shared=record.name in shared and old is not None, old=old)
            writer.put_file(SNAPSHOT, json.dumps(snapshot.to_json(), indent=1).encode())
        return writer.seal(rows=snapshot.live, attrs=attrs)


def _put(writer: GroupWriter, path: Path, *, shared: bool, old: OpenIndex | None) -> None:
    if shared and old is not None:
        size, sha256 = old.group.header["files"][path.name]
        if writer.take_file(path.name, f"{old.group.ref.prefix}/{path.name}", size, sha256):
            return
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped, memoryview(mapped) as data:
        writer.put_file(path.name, data)


def _borrow(old: OpenIndex, folder: Path) -> None:
    """Make the old snapshot's files visible in the folder where new ones are made."""
    for record in old.snapshot.files():
        (folder / record.name).symlink_to(old.folder / record.name)


def _copies(store: Store, group: Group, snapshot: Snapshot) -> Copies | None:
    """Return copies of an index's files where FAISS cannot map them in place."""
    if isinstance(store.files, LocalFiles):
        return None
    from histostore.index.copies import local_copies
    from histostore.store.objects import ObjectFiles  # brings obstore

    cache = store.files.cache if isinstance(store.files, ObjectFiles) else None
    listed = group.header["files"]
    return local_copies(store.files, group.ref.prefix, snapshot.files(), listed, store=store.uuid, cache=cache)


def _result(
    todo: IndexPlan, ref: Ref, done: str, snapshot: Snapshot, added: int, removed: int, watch: Stopwatch
) -> IndexResult:
    segments = tuple(f"{s.report.kind} {s.rows:,}" for s in snapshot.segments)
    skipped = sum(s.report.left_out for s in snapshot.segments)
    return IndexResult(todo.name, ref, done, snapshot.live, added, removed, snapshot.recall, snapshot.size, segments,
                       skipped, watch.seconds, todo.rows.left_out, todo.rows.note())  # fmt: skip
