"""The stages over many slides on a client: what `hs.pp`, `hs.tl` and the command line call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.errors import HistostoreError, UsageError
from histostore.progress import Progress, Silent
from histostore.scale import work
from histostore.scale.kept import BackboneCall
from histostore.scale.runner import Runner
from histostore.scale.steps import embed_steps, encode_steps, predict_steps, tile_steps, verify_steps
from histostore.scale.task import Task
from histostore.store.verify import chosen_owners, report_of, top_level

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    import numpy as np
    from distributed import Client
    from numpy.typing import NDArray

    from histostore.index.encode import EncodeRows
    from histostore.index.spec import Metric
    from histostore.scale.task import Steps
    from histostore.specs import TileSpec
    from histostore.stages.index import IndexResult
    from histostore.stages.result import StageResult
    from histostore.store.store import Store
    from histostore.store.verify import OwnerCheck, VerifyReport
    from histostore.view import View

    type Outcome = tuple[str, list[StageResult] | HistostoreError]
    """A slide, and what came of it."""


def tile_slides(
    client: Client, store: Store, slides: Sequence[str], spec: TileSpec, *, gpu: bool = False,
    progress: Progress | None = None, **options: Any,
) -> Generator[Outcome]:  # fmt: skip
    """Tile slides on the workers of a client; yield each as it is committed, or with its error.

    Options as of `histostore.scale.steps.tile_steps`; errors of the run itself as of `Runner`.
    """
    runner = Runner(client, store, gpu=gpu, progress=progress)
    return _told(runner, "tile", [(s, tile_steps(store, s, spec, **options)) for s in slides], progress)


def embed_slides(
    client: Client, store: Store, slides: Sequence[str], backbones: Sequence[BackboneCall], *, gpu: bool = False,
    progress: Progress | None = None, **options: Any,
) -> Generator[Outcome]:  # fmt: skip
    """Embed slides on the workers of a client. The first worker's engine is that of the run; others must have it too.

    Options as of `histostore.scale.steps.embed_steps`.
    """
    runner = Runner(client, store, gpu=gpu, progress=progress)
    batch = options.get("batch")
    known = [runner.ask(Task(work.describe, (call, batch), f"backbone {call.name}")) for call in backbones]
    return _told(runner, "embed", [(s, embed_steps(store, s, known, **options)) for s in slides], progress)


def predict_slides(
    client: Client, store: Store, slides: Sequence[str], head: str, *, gpu: bool = False,
    progress: Progress | None = None, tiles: str | None = None, replace: bool = False,
) -> Generator[Outcome]:  # fmt: skip
    """Apply a saved head to slides on the workers of a client."""
    from histostore.stages.fit import load_head  # scikit-learn, which other stages do without

    runner = Runner(client, store, gpu=gpu, progress=progress)
    fitted, group = load_head(store, head)
    jobs = [(s, predict_steps(store, s, head, fitted, group, tiles=tiles, replace=replace)) for s in slides]
    return _told(runner, "predict", jobs, progress)


def index_store(client: Client, store: Store, *, progress: Progress | None = None, **options: Any) -> IndexResult:
    """Build an index, or bring it up to date, its rows encoded on the workers of a client: to the bytes without them.

    Training, graphs (hnsw), exact segments, compaction and the measuring of recall are this process's. Options as of
    `histostore.stages.index.index`.
    """
    from histostore.stages.index import index
    from histostore.stages.index_codes import staged_codes

    runner, told = Runner(client, store, progress=progress), progress or Silent()

    def encode_on(name: str, rows: View) -> EncodeRows:
        def encode(trained: Any, metric: Metric, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
            with staged_codes(store, name, rows, trained, metric, chosen) as staged:
                todo = staged.pending()
                told.start("index on workers", len(todo), unit="blocks")
                failed: list[HistostoreError] = []
                for _, error in runner.run((f"{name}-{shard}", encode_steps(staged, shard)) for shard in todo):
                    failed += [error] if error is not None else []
                    told.advance(1)
                told.finish()
                told.say(f"index: {runner.tally}")
                if failed:  # the blocks that went well are kept for the next run
                    raise failed[0]
                yield from staged.read()

        return encode

    return index(store, encode_on=encode_on, **options)


def verify_store(
    client: Client, store: Store, *, deep: bool = True, slides: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> VerifyReport:  # fmt: skip
    """Check a store, group by group, on the workers of a client: the report is that of `store.verify.verify`."""
    runner = Runner(client, store, progress=progress)
    owners = chosen_owners(store, slides)
    done: dict[str, OwnerCheck] = {}
    for owner, part in _told(runner, "verify", [(o, verify_steps(store, o, deep=deep)) for o in owners], progress):
        if isinstance(part, HistostoreError):
            raise part
        done[owner] = part
    parts = [top_level(store)] if slides is None else []
    return report_of(store, [*parts, *(done[owner] for owner in owners)], deep=deep)


def collected(outcomes: Iterable[Outcome], slides: Sequence[str]) -> list[StageResult]:
    """Return all results in the order of the slides.

    Raises
    ------
    HistostoreError
        That of the first slide that failed, after all others are done; the failed ones are named in its notes.
    """
    done: dict[str, list[StageResult]] = {}
    failed: dict[str, HistostoreError] = {}
    for slide, outcome in outcomes:
        if isinstance(outcome, HistostoreError):
            failed[slide] = outcome
        else:
            done[slide] = outcome
    if failed:
        first = next(failed[s] for s in slides if s in failed)
        first.add_note(f"{len(failed)} of {len(slides)} slides failed: {', '.join(failed)}")
        raise first
    return [result for slide in slides for result in done[slide]]


def names_only(backbones: Iterable[Any], **options: Any) -> list[BackboneCall]:
    """Return how workers load these backbones: by name, with these options of `load_for`.

    Raises
    ------
    UsageError
        One is a loaded backbone: its weights are not sent to workers.
    """
    found = []
    for backbone in backbones:
        if not isinstance(backbone, str):
            raise UsageError("workers load backbones by name: give the name, or package.module:callable")
        found.append(BackboneCall.of(backbone, options))
    return found


def _told(
    runner: Runner, stage: str, jobs: Sequence[tuple[str, Steps[Any]]], progress: Progress | None
) -> Generator[tuple[str, Any]]:
    """Yield what the runner yields, and say at the end what it took."""
    progress = progress or Silent()
    progress.start(f"{stage} on workers", len(jobs), unit="slides")
    for name, outcome in runner.run(jobs):
        progress.advance(1)
        yield name, outcome
    progress.finish()
    progress.say(f"{stage}: {runner.tally}")
