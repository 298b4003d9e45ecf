"""Tiles in, embeddings out: streamed shard by shard, resumable, several backbones from one decode."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import ConflictError, SpecMismatchError
from histostore.progress import Progress, Silent, Stopwatch
from histostore.specs import EmbeddingSpec
from histostore.stages.embed_rows import Pass, checked_rows, embed_rows
from histostore.stages.pixels import SlideTiles, StoredTiles, plan_of, status_counts
from histostore.stages.result import StageResult, outcome
from histostore.stages.source import open_source
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.tables import Report
from histostore.tiles.stain import StainFit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.protocols import Backbone
    from histostore.stages.pixels import PixelJob, TileSource
    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store

MPP_TOLERANCE = 0.10
"""Tiles further than this from the resolution a histology backbone declares are refused unless told otherwise."""

DEFAULT_BATCH = {"cpu": 32, "cuda": 256}


def embed(
    store: Store,
    slide: str,
    backbones: Sequence[Backbone],
    *,
    tiles: str | None = None,
    spec: EmbeddingSpec | None = None,
    batch: int | None = None,
    read_batch: int = 64,
    workers: int = 1,
    replace: bool = False,
    allow_mpp: bool = False,
    progress: Progress | None = None,
) -> list[StageResult]:
    """Embed the tiles of one slide with one or more backbones and commit the results.

    Writes ``embeddings/<tiles>/<backbone>`` for each: row i is tile i. A second call is a no-op; one that was killed
    goes on after its last finished shard.

    Parameters
    ----------
    tiles
        Which tile set; may be left out where there is one.
    batch
        Tiles per forward pass. Part of the engine: batches are cut from the start of the shard and the last is
        padded, so a row's batch-mates depend on its index alone.
    read_batch, workers
        Tiles per read and reading threads; they never change a value.
    allow_mpp
        Permit tiles of another resolution than the backbone declares.

    Returns
    -------
    list of StageResult
        One per backbone, in order.

    Raises
    ------
    SpecMismatchError
        The tiles' mpp is not what the backbone declares.
    ConflictError
        The name is taken by another backbone, layout or other pixels.
    DataError
        A backbone gave a value that is not finite for a readable tile; the tiles are named.
    """
    progress = progress or Silent()
    spec = spec or EmbeddingSpec()
    manifest = store.slide(slide)
    tiles_ref = manifest.find("tiles", tiles)
    pixels_ref = manifest.get("pixels", tiles_ref.name)
    found: list[StageResult | None] = []
    for backbone in backbones:
        name = _check(store, tiles_ref, backbone, allow_mpp=allow_mpp)
        inputs = _inputs(tiles_ref, pixels_ref)
        ref = store.committed(slide, "embeddings", name, spec=_spec_json(backbone, spec), inputs=inputs)
        result = None
        if ref is not None:
            rows = store.group(ref).rows
            result = StageResult(slide=slide, stage="embed", refs=(ref,), done="already there", rows=rows)
        elif manifest.get("embeddings", name) is not None and not replace:
            raise ConflictError(  # the commit would refuse it after hours of work
                f"slide '{slide}': embeddings '{name}' are there with another backbone, layout or other pixels; "
                "pass --replace to move the name"
            )
        found.append(result)
    todo = [b for b, r in zip(backbones, found, strict=True) if r is None]
    if todo:
        with ExitStack() as stack:
            source = _source(store, manifest, tiles_ref, pixels_ref, workers, stack)
            run = EmbedRun(
                store, slide, tiles_ref, _inputs(tiles_ref, pixels_ref), source, todo,
                spec=spec, batch=batch, read_batch=read_batch, progress=progress,
            )  # fmt: skip
            written = iter(run.commit(run.write(), replace=replace))
        found = [r if r is not None else next(written) for r in found]
    return [r for r in found if r is not None]


def embed_in_pass(
    store: Store,
    slide: str,
    backbones: Sequence[Backbone],
    *,
    spec: EmbeddingSpec | None = None,
    batch: int | None = None,
    read_batch: int = 64,
    progress: Progress | None = None,
) -> Any:
    """Return what `tile` calls to embed pixels in the pass that writes them: the slide is read once."""

    def write(job: PixelJob, tiles_ref: Ref, name: str) -> list[Ref]:
        del name
        for backbone in backbones:
            _check(store, tiles_ref, backbone, allow_mpp=False)
        inputs = {"tiles": tiles_ref.digest, "pixels": job.writer.digest}
        run = EmbedRun(
            store, slide, tiles_ref, inputs, job, backbones,
            spec=spec or EmbeddingSpec(), batch=batch, read_batch=read_batch, progress=progress or Silent(),
        )  # fmt: skip
        return [ref for ref, _, _ in run.write()]

    return write


def _check(store: Store, tiles_ref: Ref, backbone: Backbone, *, allow_mpp: bool) -> str:
    mpp = float(store.group(tiles_ref).attrs["mpp"])
    wanted = backbone.spec.mpp
    if wanted is not None and not allow_mpp and abs(mpp - wanted) > MPP_TOLERANCE * wanted:
        raise SpecMismatchError(
            f"tiles '{tiles_ref.name}' of slide '{tiles_ref.owner}' are at {mpp:g} mpp, but backbone "
            f"'{backbone.spec.name}' expects {wanted:g}; re-tile with mpp={wanted:g}, or pass allow_mpp"
        )
    return f"{tiles_ref.name}/{backbone.spec.name}"


def _inputs(tiles_ref: Ref, pixels_ref: Ref | None) -> dict[str, str]:
    return {"tiles": tiles_ref.digest, "pixels": pixels_ref.digest if pixels_ref is not None else "slide"}


def _spec_json(backbone: Backbone, spec: EmbeddingSpec) -> dict[str, Any]:
    return {"backbone": backbone.spec.digest, "layout": spec.to_json()}


def _source(
    store: Store, manifest: Manifest, tiles_ref: Ref, pixels_ref: Ref | None, workers: int, stack: ExitStack
) -> TileSource:
    if pixels_ref is not None:
        return StoredTiles(store.group(pixels_ref), threads=workers)
    tiles = store.group(tiles_ref)
    xy0 = tiles.read("geometry")[:, 2:4]
    stain = StainFit.from_json(tiles.attrs["stain"]) if "stain" in tiles.attrs else None
    image = stack.enter_context(open_source(store, manifest, workers=workers))
    return stack.enter_context(SlideTiles(image, plan_of(tiles.attrs), xy0, stain, workers))


@dataclass(slots=True)
class _Sink:
    """One backbone's attempt."""

    backbone: Backbone
    writer: GroupWriter
    pending: set[int]


