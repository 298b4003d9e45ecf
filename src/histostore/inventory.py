"""What there is: in a store, of one slide, and which backbones. Reads JSON alone, and imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.errors import UsageError
from histostore.ids import each_once
from histostore.store.catalog import known_slides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histostore.store.store import Store


def store_info(store: Store) -> dict[str, Any]:
    """Return what a store holds.

    Returns
    -------
    dict
        ``store`` (where it lies), ``name``, ``uuid``, ``format``, ``heads`` (names), and ``slides``: per slide its id,
        the number of its ``manifest`` and its ``groups``, like ``tiles/spots``.
    """
    slides = [
        {"slide": manifest.owner, "manifest": manifest.number, "groups": list(manifest.entries)}
        for manifest, _ in known_slides(store)
    ]
    heads = [r.name for r in store.manifest("@heads").of_kind("heads")]
    return {
        "store": store.uri, "name": store.name, "uuid": store.uuid, "format": store.format,
        "slides": slides, "heads": heads,
    }  # fmt: skip


def slide_info(store: Store, slide: str) -> dict[str, Any]:
    """Return what a store holds of one slide.

    Returns
    -------
    dict
        ``slide``, the number of its ``manifest`` and when it was ``written``, and ``groups``: by ``kind/name`` their
        digest, rows, bytes, attributes and the engine that made them.

    Raises
    ------
    NotFoundError
        There is no such slide; near names are suggested.
    """
    manifest = store.slide(slide)
    groups = {}
    for key, ref in sorted(manifest.entries.items()):
        header = store.header(ref)
        groups[key] = {
            "digest": ref.digest,
            "rows": header["rows"],
            "bytes": sum(n for n, _ in header["files"].values()),
            "attrs": {k: v for k, v in header["attrs"].items() if k not in ("properties", "categories")},
            "engine": header["engine"],
        }
    return {"slide": slide, "manifest": manifest.number, "written": manifest.written, "groups": groups}


def backbones_used(store: Store) -> dict[str, int]:
    """Return how many slides have embeddings of each backbone, by its name."""
    found: dict[str, int] = {}
    for slide in store.slides():
        for ref in store.slide(slide).of_kind("embeddings"):
            short = ref.name.rpartition("/")[2]
            found[short] = found.get(short, 0) + 1
    return found


def backbones_known(used: dict[str, int]) -> list[dict[str, Any]]:
    """Return the catalogue of backbones, one line each, with whether it can be used here and on how many slides it is.

    Parameters
    ----------
    used
        As `backbones_used` returns it; empty without a store.
    """
    from histostore.backbones.catalog import availability, known  # what a store holds is told without it

    return [
        {
            "name": r.name, "source": r.source, "dim": r.dim, "input_px": r.input_px, "mpp": r.mpp,
            "licence": r.licence, "gated": r.gated, "available": availability(r), "slides": used.get(r.name, 0),
        }
        for r in known()
    ]  # fmt: skip


def chosen_slides(store: Store, slides: str | Sequence[str] | None) -> list[str]:
    """Return the slides that are asked for, or all, checked to exist before any work.

    Raises
    ------
    UsageError
        The store has no slides; none is asked for, as an empty list does not mean all; or one is asked for twice.
    NotFoundError
        There is no such slide; near names are suggested.
    """
    chosen = store.slides() if slides is None else each_once(slides)
    if not chosen:
        raise UsageError(f"no slides in {store.uri}; bring some in with `histostore ingest`")
    for slide in chosen:
        store.slide(slide)
    return chosen
