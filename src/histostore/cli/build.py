"""The commands that build a store: ingest, annotate, tile, embed."""

from __future__ import annotations

import time
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.cli.common import check_somewhere, chosen_slides, each, names, pairs, show, show_stage, the_store
from histostore.cli.progress import Line
from histostore.cli.workers import client_of, show_each, wants_workers
from histostore.errors import UsageError, near
from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from histostore.io.sheet import BadRow, Sample
    from histostore.protocols import Backbone
    from histostore.stages.result import StageResult
    from histostore.store.store import Store

CHUNK_ROWS = 256
"""Rows of embeddings per checked chunk."""
OF_ONE_SLIDE = (
    "image", "image_folder", "mpp", "mag", "st_counts", "st_spots", "visium", "anndata", "points", "obs", "geojson",
    "meta",
)  # fmt: skip
"""Options of `ingest` that a sheet has as columns."""


def ingest(args: argparse.Namespace) -> int:
    """Bring slides in."""
    from histostore.io.sheet import BadRow
    from histostore.stages.ingest import IngestSpec
    from histostore.stages.ingest import ingest as run
    from histostore.stages.twins import Twins

    store, line = the_store(args, writing=True), Line()
    spec = IngestSpec(
        min_match=args.min_match, drop_off_image=args.drop_off_image, allow_normalised=args.allow_normalised,
        allow_off_tissue=args.allow_off_tissue, force_mpp=args.force_mpp, targeted=args.targeted,
    )  # fmt: skip
    backbones = _backbones(store, args.embed) if args.embed else []
    if backbones and args.px is None:
        raise UsageError("--embed tiles at spots: give their size with --px")

    twins = Twins(store)

    def one(sample: Sample | BadRow) -> Iterable[StageResult]:
        if isinstance(sample, BadRow):
            raise sample.error
        yield run(store, sample, spec, twins=twins, progress=line)
        if backbones:
            yield from _tile_and_embed(store, sample.slide, args.px, backbones, line)

    return each([(s.slide, partial(one, s)) for s in _samples(args)], args, own_inputs=True)


def _samples(args: argparse.Namespace) -> Sequence[Sample | BadRow]:
    from histostore.io.sheet import Sample, read_rows
    from histostore.slides.remote import is_remote

    if (args.sheet is None) == (args.slide is None):
        raise UsageError("give --sheet, or one slide with --slide and --image")
    if args.sheet is not None:
        if unheard := [f"--{name.replace('_', '-')}" for name in OF_ONE_SLIDE if getattr(args, name)]:
            raise UsageError(f"a sheet says what belongs to its slides: write {', '.join(unheard)} there")
        return read_rows(args.sheet)
    if (args.image is None) == (args.image_folder is None):
        raise UsageError(f"slide '{args.slide}' needs its --image, or an --image-folder")

    image = args.image or args.image_folder

    def path(value: str | None) -> Path | None:
        return Path(value) if value is not None else None

    return [
        Sample(
            slide=args.slide, image=image if is_remote(image) else Path(image),
            image_folder=args.image_folder is not None, mpp=args.mpp, mag=args.mag, st_counts=path(args.st_counts),
            st_spots=path(args.st_spots), visium=path(args.visium), anndata=path(args.anndata),
            points=path(args.points), obs=path(args.obs), geojson=path(args.geojson),
            meta=pairs(args.meta, "--meta"),
        )
    ]  # fmt: skip


def _tile_and_embed(store: Store, slide: str, px: int, backbones: list[Backbone], line: Line) -> Iterable[StageResult]:
    from histostore.stages.embed import embed as embed_stage
    from histostore.stages.embed import embed_in_pass
    from histostore.stages.tile import tile as tile_stage

    in_pass = embed_in_pass(store, slide, backbones, progress=line)
    yield tile_stage(store, slide, TileSpec.at_spots(px=px), progress=line, embed_with=in_pass)
    yield from embed_stage(store, slide, backbones, tiles="spots", progress=line)