@dataclass(slots=True)
class EmbedRun:
    """Embedding the tiles of one slide: reads each needed tile once for all backbones."""

    store: Store
    slide: str
    tiles_ref: Ref
    inputs: Mapping[str, str]
    source: TileSource
    backbones: Sequence[Backbone]
    spec: EmbeddingSpec = field(kw_only=True)
    batch: int | None = field(kw_only=True)
    read_batch: int = field(kw_only=True)
    progress: Progress = field(kw_only=True)
    watch: Stopwatch = field(default_factory=Stopwatch)

    def write(self) -> list[tuple[Ref, bool, Report]]:
        """Write every missing shard and seal; return (group, resumed, report) for each backbone."""
        with ExitStack() as stack:
            sinks = [self._open(b, stack) for b in self.backbones]
            layout = self._layout(self.backbones[0])
            todo = sum(b - a for s in sinks for a, b in map(layout.shard_range, sorted(s.pending)))
            total = layout.n_rows * len(sinks)
            names = "+".join(b.spec.name for b in self.backbones)
            self.progress.start(f"embed {self.slide} {names}", total, done=total - todo)
            for shard in range(layout.n_shards):
                mine = [s for s in sinks if shard in s.pending]
                if mine:
                    self._write_shard(shard, layout, mine)
            self.progress.finish()
            return [self._seal(s, layout) for s in sinks]

    def commit(self, sealed: list[tuple[Ref, bool, Report]], *, replace: bool) -> list[StageResult]:
        """Make the sealed groups visible."""
        commit = self.store.commit(self.slide, [ref for ref, _, _ in sealed], replace=replace)
        results = []
        for ref, resumed, report in sealed:
            done = outcome(commit, resumed=resumed) if ref.key in commit.added else "kept another writer's"
            results.append(
                StageResult(
                    slide=self.slide, stage="embed", refs=(ref,), done=done, rows=self.source.n_rows,
                    report=report, seconds=dict(self.watch.seconds),
                )
            )  # fmt: skip
        return results

    def _layout(self, backbone: Backbone) -> ArraySpec:
        return ArraySpec(
            shape=(self.source.n_rows, backbone.spec.dim),
            dtype=self.spec.dtype,
            chunk_rows=self.spec.chunk_rows,
            shard_rows=self.spec.shard_rows,
            pipeline=RAW,
            fill_value="NaN",
            dims=("tile", "feature"),
        )

    def _batch_of(self, backbone: Backbone) -> int:
        device = str(backbone.engine().get("device", "cpu"))
        return self.batch or DEFAULT_BATCH.get(device.split(":")[0], DEFAULT_BATCH["cpu"])

    def _open(self, backbone: Backbone, stack: ExitStack) -> _Sink:
        name = f"{self.tiles_ref.name}/{backbone.spec.name}"
        engine = {**backbone.engine(), "batch": self._batch_of(backbone), "decoder": self.source.decoder}
        writer = stack.enter_context(
            self.store.begin(
                self.slide, "embeddings", name,
                spec=_spec_json(backbone, self.spec), inputs=self.inputs, engine=engine,
            )
        )  # fmt: skip
        if writer.sealed is not None:
            return _Sink(backbone, writer, set())
        writer.create("embedding", self._layout(backbone))
        return _Sink(backbone, writer, set(writer.pending("embedding")))

    def _write_shard(self, shard: int, layout: ArraySpec, sinks: list[_Sink]) -> None:
        start, stop = layout.shard_range(shard)
        passes = [Pass(s.backbone, self._batch_of(s.backbone)) for s in sinks]
        rows, status = embed_rows(
            self.source, start, stop, passes, read_batch=self.read_batch, watch=self.watch, on_rows=self._advance
        )
        for sink, out in zip(sinks, rows, strict=True):
            values = checked_rows(sink.backbone.spec, out, status, self.spec.dtype, slide=self.slide, start=start)
            with self.watch.timed("write"):
                sink.writer.write_rows("embedding", shard, values, note={"status": status.tolist()})
            sink.pending.discard(shard)

    def _advance(self, n: int) -> None:
        self.progress.advance(n, self.watch.seconds)

    def _seal(self, sink: _Sink, layout: ArraySpec) -> tuple[Ref, bool, Report]:
        writer = sink.writer
        if writer.sealed is None:
            notes = [writer.receipt("embedding", s) or {} for s in range(layout.n_shards)]
            status = np.array([v for n in notes for v in n["note"]["status"]], dtype=np.uint8)
            writer.put_array("status", status, dims=("tile",))
            counts = status_counts(status)
            attrs = {
                "tiles": self.tiles_ref.name,
                "backbone": sink.backbone.spec.to_json(),
                "backbone_digest": sink.backbone.spec.digest,
                "dim": sink.backbone.spec.dim,
                "status": counts,
            }
            writer.seal(rows=layout.n_rows, attrs=attrs)
        sealed = writer.sealed
        assert sealed is not None
        counts = dict(self.store.group(sealed).attrs["status"])
        return sealed, writer.resumed, Report(counts)
