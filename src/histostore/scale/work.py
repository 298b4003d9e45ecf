"""The tasks: functions of (what a worker keeps, plain values) that write whole shards and hand back receipts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from histostore.backbones.batch import choose_batch
from histostore.errors import SpecMismatchError
from histostore.progress import Stopwatch
from histostore.scale.kept import Described, kept_for
from histostore.scale.task import Written
from histostore.scale.versions import own_versions, require_equal
from histostore.stages.embed import embed_shard, tile_source
from histostore.stages.embed_batch import FREE
from histostore.stages.embed_rows import Pass
from histostore.stages.pixels import SlideTiles, encode_tiles
from histostore.stages.tile_plan import placed
from histostore.store.verify import check_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histostore.blocks.embedding_blocks import EmbeddingBlock
    from histostore.scale.kept import BackboneCall, Kept
    from histostore.scale.task import Context, Task
    from histostore.stages.embed import Embedding
    from histostore.stages.index_codes import Encoding
    from histostore.stages.predict import Applying
    from histostore.stages.tile import Tiling
    from histostore.stages.tile_plan import Planned
    from histostore.store.manifest import Manifest
    from histostore.store.receipts import Receipt, Share
    from histostore.store.verify import Checked, CheckedGroup


def perform(context: Context, task: Task, *, worker: str = "here") -> Any:
    """Do one task, on a worker or in this process."""
    require_equal(_versions(), context.versions, worker=worker)
    return task.run(kept_for(context), *task.args)


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return own_versions()


def plan(kept: Kept, tiling: Tiling, threads: int) -> Planned:
    """Plan the tiles of a slide and seal their groups."""
    return tiling.plan(kept.store, kept.image(tiling.manifest, threads))[0]


def pixels(
    kept: Kept, tiling: Tiling, planned: Planned, share: Share, shard: int, read_batch: int, threads: int
) -> Written:
    """Write the pixels of one shard of tiles."""
    writer = share.on(kept.store.files)
    if (done := writer.finished("pixels", shard)) is not None:
        return Written((done,))
    image, watch = kept.image(tiling.manifest, threads), Stopwatch()
    if image.reader != planned.reader:
        raise SpecMismatchError(
            f"slide '{tiling.manifest.owner}' is read by {image.reader} on this worker and was planned with "
            f"{planned.reader}; start the workers from the same environment"
        )
    place = placed(kept.store.group(planned.tiles))
    with SlideTiles(image, planned.read, place.xy0, place.stain, threads) as source:
        layout = share.arrays["pixels"]
        made = encode_tiles(source, layout, shard, read_batch=read_batch, threads=threads, watch=watch)
    with watch.timed("write"):
        receipt = writer.write_shard("pixels", shard, made.chunks, note={"status": made.status.tolist()})
    return Written((receipt,), watch.seconds)


def describe(kept: Kept, call: BackboneCall, batch: int | None = None) -> Described:
    """Load a backbone and tell what it is, what it runs on and how many tiles go through it at a time."""
    backbone = kept.backbone(call)
    batch = batch or choose_batch(backbone, backbone.spec.input_px)
    return Described(call, backbone.spec, {**backbone.engine(), FREE: batch})


def reader(kept: Kept, manifest: Manifest, threads: int) -> str:
    """Return the library that reads a slide."""
    return kept.image(manifest, threads).reader


def embed(
    kept: Kept,
    embedding: Embedding,
    wanted: Sequence[tuple[Described, Share]],
    shard: int,
    read_batch: int,
    threads: int,
) -> Written:
    """Embed the tiles of one shard with the backbones that lack it: they are read once."""
    writers = [share.on(kept.store.files) for _, share in wanted]
    receipts: list[Receipt | None] = [writer.finished("embedding", shard) for writer in writers]
    todo = [i for i, receipt in enumerate(receipts) if receipt is None]
    watch = Stopwatch()
    if todo:
        passes = [Pass(kept.backbone_like(one), one.batch) for one in (wanted[i][0] for i in todo)]
        with ExitStack() as stack:
            image = kept.image(kept.store.slide(embedding.slide), threads) if embedding.pixels is None else None
            source = tile_source(kept.store, embedding, threads, stack, image=image)
            rows, status = embed_shard(source, embedding, shard, passes, read_batch=read_batch, watch=watch)
        for i, values in zip(todo, rows, strict=True):
            with watch.timed("write"):
                receipts[i] = writers[i].write_rows("embedding", shard, values, note={"status": status.tolist()})
    return Written(tuple(r for r in receipts if r is not None), watch.seconds)


def predict(kept: Kept, applying: Applying, share: Share, shards: Sequence[int]) -> Written:
    """Apply a head to one slide and write the shards that lack."""
    writer, watch = share.on(kept.store.files), Stopwatch()
    with watch.timed("predict"):
        values = applying.values(kept.store, kept.head(applying.head, applying.inputs["head"]))
    with watch.timed("write"):
        ranges = [(shard, *applying.layout.shard_range(shard)) for shard in shards]
        receipts = [writer.write_rows("prediction", shard, values[start:stop]) for shard, start, stop in ranges]
    return Written(tuple(receipts), watch.seconds)


def encode(kept: Kept, encoding: Encoding, block: EmbeddingBlock, shard: int) -> Written:
    """Write the codes that a trained index gives to one block of rows."""
    watch = Stopwatch()
    with watch.timed("encode"):
        receipt = encoding.write(kept.store.files, kept.trained(encoding), block, shard)
    return Written((receipt,), watch.seconds)


def check(kept: Kept, group: CheckedGroup, deep: bool) -> Checked:
    """Check one committed group, past any cache."""
    return check_group(replace(kept.store, files=kept.store.files.fresh()), group, deep=deep)
