"""Workers and schedulers that die (SIGKILL) under a run: the bytes of a serial one, nothing doubled, nothing lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import histostore as hs
from histostore.errors import HistostoreError
from histostore.scale.cluster import workers_here
from histostore.scale.kept import BackboneCall
from histostore.scale.runner import Runner
from histostore.scale.steps import embed_steps, tile_steps
from histostore.scale.task import Task
from histostore.scale.work import describe
from histostore.specs import EmbeddingSpec
from histostore.store.gc import plan_gc, run_gc
from histostore.store.verify import verify
from histostore.testing.crash import contents

if TYPE_CHECKING:
    from collections.abc import Callable

    type Stage = Callable[[Runner], list[tuple[str, Any]]]
    """The jobs of one run."""

SLIDES = ("A1", "B1")
SHARDS = EmbeddingSpec(shard_rows=2, chunk_rows=2)
TASKS = 21 + 20
SLOW = "testing?delay_ms=150"

SECTIONS = ("C2", "C3", "C4", "C5")
REAL_TILES, REAL_PIXELS = hs.TileSpec.at_spots(px=224, mpp="native"), hs.PixelSpec(shard_tiles=4)
REAL_SHARDS = EmbeddingSpec(shard_rows=4, chunk_rows=4)
REAL_TASKS = {"tile": 4 + 186, "embed": 186}
"""Plans, and shards of four of 732 spots."""


@pytest.fixture
def expected(tiled: Path, copy_of: Callable[[Path], Path]) -> dict[str, dict[str, str]]:
    """Return what a serial run leaves, by slide."""
    store = copy_of(tiled)
    hs.tl.embed(hs.open(store), "testing", spec=SHARDS)
    return {slide: contents(store, slide) for slide in SLIDES}


def check(store: Path, expected: dict[str, dict[str, str]]) -> None:
    assert {slide: contents(store, slide) for slide in expected} == expected
    assert verify(hs.open(store)).problems == ()


class Killer(threading.Thread):
    """Kills a worker now and then, one that is at work on a task."""

    def __init__(self, client: Any, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._client, self._rng = client, random.Random(seed)
        self.left, self.over = kills, threading.Event()
        self.runner: Runner | None = None
        self._struck: set[str] = set()

    def run(self) -> None:
        wait = self._rng.uniform(0.3, 1.0)
        while self.left and not self.over.wait(wait):
            wait = 0.02
            flying = list(self.runner._flying.values()) if self.runner is not None else []
            busy = {f.worker for f in flying if f.begun and not f.future.done()}
            nannies = self._client.cluster.workers.values()
            found = [(n.pid, n.worker_address) for n in nannies if n.worker_address in busy - self._struck and n.pid]
            if found:
                pid, address = self._rng.choice(found)
                self._struck.add(address)
                os.kill(pid, signal.SIGKILL)
                self.left -= 1
                wait = self._rng.uniform(0.3, 1.0)


def persist(client: Any, store: hs.Store, stage: Stage, *, kills: int, seed: int) -> tuple[int, int, Counter[str]]:
    """Run a stage while workers are killed, again where a task lost its worker too often.

    Returns the kills that struck, the runs, and how often each task began in all of them.
    """
    killer = Killer(client, kills, seed)
    starts: Counter[str] = Counter()
    runs, failed = 0, True
    while failed:
        runs += 1
        runner = Runner(client, store)
        jobs = stage(runner)
        killer.runner = runner
        if not killer.ident:
            killer.start()
        failed = any(isinstance(outcome, HistostoreError) for _, outcome in runner.run(jobs))
        time.sleep(0.2)  # the last events of starts are on their way
        for key, n in runner.tally.starts.items():
            starts[key.removeprefix("histostore-").rsplit("-", 2)[0]] += n
    killer.over.set()
    killer.join()
    del starts["backbone-"]
    print(f"{kills - killer.left} workers killed, {runs} runs, {len(starts)} tasks, {starts.total()} starts: "
          f"{dict(sorted(Counter(starts.values()).items()))} (starts: tasks)")  # fmt: skip
    return kills - killer.left, runs, starts


def embedding(store: hs.Store, slides: tuple[str, ...], spec: EmbeddingSpec, backbone: str = SLOW) -> Stage:
    """Return the jobs of embedding, by a slow backbone."""

    def jobs(runner: Runner) -> list[tuple[str, Any]]:
        known = runner.ask(Task(describe, (BackboneCall(backbone),), "backbone"))
        return [(s, embed_steps(store, s, [known], spec=spec)) for s in slides]

    return jobs


def torment(store: Path, expected: dict[str, dict[str, str]], *, kills: int, seed: int = 0) -> None:
    """Embed while workers are killed."""
    opened = hs.open(store)
    with workers_here(2) as client:
        struck, _, starts = persist(client, opened, embedding(opened, SLIDES, SHARDS), kills=kills, seed=seed)
    assert struck == kills, "the run was over before the last kill: make it longer"
    assert len(starts) == TASKS
    check(store, expected)


def test_killed_workers_change_nothing(
    tiled: Path, expected: dict[str, dict[str, str]], copy_of: Callable[[Path], Path]
) -> None:
    torment(copy_of(tiled), expected, kills=2)


@pytest.mark.torture
def test_twenty_killed_workers_change_nothing(
    tiled: Path, expected: dict[str, dict[str, str]], copy_of: Callable[[Path], Path]
) -> None:
    left = 20
    while left > 0:
        torment(copy_of(tiled), expected, kills=min(left, 5), seed=left)
        left -= 5


def lose_schedulers(command: list[object], store: Path, by_hand: Any, cli: Any, *, losses: int, seed: int) -> None:
    """Run a command and kill its scheduler some shards later, over and over; then let it end."""
    rng = random.Random(seed)
    for _ in range(losses):
        with by_hand() as lab:
            before = finished(store)
            wanted = before + rng.randint(2, 6)
            (scheduler,) = [p for p in lab.processes("scheduler") if p.name().startswith("dask")]

            def strike(wanted: int = wanted, scheduler: Any = scheduler) -> None:
                while finished(store) < wanted:
                    time.sleep(0.01)
                scheduler.kill()

            striker = threading.Thread(target=strike, daemon=True)
            striker.start()
            assert "the scheduler is gone" in cli(*command, *lab.options, code=3).stderr
            striker.join()
            assert finished(store) >= wanted
            print(f"{command[0]}: scheduler killed at {wanted} shards, {finished(store)} kept")
    with by_hand() as lab:
        told = cli(*command, *lab.options)
    assert f"{command[0]} resumed" in told.stdout
    print(told.stderr.splitlines()[-1])


@pytest.mark.torture
def test_five_lost_schedulers_change_nothing(
    tiled: Path, expected: dict[str, dict[str, str]], copy_of: Callable[[Path], Path], by_hand: Any, cli: Any
) -> None:
    store = copy_of(tiled)
    lose_schedulers(["embed", store, "--backbone", SLOW, "--shard-rows", 2], store, by_hand, cli, losses=5, seed=0)
    check(store, expected)


def finished(store: Path) -> int:
    """Return how many shards of pixels and embeddings there are; they are never fewer than before."""
    found = (
        p
        for kind in ("pixels", "embeddings")
        for p in store.glob(f"slides/*/{kind}/*/*/zarr/{kind.rstrip('s')}*/c/**/0")
    )
    return sum(p.is_file() for p in found)


@pytest.fixture(scope="module")
def sections(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with the four real sections ingested."""
    files, store = real_data / "her2st", hs.create(tmp_path_factory.mktemp("sections") / "store")
    for slide in SECTIONS:
        assay = {"st_counts": files / f"{slide}.counts.tsv.gz", "st_spots": files / f"{slide}.spots.tsv"}
        hs.pp.ingest(store, slide, image=files / f"{slide}.jpg", mpp=0.688, meta={"patient": "C"}, **assay)
    return Path(store.uri)


