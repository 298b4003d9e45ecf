"""Tiles per forward pass: chosen once, recorded before the first shard, and kept by whoever goes on."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import histostore as hs
from histostore.backbones import batch as batches
from histostore.backbones.overlap import BatchTooLargeError
from histostore.backbones.testing_backbone import TestingBackbone
from histostore.scale.kept import BackboneCall, kept_for
from histostore.scale.steps import embed_steps, run_here
from histostore.scale.task import Context, Task
from histostore.scale.versions import own_versions
from histostore.scale.work import describe, perform
from histostore.specs import EmbeddingSpec
from histostore.stages.embed import threads_beside
from histostore.testing.crash import contents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

LAYOUT = EmbeddingSpec(shard_rows=16, chunk_rows=16)


class Clock:
    """The time that made-up devices take: a busy machine does not change what is measured by it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Device(TestingBackbone):
    """A device as a batch sees it: a pass takes 10 ms for up to `lanes` tiles, more for more, and none above `room`.

    Its rows depend on the batch, as a device's last bits do.
    """

    clock = Clock()

    def __init__(self, lanes: int = 64, room: int = 200, passes: int = 10**9) -> None:
        super().__init__()
        self.lanes, self.room, self.left = lanes, room, passes
        self.seen: list[int] = []

    def engine(self) -> dict[str, str | int]:
        return super().engine() | {"device": "cuda", "device_name": "made up"}

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(tiles) > self.room:
            raise BatchTooLargeError(f"{len(tiles)} tiles")
        self.seen.append(len(tiles))
        if tiles.any():  # not a measurement
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().embed(tiles) + np.float32(len(tiles))
        self.clock.now += 0.01 * max(1.0, (len(tiles) / self.lanes) ** 2)
        return np.zeros((len(tiles), self.spec.dim), np.float32)


class Counted:
    """Counts how often a batch is measured, by the clock of the devices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times, self._really = 0, batches.best_batch
        monkeypatch.setattr(batches, "_chosen", {})
        monkeypatch.setattr(batches, "best_batch", self)
        monkeypatch.setattr(batches, "time", Device.clock)

    def __call__(self, *args: Any) -> int:
        self.times += 1
        return self._really(*args)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Forget what this process has measured, and count what it measures from now on."""
    return Counted(monkeypatch)


def recorded(store: Path, slide: str = "A1") -> dict[str, Any]:
    """Return the engine of the one group of embeddings of a slide, sealed or not."""
    folder = store / "slides" / slide / "embeddings"
    (found,) = [*folder.rglob("GROUP.json"), *folder.rglob("ATTEMPT.json")]
    engine: dict[str, Any] = json.loads(found.read_bytes())["engine"]
    return engine


def test_a_device_is_measured_once_and_what_came_out_is_recorded_for_every_slide(
    tiled: Path, copy_of: Callable[[Path], Path], measured: Counted
) -> None:
    path, device = copy_of(tiled), Device()
    hs.tl.embed(hs.open(path), device, slides=["A1", "B1"], spec=LAYOUT)
    assert measured.times == 1
    assert [recorded(path, s)["batch"] for s in ("A1", "B1")] == [64, 64]
    assert set(device.seen) == {32, 64, 128}  # 256 did not fit
    shards = len([f for f in (path / "slides/A1/embeddings").rglob("c/*/0") if f.is_file()])
    assert shards > 1


def test_what_is_given_is_not_measured(tiled: Path, copy_of: Callable[[Path], Path], measured: Counted) -> None:
    path = copy_of(tiled)
    hs.tl.embed(hs.open(path), Device(), slides="A1", spec=LAYOUT, batch=48)
    assert recorded(path)["batch"] == 48
    assert measured.times == 0


