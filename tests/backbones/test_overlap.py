"""Forward passes that are begun and waited for later: the same rows, whatever is in flight."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from histostore.backbones import load_backbone
from histostore.backbones.batch import COMPILED_BATCHES, CPU_BATCH, CUDA_BATCHES, best_batch, choose_batch
from histostore.backbones.device_queue import DeviceQueue
from histostore.backbones.overlap import BatchTooLargeError, Overlapping, PartPool, begin, in_flight
from histostore.backbones.testing_backbone import TestingBackbone
from histostore.errors import UsageError

NAME = "timm/resnet10t@random:0"


def means(tiles):
    return tiles.reshape(len(tiles), -1, 3).mean(1).astype(np.float32)


def small_tiles(count):
    return np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_begun_together_keep_their_rows(threads):
    tiles = small_tiles(70)
    pool = PartPool(means, threads)
    waiting = [(a, pool.begin(tiles[a : a + 20])) for a in range(0, 70, 20)]
    for a, wait in reversed(waiting):
        assert np.array_equal(wait().rows, means(tiles[a : a + 20]))


def test_every_part_has_sixteen_tiles():
    seen = []
    pool = PartPool(lambda part: seen.append(len(part)) or means(part), 1)
    pool.begin(small_tiles(35))()
    assert seen == [16, 16, 16]


def test_enough_batches_fly_to_keep_every_thread_busy():
    pool = PartPool(means, 8)
    assert pool.in_flight(32) * 32 >= 8 * 16 + 32


def test_an_error_in_a_part_is_raised_where_the_rows_are_wanted():
    def broken(_part):
        raise ValueError("no")

    wait = PartPool(broken, 2).begin(small_tiles(40))
    with pytest.raises(ValueError, match="no"):
        wait()


def test_any_backbone_can_be_begun(tiles):
    testing, torch_one = load_backbone("testing"), load_backbone(NAME, device="cpu")
    assert not isinstance(testing, Overlapping)
    assert isinstance(torch_one, Overlapping)
    assert in_flight(testing, 32) == 1
    for backbone in (testing, torch_one):
        found = begin(backbone, tiles[:3])()
        assert np.array_equal(found.rows, backbone.embed(tiles[:3]))
        assert found.seconds > 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_device_gives_the_rows_of_the_batches_it_was_given(device):
    tiles = small_tiles(60)
    queue = DeviceQueue(torch.device(device), lambda x: x.float().mean((1, 2)))
    waiting = [queue.begin(tiles[a : a + 20]) for a in range(0, 60, 20)]
    rows = np.concatenate([wait().rows for wait in waiting])
    np.testing.assert_allclose(rows, means(tiles), rtol=1e-5)
    assert rows.flags.writeable


def test_a_batch_that_does_not_fit_says_so():
    def full(_tiles):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(BatchTooLargeError, match="a batch of 5 tiles of 8 px does not fit into cpu"):
        DeviceQueue(torch.device("cpu"), full).begin(small_tiles(5))


def test_what_did_not_fit_is_let_go_before_that_is_said():
    held = []

    def full(tiles):
        half_done = tiles.float()
        held.append(weakref.ref(half_done))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(BatchTooLargeError) as told:
        DeviceQueue(torch.device("cpu"), full).begin(small_tiles(5))
    assert told.value.__context__ is None
    assert held[0]() is None


@pytest.mark.gpu
@pytest.mark.parametrize("compile_with", [None, "cudagraphs"])
def test_on_a_cuda_device_begun_batches_give_the_rows_of_embed(tiles, compile_with):
    backbone = load_backbone(NAME, device="cuda", precision="float32", compile_with=compile_with)
    waiting = [backbone.begin(tiles) for _ in range(4)]
    wanted = load_backbone(NAME, device="cpu").embed(tiles)
    for wait in waiting:
        np.testing.assert_allclose(wait().rows, wanted, atol=1e-3)
    assert choose_batch(backbone, 224) in (32, 64, 128, 256, 512, 1024)


def test_the_smallest_batch_near_the_best_rate_is_taken():
    rates = {32: 50.0, 64: 80.0, 128: 99.0, 256: 100.0, 512: 60.0}
    assert best_batch(rates.__getitem__, list(rates)) == 128


def test_batches_that_do_not_fit_are_not_taken():
    tried = []

    def rate(size):
        tried.append(size)
        if size > 64:
            raise BatchTooLargeError("too large")
        return float(size)

    assert best_batch(rate, (32, 64, 128, 256)) == 64
    assert tried == [32, 64, 128]
    with pytest.raises(BatchTooLargeError):
        best_batch(rate, (128, 256))


@pytest.mark.parametrize(("engine", "sizes"), [({}, CUDA_BATCHES), ({"compile": "inductor"}, COMPILED_BATCHES)])
def test_a_compiled_network_is_measured_at_few_sizes(engine, sizes):
    class Device(TestingBackbone):
        def engine(self):
            return super().engine() | {"device": "cuda"} | engine

        def embed(self, tiles):
            seen.add(len(tiles))
            return np.zeros((len(tiles), self.spec.dim), np.float32)

    seen = set()
    assert choose_batch(Device(), 8) in sizes
    assert sorted(seen) == list(sizes)


def test_the_batch_is_fixed_on_a_cpu():
    assert choose_batch(load_backbone("testing"), 224) == CPU_BATCH


def test_a_compiled_forward_pass_gives_the_same_rows_and_is_part_of_the_engine(tiles):
    plain = load_backbone(NAME, device="cpu", threads=1)
    compiled = load_backbone(NAME, device="cpu", threads=1, compile_with="eager")
    np.testing.assert_allclose(compiled.embed(tiles[:2]), plain.embed(tiles[:2]), atol=1e-5)
    assert compiled.engine() == plain.engine() | {"compile": "eager"}
    with pytest.raises(UsageError, match=r"torch\.compile has no backend 'inducto'; did you mean 'inductor'"):
        load_backbone(NAME, device="cpu", compile_with="inducto")
