"""``--dry-run``: what a command would make, how large it would be and how long it would take."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from histostore.cli.common import Failures, chosen_slides, names, show
from histostore.cli.streams import answer
from histostore.errors import HistostoreError, UsageError
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from histostore.protocols import Backbone
    from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
    from histostore.stages.estimate import Estimate, Spread
    from histostore.store.store import Store


def show_tiling(store: Store, spec: TileSpec, pixels: PixelSpec, args: argparse.Namespace) -> int:
    """Print what `tile` would take."""
    from histostore.stages.estimate import Probes, estimate_tiling

    probes = Probes()

    def one(slide: str) -> list[Estimate]:
        options: dict[str, Any] = {"name": args.name, "replace": args.replace, "read_threads": args.read_threads}
        return [estimate_tiling(store, slide, spec, pixels=pixels, probes=probes, **options)]

    return _each(store, chosen_slides(store, args), one, args)


def show_embedding(
    store: Store, slides: Sequence[str], backbones: Sequence[Backbone], spec: EmbeddingSpec, args: argparse.Namespace
) -> int:
    """Print what `embed` would take."""
    from histostore.stages.estimate import Probes, estimate_embedding

    probes = Probes()

    def one(slide: str) -> list[Estimate]:
        return estimate_embedding(
            store, slide, backbones, tiles=args.tiles, spec=spec, batch=args.batch, read_threads=args.read_threads,
            replace=args.replace, allow_mpp=args.allow_mpp, probes=probes,
        )  # fmt: skip

    return _each(store, slides, one, args)


def show_index(store: Store, args: argparse.Namespace) -> None:
    """Print what `index` would take."""
    from histostore.index.spec import IndexSpec
    from histostore.stages.estimate_index import estimate_index
    from histostore.stages.search import only_backbone

    if args.compact:
        raise UsageError("what --compact would take is not estimated; leave out --compact or --dry-run")
    spec = IndexSpec.of(kind=args.kind, metric=args.metric, recall=args.recall, max_bytes=args.max_bytes)
    found = estimate_index(
        store, backbone=args.backbone or only_backbone(store, args.tiles), tiles=args.tiles, slides=names(args.slides),
        spec=spec, name=args.name, rebuild=args.rebuild,
    )  # fmt: skip
    text = f"index '{found.name}' would be {found.done}"
    if found.kind is not None:
        text += f": {found.rows:,} rows as {found.kind}, {found.bytes / 1e6:,.1f} MB, {_time(found.seconds.to_json())}"
        text += f", up to {found.memory / 1e6:,.0f} MB of memory ({found.probed:,} rows tried)"
        text += f"; {found.note}" if found.note else ""
    text += f", rows of {found.removed:,} slides removed" if found.removed else ""
    free = _free(store)
    text += _room(free, found.bytes)
    show({**found.to_json(), "free": free}, f"{text}\nnothing was written", args)


def _each(store: Store, slides: Sequence[str], one: Callable[[str], list[Estimate]], args: argparse.Namespace) -> int:
    failures = Failures(len(slides), args)
    found: list[Estimate] = []
    for slide in slides:
        try:
            mine = one(slide)
            failures.passed()
        except HistostoreError as error:
            failures.add(slide, error)
            if failures.alike:
                break
            continue
        found += mine
        if not args.json:
            for estimate in mine:
                answer(_line(estimate))
    total: dict[str, Any] = {
        "slides": len({e.slide for e in found}), "tiles": sum(e.tiles for e in found if not _is_done(e)),
        "bytes": _sum([e.bytes for e in found]), "seconds": _sum([e.seconds for e in found]), "free": _free(store),
    }  # fmt: skip
    text = f"together {total['tiles']:,} tiles, {_bytes(total['bytes'])}, {_time(total['seconds'])}"
    text += _room(total["free"], total["bytes"][2])
    measured, more = ({e.slide for e in found if not _is_done(e) and bool(e.probed) == own} for own in (True, False))
    if measured and more:
        text += f"\nmeasured on the first {len(measured)} slides, the {len(more):,} others by proportion"
    text += "\nnothing was written; low and high are the fastest and slowest part of the probe, without fsync"
    show({"estimates": [e.to_json() for e in found], "total": total}, text, args)
    return failures.exit_code()


def _is_done(estimate: Estimate) -> bool:
    return estimate.seconds.high == 0


def _line(e: Estimate) -> str:
    if _is_done(e):
        return f"{e.slide}: {e.stage} {e.what}: {e.note}, {e.tiles:,} rows"
    text = (
        f"{e.slide}: {e.stage} {e.what}: {e.tiles:,} tiles, {_bytes(e.bytes.to_json())}, {_time(e.seconds.to_json())}"
    )
    return f"{text} ({e.note or f'{e.probed:,} tiles tried'})"


def _sum(spreads: Sequence[Spread]) -> list[float]:
    return [sum(values) for values in zip(*(s.to_json() for s in spreads), strict=True)] if spreads else [0.0] * 3


def _bytes(spread: Sequence[float]) -> str:
    low, middle, high = (value / 1e6 for value in spread)
    return f"{middle:,.1f} MB" if high - low < 0.01 * high else f"{middle:,.1f} MB ({low:,.1f} to {high:,.1f})"


def _time(spread: Sequence[float]) -> str:
    low, middle, high = spread
    unit, of = next((u for u in (("h", 3600.0), ("min", 60.0)) if middle >= 2 * u[1]), ("s", 1.0))
    return f"{middle / of:,.1f} {unit} ({low / of:,.1f} to {high / of:,.1f})"


def _room(free: int | None, wanted: float) -> str:
    """Say how many bytes are free, and whether that is enough; nothing of a store that has no disk."""
    if free is None:
        return ""
    return f"; {free / 1e9:,.1f} GB are free" + (": NOT ENOUGH" if wanted > free else "")


def _free(store: Store) -> int | None:
    return shutil.disk_usage(store.files.root).free if isinstance(store.files, LocalFiles) else None