@pytest.mark.parametrize("where", ["here", "on workers"])
def test_a_run_that_goes_on_keeps_the_batch_it_began_with(
    tiled: Path, copy_of: Callable[[Path], Path], measured: Counted, where: str
) -> None:
    whole, cut = copy_of(tiled), copy_of(tiled)
    hs.tl.embed(hs.open(whole), Device(), slides="A1", spec=LAYOUT)
    with pytest.raises(KeyboardInterrupt):
        hs.tl.embed(hs.open(cut), Device(passes=1), slides="A1", spec=LAYOUT)
    assert recorded(cut)["batch"] == 64
    batches._chosen.clear()  # another process, where more comes out as fast
    measured.times, other = 0, Device(lanes=128)
    if where == "here":
        (result,) = hs.tl.embed(hs.open(cut), other, slides="A1", spec=LAYOUT)
        assert measured.times == 0
    else:
        (result,) = embed_as_worker(cut, other)
    assert result.done == "resumed"
    assert contents(cut, "A1") == contents(whole, "A1")


def embed_as_worker(path: Path, backbone: Device, **options: Any) -> Any:
    """Take the steps of a distributed run in this process, its backbone loaded already."""
    store = hs.open(path)
    context, call = Context(store.uri, store.uuid, f"run of {path}", own_versions()), BackboneCall("made up")
    kept_for(context)
    from histostore.scale import kept

    loaded = kept._backbone
    try:
        kept._backbone = lambda *_: backbone  # type: ignore[assignment]
        known = perform(context, Task(describe, (call, options.get("batch")), ""))
        return run_here(embed_steps(store, "A1", [known], spec=LAYOUT, **options), lambda t: perform(context, t))
    finally:
        kept._backbone = loaded


def test_workers_take_the_batch_of_the_first_one(
    tiled: Path, copy_of: Callable[[Path], Path], measured: Counted
) -> None:
    serial, spread = copy_of(tiled), copy_of(tiled)
    hs.tl.embed(hs.open(serial), Device(), slides="A1", spec=LAYOUT)
    device = Device()
    embed_as_worker(spread, device)
    assert recorded(spread)["batch"] == 64
    assert device.seen[-1] == 64
    assert contents(spread, "A1") == contents(serial, "A1")


def test_a_run_on_the_cpu_goes_on_with_the_batch_it_was_given(tiled: Path, copy_of: Callable[[Path], Path]) -> None:
    class Failing(TestingBackbone):
        left = 1

        def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().embed(tiles)

    path = copy_of(tiled)
    with pytest.raises(KeyboardInterrupt):
        hs.tl.embed(hs.open(path), Failing(), slides="A1", spec=LAYOUT, batch=16)
    (result,) = hs.tl.embed(hs.open(path), "testing", slides="A1", spec=LAYOUT)
    assert result.done == "resumed"
    assert recorded(path)["batch"] == 16


def test_another_engine_begins_anew_with_a_batch_of_its_own(tiled: Path, copy_of: Callable[[Path], Path]) -> None:
    path = copy_of(tiled)
    with pytest.raises(KeyboardInterrupt):
        hs.tl.embed(hs.open(path), Device(passes=1), slides="A1", spec=LAYOUT, batch=48)
    (result,) = hs.tl.embed(hs.open(path), "testing", slides="A1", spec=LAYOUT)
    assert result.done == "written"
    assert hs.open(path).group(result.refs[0]).header["engine"]["batch"] == batches.CPU_BATCH


@pytest.mark.parametrize("note", [b"", b"{}", b"[1]"], ids=repr)
def test_an_attempt_that_cannot_be_read_has_no_say(tiled: Path, copy_of: Callable[[Path], Path], note: bytes) -> None:
    path = copy_of(tiled)
    with pytest.raises(KeyboardInterrupt):
        hs.tl.embed(hs.open(path), Device(passes=1), slides="A1", spec=LAYOUT, batch=48)
    (attempt,) = (path / "slides/A1/embeddings").rglob("ATTEMPT.json")
    attempt.write_bytes(note)
    (result,) = hs.tl.embed(hs.open(path), "testing", slides="A1", spec=LAYOUT)
    assert result.done == "written"


def test_a_device_is_fed_by_more_threads_than_a_forward_pass_on_the_cpu_leaves_room_for() -> None:
    cores = len(os.sched_getaffinity(0))
    assert threads_beside([TestingBackbone()]) == 1
    assert threads_beside([TestingBackbone(), Device()]) == min(16, cores)
