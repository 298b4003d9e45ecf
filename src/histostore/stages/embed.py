"""Tiles in, embeddings out: streamed shard by shard, resumable, several backbones from one decode."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from histostore.backbones.batch import choose_batch, on_cuda
from histostore.errors import ConflictError, SpecMismatchError
from histostore.field_of_view import MPP_TOLERANCE
from histostore.progress import Progress, Silent, Stopwatch
from histostore.specs import EmbeddingSpec
from histostore.stages.embed_batch import FREE, begun_batch
from histostore.stages.embed_rows import Pass, Shard, checked_rows, embed_shards
from histostore.stages.overlap import behind
from histostore.stages.pixels import SlideTiles, StoredTiles, plan_of, write_status
from histostore.stages.result import StageResult, outcome
from histostore.stages.source import open_source
from histostore.stages.tile_plan import placed
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.store.lineage import LeftBehind, rows_of
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from histostore.protocols import Backbone, Slide
    from histostore.specs import BackboneSpec
    from histostore.stages.embed_rows import EmbeddedShard
    from histostore.stages.pixels import PixelJob, TileSource
    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Ref
    from histostore.store.store import Store

READ_THREADS = 16
"""That feed a CUDA device, where there are as many cores: one decodes 1,500 tiles of 224 px a second, about."""

type Sealed = tuple[Ref, bool]
"""A sealed group, and whether an attempt was gone on with."""


def embed(
    store: Store,
    slide: str,
    backbones: Sequence[Backbone],
    *,
    tiles: str | None = None,
    spec: EmbeddingSpec | None = None,
    batch: int | None = None,
    read_batch: int = 64,
    read_threads: int | None = None,
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
        padded, so a row's batch-mates depend on its index alone. By default that of the attempt that is gone on with;
        else 32 on a CPU, and on CUDA what `choose_batch` measures before the first shard.
    read_batch, read_threads
        Tiles per read, and threads that read and decode; they never change a value. By default one thread beside a
        forward pass on the CPU, which takes the cores, and up to 16 that feed a CUDA device.
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
    progress, watch = progress or Silent(), Stopwatch()
    embedding = begin_embedding(store, slide, tiles=tiles, spec=spec, batch=batch)
    found = [embedding.already(store, b.spec, replace=replace, allow_mpp=allow_mpp) for b in backbones]
    todo = [b for b, r in zip(backbones, found, strict=True) if r is None]
    if todo:
        with ExitStack() as stack:
            source = tile_source(store, embedding, read_threads or threads_beside(todo), stack)
            sealed = _write(store, embedding, source, todo, read_batch, progress, watch)
        written = iter(embedding.commit(store, sealed, replace=replace, watch=watch))
        found = [r if r is not None else next(written) for r in found]
    return [r for r in found if r is not None]


def threads_beside(backbones: Sequence[Backbone]) -> int:
    """Return how many threads are to decode while backbones work."""
    return min(READ_THREADS, len(os.sched_getaffinity(0))) if any(map(on_cuda, backbones)) else 1


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
        embedding = Embedding(
            slide=slide, tiles=tiles_ref, inputs={"tiles": tiles_ref.digest, "pixels": job.writer.digest},
            spec=spec or EmbeddingSpec(), batch=batch,
        )  # fmt: skip
        for backbone in backbones:
            embedding.check(store, backbone.spec, allow_mpp=False)
        return [
            ref for ref, _ in _write(store, embedding, job, backbones, read_batch, progress or Silent(), Stopwatch())
        ]

    return write


def tile_source(
    store: Store, embedding: Embedding, read_threads: int, stack: ExitStack, *, image: Slide | None = None
) -> TileSource:
    """Return where the tiles' pixels come from: the stored group, or the slide.

    `stack` closes what was opened; an image that is given stays open.
    """
    if embedding.pixels is not None:
        return StoredTiles(store.group(embedding.pixels), threads=read_threads)
    tiles = store.group(embedding.tiles)
    place = placed(tiles)
    if image is None:
        image = stack.enter_context(open_source(store, store.slide(embedding.slide), workers=read_threads))
    return stack.enter_context(SlideTiles(image, plan_of(tiles.attrs), place.xy0, place.stain, read_threads))


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What has to be done to embed one tile set, step by step; it can be pickled, and names backbones by their specs.

    The engine of a backbone is a plain mapping here, so that the one who seals need not have loaded it.
    """

    slide: str
    tiles: Ref
    pixels: Ref | None = None
    inputs: Mapping[str, str]
    spec: EmbeddingSpec
    batch: int | None
    """Tiles per forward pass, where they were asked for."""

    def name(self, backbone: BackboneSpec) -> str:
        """Return the name of its embeddings."""
        return f"{self.tiles.name}/{backbone.name}"

    def layout(self, backbone: BackboneSpec, n_rows: int) -> ArraySpec:
        """Return the layout of its embeddings."""
        return ArraySpec(
            shape=(n_rows, backbone.dim),
            dtype=self.spec.dtype,
            chunk_rows=self.spec.chunk_rows,
            shard_rows=self.spec.shard_rows,
            pipeline=RAW,
            fill_value="NaN",
            dims=("tile", "feature"),
        )

    def check(self, store: Store, backbone: BackboneSpec, *, allow_mpp: bool) -> None:
        """Refuse tiles whose resolution is further than `MPP_TOLERANCE` from what the backbone declares."""
        mpp, wanted = float(store.group(self.tiles).attrs["mpp"]), backbone.mpp
        if wanted is not None and not allow_mpp and abs(mpp - wanted) > MPP_TOLERANCE * wanted:
            raise SpecMismatchError(
                f"tiles '{self.tiles.name}' of slide '{self.slide}' are at {mpp:g} mpp, but backbone "
                f"'{backbone.name}' expects {wanted:g}; re-tile with mpp={wanted:g}, or pass allow_mpp"
            )

    def already(self, store: Store, backbone: BackboneSpec, *, replace: bool, allow_mpp: bool) -> StageResult | None:
        """Return the result where it is there, None where it is to be made; refuse what the commit would refuse.

        Where no layout was chosen, the same rows in another one are there as well: only `replace` makes them anew.
        """
        self.check(store, backbone, allow_mpp=allow_mpp)
        name = self.name(backbone)
        ref = store.committed(self.slide, "embeddings", name, spec=self._spec_json(backbone), inputs=self.inputs)
        if ref is None and not replace and self.spec == EmbeddingSpec(dtype=self.spec.dtype):
            ref = self._in_another_layout(store, backbone)
        if ref is not None:
            rows = store.group(ref).rows
            return StageResult(slide=self.slide, stage="embed", refs=(ref,), done="already there", rows=rows)
        if store.manifest(self.slide).get("embeddings", name) is not None and not replace:
            raise ConflictError(  # the commit would refuse it after hours of work
                f"slide '{self.slide}': embeddings '{name}' are there with another backbone, layout or other pixels; "
                "pass --replace to move the name"
            )
        return None

    def _in_another_layout(self, store: Store, backbone: BackboneSpec) -> Ref | None:
        """Return the embeddings of that name if they differ from what is asked in rows per shard or chunk alone."""
        ref = store.manifest(self.slide).get("embeddings", self.name(backbone))
        if ref is None:
            return None
        there = store.header(ref)
        layout = there["spec"].get("layout")
        if not isinstance(layout, dict):
            return None
        rows = {k: layout[k] for k in ("shard_rows", "chunk_rows") if k in layout}
        asked = {"backbone": backbone.digest, "layout": self.spec.to_json() | rows}
        return ref if there["spec"] == asked and there["inputs"] == dict(self.inputs) else None

    def stored(self, made: EmbeddedShard) -> list[NDArray[Any]]:
        """Return the rows of a shard as they are stored, for each backbone."""
        return [
            checked_rows(p.backbone.spec, rows, made.status, self.spec.dtype, slide=self.slide, start=made.shard.start)
            for p, rows in zip(made.shard.passes, made.rows, strict=True)
        ]

    def begin(
        self, store: Store, backbone: BackboneSpec, engine: Mapping[str, Any], *, n_rows: int, decoder: str,
        choose: Callable[[], int],
    ) -> GroupWriter:  # fmt: skip
        """Start, or go on with, its group; the array is declared where it is not sealed.

        The batch is settled here, in the writer's engine: the one that was asked for, else that of an attempt to go on
        with, else what `choose` returns.
        """
        made_by = {**engine, FREE: self.batch, "decoder": decoder}
        spec = self._spec_json(backbone)
        if self.batch is None:
            digest = store.digest("embeddings", spec=spec, inputs=self.inputs)
            made_by[FREE] = begun_batch(store.files, self.slide, digest, made_by) or choose()
        writer = store.begin(
            self.slide, "embeddings", self.name(backbone), spec=spec, inputs=self.inputs, engine=made_by
        )
        if writer.sealed is None:
            writer.create("embedding", self.layout(backbone, n_rows))
        return writer

    def seal(self, writer: GroupWriter, backbone: BackboneSpec, *, n_rows: int) -> Sealed:
        """Write the status of every row and seal; all shards are there."""
        if writer.sealed is None:
            counts = write_status(writer, "embedding", self.layout(backbone, n_rows))
            attrs = {
                "tiles": self.tiles.name,
                "backbone": backbone.to_json(),
                "backbone_digest": backbone.digest,
                "dim": backbone.dim,
                "status": counts,
            }
            writer.seal(rows=n_rows, attrs=attrs)
        assert writer.sealed is not None
        return writer.sealed, writer.resumed

    def commit(self, store: Store, sealed: Sequence[Sealed], *, replace: bool, watch: Stopwatch) -> list[StageResult]:
        """Make the sealed groups visible."""
        commit = store.commit(self.slide, [ref for ref, _ in sealed], replace=replace)
        results = []
        for ref, resumed in sealed:
            done = outcome(commit, resumed=resumed) if ref.key in commit.added else "kept another writer's"
            group = store.group(ref)
            results.append(
                StageResult(
                    slide=self.slide, stage="embed", refs=(ref,), done=done, rows=group.rows,
                    report=Report(dict(group.attrs["status"])), seconds=dict(watch.seconds),
                )
            )  # fmt: skip
        return results

    def _spec_json(self, backbone: BackboneSpec) -> dict[str, Any]:
        return {"backbone": backbone.digest, "layout": self.spec.to_json()}


