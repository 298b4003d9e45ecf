"""A backbone without a network: exact statistics of colour, texture and layout, in numpy.

Every statistic is a sum of integers and the projection is one of integers held in float64, so a row is the same
bytes in any batch, on any machine, with any number of threads.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import UsageError
from histostore.specs import BackboneSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIM = 64
GRID = 28
"""Sample points along an edge; four by four of the 7 x 7 blocks are the layout."""
_BLOCKS = 4
_UNIT = 4096
"""Statistics are rounded to 1/4096 before the projection, which is then exact."""
_STATISTICS = 5 * 3 + 3 + 4 + 8 + 3 * _BLOCKS**2


def _projection() -> NDArray[np.float64]:
    """Return the fixed ``(statistics, 64)`` matrix of small integers: the low bits of a hash, one per entry."""
    size = _STATISTICS * DIM
    raw = b"".join(hashlib.sha256(f"histostore testing {i}".encode()).digest() for i in range(size // 32 + 1))
    return (np.frombuffer(raw, np.uint8)[:size] % 9).astype(np.float64).reshape(_STATISTICS, DIM) - 4


class TestingBackbone:
    """Sixty-four numbers that know a tile's colour, texture and coarse layout. Deterministic and fast.

    Parameters
    ----------
    delay_s
        Seconds to sleep in every call of `embed`: leaves a crash test time to strike. No part of the digest.
    """

    __test__ = False  # pytest: no test class

    def __init__(self, *, delay_s: float = 0.0) -> None:
        if not 0 <= delay_s < 3600:
            msg = f"delay_s is {delay_s}: give 0 or more seconds"
            raise UsageError(msg)
        self._delay_s = delay_s
        self._matrix = _projection()
        self._density = np.rint(-np.log((np.arange(256) + 1) / 256) * 1000).astype(np.int64)
        self.spec = BackboneSpec(
            name="testing",
            source="module:histostore.backbones.testing_backbone",
            weights_sha256=hashlib.sha256(b"testing 1" + self._matrix.tobytes()).hexdigest(),
            dim=DIM,
            input_px=224,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            interpolation="bilinear",
            pooling="model",
            licence="MIT",
        )

    def engine(self) -> dict[str, str | int]:
        """Return the engine: there is only one, the numbers are exact."""
        return {"backend": "numpy", "device": "cpu", "precision": "exact", "threads": 1}

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed a batch: ``(b, px, px, 3)`` uint8 RGB to ``(b, 64)`` float32."""
        if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.shape[1] != tiles.shape[2]:
            msg = f"tiles are {tiles.dtype} {tiles.shape}: give uint8 (b, px, px, 3)"
            raise UsageError(msg)
        if self._delay_s:
            time.sleep(self._delay_s)
        if len(tiles) == 0:
            return np.empty((0, DIM), np.float32)
        counts = np.rint(self._statistics(tiles) * _UNIT)
        return (counts @ self._matrix / (4 * _UNIT)).astype(np.float32)

    def _statistics(self, tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
        edge = tiles.shape[1]
        at = np.arange(GRID) * edge // GRID
        beside = np.minimum(at + 1, edge - 1)
        here = tiles[:, at[:, None], at].astype(np.int64)
        grey = here.sum(-1)
        right = tiles[:, at[:, None], beside].sum(-1, dtype=np.int64) - grey
        below = tiles[:, beside[:, None], at].sum(-1, dtype=np.int64) - grey
        parts = [self._colour(here), _texture(right, below), _shades(grey), _layout(here)]
        return np.concatenate(parts, axis=1)

    def _colour(self, here: NDArray[np.int64]) -> NDArray[np.float64]:
        n = GRID * GRID
        pixels = here.reshape(len(here), n, 3)
        density = self._density[pixels]
        mean = pixels.sum(1) / n
        spread = _spread(pixels)
        red, green, blue = (pixels[..., c] for c in range(3))
        pairs = [(a - b).sum(1) / n for a, b in ((red, green), (green, blue), (red, blue))]
        absorbed = density.sum(1) / n
        level, width = (mean - 180) / 40, spread / 20
        deep, deep_width = (absorbed - 350) / 250, _spread(density) / 200
        chroma = _spread(pixels - pixels[..., [1, 2, 0]]) / 15
        return np.concatenate([level, width, deep, deep_width, chroma, np.stack(pairs, 1) / 20], axis=1)


def _spread(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the standard deviation over the pixels, from exact integer sums."""
    n = values.shape[1]
    variance = n * (values * values).sum(1) - values.sum(1) ** 2
    spread: NDArray[np.float64] = np.sqrt(variance.astype(np.float64)) / n
    return spread


def _texture(right: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    n = GRID * GRID
    size = [np.abs(d).sum((1, 2)) / (3 * n) / 5 for d in (right, below)]
    energy = [np.sqrt((d * d).sum((1, 2)) / n) / 3 / 10 for d in (right, below)]
    return np.stack([*size, *energy], axis=1)


def _shades(grey: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the pixels in each of eight steps of brightness."""
    step = np.minimum(grey * 8 // 766, 7)
    return np.stack([(step == k).sum((1, 2)) / (GRID * GRID) for k in range(8)], axis=1) * 3


def _layout(here: NDArray[np.int64]) -> NDArray[np.float64]:
    size = GRID // _BLOCKS
    blocks = here.reshape(len(here), _BLOCKS, size, _BLOCKS, size, 3).sum((2, 4))
    return (blocks.reshape(len(here), -1) / (size * size) - 180) / 80
