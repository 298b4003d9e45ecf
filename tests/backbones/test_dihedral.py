"""Averaging over the symmetries of the square."""

from __future__ import annotations

import numpy as np
import pytest

from histostore.backbones import load_backbone
from histostore.backbones.dihedral import symmetries
from histostore.testing.backbone_contract import BackboneContract, stained_tiles

NAMES = ["testing", "timm/resnet10t@random:0"]


class TestDihedral(BackboneContract):
    def make_backbone(self):
        return load_backbone("testing", dihedral=True)


def test_the_eight_orientations_are_eight_and_half_of_them_are_mirror_images():
    tile = np.zeros((1, 3, 3, 3), np.uint8)
    tile[0, ..., 0] = np.arange(9).reshape(3, 3)
    seen = [image[0, ..., 0] for image in symmetries(tile)]
    assert len({image.tobytes() for image in seen}) == 8
    # walking the four corners clockwise, a turn keeps the order and a mirror image reverses it
    clockwise = [(0, 2, 8, 6), (2, 8, 6, 0), (8, 6, 0, 2), (6, 0, 2, 8)]
    corners = [(int(i[0, 0]), int(i[0, 2]), int(i[2, 2]), int(i[2, 0])) for i in seen]
    assert sorted(c in clockwise for c in corners) == [False] * 4 + [True] * 4


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_mean_of_eight_plain_embeddings(name):
    tiles = stained_tiles(2, px=96)
    plain = load_backbone(name)
    expected = np.mean([plain.embed(image) for image in symmetries(tiles)], axis=0)
    rows = load_backbone(name, dihedral=True).embed(tiles)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(rows, plain.embed(tiles), rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_turned_and_mirrored_tiles_get_the_same_row(name):
    tiles = stained_tiles(2, px=96)
    backbone = load_backbone(name, dihedral=True)
    rows = backbone.embed(tiles)
    atol = 1e-4 * float(np.abs(rows).max())
    for image in symmetries(tiles):
        np.testing.assert_allclose(backbone.embed(image), rows, rtol=0, atol=atol)
