"""Averaging over the eight symmetries of the square, for any backbone: numpy only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from histostore.backbones.overlap import Forwarded, begin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.backbones.overlap import Waiting
    from histostore.protocols import Backbone

SUFFIX = "+dihedral"


def symmetries(tiles: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield ``(b, px, px, 3)`` tiles in their eight orientations: four turns, then the four of the mirror image."""
    for image in (tiles, tiles[:, :, ::-1]):
        for turns in range(4):
            yield np.ascontiguousarray(np.rot90(image, turns, axes=(1, 2)))


class DihedralBackbone:
    """The mean embedding of a tile's eight orientations.

    The name gets the suffix ``+dihedral`` and the spec says so: these are other embeddings than the plain ones.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        name = backbone.spec.name + SUFFIX
        self.spec = dataclasses.replace(backbone.spec, name=name, dihedral=True)

    def engine(self) -> dict[str, str | int]:
        """Return the plain backbone's engine."""
        return self._backbone.engine()

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed a batch: ``(b, px, px, 3)`` uint8 RGB to ``(b, dim)`` float32."""
        return self.begin(tiles)().rows

    def begin(self, tiles: NDArray[np.uint8]) -> Waiting:
        """Begin to embed a batch; see `histostore.backbones.overlap.Overlapping`."""
        waiting = [begin(self._backbone, image) for image in symmetries(tiles)]

        def wait() -> Forwarded:
            total, seconds = np.zeros((len(tiles), self.spec.dim), np.float32), 0.0
            for one in waiting:
                found = one()
                total += found.rows
                seconds += found.seconds
            return Forwarded(total / np.float32(8), seconds)

        return wait

    def in_flight(self, batch: int) -> int:
        """Return one: it is eight forward passes."""
        del batch
        return 1
