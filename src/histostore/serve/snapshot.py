"""One state of a store: what a request reads does not change under it, and the next one sees what was committed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from histostore.errors import StorageError
from histostore.opening import check_alike
from histostore.stages.search import only_backbone
from histostore.store.catalog import look, worth_it
from histostore.store.catalog_entries import Known
from histostore.store.catalog_scan import states_of
from histostore.store.manifest import Manifest, Ref, numbers, read_manifest
from histostore.store.store import HEADER, Store
from histostore.view import view_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.store.catalog_entries import Header
    from histostore.store.catalog_scan import State
    from histostore.store.groups import Group
    from histostore.view import View

    type Which = tuple[str | None, str | None, tuple[str, ...] | None]

VIEWS = 4
"""Views that a snapshot keeps open: of 10,000 slides one takes 10 MB."""


@dataclass(frozen=True, slots=True)
class Snapshot(Store):
    """A store whose manifests were read once. Shared between threads; groups stay open."""

    manifests: Mapping[str, Manifest]
    headers: Mapping[str, Mapping[str, Header]] = field(default_factory=dict)
    """By owner, what the catalog knows of the groups of that manifest."""
    _open: dict[Ref, Group] = field(default_factory=dict)
    _views: OrderedDict[Which, View] = field(default_factory=OrderedDict)
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def slides(self) -> list[str]:
        """Return the slides that were there, sorted."""
        return sorted(o for o, m in self.manifests.items() if not o.startswith("@") and not m.deleted)

    def owners(self) -> list[str]:
        """Return all that had a manifest, sorted."""
        return sorted(self.manifests)

    def manifest(self, owner: str, number: int | None = None) -> Manifest:
        """Return the manifest as it was; an older one by number is read."""
        if number is not None:
            return Store.manifest(self, owner, number)
        return self.manifests.get(owner) or Manifest(owner, 0, {})

    def group(self, ref: Ref) -> Group:
        """Return a group, opened once."""
        found = self._open.get(ref)
        if found is None:
            found = self._open[ref] = Store.group(self, ref)
        return found

    def rows(self, *, backbone: str | None, tiles: str | None, slides: Sequence[str] | None) -> View:
        """Return a view to search in, opened once; what a search reads of it is the search's own and not kept.

        Errors as of `histostore.view.view`, and where there are several backbones and none is named.
        """
        which = (backbone, tiles, tuple(slides) if slides is not None else None)
        with self._opening:
            found = self._views.get(which)
            if found is None:
                name = backbone or only_backbone(self, tiles)
                chosen = slides if slides is not None else self.slides()
                known = (Known(self.slide(s), self.headers.get(s, {})) for s in chosen)
                found = view_of(self, known, backbones=[name], tiles=tiles, named=slides is not None)
                check_alike(found.parts)
                self._views[which] = found
                for part in found.parts:  # known to all who search in it
                    len(part)
                    if "meta/meta" in part.headers:
                        _ = part.meta
                if len(self._views) > VIEWS:
                    self._views.popitem(last=False)
            self._views.move_to_end(which)
        return found.forgotten()


class Watched:
    """A store that is looked at again from time to time."""

    def __init__(self, store: Store, *, refresh_s: float) -> None:
        self._store = store
        self._refresh_s = refresh_s
        self._lock = threading.Lock()
        self._looked = -float("inf")
        self._states: Mapping[str, State] = {}
        self._now: Snapshot | None = None

    def snapshot(self, *, now: bool = False) -> Snapshot:
        """Return a snapshot that is at most `refresh_s` old, or of this moment; the same one while nothing changes."""
        with self._lock:
            if self._now is None or now or time.monotonic() - self._looked >= self._refresh_s:
                states = self._states_now()  # before what they are the states of is read
                self._now = self._first(states) if self._now is None else self._next(self._now, states)
                self._states = states
                self._looked = time.monotonic()
            return self._now

    def _states_now(self) -> Mapping[str, State]:
        states, files = states_of(self._store.files), self._store.files
        if not states and files.size(HEADER) is None:  # no folder of manifests: a store is empty, or not there
            raise StorageError(f"{files.uri}: the store is no longer there (no {HEADER})")
        return states

    def _first(self, states: Mapping[str, State]) -> Snapshot:
        store = self._store
        manifests: dict[str, Manifest] = {}
        headers: dict[str, Mapping[str, Header]] = {}
        if worth_it(store):
            catalog = look(store, contents=True)
            for error in catalog.unreadable.values():
                raise error
            for owner in catalog.contents.keys() & catalog.owners.keys():
                manifests[owner], headers[owner] = catalog.known(owner)
        for owner in states.keys() - manifests.keys():
            manifests[owner] = read_manifest(store.files, owner)
        manifests = {owner: m for owner, m in manifests.items() if m.number}
        return Snapshot(store.files, store.name, store.uuid, store.format, manifests, headers)

    def _next(self, old: Snapshot, states: Mapping[str, State]) -> Snapshot:
        """Return the old snapshot where it is the state still; else a new one that keeps what did not change."""
        store, files = self._store, self._store.files
        manifests = {owner: m for owner, m in old.manifests.items() if owner in states}
        for owner, state in states.items():
            before = self._states.get(owner)
            if before is not None and before.settled and before.seen == state.seen:
                continue
            newest = (numbers(files, owner) or [0])[-1]
            if newest and (owner not in manifests or manifests[owner].number != newest):
                manifests[owner] = read_manifest(files, owner, newest)
        if manifests.keys() == old.manifests.keys() and all(m is old.manifests[o] for o, m in manifests.items()):
            return old
        headers = {o: h for o, h in old.headers.items() if manifests.get(o) is old.manifests[o]}
        still = {ref: group for ref, group in dict(old._open).items() if _names(manifests.get(ref.owner), ref)}
        return Snapshot(files, store.name, store.uuid, store.format, manifests, headers, still)


def _names(manifest: Manifest | None, ref: Ref) -> bool:
    return manifest is not None and not manifest.deleted and manifest.entries.get(ref.key) == ref