@pytest.fixture(scope="module")
def serial(sections: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return that store, tiled and embedded by one process."""
    store = hs.open(shutil.copytree(sections, tmp_path_factory.mktemp("serial") / "store"))
    hs.pp.tile(store, REAL_TILES, pixels=REAL_PIXELS)
    hs.tl.embed(store, "testing", spec=REAL_SHARDS)
    return Path(store.uri)


def same_store(store: Path, serial: Path) -> None:
    """No byte differs, no group is there twice, and no file is left that a serial run does not leave."""
    assert [contents(store, slide) for slide in SECTIONS] == [contents(serial, slide) for slide in SECTIONS]
    opened = hs.open(store)
    assert {p.severity for p in verify(opened).problems} <= {"note"}
    plan = plan_gc(opened, grace_s=0)
    print(f"gc finds {plan.by_reason() or 'nothing'}")
    assert (plan.running, plan.left) == (0, {})
    assert set(plan.by_reason()) <= {"abandoned", "partial", "leftover"}
    assert run_gc(plan).kept == ()
    assert verify(opened).problems == ()
    assert named(store) == named(serial)


def named(store: Path) -> list[str]:
    """Return every file of the slides, with the attempts that manifests name by their keys."""
    opened, found = hs.open(store), []
    prefixes = {ref.prefix: ref.key for s in opened.slides() for ref in opened.slide(s).entries.values()}
    for path in (p for p in (store / "slides").rglob("*") if p.is_file()):
        name = str(path.relative_to(store))
        attempt = next((p for p in prefixes if name.startswith(f"{p}/")), None)
        found.append(name if attempt is None else name.replace(attempt, prefixes[attempt]))
    return sorted(found)


@pytest.mark.torture
def test_twenty_killed_workers_change_nothing_of_the_real_sections(
    sections: Path, serial: Path, copy_of: Callable[[Path], Path]
) -> None:
    struck, begun, rounds = {"tile": 0, "embed": 0}, Counter[str](), 0
    while sum(struck.values()) < 20:
        rounds += 1
        store = copy_of(sections)
        opened = hs.open(store)

        def tiling(runner: Runner, opened: hs.Store = opened) -> list[tuple[str, Any]]:
            return [(s, tile_steps(opened, s, REAL_TILES, pixels=REAL_PIXELS)) for s in SECTIONS]

        with workers_here(2) as client:
            for stage, jobs in (("tile", tiling), ("embed", embedding(opened, SECTIONS, REAL_SHARDS))):
                kills = min(5, 20 - sum(struck.values()))
                hit, _, starts = persist(client, opened, jobs, kills=kills, seed=rounds)
                assert len(starts) == REAL_TASKS[stage]
                struck[stage] += hit
                begun.update(starts)
        assert all(n >= rounds for n in begun.values())
        same_store(store, serial)
    print(f"{struck} kills, {rounds} rounds, {len(begun)} tasks, {begun.total()} starts")
    assert min(struck.values()) > 0


@pytest.mark.torture
def test_five_lost_schedulers_change_nothing_of_the_real_sections(
    sections: Path, serial: Path, copy_of: Callable[[Path], Path], by_hand: Any, cli: Any
) -> None:
    store = copy_of(sections)
    tile = ["tile", store, "--at", "spots", "--px", 224, "--mpp", "native", "--shard-tiles", 4]
    embed = ["embed", store, "--backbone", SLOW, "--shard-rows", 4]
    lose_schedulers(tile, store, by_hand, cli, losses=2, seed=1)
    lose_schedulers(embed, store, by_hand, cli, losses=3, seed=2)
    same_store(store, serial)
