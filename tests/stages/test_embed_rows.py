"""Shards one after the other without a pause: rows never depend on what is read ahead or in flight."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from histostore.backbones import load_backbone
from histostore.backbones.testing_backbone import TestingBackbone
from histostore.progress import Stopwatch
from histostore.stages.embed_rows import Pass, Shard, embed_shards
from histostore.stages.overlap import behind, one_later
from histostore.stages.profile import Profile


class Tiles:
    """Random tiles in memory, as a source; counts what was read."""

    decoder = "none"

    def __init__(self, n_rows):
        self.n_rows = n_rows
        self.pixels = np.random.default_rng(0).integers(0, 255, (n_rows, 32, 32, 3), dtype=np.uint8)
        self.status = np.arange(n_rows, dtype=np.uint8) % 3
        self.reads = []

    def read(self, start, stop):
        self.reads.append((start, stop))
        return self.pixels[start:stop], self.status[start:stop]


SHARDS = ((0, 50), (50, 90), (120, 121))


@pytest.mark.parametrize("read_batch", [1, 7, 64])
@pytest.mark.parametrize("batches", [(16,), (5, 32)])
def test_rows_and_status_are_those_of_each_tile(read_batch, batches):
    source, backbone = Tiles(130), TestingBackbone()
    shards = [Shard(a, b, [Pass(backbone, n) for n in batches]) for a, b in SHARDS]
    told = []
    found = list(embed_shards(source, shards, read_batch=read_batch, watch=Stopwatch(), on_rows=told.append))
    assert [f.shard for f in found] == shards
    for made in found:
        a, b = made.shard.start, made.shard.stop
        assert np.array_equal(made.status, source.status[a:b])
        assert len(made.rows) == len(batches)
        for rows in made.rows:
            assert np.array_equal(rows, backbone.embed(source.pixels[a:b]))
    assert sum(told) == 91 * len(batches)


def test_each_tile_is_read_once_for_all_backbones():
    source = Tiles(40)
    passes = [Pass(TestingBackbone(), 8), Pass(TestingBackbone(), 16)]
    list(embed_shards(source, [Shard(0, 40, passes)], read_batch=10, watch=Stopwatch()))
    assert source.reads == [(0, 10), (10, 20), (20, 30), (30, 40)]


def test_a_network_gives_the_bits_of_its_embed_across_shards():
    source, network = Tiles(70), load_backbone("timm/resnet10t@random:0", device="cpu", threads=2)
    shards = [Shard(a, a + 35, [Pass(network, 32)]) for a in (0, 35)]
    found = list(embed_shards(source, shards, read_batch=9, watch=Stopwatch()))
    assert np.array_equal(np.concatenate([f.rows[0] for f in found]), network.embed(source.pixels))


def test_reading_stays_a_bounded_way_ahead():
    source, gate = Tiles(2000), threading.Event()

    class Slow(TestingBackbone):
        def embed(self, tiles):
            gate.wait(0.2)
            return super().embed(tiles)

    shards = [Shard(a, a + 1000, [Pass(Slow(), 50)]) for a in (0, 1000)]
    first = next(embed_shards(source, shards, read_batch=50, watch=Stopwatch(), on_rows=lambda _n: gate.set()))
    assert first.shard is shards[0]
    assert source.reads[-1][1] <= 1000 + 5 * 50


def test_a_bad_read_ends_the_run_with_its_error():
    class Broken(Tiles):
        def read(self, start, stop):
            if start >= 20:
                raise OSError("gone")
            return super().read(start, stop)

    with pytest.raises(OSError, match="gone"):
        list(embed_shards(Broken(40), [Shard(0, 40, [Pass(TestingBackbone(), 10)])], read_batch=10, watch=Stopwatch()))


def test_what_is_handed_over_is_run_in_order_behind_the_caller():
    done, here = [], threading.current_thread()
    with behind(Stopwatch()) as later:
        for i in range(6):
            later(lambda i=i: done.append((i, threading.current_thread() is here)))
    assert done == [(i, False) for i in range(6)]


def test_what_was_begun_is_given_out_one_later():
    begun, given = [], []
    for item in one_later(begun.append(n) or n for n in range(4)):
        given.append((item, len(begun)))
    assert given == [(0, 2), (1, 3), (2, 4), (3, 4)]


def test_the_first_error_behind_ends_it():
    done = []

    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), behind(Stopwatch()) as later:
        later(fail)
        for i in range(5):
            later(lambda i=i: done.append(i))
    assert len(done) <= 2


def test_what_waits_behind_a_failing_piece_is_not_run():
    both, done = threading.Event(), []

    def fail():
        both.wait(10)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), behind(Stopwatch()) as later:
        later(fail)
        later(lambda: done.append(1))
        both.set()
    assert done == []


def test_the_watch_tells_what_was_busy_and_the_profile_what_binds():
    source, watch = Tiles(200), Stopwatch()
    slow = Shard(0, 200, [Pass(TestingBackbone(delay_s=0.02), 20)])
    list(embed_shards(source, [slow], read_batch=20, watch=watch))
    assert {"read and decode", "forward", "waiting for tiles"} <= set(watch.seconds)
    assert watch.seconds["forward"] >= 0.2
    profile = Profile(wall=0.5, rows=200, busy=watch.seconds)
    assert profile.binds == "forward"
    told = profile.to_json()
    assert told["rows_per_s"] == 400
    assert told["share"]["forward"] == pytest.approx(watch.seconds["forward"] / 0.5, abs=1e-3)
    first, *parts = profile.text().splitlines()
    assert f"400 rows/s: forward binds, busy {100 * profile.share('forward'):.0f} % of the time" in first
    assert "forward" in next(line for line in parts if "<- binds" in line)


def test_waiting_never_binds_and_nothing_done_is_said_as_such():
    assert Profile(wall=2.0, rows=1, busy={"waiting for tiles": 1.9, "read": 1.0}).binds == "read"
    nothing = Profile(wall=0.0, rows=0)
    assert nothing.to_json()["binds"] is None
    assert nothing.text() == "  0 rows in 0.0 s, 0 rows/s"
