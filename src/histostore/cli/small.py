"""The commands that must be instant: they read JSON and import nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.cli.common import names, show, the_store
from histostore.cli.slides import show_slides
from histostore.store.catalog import known_slides
from histostore.store.store import create_store

if TYPE_CHECKING:
    import argparse

    from histostore.store.store import Store


def init(args: argparse.Namespace) -> None:
    """Make an empty store."""
    store = create_store(args.store, name=args.name)
    show(
        {"store": store.uri, "name": store.name, "uuid": store.uuid}, f"made store '{store.name}' at {store.uri}", args
    )


def info(args: argparse.Namespace) -> None:
    """Say what a store holds."""
    store = the_store(args)
    if args.slide is not None:
        one = _slide_info(store, args.slide)
        show(one, _slide_text(one), args)
        return
    if args.where is not None or args.columns is not None:
        show_slides(store, args.where, names(args.columns), args)
        return
    known = known_slides(store)
    slides = [k.manifest.owner for k in known]
    groups: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for manifest, _ in known:
        keys = list(manifest.entries)
        for key in keys:
            groups[key] = groups.get(key, 0) + 1
        rows.append({"slide": manifest.owner, "manifest": manifest.number, "groups": keys})
    heads = [r.name for r in store.manifest("@heads").of_kind("heads")]
    value = {"store": store.uri, "name": store.name, "uuid": store.uuid, "format": store.format,
             "slides": rows, "heads": heads}  # fmt: skip
    lines = [f"store '{store.name}' ({store.uri}), format {store.format}, {len(slides):,} slides"]
    lines += [f"  {key:<44} {n:>6,} slides" for key, n in sorted(groups.items())]
    lines += [f"  head {name}" for name in heads]
    if not args.json and 0 < len(slides) <= 40:
        lines.append("slides: " + ", ".join(slides))
    show(value, "\n".join(lines), args)


def _slide_info(store: Store, slide: str) -> dict[str, Any]:
    manifest = store.slide(slide)
    groups = {}
    for key, ref in sorted(manifest.entries.items()):
        header = store.header(ref)
        size = sum(n for n, _ in header["files"].values())
        attrs = {k: v for k, v in header["attrs"].items() if k not in ("properties", "categories")}
        groups[key] = {
            "digest": ref.digest,
            "rows": header["rows"],
            "bytes": size,
            "attrs": attrs,
            "engine": header["engine"],
        }
    return {"slide": slide, "manifest": manifest.number, "written": manifest.written, "groups": groups}


def _slide_text(value: dict[str, Any]) -> str:
    lines = [f"slide '{value['slide']}', version {value['manifest']} of {value['written']}"]
    for key, group in value["groups"].items():
        lines.append(f"  {key:<44} {group['rows']:>8,} rows {group['bytes'] / 1e6:>9.1f} MB  {group['digest'][:8]}")
        kind = key.split("/")[0]
        if kind == "meta":
            fields = ", ".join(f"{k}={v}" for k, v in group["attrs"]["fields"].items())
            lines.append(f"    mpp {group['attrs']['mpp']:g} ({group['attrs']['mpp_origin']}); {fields}")
        if kind == "source":
            a = group["attrs"]
            lines.append(f"    {a['uri']}: {a['width']:,} x {a['height']:,} px, read by {a['reader']}")
        if kind in ("pixels", "embeddings"):
            lines.append("    " + ", ".join(f"{n:,} {s}" for s, n in group["attrs"]["status"].items() if n))
    return "\n".join(lines)
