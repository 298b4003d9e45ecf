"""The commands that must be instant: they read JSON and import nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.cli.common import names, show, the_store
from histostore.cli.slides import show_slides
from histostore.inventory import slide_info, store_info
from histostore.store.store import create_store

if TYPE_CHECKING:
    import argparse


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
        one = slide_info(store, args.slide)
        show(one, _slide_text(one), args)
        return
    if args.where is not None or args.columns is not None:
        show_slides(store, args.where, names(args.columns), args)
        return
    value = store_info(store)
    slides, heads = [of["slide"] for of in value["slides"]], value["heads"]
    groups: dict[str, int] = {}
    for of in value["slides"]:
        for key in of["groups"]:
            groups[key] = groups.get(key, 0) + 1
    lines = [f"store '{store.name}' ({store.uri}), format {store.format}, {len(slides):,} slides"]
    lines += [f"  {key:<44} {n:>6,} slides" for key, n in sorted(groups.items())]
    lines += [f"  head {name}" for name in heads]
    if not args.json and 0 < len(slides) <= 40:
        lines.append("slides: " + ", ".join(slides))
    show(value, "\n".join(lines), args)


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