def begin_embedding(
    store: Store, slide: str, *, tiles: str | None, spec: EmbeddingSpec | None, batch: int | None
) -> Embedding:
    """Return what embedding a tile set will need; `tiles` may be None where there is one.

    Raises
    ------
    SpecMismatchError
        The pixels of that name are of other tiles.
    """
    manifest = store.slide(slide)
    tiles_ref = manifest.find("tiles", tiles)
    pixels = manifest.get("pixels", tiles_ref.name)
    if pixels is not None and rows_of(store.header(pixels)) not in (None, tiles_ref.digest):
        raise SpecMismatchError(f"slide '{slide}': {LeftBehind(pixels)}")
    inputs = {"tiles": tiles_ref.digest, "pixels": pixels.digest if pixels is not None else "slide"}
    return Embedding(
        slide=slide, tiles=tiles_ref, pixels=pixels, inputs=inputs, spec=spec or EmbeddingSpec(), batch=batch
    )


def embed_shard(
    source: TileSource, embedding: Embedding, shard: int, passes: Sequence[Pass], *, read_batch: int,
    watch: Stopwatch,
) -> tuple[list[NDArray[Any]], NDArray[np.uint8]]:  # fmt: skip
    """Embed the tiles of one shard with one or more backbones.

    Returns
    -------
    list of ndarray
        Rows ``(k, dim)`` for each, as they are stored: NaN where the tile is unreadable.
    ndarray
        ``(k,)`` uint8 status.
    """
    rows = embedding.layout(passes[0].backbone.spec, source.n_rows).shard_range(shard)
    one = Shard(*rows, passes)
    (made,) = embed_shards(source, [one], read_batch=read_batch, watch=watch)
    return embedding.stored(made), made.status


