"""What every backbone must do: subclass `BackboneContract` in your own tests and say how yours is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import HistostoreError
from histostore.protocols import Backbone
from histostore.specs import BackboneSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 5


def stained_tiles(count: int, *, px: int = 224, seed: int = 0) -> NDArray[np.uint8]:
    """Return ``(count, px, px, 3)`` uint8 tiles that look a little like stained tissue: pink ground, dark blobs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:px, :px] / px
    tiles = np.empty((count, px, px, 3), np.uint8)
    for tile in tiles:
        field = np.zeros((px, px))
        for cx, cy, size in rng.random((int(rng.integers(5, 40)), 3)):
            field += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * (0.01 + 0.05 * size) ** 2))
        share = np.clip(field, 0, 1)[..., None]
        ground, dark = rng.normal((225, 170, 205), 12), rng.normal((95, 60, 130), 12)
        colour = ground * (1 - share) + dark * share + rng.normal(0, 6, (px, px, 3))
        tile[:] = np.clip(colour, 0, 255)
    return tiles


class BackboneContract:
    """Tests of the `histostore.protocols.Backbone` protocol.

    Subclass it, give `make_backbone`, and relax the two figures only as far as your numbers demand.
    """

    mates_rtol: float = 1e-4
    """How far a row may move, relative to the largest value, when other tiles of the batch change."""
    other_px: int = 96
    """A tile size that is not the network's own."""

    def make_backbone(self) -> Backbone:
        """Return a new backbone."""
        raise NotImplementedError

    @pytest.fixture
    def backbone(self) -> Backbone:
        """Return the backbone under test."""
        return self.make_backbone()

    @pytest.fixture
    def tiles(self, backbone: Backbone) -> NDArray[np.uint8]:
        """Return a batch of the network's own size."""
        return stained_tiles(BATCH, px=backbone.spec.input_px)

    def test_it_is_a_backbone(self, backbone: Backbone) -> None:
        """The three members are there."""
        assert isinstance(backbone, Backbone)

    def test_its_spec_survives_json_and_is_the_same_for_a_second_load(self, backbone: Backbone) -> None:
        """The digest is a cache key: it must not change between processes."""
        again = BackboneSpec.from_json(json.loads(json.dumps(backbone.spec.to_json())))
        assert again == backbone.spec
        assert self.make_backbone().spec.digest == backbone.spec.digest

    def test_it_gives_one_float32_row_per_tile(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """Shape, dtype, and nothing but finite numbers."""
        rows = backbone.embed(tiles)
        assert rows.shape == (BATCH, backbone.spec.dim)
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()

    def test_an_empty_batch_gives_no_rows(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """Zero tiles, zero rows."""
        assert backbone.embed(tiles[:0]).shape == (0, backbone.spec.dim)

    def test_it_borrows_tiles_and_hands_over_rows(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """Read-only tiles are taken and stay as they were; rows are writable and are not reused."""
        before = tiles.copy()
        tiles.flags.writeable = False
        first = backbone.embed(tiles)
        kept = first.copy()
        backbone.embed(np.ascontiguousarray(tiles[::-1]))
        assert np.array_equal(first, kept)
        first[:] = 0
        assert np.array_equal(tiles, before)
        assert np.array_equal(backbone.embed(tiles), kept)

    def test_a_row_follows_its_tile(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """Reversing the batch reverses the rows, and tiles that differ have rows that differ."""
        rows = backbone.embed(tiles)
        turned = backbone.embed(np.ascontiguousarray(tiles[::-1]))[::-1]
        atol = self.mates_rtol * float(np.abs(rows).max())
        np.testing.assert_allclose(turned, rows, rtol=0, atol=atol)
        gaps = np.abs(rows[:, None] - rows[None]).max(-1)[~np.eye(BATCH, dtype=bool)]
        assert gaps.min() > 0

    def test_batch_mates_do_not_matter(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """A row stays, up to rounding, when every other tile of the batch is another one."""
        others = stained_tiles(BATCH, px=backbone.spec.input_px, seed=99)
        others[2] = tiles[2]
        rows, mixed = backbone.embed(tiles), backbone.embed(others)
        atol = self.mates_rtol * float(np.abs(rows).max())
        np.testing.assert_allclose(mixed[2], rows[2], rtol=0, atol=atol)

    def test_tiles_of_another_size_are_resized(self, backbone: Backbone) -> None:
        """The tile's size belongs to the tile set, not to the backbone."""
        rows = backbone.embed(stained_tiles(2, px=self.other_px))
        assert rows.shape == (2, backbone.spec.dim)
        assert np.isfinite(rows).all()

    @pytest.mark.parametrize(
        "bad",
        [
            pytest.param(np.zeros((2, 32, 32, 3), np.float32), id="float tiles"),
            pytest.param(np.zeros((32, 32, 3), np.uint8), id="one tile without a batch axis"),
            pytest.param(np.zeros((2, 3, 32, 32), np.uint8), id="channels first"),
            pytest.param(np.zeros((2, 32, 32, 4), np.uint8), id="RGBA"),
            pytest.param(np.zeros((2, 32, 16, 3), np.uint8), id="not square"),
        ],
    )
    def test_what_is_no_tile_batch_is_refused(self, backbone: Backbone, bad: NDArray[np.generic]) -> None:
        """One clear line, no guess."""
        with pytest.raises(HistostoreError, match=r"uint8 \(b, px, px, 3\)"):
            backbone.embed(bad)  # type: ignore[arg-type]

    def test_its_engine_is_plain_and_stays(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """Names and numbers that fit in a group's record, the same before and after work."""
        before = backbone.engine()
        backbone.embed(tiles)
        assert backbone.engine() == before
        assert all(isinstance(v, str | int) for v in before.values())
        assert {"device", "precision"} <= set(before)
