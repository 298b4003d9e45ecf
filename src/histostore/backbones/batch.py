"""How many tiles per forward pass? Fixed on a CPU, measured once per process and network on a CUDA device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from histostore.backbones.overlap import BatchTooLargeError, begin, in_flight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from histostore.protocols import Backbone

CPU_BATCH = 32
"""Two parts. Bits do not depend on it there, and more tiles at a time are no faster."""

CUDA_BATCHES = (32, 64, 128, 256, 512, 1024)
COMPILED_BATCHES = (64, 256)
"""Where every size is a compilation of its own, of half a minute."""

ENOUGH = 0.97
"""Of the best rate: the smallest batch that reaches it is taken, since it needs the least memory."""

_PASSES = 6
_TILES = 1024
"""At least so many passes and tiles are timed at a size: passes of few tiles are too short to compare."""

_chosen: dict[tuple[object, ...], int] = {}


def choose_batch(backbone: Backbone, px: int) -> int:
    """Return the tiles per forward pass for tiles of `px` pixels: call it once, before the engine is recorded.

    On a CUDA device batches of 32 to 1,024 are timed, which takes seconds (of a compiled network 64 and 256, a minute);
    the answer is kept for this process. Give the batch yourself where runs in several processes are to share an engine.
    """
    engine = backbone.engine()
    if not on_cuda(backbone):
        return CPU_BATCH
    key = (backbone.spec.digest, px, *sorted(engine.items()))
    if key not in _chosen:
        sizes = COMPILED_BATCHES if "compile" in engine else CUDA_BATCHES
        _chosen[key] = best_batch(lambda batch: _rate(backbone, px, batch), sizes)
    return _chosen[key]


def on_cuda(backbone: Backbone) -> bool:
    """Whether a backbone runs on a CUDA device, and the processor's cores are free for reading."""
    return str(backbone.engine().get("device", "cpu")).startswith("cuda")


def best_batch(rate: Callable[[int], float], sizes: Sequence[int]) -> int:
    """Return the smallest of some growing sizes whose rate is within 3 % of the best.

    Parameters
    ----------
    rate
        Tiles per second at a size; raises `BatchTooLargeError` where it does not fit, and larger ones are not tried.

    Raises
    ------
    BatchTooLargeError
        Not even the smallest fits.
    """
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = rate(size)
        except BatchTooLargeError:
            if not rates:
                raise
            break
    return min(size for size, found in rates.items() if found >= ENOUGH * max(rates.values()))


def _rate(backbone: Backbone, px: int, batch: int) -> float:
    tiles = np.zeros((batch, px, px, 3), np.uint8)
    begin(backbone, tiles)()  # kernels are chosen and memory is taken in the first pass
    passes = max(_PASSES, -(-_TILES // batch))
    begun = time.perf_counter()
    at_work = [begin(backbone, tiles) for _ in range(in_flight(backbone, batch))]
    for _ in range(passes - len(at_work)):
        at_work.pop(0)()
        at_work.append(begin(backbone, tiles))
    for waiting in at_work:
        waiting()
    return passes * batch / (time.perf_counter() - begun)
