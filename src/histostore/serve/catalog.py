"""What a store holds, as JSON values: metadata and sizes, never where files lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore._version import __version__

if TYPE_CHECKING:
    from histostore.serve.snapshot import Snapshot
    from histostore.store.manifest import Manifest, Ref


def health(store: Snapshot) -> dict[str, Any]:
    """Return that the manifests could be read, and how many slides there are."""
    return {"status": "ok", "version": __version__, "store": store.name, "slides": len(store.slides())}


def slides(store: Snapshot, *, limit: int, offset: int) -> dict[str, Any]:
    """Return some of the slides, by id."""
    every = store.slides()
    shown = [_brief(store, store.slide(s)) for s in every[offset : offset + limit]]
    return {"slides": shown, "total": len(every), "offset": offset}


def slide(store: Snapshot, *, slide: str) -> dict[str, Any]:
    """Return one slide: metadata, sizes, tile sets and their embeddings."""
    manifest = store.slide(slide)
    source = store.group(manifest.find("source", "image"))
    height, width = source.array("thumbnail").shape[:2]
    return {
        **_brief(store, manifest),
        "width": int(source.attrs["width"]),
        "height": int(source.attrs["height"]),
        "thumbnail": {"width": width, "height": height},
        "tiles": [_tile_set(store, manifest, ref) for ref in manifest.of_kind("tiles")],
    }


def _brief(store: Snapshot, manifest: Manifest) -> dict[str, Any]:
    meta = store.group(manifest.find("meta", "meta")).attrs
    return {"slide": manifest.owner, "fields": dict(meta["fields"]), "mpp": float(meta["mpp"])}


def _tile_set(store: Snapshot, manifest: Manifest, ref: Ref) -> dict[str, Any]:
    group = store.group(ref)
    made = [r for r in manifest.of_kind("embeddings") if r.name.rpartition("/")[0] == ref.name]
    return {
        "name": ref.name,
        "tiles": group.rows,
        "px": int(group.attrs["out_px"]),
        "mpp": float(group.attrs["mpp"]),
        "edge0": float(group.attrs["edge0"]),
        "pixels": manifest.get("pixels", ref.name) is not None,
        "embeddings": [{"backbone": r.name.rpartition("/")[2], "dim": int(store.group(r).attrs["dim"])} for r in made],
    }