def annotate(args: argparse.Namespace) -> int:
    """Add labels and metadata."""
    from histostore.stages import annotate as stage

    store = the_store(args, writing=True)
    kinds = ("table", "geojson", "obs", "review")
    asked = [n for n in kinds if getattr(args, n) is not None] + (["set"] if args.set else [])
    if len(asked) != 1:
        raise UsageError("give one of --table, --geojson, --obs, --review and --set")
    if asked[0] not in ("table", "review") and args.slide is None:
        raise UsageError(f"--{asked[0]} needs --slide")
    of_option = {
        "by": ["table"], "classes": ["review"], "slide": ["geojson", "obs", "set"],
        "name": ["geojson", "obs", "review"],
    }  # fmt: skip
    for option, of in of_option.items():
        if getattr(args, option) is not None and asked[0] not in of:
            raise UsageError(f"--{option} is of {' or '.join(f'--{kind}' for kind in of)}, not of --{asked[0]}")
    if args.table is not None:
        results = stage.annotate_table(store, args.table, by=args.by)
    elif args.review is not None:
        from histostore.stages.review_labels import REVIEW, annotate_review

        results = annotate_review(
            store, Path(args.review), name=args.name or REVIEW, classes=names(args.classes) or (),
            min_match=args.min_match, replace=args.replace,
        )  # fmt: skip
    elif args.geojson is not None:
        results = [stage.annotate_regions(store, args.slide, args.geojson, name=args.name, replace=args.replace)]
    elif args.obs is not None:
        results = [stage.annotate_obs(store, args.slide, args.obs, name=args.name, replace=args.replace)]
    else:
        results = [stage.annotate_meta(store, args.slide, pairs(args.set, "--set"))]
    for result in results:
        show_stage(result, args)
    return 0


def tile(args: argparse.Namespace) -> int:
    """Cut tiles."""
    from histostore.stages.tile import tile as run

    store, line = the_store(args, writing=True), Line()
    spec, pixels = _tile_spec(args), PixelSpec(codec=args.codec, quality=args.quality, shard_tiles=args.shard_tiles)
    slides = chosen_slides(store, args)
    check_somewhere(store, slides, "points", None if args.grid else args.at)
    check_somewhere(store, slides, "regions", args.region)
    if args.dry_run:
        from histostore.cli.estimates import show_tiling

        return show_tiling(store, spec, pixels, args)

    how: dict[str, Any] = {
        "pixels": pixels, "name": args.name, "replace": args.replace,
        "read_batch": args.read_batch, "read_threads": args.read_threads,
    }  # fmt: skip

    def draw(slide: str) -> None:
        if args.picture is not None:
            from histostore.stages.pictures import tile_picture

            tile_picture(store, slide, args.name or spec.default_name, Path(args.picture) / f"{slide}.png")

    if wants_workers(args):
        with client_of(args) as client:
            from histostore.scale.run import tile_slides

            outcomes = tile_slides(client, store, slides, spec, progress=line, **how)
            return show_each(outcomes, len(slides), args, then=draw)

    def one(slide: str) -> Iterable[StageResult]:
        yield run(store, slide, spec, progress=line, **how)
        draw(slide)

    return each([(s, partial(one, s)) for s in slides], args)


def _tile_spec(args: argparse.Namespace) -> TileSpec:
    options: dict[str, Any] = {
        "px": args.px, "um": args.um, "mpp": args.mpp, "mag": args.mag, "overlap": args.overlap,
        "max_tiles": args.max_tiles, "seed": args.seed, "allow_upsample": args.allow_upsample,
        "stain": args.stain, "regions": args.region, "in_tissue": not args.all_spots,
    }  # fmt: skip
    if args.min_tissue is not None:
        options["min_tissue"] = args.min_tissue
    if args.edge is not None:
        options["edge"] = args.edge
    if args.grid:
        return TileSpec.grid(**options)
    if args.at == "spots":
        return TileSpec.at_spots(**options)
    return TileSpec.at_points(args.at, **options)


def _backbones(store: Store, text: str, **options: Any) -> list[Backbone]:
    from histostore.backbones.tuned import load_for

    return [load_for(store, name, **options) for name in names(text) or []]


def finetune(args: argparse.Namespace) -> None:
    """Tune a backbone on stored tiles."""
    from histostore import tl

    store = the_store(args, writing=True)
    result = tl.finetune(
        store, args.backbone, _columns(args.target), save=args.save, tiles=args.tiles, slides=names(args.slides),
        where=args.where, read_threads=args.read_threads, device=args.device, allow_mpp=args.allow_mpp,
        replace=args.replace, progress=Line(), **_finetune_options(args),
    )  # fmt: skip
    curves = result.curves
    left = ", ".join(f"{n:,} {what} left out" for what, n in result.left_out.items() if n)
    kept = curves["best_epoch"]
    loss = curves["validation_loss"][kept - 1]
    of = f"epoch {kept} of {len(curves['validation_loss'])} kept: validation loss {loss:.4g}"
    lines = [
        f"backbone '{result.name}' {result.done} ({result.backbone.spec.digest[:8]}), {of}",
        f"split: {result.record['split']}{'; ' + left if left else ''}",
        f"use it: histostore embed {args.store} --backbone {result.name}",
    ]
    show(result.to_json(), "\n".join(lines), args)


