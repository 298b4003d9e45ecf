"""Indexes under fire: writers that are killed, readers while snapshots are published, two writers at once."""

from __future__ import annotations

import multiprocessing
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import histostore as hs
from histostore.stages.index import index, open_index
from histostore.store.store import open_store
from histostore.store.verify import verify

pytestmark = pytest.mark.xdist_group("crash")

NAME = "spots/testing"


def bring_up_to_date(store: str, slides: list[str] | None, ready: multiprocessing.synchronize.Event) -> None:
    opened = open_store(store)
    ready.set()
    index(opened, backbone="testing", slides=slides)


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.torture)])
def test_a_writer_killed_at_any_moment_leaves_the_old_snapshot_or_the_new_one(embedded, copy_of, kills):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["histostore.stages.index", "histostore.index.life"])
    path = copy_of(embedded)
    store = hs.open(path)
    a = index(store, backbone="testing", slides=["A1"]).rows
    both = len(store.view(backbone="testing"))
    draw, seen = random.Random(kills), set()
    for turn in range(kills):
        wanted = ["A1"] if turn % 2 else None
        ready = context.Event()
        process = context.Process(target=bring_up_to_date, args=(str(path), wanted, ready))
        process.start()
        ready.wait(30)
        time.sleep(draw.uniform(0, 0.25))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        opened = open_index(store, NAME)
        assert opened.snapshot.live in (a, both)
        seen.add(opened.snapshot.live)
        rows = store.view(backbone="testing")
        found = opened.reader(rows).search(rows.numpy()[:3].astype(np.float32), 1)[0][:, 0]
        assert found.tolist() == opened.places.ids(rows)[:3].tolist()
    done = index(store, backbone="testing")
    assert done.rows == both
    assert verify(store).errors == ()


@pytest.mark.parametrize("publishes", [12, pytest.param(100, marks=pytest.mark.torture)])
def test_readers_see_only_whole_snapshots_while_others_are_published(embedded, copy_of, publishes):
    path = copy_of(embedded)
    store = hs.open(path)
    rows = store.view(backbone="testing")
    queries = rows.numpy()[:4].astype(np.float32)
    sizes = {index(store, backbone="testing", slides=["A1"]).rows, len(rows)}
    stop, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        own = hs.open(path)
        while not stop.is_set():
            opened = open_index(own, NAME)
            reader = opened.reader(own.view(backbone="testing"))
            found = reader.search(queries, 1)[0][:, 0]
            seen.add(len(reader))
            if found.tolist() != opened.places.ids(rows)[:4].tolist():
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for turn in range(publishes):
        index(store, backbone="testing", slides=None if turn % 2 == 0 else ["A1"])
    stop.set()
    for thread in readers:
        thread.join()
    assert not wrong
    assert seen <= sizes


def test_what_was_deleted_is_not_found_through_an_old_name(embedded, copy_of, cli):
    path = copy_of(embedded)
    store = hs.open(path)
    index(store, backbone="testing")
    vector = store.view(backbone="testing", slides=["A1"]).numpy()[0].astype(np.float32)
    cli("delete", path, "--slide", "A1")
    for _ in range(2):
        hits = hs.tl.search(hs.open(path), vector=vector, k=500)
        assert set(hits.table["slide"]) == {"B1"}
        index(store, backbone="testing")
    assert Path(path).exists()
