"""What a failing embed leaves behind: nothing that still reads."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from histostore.progress import Stopwatch
from histostore.stages.embed_rows import Pass, Shard, embed_shards


class Slow:
    """Tiles that take a while to read, and know whether they are read after they were closed."""

    n_rows, decoder = 1000, "x"

    def __init__(self) -> None:
        self.closed = self.reading = self.read_late = False

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        self.reading, self.read_late = True, self.read_late or self.closed
        time.sleep(0.1)
        self.reading = False
        return np.zeros((stop - start, 8, 8, 3), np.uint8), np.zeros(stop - start, np.uint8)

    def close(self) -> None:
        self.closed = True
        self.read_late = self.read_late or self.reading


class Failing:
    """A backbone whose second forward pass fails."""

    class spec:
        dim, name = 4, "failing"

    def __init__(self) -> None:
        self.passes = 0

    def engine(self) -> dict[str, str]:
        return {"device": "cpu"}

    def embed(self, tiles: np.ndarray) -> np.ndarray:
        self.passes += 1
        if self.passes == 2:
            raise RuntimeError("out of memory")
        return np.zeros((len(tiles), 4), np.float32)


def test_a_slide_is_no_longer_read_when_it_is_closed_after_a_failure() -> None:
    source = Slow()
    with pytest.raises(RuntimeError, match="out of memory"), ExitStack() as stack:
        stack.callback(source.close)
        shards = embed_shards(source, [Shard(0, 1000, [Pass(Failing(), 32)])], read_batch=32, watch=Stopwatch())
        list(shards)  # `shards` and the error's traceback both hold on to what reads
    time.sleep(0.3)
    assert not source.read_late
    assert not [t for t in threading.enumerate() if t.name == "histostore-reader"]
