"""Workers and schedulers that die (SIGKILL) under a run: the bytes of a serial one, nothing doubled, nothing lost."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import histostore as hs
from histostore.errors import HistostoreError
from histostore.scale.cluster import workers_here
from histostore.scale.kept import BackboneCall
from histostore.scale.runner import Runner
from histostore.scale.steps import embed_steps
from histostore.scale.task import Task
from histostore.scale.work import describe
from histostore.specs import EmbeddingSpec
from histostore.store.verify import verify
from histostore.testing.crash import contents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SLIDES = ("A1", "B1")
SHARDS = EmbeddingSpec(shard_rows=2, chunk_rows=2)
TASKS = 21 + 20
SLOW = "testing?delay_ms=150"


@pytest.fixture
def expected(tiled: Path, copy_of: Callable[[Path], Path]) -> dict[str, dict[str, str]]:
    """Return what a serial run leaves, by slide."""
    store = copy_of(tiled)
    hs.tl.embed(hs.open(store), "testing", spec=SHARDS)
    return {slide: contents(store, slide) for slide in SLIDES}


def check(store: Path, expected: dict[str, dict[str, str]]) -> None:
    assert {slide: contents(store, slide) for slide in SLIDES} == expected
    assert verify(hs.open(store)).problems == ()


class Killer(threading.Thread):
    """Kills a worker now and then, one that is up."""

    def __init__(self, client: Any, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._client, self._rng = client, random.Random(seed)
        self.left, self.over = kills, threading.Event()

    def run(self) -> None:
        while self.left and not self.over.wait(self._rng.uniform(0.3, 1.0)):
            up = self._client.nthreads()
            pids = [n.pid for n in self._client.cluster.workers.values() if n.worker_address in up and n.pid]
            if pids:
                os.kill(self._rng.choice(pids), signal.SIGKILL)
                self.left -= 1


def test_killed_workers_change_nothing(
    tiled: Path, expected: dict[str, dict[str, str]], copy_of: Callable[[Path], Path]
) -> None:
    starts = torment(copy_of(tiled), expected, kills=3)
    assert starts >= TASKS


@pytest.mark.torture
def test_twenty_killed_workers_change_nothing(
    tiled: Path, expected: dict[str, dict[str, str]], copy_of: Callable[[Path], Path]
) -> None:
    left = 20
    while left > 0:
        torment(copy_of(tiled), expected, kills=min(left, 5), seed=left)
        left -= 5


def torment(store: Path, expected: dict[str, dict[str, str]], *, kills: int, seed: int = 0) -> int:
    """Embed while workers are killed, again where a task lost its worker too often; return the starts of tasks."""
    opened = hs.open(store)
    starts = runs = 0
    with workers_here(2) as client:
        killer = Killer(client, kills, seed)
        failed = True
        while failed:
            runs += 1
            runner = Runner(client, opened)
            known = runner.ask(Task(describe, (BackboneCall(SLOW),), "backbone"))
            if not killer.ident:
                killer.start()
            jobs = [(s, embed_steps(opened, s, [known], spec=SHARDS)) for s in SLIDES]
            failed = any(isinstance(outcome, HistostoreError) for _, outcome in runner.run(jobs))
            time.sleep(0.2)  # the last events of starts are on their way
            starts += runner.tally.starts.total() - 1
        killer.over.set()
        killer.join()
    print(f"{kills - killer.left} workers killed, {runs} runs, {TASKS} tasks, {starts} starts: {runner.tally}")
    assert killer.left == 0, "the run was over before the last kill: make it longer"
    check(store, expected)
    return starts


@pytest.mark.torture
def test_five_lost_schedulers_change_nothing(
    tiled: Path, expected: dict[str, dict[str, str]], copy_of: Callable[[Path], Path], by_hand: Any, cli: Any
) -> None:
    store = copy_of(tiled)
    embed = ["embed", store, "--backbone", SLOW, "--shard-rows", 2]
    for _ in range(5):
        with by_hand() as lab:
            before = finished(store)
            (scheduler,) = [p for p in lab.processes("scheduler") if p.name().startswith("dask")]

            def strike(before: int = before, scheduler: Any = scheduler) -> None:
                while finished(store) < before + 3:
                    time.sleep(0.01)
                scheduler.kill()

            striker = threading.Thread(target=strike, daemon=True)
            striker.start()
            assert "the scheduler is gone" in cli(*embed, *lab.options, code=3).stderr
            striker.join()
            assert finished(store) >= before + 3
    print(f"5 schedulers killed, {finished(store)} of {TASKS} shards were kept")
    with by_hand() as lab:
        assert "embed resumed" in cli(*embed, *lab.options).stdout
    check(store, expected)


def finished(store: Path) -> int:
    return len(list(store.glob("slides/*/embeddings/*/*/receipts/*.json")))
