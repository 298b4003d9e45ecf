"""The commands that find look-alikes: index, search, drift."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.cli.common import names, say_left_out, show, target, the_store
from histostore.cli.progress import Line
from histostore.cli.workers import client_of, wants_workers
from histostore.errors import UsageError

if TYPE_CHECKING:
    import argparse


def index(args: argparse.Namespace) -> None:
    """Build a search index, or bring it up to date."""
    from histostore import tl

    store = the_store(args, writing=not args.dry_run)
    spread = wants_workers(args)
    if args.dry_run:
        from histostore.cli.estimates import show_index

        show_index(store, args)
        return
    with client_of(args) if spread else nullcontext() as client:
        result = tl.index(
            store, args.backbone, kind=args.kind, metric=args.metric, tiles=args.tiles, slides=names(args.slides),
            name=args.name, rebuild=args.rebuild, compact=args.compact, device=args.device, recall=args.recall,
            max_bytes=args.max_bytes, client=client, progress=Line(),
        )  # fmt: skip
    text = f"index '{result.name}' {result.done}: {result.rows:,} rows ({', '.join(result.segments)})"
    text += f", recall@10 {result.recall:.3f}, {result.bytes / 1e6:,.1f} MB"
    for n, what in ((result.added, "added"), (result.removed, "removed"), (result.skipped, "without an embedding")):
        text += f", {n:,} {what}" if n else ""
    spent = sum(result.seconds.values())
    say_left_out(result.note)
    show(result.to_json(), text + (f" [{spent:.1f} s]" if spent else ""), args)


def drift(args: argparse.Namespace) -> None:
    """Compare two backbones on the same tiles."""
    from histostore import tl

    a, b = args.backbones
    found = tl.drift(the_store(args), a, b, tiles=args.tiles, k=args.k)
    shared = f"{found.overlap:.1%} of the {found.k} nearest shared, linear CKA {found.cka:.3f}"
    show(dataclasses.asdict(found), f"{a} and {b} on {found.rows:,} tiles: {shared}", args)


def search(args: argparse.Namespace) -> None:
    """Find look-alikes."""
    from histostore import tl

    store, output, drawn = the_store(args), target(args.output), target(args.gallery)
    if output is not None and output.suffix not in (".csv", ".h5ad"):
        raise UsageError(f"{output}: the name must end in .csv or .h5ad")
    if sum(v is not None for v in (args.image, args.spot, args.region)) != 1:
        raise UsageError("give one query: --slide with --spot or --region, or --image")
    spots = names(args.spot)
    column, most = _at_most(args.at_most)
    hits = tl.search(
        store, image=args.image, slide=args.slide, spot=spots[0] if spots and len(spots) == 1 else spots,
        region=_region(args.region), backbone=args.backbone, tiles=args.tiles, k=args.k, metric=args.metric,
        where=args.where, slides=names(args.slides), exclude_same=args.exclude_same,
        exclude_radius_um=args.exclude_radius_um, at_most_per=column, at_most=most, diversity=args.diversity,
        max_distance=args.max_distance, expressing=_genes(args.expressing), expression_weight=args.expression_weight,
        index=False if args.exact else args.index, columns=names(args.columns) or (),
    )  # fmt: skip
    if output is not None:
        if output.suffix == ".csv":
            hits.table.to_csv(output)
        else:
            from histostore.stages.export import write_adata

            write_adata(hits.to_adata(), output, overwrite=True, say=say_left_out)
    if drawn is not None:
        from histostore.pl import gallery

        if args.image is None and hits.single is None:
            raise UsageError("--gallery draws the answer to one spot or image")
        query = tl.read_image(args.image) if args.image is not None else hits.query_tile()
        gallery(query, hits.tiles(), hits.table, query_caption=hits.query, save=drawn)
    notes = [*hits.notes, *_few(len(hits.table), args.k * (len(spots) if spots else 1), args)]
    lines = [f"note: {note}" for note in notes]
    if len(hits.table):
        lines.insert(0, hits.table.reset_index().to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    say_left_out(hits.view.note())
    value = {
        "slides_left_out": dict(hits.view.left_out),
        "query": hits.query,
        "hits": hits.table.reset_index().to_dict("records"),
        "notes": notes,
    }
    show(value, "\n".join(lines), args)


def _few(found: int, wanted: int, args: argparse.Namespace) -> list[str]:
    """Say why there are fewer hits than were asked for."""
    if found >= wanted:
        return []
    filters = ("where", "slides", "exclude_same", "exclude_radius_um", "max_distance", "at_most")
    given = [f"--{name.replace('_', '-')}" for name in filters if getattr(args, name) not in (None, "")]
    why = f"{', '.join(given)} leave{'s' if len(given) == 1 else ''}" if given else "there are"
    return [f"no hits: {why} none" if not found else f"{found:,} of {wanted:,}: {why} no more"]


def _at_most(text: str | None) -> tuple[str | None, int]:
    if text is None:
        return None, 1
    column, _, most = text.partition(":")
    if not column or (most and not most.isdigit()) or most == "0":
        raise UsageError(f"--at-most is {text!r}: write it as COLUMN or COLUMN:N, like slide:2")
    return column, int(most or 1)


def _genes(text: str | None) -> list[str] | dict[str, float] | None:
    """Return genes; with how much each counts where that is said of one, and 1 for the others."""
    wanted = names(text)
    if wanted is None or not any("=" in gene for gene in wanted):
        return wanted
    found: dict[str, float] = {}
    for one in wanted:
        gene, equals, weight = one.rpartition("=") if "=" in one else (one, "=", "1")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not gene or not equals or not math.isfinite(value) or gene in found:
            raise UsageError(f"--expressing {one!r}: write GENE or GENE=WEIGHT, each gene once, like EPCAM=2,VIM=-1")
        found[gene] = value
    return found


def _region(text: str | None) -> Any:
    if text is None:
        return None
    if Path(text).suffix.lower() in (".geojson", ".json"):
        try:
            value = json.loads(Path(text).read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"--region {text}: {error}; give a GeoJSON file with one polygon") from None
        features = value.get("features", [value]) if isinstance(value, dict) else value
        if len(features) != 1:
            raise UsageError(f"--region {text} holds {len(features)} features: give one polygon")
        return features[0]
    try:
        return tuple(float(v) for v in text.split(","))
    except ValueError:
        raise UsageError(f"--region is {text!r}: write X0,Y0,X1,Y1 in level-0 pixels, or a GeoJSON file") from None
