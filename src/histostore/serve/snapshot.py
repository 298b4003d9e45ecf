"""One state of a store: what a request reads does not change under it, and the next one sees what was committed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from histostore.store.manifest import Manifest, Ref, numbers, read_manifest
from histostore.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.groups import Group


@dataclass(frozen=True, slots=True)
class Snapshot(Store):
    """A store whose manifests were read once. Shared between threads; groups stay open."""

    manifests: Mapping[str, Manifest]
    _open: dict[Ref, Group] = field(default_factory=dict)

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


class Watched:
    """A store that is looked at again from time to time."""

    def __init__(self, store: Store, *, refresh_s: float) -> None:
        self._store = store
        self._refresh_s = refresh_s
        self._lock = threading.Lock()
        self._looked = -float("inf")
        self._now: Snapshot | None = None

    def snapshot(self, *, now: bool = False) -> Snapshot:
        """Return a snapshot that is at most `refresh_s` old, or of this moment; the same one while nothing changes."""
        with self._lock:
            if self._now is None or now or time.monotonic() - self._looked >= self._refresh_s:
                self._now = self._look(self._now)
                self._looked = time.monotonic()
            return self._now

    def _look(self, old: Snapshot | None) -> Snapshot:
        store, had = self._store, old.manifests if old is not None else {}
        newest = {owner: numbers(store.files, owner)[-1] for owner in store.owners()}
        if old is not None and newest == {owner: m.number for owner, m in had.items()}:
            return old
        manifests = {}
        for owner, number in newest.items():
            kept = had.get(owner)
            same = kept is not None and kept.number == number
            manifests[owner] = kept if same and kept is not None else read_manifest(store.files, owner, number)
        named = {ref for m in manifests.values() if not m.deleted for ref in m.entries.values()}
        still = {ref: group for ref, group in (dict(old._open) if old is not None else {}).items() if ref in named}
        return Snapshot(store.files, store.name, store.uuid, store.format, manifests, still)
