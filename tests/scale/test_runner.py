"""The runner: errors of a slide are its own, stragglers are named, and work in flight is bounded."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import histostore as hs
from histostore.errors import DataError, StorageError
from histostore.progress import Silent
from histostore.scale.cluster import workers_here
from histostore.scale.runner import AHEAD, Runner
from histostore.scale.task import Task

if TYPE_CHECKING:
    from pathlib import Path


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def tasks_of(run: Any, *calls: Any) -> Any:
    """Steps of one slide that does these tasks and returns their answers."""
    return (yield [Task(run, (call,), f"nap {i}") for i, call in enumerate(calls)])


def test_an_unknown_error_is_the_slides_own_and_a_straggler_is_named(
    tiled: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nap(kept: Any, seconds: float) -> float:
        import time as clock

        if seconds < 0:
            raise RuntimeError("the lens fell off")
        clock.sleep(seconds)
        return seconds

    monkeypatch.setattr("histostore.scale.runner.SLOW_LEAST_S", 0.3)
    monkeypatch.setattr("histostore.scale.runner.LOOK_S", 0.1)
    heard = Heard()
    runner = Runner(client, hs.open(tiled), progress=heard)
    jobs = [("A", tasks_of(nap, 0.01, -1, 0.01)), ("B", tasks_of(nap, 0.01, 0.01, 0.01, 1.0)), ("C", tasks_of(nap))]
    done = dict(runner.run(jobs))
    assert isinstance(done["A"], DataError)
    assert "nap 1 of A: RuntimeError: the lens fell off" in str(done["A"])
    assert done["B"] == [0.01, 0.01, 0.01, 1.0]
    assert done["C"] == []
    (said,) = heard.said
    assert said.startswith("B: nap 3 runs for ")
    assert "tcp://127.0.0.1" in said
    assert runner.tally.stragglers == [said.partition(";")[0]]


def test_no_more_is_in_flight_than_workers_can_take(tiled: Path, client: Any) -> None:
    begun: list[str] = []

    def nap(kept: Any, seconds: float) -> float:
        import time as clock

        clock.sleep(seconds)
        return clock.time()

    def jobs() -> Any:
        for i in range(12):
            begun.append(str(i))
            yield str(i), tasks_of(nap, 0.02)

    runner = Runner(client, hs.open(tiled))
    for ended, _ in enumerate(runner.run(jobs()), start=1):
        assert len(begun) <= ended + 2 * AHEAD
    assert len(begun) == 12


def test_workers_that_die_in_a_long_task_are_waited_for(tiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histostore.scale.runner.ALONE_S", 0.8)
    monkeypatch.setattr("histostore.scale.runner.COUNT_WORKERS_S", 0.1)
    monkeypatch.setattr("histostore.scale.runner.LOOK_S", 0.1)

    def nap(kept: Any, seconds: float) -> None:
        time.sleep(seconds)

    with workers_here(1) as client:
        killed: list[float] = []
        (nanny,) = client.cluster.workers.values()
        again = nanny.instantiate

        async def late() -> Any:
            await asyncio.sleep(3)
            return await again()

        monkeypatch.setattr(nanny, "instantiate", late)

        def kill() -> None:
            os.kill(nanny.pid, signal.SIGKILL)
            killed.append(time.monotonic())

        runner = Runner(client, hs.open(tiled))
        timer = threading.Timer(2.0, kill)
        timer.start()
        with pytest.raises(StorageError, match="all workers are gone"):
            list(runner.run([("A", tasks_of(nap, 60.0))]))
        assert time.monotonic() - killed[0] > 0.5


@pytest.mark.torture
def test_a_task_that_kills_every_worker_fails_its_slide_alone(tiled: Path) -> None:
    def crash(kept: Any, deadly: bool) -> str:
        if deadly:
            os.kill(os.getpid(), signal.SIGSEGV)
        return "alive"

    with workers_here(2) as client:
        runner = Runner(client, hs.open(tiled))
        begun = time.monotonic()
        done = dict(runner.run([("A", tasks_of(crash, True)), ("B", tasks_of(crash, False))]))
        assert time.monotonic() - begun < 120
    assert "its worker died each time it was tried" in str(done["A"])
    assert done["B"] == ["alive"]
