"""What lies in a store under one owner: its manifests, its attempts, and what belongs to neither."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from histostore.errors import HistostoreError
from histostore.schema.kinds import STORE_LEVEL
from histostore.store.files import PARTIAL
from histostore.store.groups import DAMAGED, WORKING
from histostore.store.manifest import GROUP, is_manifest_name, manifest_folder, owner_folder, read_manifest
from histostore.store.receipts import RECEIPTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.files import Files
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store


@dataclass(frozen=True, slots=True)
class Found:
    """A file as the medium lists it."""

    size: int
    mtime: float


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """One attempt's folder and all files in it, by name below it."""

    owner: str
    prefix: str
    files: Mapping[str, Found]

    @property
    def sealed(self) -> bool:
        """Whether its header is there."""
        return GROUP in self.files

    @property
    def damaged(self) -> bool:
        """Whether it was put aside."""
        return DAMAGED in self.files

    @property
    def newest(self) -> float:
        """When anything in it was last written."""
        return max(f.mtime for f in self.files.values())

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(f.size for f in self.files.values())

    def leftovers(self) -> list[str]:
        """Return the working files that its writer had no time to remove."""
        return [n for n in self.files if n in WORKING or n.startswith(f"{RECEIPTS}/")]


@dataclass(slots=True)
class Survey:
    """All that lies under one owner."""

    owner: str
    manifests: dict[int, Manifest] = field(default_factory=dict)
    """Those that could be read, by number, in order."""
    unreadable: dict[int, HistostoreError] = field(default_factory=dict)
    """Those that could not."""
    manifest_times: dict[int, float] = field(default_factory=dict)
    manifest_sizes: dict[int, int] = field(default_factory=dict)
    attempts: dict[str, AttemptFolder] = field(default_factory=dict)
    """By prefix."""
    stray: dict[str, Found] = field(default_factory=dict)
    """Files outside manifests and attempts, by key."""

    @property
    def numbers(self) -> list[int]:
        """Numbers of all manifests, in order."""
        return sorted([*self.manifests, *self.unreadable])

    @property
    def newest(self) -> Manifest | None:
        """The manifest that readers take; None where there is none, or it cannot be read."""
        return self.manifests.get(self.numbers[-1]) if self.numbers else None

    def named(self) -> dict[str, tuple[Ref, list[int]]]:
        """Return the groups that any manifest names: by prefix, with the numbers of the manifests."""
        found: dict[str, tuple[Ref, list[int]]] = {}
        for number, manifest in sorted(self.manifests.items()):
            for ref in manifest.entries.values():
                found.setdefault(ref.prefix, (ref, []))[1].append(number)
        return found


def owners_of(store: Store) -> list[str]:
    """Return every owner that has anything in the store, committed or not, sorted."""
    folders = {name[:-1] for top in ("manifests", "slides") for name in store.files.children(top) if name[-1] == "/"}
    return sorted(folders | {o for o in STORE_LEVEL if store.files.children(owner_folder(o))})


def survey(files: Files, owner: str) -> Survey:
    """Look at everything under an owner. Damage is noted, not raised."""
    found = Survey(owner)
    folder = manifest_folder(owner)
    for key, size, mtime in files.walk(folder):
        name = key[len(folder) + 1 :]
        if not is_manifest_name(name):
            found.stray[key] = Found(size, mtime)
            continue
        number = int(name[:-5])
        found.manifest_times[number] = mtime
        found.manifest_sizes[number] = size
        try:
            found.manifests[number] = read_manifest(files, owner, number)
        except HistostoreError as error:
            found.unreadable[number] = error
    depth = 3 if owner.startswith("@") else 5
    attempts: dict[str, dict[str, Found]] = {}
    for key, size, mtime in files.walk(owner_folder(owner)):
        parts = key.split("/", depth)
        if len(parts) > depth:
            attempts.setdefault("/".join(parts[:depth]), {})[parts[depth]] = Found(size, mtime)
        else:
            found.stray[key] = Found(size, mtime)
    found.attempts = {prefix: AttemptFolder(owner, prefix, inside) for prefix, inside in attempts.items()}
    return found


def is_partial(name: str) -> bool:
    """Whether a file is what a killed writer left of one."""
    return name.rpartition("/")[2].startswith(PARTIAL)
