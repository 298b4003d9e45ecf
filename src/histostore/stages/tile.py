"""Tiles of a slide: planned, and their pixels stored."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histostore.errors import ConflictError
from histostore.progress import Progress, Silent, Stopwatch
from histostore.specs import PixelSpec
from histostore.stages.pixels import PixelJob, SlideTiles, decoder_version, pixel_array, write_status
from histostore.stages.result import StageResult, outcome
from histostore.stages.source import open_source
from histostore.stages.tile_plan import Planned, TileInputs, plan_slide, tile_inputs
from histostore.store.lineage import all_left_behind
from histostore.tables import Report
from histostore.tiles.read import RESAMPLER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from histostore.protocols import Slide
    from histostore.specs import TileSpec
    from histostore.stages.tile_plan import Placed
    from histostore.store.arrays import ArraySpec
    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store


def tile(
    store: Store,
    slide: str,
    spec: TileSpec,
    *,
    pixels: PixelSpec | None = None,
    name: str | None = None,
    replace: bool = False,
    read_batch: int = 64,
    read_threads: int = 1,
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
        Let the name move to another spec; the old tile set stays addressable by digest. Embeddings, predictions and
        labels of the old tiles are not joined to the new ones; the result's notes name them.
    read_batch, read_threads
        Tiles per read, and threads that read and decode; memory and speed depend on them, values never do.
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
    watch = Stopwatch()
    tiling = begin_tiling(store, slide, spec, pixels=pixels, name=name, replace=replace)
    if isinstance(tiling, StageResult):
        return tiling
    with ExitStack() as stack:
        image = stack.enter_context(open_source(store, tiling.manifest, workers=read_threads))
        with watch.timed("plan"):
            planned, place = tiling.plan(store, image)
        refs = planned.refs
        if tiling.pixels.codec != "slide":
            source = SlideTiles(image, planned.read, place.xy0, place.stain, read_threads)
            stack.enter_context(source)
            writer = stack.enter_context(tiling.begin_pixels(store, planned))
            if writer.sealed is None:
                layout = tiling.layout(planned)
                job = PixelJob(writer, layout, source, read_batch, threads=max(1, read_threads), watch=watch)
                todo = sum(b - a for a, b in map(layout.shard_range, job.pending()))
                progress.start(f"tile {slide}", planned.rows, done=planned.rows - todo)
                job.on_rows = lambda n: progress.advance(n, watch.seconds)
                if embed_with is not None:
                    refs += embed_with(job, planned.tiles, tiling.name)
                job.write(job.pending())
                progress.finish()
            refs.append(tiling.seal_pixels(writer, planned))
            resumed = writer.resumed
        else:
            resumed = False
    return tiling.commit(store, planned, refs, resumed=resumed, watch=watch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """What has to be done for the tiles of one slide, step by step; each step can be taken on another machine."""

    manifest: Manifest
    spec: TileSpec
    pixels: PixelSpec
    name: str
    replace: bool
    inputs: TileInputs

    def plan(self, store: Store, image: Slide) -> tuple[Planned, Placed]:
        """Plan the tiles and seal their groups."""
        return plan_slide(store, self.manifest, self.spec, self.name, self.inputs, image)

    def layout(self, planned: Planned) -> ArraySpec:
        """Return the layout of the pixels."""
        return pixel_array(self.pixels, planned.rows, planned.read.out_px)

    def begin_pixels(self, store: Store, planned: Planned) -> GroupWriter:
        """Start, or go on with, the pixels group; its array is declared where it is not sealed."""
        engine = {
            "codec": self.pixels.codec,
            "encoder": decoder_version(),
            "resampler": RESAMPLER if planned.read.resample else "none",
            "reader": planned.reader,
        }
        inputs = {"tiles": planned.tiles.digest}
        writer = store.begin(
            self.manifest.owner, "pixels", self.name, spec=self.pixels.to_json(), inputs=inputs, engine=engine
        )
        if writer.sealed is None:
            writer.create("pixels", self.layout(planned))
        return writer

    def seal_pixels(self, writer: GroupWriter, planned: Planned) -> Ref:
        """Write the status of every row and seal; all shards are there."""
        if writer.sealed is not None:
            return writer.sealed
        counts = write_status(writer, "pixels", self.layout(planned))
        about = {"tiles": self.name, "codec": self.pixels.codec, "quality": self.pixels.quality}
        return writer.seal(rows=planned.rows, attrs={**about, "px": planned.read.out_px, "status": counts})

    def commit(
        self, store: Store, planned: Planned, refs: Sequence[Ref], *, resumed: bool, watch: Stopwatch
    ) -> StageResult:
        """Make the sealed groups visible."""
        slide, report = self.manifest.owner, planned.report
        for ref in refs:
            if ref.kind == "pixels":
                report = report.merged(Report(dict(store.group(ref).attrs["status"])))
        # a tile set that is read from the slide from now on has no stored pixels under its name
        gone = [f"pixels/{self.name}"] if self.pixels.codec == "slide" and self.replace else []
        with watch.timed("commit"):
            commit = store.commit(slide, refs, replace=self.replace, remove=gone)
        if self.replace:
            report = report.merged(Report(notes=_left_behind(store, commit.manifest)))
        return StageResult(
            slide=slide, stage="tile", refs=tuple(refs), done=outcome(commit, resumed=resumed), rows=planned.rows,
            report=report, seconds=watch.seconds,
        )  # fmt: skip


def _left_behind(store: Store, manifest: Manifest) -> tuple[str, ...]:
    """Return a line about what is of other tiles and points than those of the slide now; none where all fits."""
    found = all_left_behind(store, manifest)
    if not found:
        return ()
    named = ", ".join(f"{one.ref.kind} '{one.ref.name}'" for one in found)
    mends = ", then ".join(dict.fromkeys(one.command for one in found))
    return (f"left behind, of other tiles or points than those there now, and joined to none: {named}; run {mends}",)


def begin_tiling(
    store: Store, slide: str, spec: TileSpec, *, pixels: PixelSpec | None, name: str | None, replace: bool
) -> StageResult | Tiling:
    """Return what is to be done, or the result where it is done already.

    Raises
    ------
    ConflictError
        The name is taken by another spec, or is that of points which a grid would replace by its own.
    """
    manifest = store.slide(slide)
    name, pixels = name or spec.default_name, pixels or PixelSpec()
    points = manifest.get("points", name) if spec.at == "grid" else None
    if points is not None and store.header(points)["attrs"]["assay"] != "grid":
        raise ConflictError(f"slide '{slide}': '{name}' are points of its own, which a grid would replace by its own; "
                            "give the grid another --name")  # fmt: skip
    inputs = tile_inputs(store, manifest, spec)
    found = _there(store, manifest, name, spec, inputs)
    if found is not None:
        kept = _already(store, manifest, name, found, pixels)
        if kept is not None:
            return kept
    if not replace:
        _refuse_conflict(store, manifest, name, spec, inputs, pixels)
    return Tiling(manifest=manifest, spec=spec, pixels=pixels, name=name, replace=replace, inputs=inputs)


def _there(store: Store, manifest: Manifest, name: str, spec: TileSpec, inputs: TileInputs) -> Ref | None:
    """Return the tiles of that name if they are these: an edge of 112 and of 112.0 once had two digests."""
    ref = manifest.get("tiles", name)
    header = store.header(ref) if ref is not None else None
    same = header is not None and (header["spec"], header["inputs"]) == (spec.to_json(), inputs.to_json())
    return ref if same else None


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
    store: Store, manifest: Manifest, name: str, spec: TileSpec, inputs: TileInputs, pixels: PixelSpec
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
