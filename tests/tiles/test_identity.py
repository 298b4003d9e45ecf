from __future__ import annotations

import hashlib
import struct

import numpy as np

from histostore.tiles.identity import sample_keys, tile_ids

GOLDEN = [["0x2306ba19dac1c0c7", "0xf51cdb09c1d2a1a5"]]
CENTRES = np.array([[112.0, 112.0], [336.0, 112.0], [112.0, 336.25], [112.0, 112.0 + 1 / 256]])


def test_the_golden_id_never_changes():
    assert [[hex(v) for v in row] for row in tile_ids("ab" * 32, CENTRES[:1], 224.0, 0.688).tolist()] == GOLDEN


def test_an_id_is_the_documented_hash():
    digest = hashlib.blake2b(digest_size=16, person=b"histostore.tile1")
    digest.update(b"source" + struct.pack("<4q", 112 * 256, 336 * 256 + 64, 224 * 256, 688))
    expected = struct.unpack("<2Q", digest.digest())
    assert tuple(tile_ids("source", CENTRES, 224.0, 0.688)[2].tolist()) == expected


def test_ids_depend_on_the_tile_alone_and_tell_tiles_apart():
    ids = tile_ids("source", CENTRES, 224.0, 0.688)
    assert ids.dtype == np.uint64
    assert ids.shape == (4, 2)
    assert len(np.unique(ids, axis=0)) == 4
    assert np.array_equal(tile_ids("source", CENTRES[::-1], 224.0, 0.688), ids[::-1])
    for other in (
        tile_ids("another", CENTRES, 224.0, 0.688),
        tile_ids("source", CENTRES, 225.0, 0.688),
        tile_ids("source", CENTRES, 224.0, 0.689),
    ):
        assert not (other == ids).all(axis=1).any()


def test_differences_below_a_256th_of_a_pixel_and_a_nanometre_make_no_new_tile():
    near = tile_ids("source", CENTRES + 0.001, 224.0004, 0.6880001)
    assert np.array_equal(near, tile_ids("source", CENTRES, 224.0, 0.688))


def test_sample_keys_depend_on_the_seed_and_the_id_alone():
    ids = [f"{i}x3" for i in range(2000)]
    keys = sample_keys(ids, 7)
    assert np.array_equal(sample_keys(ids[::-1], 7)[::-1], keys)
    assert (sample_keys(ids, -8) != keys).all()
    assert abs(float(np.mean(keys / 2.0**64)) - 0.5) < 0.03
