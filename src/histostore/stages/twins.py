"""Which slides have the same image or the same counts, to the byte: one section under two names is a leak."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.errors import HistostoreError
from histostore.store.catalog import look, worth_it

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store

WATCHED = {"source/image": ("image", "bytes"), "expression/counts": ("counts", "values")}
"""What it is of a slide, and what is the same where digests are."""


class Twins:
    """The images and counts of a store's slides, by digest.

    Manifests are looked at once, when first asked: of many slides through the catalog, which reads those that changed
    since it was kept; what is brought in through this object afterwards is remembered, what others bring in
    meanwhile is not seen. A digest is that of the group: of the image's bytes, and of the ids, genes and values of
    counts.

    Parameters
    ----------
    store
        Slides whose manifests are damaged are passed over: `verify` names them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._slides: dict[tuple[str, str], list[str]] | None = None
        """By group and digest: the slides that have it, in order."""

    def notes(self, slide: str, refs: Iterable[Ref]) -> tuple[str, ...]:
        """Return a line for each of the groups that other slides have too, and remember that `slide` has them."""
        if self._slides is None:
            self._slides = {}
            for manifest in self._manifests():
                for key in WATCHED.keys() & manifest.entries.keys():
                    self._slides.setdefault((key, manifest.entries[key].digest), []).append(manifest.owner)
        found = []
        for ref in refs:
            if ref.key not in WATCHED:
                continue
            there = self._slides.setdefault((ref.key, ref.digest), [])
            others = [other for other in there if other != slide]
            if others:
                more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
                what, same = WATCHED[ref.key]
                found.append(f"{slide} has the {what} of {others[0]}{more} (same {same}): is it one section?")
            if slide not in there:
                there.append(slide)
        return tuple(found)

    def _manifests(self) -> Iterator[Manifest]:
        if worth_it(self._store):
            catalog = look(self._store, contents=True)
            there = (o for o, row in catalog.owners.items() if row["number"] and not row["deleted"])
            yield from (catalog.known(owner).manifest for owner in there if not owner.startswith("@"))
            return
        for owner in self._store.owners():
            try:
                manifest = self._store.manifest(owner)
            except HistostoreError:
                continue
            if not owner.startswith("@") and not manifest.deleted:
                yield manifest
