"""An index whose rows workers encoded is, byte for byte, the one that a single process builds."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import histostore as hs
from histostore.errors import CorruptionError, DataError, SpecMismatchError
from histostore.index.build import new_index
from histostore.index.spec import IndexSpec
from histostore.scale.cluster import workers_here
from histostore.scale.run import index_store
from histostore.scale.runner import Runner
from histostore.scale.steps import encode_steps
from histostore.scale.task import Context, Task
from histostore.scale.versions import own_versions
from histostore.scale.work import encode, perform
from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
from histostore.stages.index import index, open_index
from histostore.stages.index_codes import staged_codes
from histostore.store.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    type Copy = Callable[[Path], Path]

NAME = "small/testing"
BLOCK = 128
"""Rows of a block in these tests."""


@pytest.fixture(scope="module")
def many(ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with embeddings of some hundred tiles a slide. Shared: copy it before you write."""
    path = Path(shutil.copytree(ingested, tmp_path_factory.mktemp("many") / "store"))
    store = hs.open(path)
    hs.pp.tile(store, TileSpec.grid(px=32), name="small", pixels=PixelSpec(codec="slide"))
    hs.tl.embed(store, "testing", tiles="small", spec=EmbeddingSpec(shard_rows=64, chunk_rows=32))
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut rows into small blocks; workers are told by the layout of the codes."""
    monkeypatch.setattr("histostore.index.encode.BLOCK_ROWS", BLOCK)
    monkeypatch.setattr("histostore.stages.index_codes.BLOCK_ROWS", BLOCK)
    monkeypatch.setattr("histostore.stages.index_codes.CHUNK_ROWS", 4)


def files_of(path: Path) -> tuple[list[tuple[str, bytes]], list[Any]]:
    """Return the suffix and the bytes of every file of the index, and its record without names and what is measured."""
    opened = open_index(hs.open(path), NAME)
    files = [(f.name.partition(".")[2], (opened.folder / f.name).read_bytes()) for f in opened.snapshot.files()]
    record = json.loads(json.dumps(opened.snapshot.to_json()))
    for segment in record["segments"]:
        for of in ("ids", "body"):
            segment[of]["name"] = segment[of]["name"].partition(".")[2]
        segment["report"] |= {"seconds": 0, "peak_bytes": 0}
    return files, record


def staged(path: Path) -> list[Path]:
    """Return what lies of codes in a store."""
    return [*(path / "indexes").rglob("trained.faiss"), *(path / "indexes").rglob("zarr/codes")]


@pytest.mark.parametrize("kind", ["ivf-flat", "ivf-sq8", "ivf-pq", "hnsw", "exact"])
def test_workers_leave_the_bytes_of_a_serial_build(many: Path, copy_of: Copy, client: Any, kind: str) -> None:
    serial, spread = copy_of(many), copy_of(many)
    how: dict[str, Any] = {"kind": kind, "nlist": 4, "recall": 0.9, "pq_bytes": 8}
    one = hs.tl.index(hs.open(serial), slides=["A1"], **how)
    other = hs.tl.index(hs.open(spread), slides=["A1"], client=client, **how)
    assert (one.done, one.rows, one.recall) == (other.done, other.rows, other.recall)
    assert one.rows > 2 * BLOCK
    assert files_of(spread) == files_of(serial)
    assert staged(spread) == []
    assert hs.tl.index(hs.open(spread), slides=["A1"], client=client).done == "already there"
    for path, more in ((serial, {}), (spread, {"client": client})):
        assert hs.tl.index(hs.open(path), **more).done == "updated"
    assert files_of(spread) == files_of(serial)
    assert verify(hs.open(spread)).ok


def test_rows_that_cannot_be_found_leave_holes_and_the_bytes_are_equal(
    many: Path, copy_of: Copy, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = len(hs.open(many).view(backbone="testing"))
    wanted = np.ones(n, bool)
    wanted[[0, 5, 6, BLOCK, n // 2, n - 1]] = False
    monkeypatch.setattr(
        "histostore.index.exact.usable_norms",
        lambda values, metric: np.where(wanted[: len(values)], 1, np.nan).astype(np.float32),
    )
    spec, found = IndexSpec(kind="ivf-sq8", nlist=4, recall=0.5), []
    for how in ({}, {"client": client}):
        path = copy_of(many)
        run = index_store if how else index
        result = run(*how.values(), hs.open(path), backbone="testing", spec=spec)  # type: ignore[operator]
        assert (result.rows, result.skipped) == (n - 6, 6)
        found.append(files_of(path))
    assert found[0] == found[1]


def test_a_killed_worker_changes_nothing_and_its_block_is_begun_again(many: Path, copy_of: Copy) -> None:
    serial, spread = copy_of(many), copy_of(many)
    how: dict[str, Any] = {"kind": "ivf-sq8", "nlist": 4}
    hs.tl.index(hs.open(serial), **how)
    flag = spread.parent / "struck"
    with workers_here(2) as client:

        def arm(flag: str = str(flag), kill: int = signal.SIGKILL) -> None:
            import os
            from pathlib import Path

            from histostore.stages.index_codes import Encoding

            write = Encoding.write

            def once(self: Any, *args: Any) -> Any:
                if not Path(flag).exists():
                    Path(flag).touch()
                    os.kill(os.getpid(), kill)
                return write(self, *args)

            Encoding.write = once  # type: ignore[method-assign]

        client.run(arm)
        n = hs.tl.index(hs.open(spread), client=client, **how).rows
    assert n > 4 * BLOCK
    assert flag.exists()
    assert files_of(spread) == files_of(serial)
    assert staged(spread) == []


def test_what_a_killed_run_finished_is_not_made_again(
    many: Path, copy_of: Copy, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial, spread = copy_of(many), copy_of(many)
    how: dict[str, Any] = {"kind": "ivf-sq8", "nlist": 4}
    hs.tl.index(hs.open(serial), **how)
    run = Runner.run

    def dies(self: Runner, jobs: Any) -> Any:
        for done, (name, outcome) in enumerate(run(self, jobs), start=1):
            yield name, outcome
            if done == 3:
                raise DataError("power cut")

    with monkeypatch.context() as cut:
        cut.setattr(Runner, "run", dies)
        with pytest.raises(DataError, match="power cut"):
            hs.tl.index(hs.open(spread), client=client, **how)
    assert len(staged(spread)) == 2
    kept = len(list(spread.rglob("receipts/codes.*.json")))
    assert kept >= 3

    class Heard(hs.progress.Silent):
        todo = -1

        def start(self, what: str, total: int, *, done: int = 0, unit: str = "tiles") -> None:
            self.todo = total

    heard = Heard()
    n = hs.tl.index(hs.open(spread), client=client, progress=heard, **how).rows
    assert 0 <= heard.todo <= -(-n // BLOCK) - kept  # a worker may have finished one more meanwhile
    assert files_of(spread) == files_of(serial)
    assert staged(spread) == []


def test_a_worker_that_would_round_otherwise_is_refused(many: Path, copy_of: Copy) -> None:
    store = hs.open(copy_of(many))
    context = Context(store.uri, store.uuid, "otherwise", own_versions())
    rows = store.view(backbone="testing")
    values = rows.numpy().astype(np.float32)
    trained = new_index("ivf-sq8", values.shape[1], 4, IndexSpec())
    trained.cp.min_points_per_centroid = 1
    trained.train(values)
    with staged_codes(store, NAME, rows, trained, "cosine", np.arange(len(rows))) as under_way:
        (task,) = next(encode_steps(under_way, 1))
        encoding, block, shard = task.args
        assert (len(block), under_way.pending()) == (BLOCK, list(range(-(-len(rows) // BLOCK))))
        first, second = perform(context, task), perform(context, task)
        assert first.receipts == second.receipts
        other = replace(encoding, sha256="0" * 64)
        with pytest.raises(CorruptionError, match="is not the index that was trained"):
            perform(context, Task(encode, (other, block, shard), ""))
        other = replace(encoding, engine={**encoding.engine, "rounding": "0" * 16})
        with pytest.raises(SpecMismatchError, match=r"rounding \w{16} \(client 0{16}\)"):
            other.trained(store.files)
    assert staged(Path(store.uri)) == []
    with pytest.raises(CorruptionError, match="the run that wrote it has ended"):
        encoding.trained(store.files)


def test_the_command_takes_a_scheduler(many: Path, copy_of: Copy, cli: Any, client: Any) -> None:
    said = cli("index", copy_of(many), "--kind", "ivf-sq8", "--scheduler", client.scheduler.address)
    assert "ivf-sq8" in said.stdout
    assert " tasks, " in said.stderr
