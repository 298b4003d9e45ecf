"""Tiles of a slide: planned, and their pixels stored."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.content.regions import polygons_of
from histostore.content.tables import read_points, write_points
from histostore.errors import ConflictError
from histostore.progress import Progress, Silent, Stopwatch
from histostore.specs import PixelSpec, TileSpec
from histostore.stages.pixels import PixelJob, SlideTiles, decoder_version, pixel_array
from histostore.stages.result import StageResult, outcome
from histostore.stages.source import mpp_of, open_source, source_of
from histostore.tables import Report
from histostore.tiles.mask import TissueMask, tissue_mask
from histostore.tiles.plan import TilePlan, plan_tiles
from histostore.tiles.read import RESAMPLER
from histostore.tiles.stain import fit_slide_stain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from histostore.protocols import Slide
    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store
    from histostore.tables import Points

GEOMETRY = ("cx", "cy", "x0", "y0", "tissue")
IDS = ("tile_id_hi", "tile_id_lo", "point")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a tile set is made from, by digest."""

    source: str
    mpp: float
    points: Ref | None
    regions: Ref | None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"source": self.source, "mpp": self.mpp}
        for key, ref in (("points", self.points), ("regions", self.regions)):
            if ref is not None:
                found[key] = ref.digest
        return found


def tile(
    store: Store,
    slide: str,
    spec: TileSpec,
    *,
    pixels: PixelSpec | None = None,
    name: str | None = None,
    replace: bool = False,
    read_batch: int = 64,
    workers: int = 1,
    progress: Progress | None = None,
    embed_with: Callable[[PixelJob, Ref, str], Sequence[Ref]] | None = None,
) -> StageResult:
    """Plan the tiles of one slide, store their pixels and commit both at once.

    Writes ``tiles/<name>`` and ``pixels/<name>`` (not with the codec ``slide``), and for a grid ``points/<name>``. A
    second call with the same spec is a no-op; one that was killed goes on after its last finished shard.

    Parameters
    ----------
    slide
        A slide that was ingested.
    spec
        Where tiles lie and how large they are.
    pixels
        How pixels are kept; JPEG q95 4:4:4 by default.
    name
        Name of the tile set; by default ``spots``, ``grid@<mpp>`` or the points' name.
    replace
        Let the name move to another spec; the old tile set stays addressable by digest.
    read_batch, workers
        Tiles per read and open handles; memory and speed depend on them, values never do.
    embed_with
        Called with the pixels in the making, to embed them in the same pass; returns sealed groups to commit. Not
        called where the pixels are there already.

    Raises
    ------
    DataError
        No tile is left; the counts say why.
    ConflictError
        The name is taken by another spec.
    """
    progress = progress or Silent()
    pixels = pixels or PixelSpec()
    name = name or spec.default_name
    watch = Stopwatch()
    manifest = store.slide(slide)
    inputs = _inputs(store, manifest, spec)
    found = store.committed(slide, "tiles", name, spec=spec.to_json(), inputs=inputs.to_json())
    if found is not None:
        kept = _already(store, manifest, name, found, pixels)
        if kept is not None:
            return kept
    if not replace:
        _refuse_conflict(store, manifest, name, spec, inputs, pixels)
    with ExitStack() as stack:
        image = stack.enter_context(open_source(store, manifest, workers=workers))
        with watch.timed("plan"):
            tiles_ref, points_ref, plan, stain = _plan(store, manifest, spec, name, inputs, image)
        refs = [r for r in (points_ref, tiles_ref) if r is not None]
        report, resumed = plan.report, False
        if pixels.codec != "slide":
            source = SlideTiles(image, plan.read, plan.xy0, stain, workers)
            stack.enter_context(source)
            begun = _begin_pixels(store, tiles_ref, pixels, plan, source)
            writer = stack.enter_context(begun)
            resumed = writer.resumed
            if writer.sealed is None:
                layout = pixel_array(pixels, len(plan), plan.read.out_px)
                job = PixelJob(writer, layout, source, read_batch, threads=max(1, workers), watch=watch)
                todo = sum(b - a for a, b in map(layout.shard_range, job.pending()))
                progress.start(f"tile {slide}", len(plan), done=len(plan) - todo)
                job.on_rows = lambda n: progress.advance(n, watch.seconds)
                if embed_with is not None:
                    refs += embed_with(job, tiles_ref, name)
                _, counts = job.finish()
                progress.finish()
                attrs = {"tiles": name, "codec": pixels.codec, "quality": pixels.quality, "px": plan.read.out_px}
                writer.seal(rows=len(plan), attrs={**attrs, "status": counts})
            sealed = writer.seal(rows=len(plan))
            refs.append(sealed)
            report = report.merged(Report(dict(store.group(sealed).attrs["status"])))
    # a tile set that is read from the slide from now on has no stored pixels under its name
    gone = [f"pixels/{name}"] if pixels.codec == "slide" and replace else []
    with watch.timed("commit"):
        commit = store.commit(slide, refs, replace=replace, remove=gone)
    done = outcome(commit, resumed=resumed)
    return StageResult(
        slide=slide, stage="tile", refs=tuple(refs), done=done, rows=len(plan), report=report, seconds=watch.seconds
    )


