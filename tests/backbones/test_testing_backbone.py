"""The backbone without a network: exact, fast and informative."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from histostore.backbones import load_backbone
from histostore.backbones.testing_backbone import TestingBackbone
from histostore.testing.backbone_contract import BackboneContract, stained_tiles


class TestTestingBackbone(BackboneContract):
    mates_rtol = 0.0

    def make_backbone(self):
        return TestingBackbone()


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_row_is_the_same_bytes_in_any_batch(tiles, batch):
    backbone = TestingBackbone()
    rows = np.concatenate([backbone.embed(tiles[i : i + batch]) for i in range(0, len(tiles), batch)])
    assert rows.tobytes() == backbone.embed(tiles).tobytes()


def test_its_digest_and_numbers_are_frozen():
    # stored embeddings of tests and golden stores depend on them
    backbone = TestingBackbone()
    ramp = np.broadcast_to(np.arange(224, dtype=np.uint8)[:, None], (1, 224, 224, 3))
    assert backbone.spec.digest == "db9ac6d7dba7c62305eef95268c48176"
    assert backbone.embed(ramp)[0, :4].tolist() == [
        5.7330322265625,
        -0.7532958984375,
        14.51776123046875,
        18.65545654296875,
    ]


def test_a_delay_sleeps_and_is_no_part_of_the_digest(tiles):
    slow = load_backbone("testing?delay_ms=60")
    started = time.perf_counter()
    rows = slow.embed(tiles)
    assert time.perf_counter() - started >= 0.06
    assert slow.spec.digest == load_backbone("testing").spec.digest
    assert rows.tobytes() == load_backbone("testing").embed(tiles).tobytes()


@pytest.mark.parametrize("kind", ["colour", "texture", "layout"])
def test_it_tells_tiles_apart_by(kind):
    rng = np.random.default_rng(5)
    plain = np.full((20, 224, 224, 3), (200, 150, 190), np.int64) + rng.integers(-8, 9, (20, 224, 224, 3))
    other = plain.copy()
    if kind == "colour":
        other[..., 0] -= 25
    elif kind == "texture":
        other += rng.choice([-25, 25], (20, 224, 224, 1))
    else:
        other[:, :112] -= 30
        other[:, 112:] += 30
    both = TestingBackbone().embed(np.clip(np.concatenate([plain, other]), 0, 255).astype(np.uint8))
    first, second = both[:20], both[20:]
    gap = np.linalg.norm(first.mean(0) - second.mean(0))
    assert gap > 4 * max(np.linalg.norm(g - g.mean(0), axis=1).mean() for g in (first, second))


def test_it_is_fast_enough_for_crash_tests():
    tiles = stained_tiles(32)
    backbone = TestingBackbone()
    backbone.embed(tiles)
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        backbone.embed(tiles)
        rates.append(32 / (time.perf_counter() - started))
    assert max(rates) > 1000, f"{max(rates):.0f} tiles/s (over 6,000 on two idle cores)"


def test_loading_it_imports_no_torch():
    code = "import sys, histostore.backbones as b; b.load_backbone('testing'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
