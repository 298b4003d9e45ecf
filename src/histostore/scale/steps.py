"""The stages cut into tasks: for each slide what is sent to workers, and what the client does in between."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from histostore.progress import Stopwatch
from histostore.scale import work
from histostore.scale.task import Task
from histostore.stages.embed import begin_embedding
from histostore.stages.embed_batch import FREE
from histostore.stages.pixels import decoder_version
from histostore.stages.result import StageResult
from histostore.stages.tile import begin_tiling
from histostore.store.survey import survey
from histostore.store.verify import OwnerCheck

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histostore.heads.fitted import FittedHead
    from histostore.scale.kept import Described
    from histostore.scale.task import Steps, Written
    from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
    from histostore.stages.index_codes import StagedCodes
    from histostore.store.groups import Group, GroupWriter
    from histostore.store.store import Store


def tile_steps(
    store: Store,
    slide: str,
    spec: TileSpec,
    *,
    pixels: PixelSpec | None = None,
    name: str | None = None,
    replace: bool = False,
    read_batch: int = 64,
    read_threads: int = 1,
) -> Steps[list[StageResult]]:
    """Plan on one worker, write each shard of pixels on any. Options and errors as of `histostore.stages.tile.tile`."""
    watch, resumed = Stopwatch(), False
    tiling = begin_tiling(store, slide, spec, pixels=pixels, name=name, replace=replace)
    if isinstance(tiling, StageResult):
        return [tiling]
    with watch.timed("plan"):
        (planned,) = yield [Task(work.plan, (tiling, read_threads), "plan")]
    refs = planned.refs
    if tiling.pixels.codec != "slide":
        with tiling.begin_pixels(store, planned) as writer:
            if writer.sealed is None:
                share, layout = writer.share(), tiling.layout(planned)
                answers = yield [
                    Task(
                        work.pixels, (tiling, planned, share, shard, read_batch, read_threads), f"pixels {shard}",
                        rows=_length(layout.shard_range(shard)),
                    )
                    for shard in writer.pending("pixels")
                ]  # fmt: skip
                _accept([writer], answers, watch)
            refs.append(tiling.seal_pixels(writer, planned))
            resumed = writer.resumed
    return [tiling.commit(store, planned, refs, resumed=resumed, watch=watch)]


def embed_steps(
    store: Store,
    slide: str,
    backbones: Sequence[Described],
    *,
    tiles: str | None = None,
    spec: EmbeddingSpec | None = None,
    batch: int | None = None,
    read_batch: int = 64,
    read_threads: int = 1,
    replace: bool = False,
    allow_mpp: bool = False,
) -> Steps[list[StageResult]]:
    """Embed each shard on any worker, with all backbones that lack it. As `histostore.stages.embed.embed`."""
    watch = Stopwatch()
    embedding = begin_embedding(store, slide, tiles=tiles, spec=spec, batch=batch)
    found = [embedding.already(store, b.spec, replace=replace, allow_mpp=allow_mpp) for b in backbones]
    todo = [b for b, r in zip(backbones, found, strict=True) if r is None]
    if todo:
        decoder, n_rows = decoder_version(), store.group(embedding.tiles).rows
        if embedding.pixels is None:
            (decoder,) = yield [Task(work.reader, (store.slide(slide), read_threads), "open")]
        with ExitStack() as stack:

            def begin(one: Described) -> GroupWriter:
                how: dict[str, Any] = {"n_rows": n_rows, "decoder": decoder, "choose": lambda: one.batch}
                return stack.enter_context(embedding.begin(store, one.spec, one.engine, **how))

            writers = [begin(b) for b in todo]
            settled = [b.with_batch(w.engine[FREE]) for b, w in zip(todo, writers, strict=True)]
            pending = [set(w.pending("embedding")) if w.sealed is None else set() for w in writers]
            layout = embedding.layout(todo[0].spec, n_rows)
            tasks = []
            for shard in sorted(set().union(*pending)):
                mine = [i for i, shards in enumerate(pending) if shard in shards]
                wanted = [(settled[i], writers[i].share()) for i in mine]
                rows = _length(layout.shard_range(shard)) * len(mine)
                args = (embedding, wanted, shard, read_batch, read_threads)
                tasks.append(Task(work.embed, args, f"embeddings {shard}", rows=rows))
            answers = yield tasks
            by_prefix = {w.prefix: w for w in writers}
            for task, answer in zip(tasks, answers, strict=True):
                own = [by_prefix[share.prefix] for _, share in task.args[1]]
                for writer, receipt in zip(own, answer.receipts, strict=True):
                    writer.accept(receipt)
                _add(watch, answer)
            sealed = [embedding.seal(w, b.spec, n_rows=n_rows) for w, b in zip(writers, todo, strict=True)]
        written = iter(embedding.commit(store, sealed, replace=replace, watch=watch))
        found = [r if r is not None else next(written) for r in found]
    return [r for r in found if r is not None]


def predict_steps(
    store: Store, slide: str, head: str, fitted: FittedHead, group: Group, *, tiles: str | None = None,
    replace: bool = False,
) -> Steps[list[StageResult]]:  # fmt: skip
    """Apply a head to one slide on any worker: spatial context needs all its rows. As `stages.predict.predict`."""
    from histostore.stages.predict import begin_predicting  # scikit-learn, which other stages do without

    watch = Stopwatch()
    applying = begin_predicting(store, slide, head, fitted, group, tiles=tiles)
    if isinstance(applying, StageResult):
        return [applying]
    with applying.begin(store) as writer:
        if writer.sealed is None:
            shards = writer.pending("prediction")
            args = (applying, writer.share(), shards)
            tasks = [Task(work.predict, args, "predictions", rows=applying.shape[0])] if shards else []
            _accept([writer], (yield tasks), watch)
        return [applying.finish(store, writer, head=group, replace=replace, watch=watch)]


def encode_steps(staged: StagedCodes, shard: int) -> Steps[None]:
    """Encode one block of the rows of an index on any worker."""
    block = staged.block(shard)
    task = Task(work.encode, (staged.encoding, block, shard), f"codes {shard}", rows=len(block))
    _accept([staged.writer], (yield [task]), Stopwatch())


def verify_steps(store: Store, owner: str, *, deep: bool) -> Steps[OwnerCheck]:
    """Check each group of an owner on any worker."""
    part = OwnerCheck(store, survey(store.files, owner))
    answers = yield [Task(work.check, (group, deep), group.ref.key) for group in part.groups()]
    part.take(answers)
    return part


def _accept(writers: Sequence[GroupWriter], answers: Sequence[Written], watch: Stopwatch) -> None:
    (writer,) = writers
    for answer in answers:
        for receipt in answer.receipts:
            writer.accept(receipt)
        _add(watch, answer)


def _add(watch: Stopwatch, answer: Written) -> None:
    """Add up where the time of all workers together went."""
    for part, seconds in answer.seconds.items():
        watch.add(part, seconds)


def _length(rows: tuple[int, int]) -> int:
    return rows[1] - rows[0]


def run_here(steps: Steps[Any], perform: Any) -> Any:
    """Take the steps in this process; `perform` does one task."""
    try:
        tasks = next(steps)
        while True:
            tasks = steps.send([perform(task) for task in tasks])
    except StopIteration as end:
        return end.value
