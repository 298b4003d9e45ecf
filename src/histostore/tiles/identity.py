"""What a tile is called everywhere: a 128-bit fingerprint of the place it shows."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_TILE = b"histostore.tile1"
_SAMPLE = b"histostore.pick1"
SUBPIXELS = 256
"""Steps per level-0 pixel in which a tile's centre and size are told apart."""


def tile_ids(source_digest: str, centre: NDArray[np.float64], edge0: float, mpp: float) -> NDArray[np.uint64]:
    """Return the fingerprints of tiles of one slide.

    Parameters
    ----------
    source_digest
        Of the slide's bytes.
    centre
        ``(n, 2)`` centres, (x, y), in level-0 pixels.
    edge0
        Edge in level-0 pixels.
    mpp
        Microns per pixel of the stored tile.

    Returns
    -------
    numpy.ndarray
        ``(n, 2)`` uint64: the 16 bytes of BLAKE2b over the digest (UTF-8), then four little-endian int64 (centre x,
        centre y and size in 1/256 level-0 px, mpp in nm), read as two little-endian numbers. A row depends on its
        own tile alone.
    """
    place = np.empty((len(centre), 4), dtype="<i8")
    place[:, :2] = np.rint(np.asarray(centre, dtype=np.float64) * SUBPIXELS)
    place[:, 2] = round(edge0 * SUBPIXELS)
    place[:, 3] = round(mpp * 1000)
    start = hashlib.blake2b(source_digest.encode(), digest_size=16, person=_TILE)
    rows = place.tobytes()
    out = bytearray(16 * len(place))
    for i in range(len(place)):
        one = start.copy()
        one.update(rows[32 * i : 32 * i + 32])
        out[16 * i : 16 * i + 16] = one.digest()
    return np.frombuffer(bytes(out), dtype="<u8").reshape(-1, 2).astype(np.uint64)


def sample_keys(ids: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """Return ``(n,)`` uint64 random numbers that depend on the seed and on each point's id alone.

    The n points of lowest number are a random sample that order and other points do not change, and a larger
    sample holds every smaller one.
    """
    start = hashlib.blake2b(seed.to_bytes(16, "little", signed=True), digest_size=8, person=_SAMPLE)
    out = bytearray()
    for point in ids:
        one = start.copy()
        one.update(point.encode())
        out += one.digest()
    return np.frombuffer(bytes(out), dtype="<u8").astype(np.uint64)