def _write(
    store: Store,
    embedding: Embedding,
    source: TileSource,
    backbones: Sequence[Backbone],
    read_batch: int,
    progress: Progress,
    watch: Stopwatch,
) -> list[Sealed]:
    """Write every missing shard and seal: each needed tile is read once for all backbones."""
    n_rows, layout = source.n_rows, embedding.layout(backbones[0].spec, source.n_rows)
    px = int(store.group(embedding.tiles).attrs["out_px"])
    with ExitStack() as stack:

        def begin(backbone: Backbone) -> GroupWriter:
            engine, choose = backbone.engine(), partial(choose_batch, backbone, px)
            return embedding.begin(store, backbone.spec, engine, n_rows=n_rows, decoder=source.decoder, choose=choose)

        writers = [stack.enter_context(begin(b)) for b in backbones]
        pending = [set(w.pending("embedding")) if w.sealed is None else set() for w in writers]
        todo = sum(b - a for shards in pending for a, b in map(layout.shard_range, shards))
        total = n_rows * len(writers)
        names = "+".join(b.spec.name for b in backbones)
        progress.start(f"embed {embedding.slide} {names}", total, done=total - todo)
        order = sorted(set().union(*pending))
        mine = [[i for i, shards in enumerate(pending) if shard in shards] for shard in order]
        passes = [Pass(b, w.engine[FREE]) for b, w in zip(backbones, writers, strict=True)]

        def write(shard: int, indices: Sequence[int], made: EmbeddedShard) -> None:
            for i, values in zip(indices, embedding.stored(made), strict=True):
                with watch.timed("write"):
                    writers[i].write_rows("embedding", shard, values, note={"status": made.status.tolist()})

        jobs = (Shard(*layout.shard_range(s), [passes[i] for i in one]) for s, one in zip(order, mine, strict=True))
        shards = embed_shards(
            source, jobs, read_batch=read_batch, watch=watch, on_rows=lambda n: progress.advance(n, watch.seconds)
        )
        with behind(watch) as later, closing(shards) as made:
            for shard, indices, done in zip(order, mine, made, strict=True):
                later(partial(write, shard, indices, done))
        progress.finish()
        return [embedding.seal(w, b.spec, n_rows=n_rows) for w, b in zip(writers, backbones, strict=True)]
