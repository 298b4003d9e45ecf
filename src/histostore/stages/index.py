"""Search indexes of a store: built over the embeddings of a tile set, kept up to date by adding and deleting.

An index is one write-once group at a time, ``@indexes/indexes/<tiles>/<backbone>``: a snapshot and its files. Bringing
it up to date seals a new group, which shares the files of segments that did not change, and moves the name: readers of
the old one go on reading it. It is derived data: deleting it loses nothing.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import ConflictError, NotFoundError, UsageError, near
from histostore.index import life
from histostore.index.reader import IndexReader
from histostore.index.snapshot import Snapshot
from histostore.index.spec import IndexSpec
from histostore.progress import Stopwatch
from histostore.store.files import LocalFiles
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.index.spec import Device
    from histostore.store.groups import Group, GroupWriter
    from histostore.store.manifest import Ref
    from histostore.store.store import Store
    from histostore.view import View

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

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {k: getattr(self, k) for k in ("name", "done", "rows", "added", "removed", "recall", "bytes")} | {
            "segments": list(self.segments), "skipped": self.skipped, "digest": self.ref.digest,
            "seconds": dict(self.seconds),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Places:
    """Which ids an index gives to the rows of which slides."""

    starts: Mapping[str, int]
    """First id of a slide; its row r has the id start + r."""
    digests: Mapping[str, str]
    """Of the embeddings that were indexed."""
    next_id: int

    @classmethod
    def none(cls) -> Places:
        """Return those of an empty index."""
        return cls({}, {}, 0)

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> Places:
        """Read what a group keeps."""
        slides = attrs["slides"]
        return cls({s: v["start"] for s, v in slides.items()}, {s: v["embeddings"] for s, v in slides.items()},
                   int(attrs["next_id"]))  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return what a group keeps."""
        slides = {s: {"start": self.starts[s], "embeddings": self.digests[s]} for s in sorted(self.starts)}
        return {"slides": slides, "next_id": self.next_id}

    def ids(self, rows: View) -> NDArray[np.int64]:
        """Return the id of every row of a view; -1 for rows of slides that are not in it as they are now."""
        (name,) = rows.backbones
        out = []
        for part in rows.parts:
            local = np.arange(part.n_all, dtype=np.int64) if part.rows is None else part.rows
            known = self.digests.get(part.slide) == part.embeddings[name].digest
            out.append(self.starts[part.slide] + local if known else np.full(len(local), -1, dtype=np.int64))
        return np.concatenate(out) if out else np.zeros(0, dtype=np.int64)


