"""Damaged groups put aside, so that the stage that makes them can make them again. Nothing is deleted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histostore.errors import CorruptionError, NotFoundError
from histostore.schema.kinds import check_format
from histostore.store.groups import DAMAGED

if TYPE_CHECKING:
    from histostore.store.manifest import Commit, Ref
    from histostore.store.store import Store
    from histostore.store.verify import VerifyReport

REMADE_BY = {
    "tiles": "tile",
    "pixels": "tile",
    "embeddings": "embed",
    "predictions": "predict",
    "heads": "fit",
    "backbones": "finetune",
    "indexes": "index",
}
"""Derived kinds, and the command that makes each again from what is upstream."""

IMPORTED_BY = {
    "source": "ingest",
    "meta": "ingest",
    "points": "ingest",
    "expression": "ingest",
    "labels": "annotate",
    "regions": "annotate",
}
"""Kinds that came from files outside the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redo:
    """One group that must be made again."""

    ref: Ref
    command: str
    """The command that makes it: ``tile``, ``embed``, …, or ``ingest`` and ``annotate`` for imported ones."""
    quarantined: bool
    """Whether it was put aside. One that was not is still named, and its command would find it there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What `repair` put aside, and what to run next."""

    redo: tuple[Redo, ...]
    """In the order to run them in: upstream first."""
    beyond: tuple[str, ...]
    """Damage that no command undoes (a manifest, the store's header, a group of the past): one line each."""

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands to run, upstream first, each once."""
        return tuple(dict.fromkeys(r.command for r in self.redo))


def quarantine(store: Store, ref: Ref, *, why: str = "") -> Commit:
    """Publish a manifest without a group, and mark its attempt as damaged.

    The bytes stay, for a person to look at and for older manifests. The stage that makes the group no longer finds it,
    and makes it as a new attempt: the marked one is never adopted.

    Raises
    ------
    NotFoundError
        The newest manifest does not name that attempt.
    """
    check_format(store.format, where=store.uri, writing=True)
    entries = store.manifest(ref.owner).entries
    keys = [key for key, found in entries.items() if found.prefix == ref.prefix]
    if not keys:
        raise NotFoundError(f"the newest manifest of '{ref.owner}' does not name {ref.kind} '{ref.name}' as it was")
    store.files.put(f"{ref.prefix}/{DAMAGED}", json.dumps({"why": why}).encode())
    return store.commit(ref.owner, [], remove=keys, expect=dict.fromkeys(keys, ref.digest))


def repair(store: Store, report: VerifyReport, *, imported: bool = False) -> RepairReport:
    """Put aside every damaged group that can be made again, and say by which commands.

    Parameters
    ----------
    report
        What `verify` found just before.
    imported
        Put aside groups that came from files outside the store too: they are lost to readers until those files are
        ingested again. Without it they are listed and left as they are.
    """
    order = [*IMPORTED_BY, *REMADE_BY]
    redo = []
    for ref in sorted(report.damaged(), key=lambda r: (order.index(r.kind), r.owner, r.name)):
        command = REMADE_BY.get(ref.kind) or ("tile" if _is_grid(store, ref) else None)
        if ref.kind in ("tiles", "embeddings") and _is_imported(store, ref):
            command = None
        aside = command is not None or imported
        if aside:
            texts = [f"{p.path}: {p.text}" for p in report.errors if p.ref is not None and p.ref.prefix == ref.prefix]
            quarantine(store, ref, why="; ".join(texts[:5]))
        redo.append(Redo(ref=ref, command=command or IMPORTED_BY.get(ref.kind, "import"), quarantined=aside))
    beyond = tuple(f"{p.path}: {p.text}" for p in report.errors if p.ref is None or not p.current)
    return RepairReport(redo=tuple(redo), beyond=beyond)


def _is_imported(store: Store, ref: Ref) -> bool:
    """Whether tiles or embeddings came from another tool's files."""
    try:
        header = store.header(ref)
    except CorruptionError:
        return False
    return "imported" in header["attrs"] or str(header["attrs"].get("backbone_digest", "")).startswith("imported:")


def _is_grid(store: Store, ref: Ref) -> bool:
    """Whether some points are the centres of a grid, which `tile` plans together with its tiles."""
    tiles = store.manifest(ref.owner).get("tiles", ref.name) if ref.kind == "points" else None
    if tiles is None:
        return False
    try:
        return bool(store.header(tiles)["spec"].get("at") == "grid")
    except CorruptionError:
        return False