def _columns(text: str) -> str | list[str]:
    found = names(text) or [text]
    return found[0] if len(found) == 1 else found


def _finetune_options(args: argparse.Namespace) -> dict[str, Any]:
    from histostore.backbones.finetune_spec import AugmentSpec, FinetuneSpec
    from histostore.heads.registry import parse_options

    given = dict(parse_options(args.set))
    known = {f.name for of in (FinetuneSpec, AugmentSpec) for f in fields(of)} - {"backbone", "augment"}
    if unknown := sorted(given.keys() - known):
        raise UsageError(f"fine-tuning has no setting '{unknown[0]}'{near(unknown[0], known)}")
    if args.blocks != "all" and not args.blocks.isdigit():
        raise UsageError(f"--blocks is {args.blocks!r}: give a number, or all")
    return {
        "blocks": args.blocks if args.blocks == "all" else int(args.blocks),
        "by": args.by,
        "test": tuple(names(args.test) or ()),
        "allow_same_patient": args.allow_same_patient,
        "missing": "leave-out" if args.leave_out_missing else "refuse",
        "class_weight": args.class_weight,
        "seed": args.seed,
        **given,
    }


def embed(args: argparse.Namespace) -> int:
    """Embed tiles."""
    from histostore.stages.embed import embed as run

    store, line = the_store(args, writing=True), Line()
    slides = chosen_slides(store, args)
    check_somewhere(store, slides, "tiles", args.tiles)
    if args.shard_rows > CHUNK_ROWS and args.shard_rows % CHUNK_ROWS:
        raise UsageError(f"--shard-rows is {args.shard_rows}: give at most {CHUNK_ROWS}, or a multiple of it")
    loading: dict[str, Any] = {
        "device": args.device, "threads": args.threads, "precision": args.precision, "dihedral": args.dihedral,
        "allow_pickle": args.allow_pickle, "engine": args.engine, "compile_with": args.compile,
        "checkpoint": Path(args.checkpoint).absolute() if args.checkpoint is not None else None,
    }  # fmt: skip
    spec = EmbeddingSpec(dtype=args.dtype, shard_rows=args.shard_rows, chunk_rows=min(CHUNK_ROWS, args.shard_rows))
    how: dict[str, Any] = {
        "tiles": args.tiles, "spec": spec, "batch": args.batch, "read_batch": args.read_batch,
        "read_threads": args.read_threads, "replace": args.replace, "allow_mpp": args.allow_mpp,
    }  # fmt: skip
    if wants_workers(args) and not args.dry_run:
        return _embed_on_workers(store, slides, args, line, loading, how)
    backbones = _backbones(store, args.backbone, **loading)
    for backbone in backbones:
        if (off := backbone.engine().get("off_torch")) is not None:
            line.say(f"{backbone.spec.name}: engine openvino, off torch's rows by {off} of their largest value")
    if args.dry_run:
        from histostore.cli.estimates import show_embedding

        return show_embedding(store, slides, backbones, spec, args)

    def one(slide: str) -> Iterable[StageResult]:
        begun = time.perf_counter()
        results = run(store, slide, backbones, progress=line, **how)
        wall = time.perf_counter() - begun
        yield from results
        if args.profile:
            _show_profile(results, wall, args)

    return each([(s, partial(one, s)) for s in slides], args)


def _embed_on_workers(
    store: Store, slides: list[str], args: argparse.Namespace, line: Line, loading: dict[str, Any], how: dict[str, Any]
) -> int:
    if args.profile:
        raise UsageError("--profile is of one process: leave out --workers and --scheduler")
    with client_of(args) as client:
        from histostore.scale.run import embed_slides, names_only

        calls = names_only(names(args.backbone) or [], **loading)
        how |= {"read_threads": args.read_threads or 1}
        outcomes = embed_slides(client, store, slides, calls, gpu=args.gpu_per_worker, progress=line, **how)
        return show_each(outcomes, len(slides), args)


def _show_profile(results: list[StageResult], wall: float, args: argparse.Namespace) -> None:
    """Print where the time went; backbones of one pass share it."""
    from histostore.stages.profile import Profile

    worked = [r for r in results if r.seconds]
    rows = sum(r.rows for r in worked)
    profile = Profile(wall=wall, rows=rows, busy=worked[0].seconds if worked else {})
    show({"slide": results[0].slide, "profile": profile.to_json()}, profile.text(), args)