class ById:
    """Embeddings of a view by the ids of an index: what it measures candidates on."""

    def __init__(self, rows: View, places: Places) -> None:
        (name,) = rows.backbones
        self._source = rows.lazy(name)
        ids = places.ids(rows)
        self._row = np.full(places.next_id, -1, dtype=np.int64)
        self._row[ids[ids >= 0]] = np.flatnonzero(ids >= 0)
        self.shape = (places.next_id, int(self._source.shape[1]))
        self.dtype = self._source.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Any) -> NDArray[Any]:
        rows = self._row[ids]
        if (rows < 0).any():
            raise NotFoundError("the index names rows that the store no longer has; bring it up to date: index")
        found: NDArray[Any] = self._source[rows]
        return found


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """A snapshot that can be searched, and where its rows lie."""

    name: str
    group: Group
    snapshot: Snapshot
    places: Places
    folder: Path

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

    Raises
    ------
    ConflictError
        The index is there with another spec, and `rebuild` is not asked for.
    """
    watch = Stopwatch()
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
    gone = [s for s, digest in places.digests.items() if now.get(s) != digest]
    new = [p for p in rows.parts if places.digests.get(p.slide) != now[p.slide]]
    if old is not None and not gone and not new and not compact:
        return _result(name, old.group.ref, "already there", old.snapshot, 0, 0, watch)
    with tempfile.TemporaryDirectory(prefix="histostore-index-") as made:
        folder = Path(made)
        if old is not None:
            _borrow(old, folder)
        with watch.timed("build"):
            fresh = [p.slide for p in new]
            snapshot, after, added, removed = _changed(rows, old, places, gone, fresh, spec, folder, device)
            if compact and old is not None:
                snapshot = life.compact(folder, snapshot, embeddings=ById(rows, after), device=device)
        if old is not None and snapshot == old.snapshot:
            return _result(name, old.group.ref, "already there", snapshot, 0, 0, watch)
        with watch.timed("write"):
            ref = _seal(store, name, snapshot, after, old, folder, backbone=rows.backbones[0],
                        tiles=embedded["tiles"], backbone_digest=embedded["backbone_digest"])  # fmt: skip
            expect = {ref.key: held.digest} if held is not None else None
            store.commit(INDEXES, [ref], replace=True, expect=expect)
    done = "built" if old is None else "compacted" if not (added or removed) else "updated"
    return _result(name, ref, done, snapshot, added, removed, watch)


def _changed(
    rows: View, old: OpenIndex | None, places: Places, gone: list[str], new: list[str], spec: IndexSpec | None,
    folder: Path, device: Device,
) -> tuple[Snapshot, Places, int, int]:  # fmt: skip
    """Return the snapshot with some slides deleted and others added, where its rows lie, and how many rows went."""
    (name,) = rows.backbones
    starts, digests, next_id = dict(places.starts), dict(places.digests), places.next_id
    removed = 0
    snapshot = old.snapshot if old is not None else None
    if snapshot is not None and gone:
        ends = sorted([*places.starts.values(), places.next_id])
        dead = [np.arange(starts[s], ends[ends.index(starts[s]) + 1]) for s in gone]
        deleted = life.delete(folder, snapshot, np.concatenate(dead))
        snapshot, removed = deleted.snapshot, deleted.deleted
    for slide in gone:
        del starts[slide], digests[slide]
    for part in rows.parts:
        if part.slide in new:
            starts[part.slide], digests[part.slide] = next_id, part.embeddings[name].digest
            next_id += part.n_all
    after = Places(starts, digests, next_id)
    if new:
        chosen = rows.of_slides(new)
        values, ids = chosen.lazy(name), after.ids(chosen)
        groups = np.repeat(np.arange(len(chosen.parts)), [len(p) for p in chosen.parts])
        if snapshot is None:
            snapshot = life.create(folder, values, spec or IndexSpec(), ids=ids, groups=groups, device=device)
        else:
            snapshot = life.append(folder, snapshot, values, ids=ids, groups=groups, device=device)
    assert snapshot is not None
    return snapshot, after, sum(len(p) for p in rows.parts if p.slide in new), removed


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
    return OpenIndex(name, group, snapshot, Places.of(group.attrs), _local(store, group, snapshot))


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
    writer.put_file(path.name, path.read_bytes())


def _borrow(old: OpenIndex, folder: Path) -> None:
    """Make the old snapshot's files visible in the folder where new ones are made."""
    for record in old.snapshot.files():
        (folder / record.name).symlink_to(old.folder / record.name)


def _local(store: Store, group: Group, snapshot: Snapshot) -> Path:
    """Return a local folder with the index's files: the group's own, or a copy of them."""
    if isinstance(store.files, LocalFiles):
        return store.files.root / group.ref.prefix
    folder = Path(tempfile.gettempdir()) / f"histostore-index-{group.ref.attempt}"
    folder.mkdir(exist_ok=True)
    for record in snapshot.files():
        if not (folder / record.name).exists():
            partial = folder / f".{record.name}.part"
            partial.write_bytes(group.bytes(record.name))
            partial.replace(folder / record.name)
    return folder


def _result(
    name: str, ref: Ref, done: str, snapshot: Snapshot, added: int, removed: int, watch: Stopwatch
) -> IndexResult:
    segments = tuple(f"{s.report.kind} {s.rows:,}" for s in snapshot.segments)
    skipped = sum(s.report.left_out for s in snapshot.segments)
    return IndexResult(name, ref, done, snapshot.live, added, removed, snapshot.recall, snapshot.size, segments,
                       skipped, watch.seconds)  # fmt: skip
