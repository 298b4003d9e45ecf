"""Cutting tiles into pieces of segments."""

from __future__ import annotations

import numpy as np
import pytest

from histostore.slides.segments import Grid, SegmentCache, plan_pieces, still_wanted


@pytest.mark.parametrize("grid", [Grid((100, 70), (16, 32)), Grid((100, 70), (100, 8)), Grid((30, 20), (64, 64))])
def test_pieces_put_together_are_the_tiles(grid: Grid) -> None:
    width, height = grid.size_px
    image = np.arange(1, width * height + 1).reshape(height, width)
    low = np.random.default_rng(0).integers(-50, 120, (60, 2))
    whole = np.pad(image, 200)
    for px in (1, 16, 45):
        plan = plan_pieces(grid, low, px)
        assert list(plan) == sorted(plan)
        tiles = np.zeros((len(low), px, px), int)
        for segment, pieces in plan.items():
            row, column = divmod(segment, grid.across)
            y, x = row * grid.segment_px[1], column * grid.segment_px[0]
            part = image[y : y + grid.segment_px[1], x : x + grid.segment_px[0]]
            assert grid.covers(segment, part.shape)
            assert not grid.covers(segment, (part.shape[0] - 1, part.shape[1]))
            assert pieces
            for tile, y0, y1, x0, x1, v0, v1, u0, u1 in pieces:
                assert not tiles[tile, y0:y1, x0:x1].any()
                tiles[tile, y0:y1, x0:x1] = part[v0:v1, u0:u1]
        for tile, (x, y) in zip(tiles, low.tolist(), strict=True):
            assert np.array_equal(tile, whole[200 + y : 200 + y + px, 200 + x : 200 + x + px])


def test_no_tiles_and_tiles_outside_need_no_segment() -> None:
    grid = Grid((100, 70), (16, 16))
    for low in (np.empty((0, 2), np.int64), np.array([[-50, 0], [0, 900], [100, 70]])):
        assert plan_pieces(grid, low, 20) == {}


def test_only_tiles_in_the_order_of_rows_say_what_is_done_with() -> None:
    grid = Grid((100, 70), (10, 10))
    every = np.arange(70)
    wanted = still_wanted(grid, np.array([[0, 0], [50, 15], [10, 35], [40, 35]]), every).reshape(7, 10)
    assert not wanted[:3].any()
    assert wanted[3:5].tolist() == [[False] * 4 + [True] * 6] * 2
    assert wanted[5:].all()
    assert still_wanted(grid, np.array([[0, 0], [50, 35], [10, 29]]), every).all()
    assert still_wanted(grid, np.empty((0, 2), np.int64), every).all()
    assert still_wanted(grid, np.array([[40, 35]]), every).reshape(7, 10)[3:].all()


def test_the_cache_forgets_the_least_recently_used() -> None:
    cache, image = SegmentCache(), np.zeros((10, 10, 3), np.uint8)
    cache.limit = 600
    for segment in (0, 1):
        cache.put((0, segment), image)
    assert cache.get((0, 0))[0]
    cache.put((0, 2), image)
    cache.put((0, 9), None)
    assert [cache.get((0, i))[0] for i in (0, 1, 2, 9)] == [True, False, True, True]
    assert sorted(cache.held(0)) == [0, 2, 9]
    cache.drop(0, [0, 5])
    assert (len(cache), cache.nbytes) == (2, 300)
    cache.put((1, 0), np.zeros((50, 50, 3), np.uint8))
    assert (len(cache), cache.nbytes) == (1, 7500)