def _begin_pixels(store: Store, tiles_ref: Ref, pixels: PixelSpec, plan: TilePlan, source: SlideTiles) -> GroupWriter:
    engine = {
        "codec": pixels.codec,
        "encoder": decoder_version(),
        "resampler": RESAMPLER if plan.read.resample else "none",
        "reader": source.decoder,
    }
    inputs = {"tiles": tiles_ref.digest}
    return store.begin(tiles_ref.owner, "pixels", tiles_ref.name, spec=pixels.to_json(), inputs=inputs, engine=engine)


def _inputs(store: Store, manifest: Manifest, spec: TileSpec) -> _Inputs:
    source = source_of(store, manifest)["sha256"]
    points = manifest.find("points", spec.points) if spec.at != "grid" else None
    regions = manifest.find("regions", spec.regions) if spec.regions is not None else None
    return _Inputs(source, mpp_of(store, manifest), points, regions)


def _already(store: Store, manifest: Manifest, name: str, tiles: Ref, pixels: PixelSpec) -> StageResult | None:
    refs, counts = [tiles], {}
    if pixels.codec == "slide":
        if manifest.get("pixels", name) is not None:
            return None
    else:
        ref = store.committed(manifest.owner, "pixels", name, spec=pixels.to_json(), inputs={"tiles": tiles.digest})
        if ref is None:
            return None
        refs.append(ref)
        counts = dict(store.group(ref).attrs["status"])
    group = store.group(tiles)
    report = Report({**group.attrs["left_out"], **counts})
    return StageResult(
        slide=manifest.owner, stage="tile", refs=tuple(refs), done="already there", rows=group.rows, report=report
    )


def _refuse_conflict(
    store: Store, manifest: Manifest, name: str, spec: TileSpec, inputs: _Inputs, pixels: PixelSpec
) -> None:
    """Refuse before any work what the commit would refuse after hours of it."""
    old = manifest.get("tiles", name)
    tiles = store.digest("tiles", spec=spec.to_json(), inputs=inputs.to_json())
    if old is not None and old.digest != tiles:
        raise ConflictError(
            f"slide '{manifest.owner}': tiles '{name}' is there with another spec; "
            "give another --name, or --replace to move the name"
        )
    stored = manifest.get("pixels", name)
    wanted = store.digest("pixels", spec=pixels.to_json(), inputs={"tiles": tiles})
    if stored is not None and (pixels.codec == "slide" or stored.digest != wanted):
        codec = store.group(stored).attrs["codec"]
        raise ConflictError(
            f"slide '{manifest.owner}': pixels '{name}' are there with another spec (codec {codec}); "
            "give another --name, or --replace to move the name"
        )


def _plan(
    store: Store, manifest: Manifest, spec: TileSpec, name: str, inputs: _Inputs, image: Slide
) -> tuple[Ref, Ref | None, TilePlan, Any]:
    points: Points | None = None
    if inputs.points is not None:
        points = read_points(store.group(inputs.points))
    mask = tissue_mask(image, spec.mask, mpp=inputs.mpp)
    plan = plan_tiles(
        spec,
        size_px=image.size_px,
        slide_mpp=inputs.mpp,
        downsamples=image.downsamples,
        source_digest=inputs.source,
        points=points,
        mask=mask,
        regions=polygons_of(store.group(inputs.regions)) if inputs.regions is not None else None,
    )
    stain = fit_slide_stain(spec.stain, image, plan, white=mask.glass_rgb) if spec.stain is not None else None
    points_ref = write_points(store, manifest.owner, name, plan.points) if spec.at == "grid" else None
    tiles_ref = _write_tiles(store, manifest.owner, spec, name, inputs, plan, mask, stain)
    return tiles_ref, points_ref, plan, stain


def _write_tiles(
    store: Store, slide: str, spec: TileSpec, name: str, inputs: _Inputs, plan: TilePlan, mask: TissueMask, stain: Any
) -> Ref:
    read = plan.read
    with store.begin(slide, "tiles", name, spec=spec.to_json(), inputs=inputs.to_json()) as writer:
        if writer.sealed is None:
            geometry = np.column_stack([plan.centre, plan.xy0, plan.tissue.astype(np.float64)])
            ids = np.column_stack([plan.tile_id, plan.point.astype(np.uint64)])
            writer.put_array("geometry", geometry, dims=("tile", "column"), attrs={"columns": GEOMETRY})
            writer.put_array("ids", ids, dims=("tile", "column"), attrs={"columns": IDS})
            writer.put_array("mask", mask.mask, dims=("y", "x"))
        attrs = {
            "points": name if spec.at == "grid" else spec.points,
            "level": read.level,
            "read_px": read.read_px,
            "out_px": read.out_px,
            "downsample": read.downsample,
            "edge0": read.edge0,
            "resample": read.resample,
            "mpp": read.mpp,
            "left_out": dict(plan.report.counts),
            "notes": list(plan.report.notes),
            "mask_downsample": list(mask.downsample),
        }
        if stain is not None:
            attrs["stain"] = stain.to_json()
        return writer.seal(rows=len(plan), attrs=attrs)
