"""The server over time: commits are seen, too many are sent away, load and fuzzing do no harm, signals end it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from benchmarks.serve_fuzz import fuzz, known_tile
from benchmarks.serve_load import load
from histostore.errors import UsageError
from histostore.serve.lanes import Lane
from histostore.serve.limits import Limits
from histostore.serve.problems import Problem
from histostore.serve.snapshot import Watched
from histostore.store.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_deleted_slide_is_gone_from_the_next_answers(
    embedded: Path, copy_of: Callable[[Path], Path], serve: Callable[..., Any], spot: dict[str, str]
) -> None:
    store = copy_of(embedded)
    with serve(store, limits=Limits(refresh_s=0.01)) as client:
        assert {h["slide"] for h in client.search(query=spot, k=1000).json()["hits"]} == {"A1", "B1"}
        open_store(store).delete_slide("B1")
        time.sleep(0.05)
        assert {h["slide"] for h in client.search(query=spot, k=1000).json()["hits"]} == {"A1"}
        assert client.get("/v1/slides/B1").status == 404
        assert client.get("/v1/health").json()["slides"] == 1


def test_a_snapshot_stays_as_it_was_and_the_next_one_keeps_what_did_not_change(
    embedded: Path, copy_of: Callable[[Path], Path]
) -> None:
    store = open_store(copy_of(embedded))
    watched = Watched(store, refresh_s=60)
    before = watched.snapshot()
    kept = before.group(before.slide("A1").find("meta", "meta"))
    before.group(before.slide("B1").find("meta", "meta"))
    store.delete_slide("B1")
    assert watched.snapshot() is before
    assert before.slides() == ["A1", "B1"]
    after = watched.snapshot(now=True)
    assert after.slides() == ["A1"]
    assert after.group(after.slide("A1").find("meta", "meta")) is kept
    assert len(after._open) == 1
    assert watched.snapshot(now=True) is after


async def refused(lane: Lane, work: Callable[[], object]) -> Problem:
    with pytest.raises(Problem) as caught:
        await lane.run(work)
    return caught.value


def test_work_beyond_the_queue_is_sent_away_and_told_to_come_again() -> None:
    import asyncio

    async def crowd() -> None:
        lane, go = Lane("test", workers=1, waiting=1, timeout_s=30), threading.Event()
        try:
            first, second = (asyncio.create_task(lane.run(go.wait)) for _ in range(2))
            await asyncio.sleep(0)
            told = await refused(lane, lambda: None)
            assert (told.status, told.headers) == (503, (("Retry-After", "1"),))
            go.set()
            assert await first
            assert await second
            assert await lane.run(lambda: 7) == 7
            assert lane.inside == 0
        finally:
            go.set()
            lane.close()

    asyncio.run(crowd())


def test_work_out_of_time_is_told_and_its_thread_is_not_free_before_its_end() -> None:
    import asyncio

    async def late() -> None:
        lane, go = Lane("test", workers=1, waiting=5, timeout_s=0.1), threading.Event()
        try:
            assert "took longer" in (await refused(lane, go.wait)).message
            assert "waited longer" in (await refused(lane, go.wait)).message
            assert lane.inside == 1
            go.set()
            while lane.inside:
                await asyncio.sleep(0.01)
            assert await lane.run(lambda: 7) == 7
        finally:
            go.set()
            lane.close()

    asyncio.run(late())


def test_limits_are_positive() -> None:
    with pytest.raises(UsageError, match="searches is 0"):
        Limits(searches=0)


def test_twenty_clients_for_five_seconds_see_no_error_and_threads_and_files_do_not_grow(api: Any) -> None:
    process = psutil.Process()
    load(api.place.address, clients=2, seconds=0.5)
    before = (process.num_fds(), process.num_threads())
    found = load(api.place.address, clients=20, seconds=5)
    print(f"{sum(found.answers.values())} answers")
    assert not found.failures
    assert set(found.answers) == {"vector", "spot", "image", "tile", "thumbnail", "slides"}
    deadline = time.monotonic() + 10
    while (process.num_fds(), process.num_threads()) > (before[0] + 8, before[1] + 8):
        assert time.monotonic() < deadline, f"{before} -> {process.num_fds(), process.num_threads()}"
        time.sleep(0.1)


def test_made_up_requests_end_in_2xx_or_4xx_as_the_document_says(api: Any, embedded: Path) -> None:
    found = fuzz(api.place.address, 100, known=known_tile(api.place.address), secret=str(embedded.parent))
    print(dict(found.statuses))
    assert not found.failures
    assert found.requests >= 90
    assert {op for op, status in found.statuses if status == 200} >= {"GET /v1/slides/{slide}", "POST /v1/search"}


CODE = (
    "import sys; from histostore.cli import main, options_serve, parser; "
    "parser.COMMANDS.update(options_serve.COMMANDS); sys.exit(main(sys.argv[1:]))"
)


def test_a_signal_ends_the_command_cleanly(embedded: Path) -> None:
    words = [sys.executable, "-c", CODE, "serve", embedded, "--port", "0", "--json"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with start() as one, start() as other:
        for process, sig in ((one, signal.SIGINT), (other, signal.SIGTERM)):
            said = json.loads(process.stdout.readline())
            process.send_signal(sig)
            out, err = process.communicate(timeout=60)
            assert said["address"].startswith("http://127.0.0.1:")
            assert (said["token"], said["token_demanded"]) == (None, False)
            assert (process.returncode, out, err) == (0, "", "")
