"""The catalog: what newest manifests and group headers say, kept so that many slides are not read one by one.

It is derived and never a source of truth. Each answer first looks at every owner's folder of manifests (one scan, or
one listing of a bucket); whoever changed since is read again. Deleting the file loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.specs import canonical_json
from histostore.store.catalog_entries import Known, is_of, read_lines
from histostore.store.catalog_scan import Fresh, holds, states_of
from histostore.store.files import LocalFiles
from histostore.store.read_cache import FOLDER, SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from histostore.errors import HistostoreError
    from histostore.progress import Progress
    from histostore.store.store import Store
    from histostore.where import Column

NAME = "catalog.sqlite"
LEAST_OWNERS = 100
"""With fewer, manifests are read faster than a catalog is kept."""


@dataclass(slots=True)
class Catalog:
    """The owners of a store at one moment. Made by `look`."""

    store: Store
    owners: dict[str, dict[str, Any]]
    """By owner: ``number`` and ``identity`` of the newest manifest, ``deleted``, ``fields``, and how it was seen."""
    contents: dict[str, str]
    """By owner, only where asked for: a line of JSON on the manifest, and a line of tabs for each entry, its header."""
    refreshed: int
    """Owners that were read from their manifests this time."""
    unreadable: Mapping[str, HistostoreError]
    """Owners whose newest manifest could not be read, and why."""
    problem: str = ""
    path: Path | None = None
    kept: bool = False
    """Whether the file holds what is known now."""

    def slides(self) -> list[str]:
        """Return the slides that are there, sorted; a damaged manifest raises."""
        for owner, error in self.unreadable.items():
            if not owner.startswith("@"):
                raise error
        return [o for o, row in self.owners.items() if not o.startswith("@") and row["number"] and not row["deleted"]]

    def fields(self, slides: Sequence[str]) -> list[Mapping[str, str]]:
        """Return the metadata of slides; where a header was damaged it is read again, and raises."""
        return [self._fields(slide) for slide in slides]

    def _fields(self, slide: str) -> Mapping[str, str]:
        row = self.owners[slide]
        meta = self.store.manifest(slide).get("meta", "meta") if not row["whole"] else None
        found: Mapping[str, str] = row["fields"] if meta is None else self.store.header(meta)["attrs"].get("fields", {})
        return found

    def known(self, slide: str) -> Known:
        """Return what is known of one slide, or read its manifest where the catalog does not have it."""
        text = self.contents.get(slide)
        if text is None:
            return Known(self.store.slide(slide), {})
        row = self.owners[slide]
        return read_lines(slide, row["number"], text, deleted=row["deleted"])

    def dump(self) -> str:
        """Return all that the catalog says, a line per owner; the same however it came about."""
        lines = []
        for owner, row in self.owners.items():
            said = {key: value for key, value in row.items() if key not in ("seen", "settled")}
            lines.append(f"{owner}\t{canonical_json(said)}\t{canonical_json(self.contents.get(owner, ''))}\n")
        return "".join(lines)


def look(
    store: Store,
    *,
    contents: bool = False,
    rebuild: bool = False,
    keep: bool = True,
    progress: Progress | None = None,
) -> Catalog:
    """Return the catalog as the manifests are now; what changed since it was kept is read and kept.

    Parameters
    ----------
    contents
        Also entries and headers, not only what listings need.
    rebuild
        Believe nothing that was kept.
    keep
        Write what is new into the file; a file that cannot be written is done without.
    """
    from histostore.store.catalog_file import TABLES, CatalogFile

    present = states_of(store.files)
    path = catalog_path(store)
    file = CatalogFile(path, store.uuid) if path is not None else None
    read: dict[str, dict[str, str]] = {}
    if file is not None and not rebuild:
        read = file.read(TABLES if contents else TABLES[:1], len(present))
        if file.problem:  # the file is made anew, of what is left of it
            contents, read = True, file.read(TABLES, len(present))
    problem = file.problem if file is not None else ""
    if problem and progress is not None:
        progress.say(problem)
    there, texts = read.get("owners", {}), read.get("contents", {})
    old = {owner: row for owner, row in _parsed(there).items() if owner in present}
    if contents:
        old = {owner: row for owner, row in old.items() if owner in texts and is_of(texts[owner], row["identity"])}
    fresh = Fresh(store.files)
    fresh.read_all({owner: (state, old.get(owner)) for owner, state in present.items() if not holds(old, owner, state)})
    gone = [owner for owner in there if owner not in present or owner in fresh.unreadable]
    whole = rebuild or bool(problem)
    kept = not (fresh.rows or gone or whole)
    if file is not None and keep and not kept:
        rest = {o: row for o, row in old.items() if o not in fresh.unreadable} if whole else {}
        kept = file.write(_texts(rest | fresh.rows, {o: texts[o] for o in rest} | fresh.contents), gone, whole=whole)
    rows = old | fresh.rows
    return Catalog(
        store=store,
        owners={o: rows[o] for o in sorted(rows) if o not in fresh.unreadable},
        contents=texts | fresh.contents,
        refreshed=len(fresh.rows),
        unreadable=fresh.unreadable,
        problem=problem,
        path=path,
        kept=kept and file is not None,
    )


def known_slides(store: Store, slides: Sequence[str] | None = None) -> list[Known]:
    """Return the newest manifests of slides (all of them by default), with the headers that a catalog has.

    Raises
    ------
    NotFoundError
        There is no such slide.
    """
    many = len(slides) >= LEAST_OWNERS if slides is not None else worth_it(store)
    if not many:
        return [Known(store.slide(s), {}) for s in (slides if slides is not None else store.slides())]
    catalog = look(store, contents=True)
    there = catalog.slides()
    if slides is None:
        return [catalog.known(slide) for slide in there]
    have = set(there)
    return [catalog.known(s) if s in have else Known(store.slide(s), {}) for s in slides]


def slides_where(store: Store, text: str) -> list[str]:
    """Return the slides whose metadata pass a filter, sorted; the columns are ``slide`` and the metadata fields.

    Raises
    ------
    NotFoundError
        No slide has a field of that name; near names are suggested.
    """
    import numpy as np  # `info` without a filter does without

    from histostore.where import Field, Where, lookup_in

    condition = Where.parse(text)
    catalog = look(store, keep=worth_it(store))
    slides = catalog.slides()
    fields = catalog.fields(slides)
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for of in fields for name in of):
        texts = [of.get(name) for of in fields]
        columns[name] = Field(name, texts).column(np.array(texts, dtype=object))
    columns["slide"] = np.array(slides, dtype=object)
    passed = condition.mask(len(slides), lookup_in(columns))
    return [slide for slide, ok in zip(slides, passed.tolist(), strict=True) if ok]


def worth_it(store: Store) -> bool:
    """Whether a store has so many slides that a catalog is faster than its manifests."""
    if not isinstance(store.files, LocalFiles):
        return catalog_path(store) is not None
    try:
        with os.scandir(store.files.root / "manifests") as found:
            return sum(1 for _ in found) >= LEAST_OWNERS
    except (FileNotFoundError, NotADirectoryError):
        return False


def catalog_path(store: Store) -> Path | None:
    """Return where a store's catalog is kept: beside STORE.json, or of a bucket in the user's cache; None for none."""
    if isinstance(store.files, LocalFiles):
        return store.files.root / NAME
    if os.environ.get(SIZE) == "0":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = Path(os.environ.get(FOLDER) or home / "histostore").expanduser() / "catalogs"
    return folder / f"{store.uuid}-{hashlib.sha256(store.uri.encode()).hexdigest()[:8]}.sqlite"


def _texts(rows: Mapping[str, Any], contents: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """Return rows as the file holds them."""
    return {"owners": {owner: canonical_json(row) for owner, row in rows.items()}, "contents": contents}


def _parsed(rows: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    values: Iterable[dict[str, Any]] = json.loads(f"[{','.join(rows.values())}]")
    return dict(zip(rows, values, strict=True))
