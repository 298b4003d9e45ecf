from __future__ import annotations

import matplotlib.image as mpimg
import numpy as np
import pandas as pd
import pytest

from histostore.errors import DataError, UsageError
from histostore.pl import gallery, patches


def tiles(n, px):
    return np.random.default_rng(0).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def holds(picture, tile):
    """Return how often a tile stands in a picture, byte for byte."""
    starts = np.argwhere((picture == tile[0, 0]).all(axis=2))
    height, width = tile.shape[:2]
    return sum(np.array_equal(picture[y : y + height, x : x + width], tile) for y, x in starts)


def saved(path):
    return (mpimg.imread(path)[..., :3] * 255).round().astype(np.uint8)


@pytest.mark.parametrize(("k", "columns"), [(1, None), (7, 3), (20, None)])
def test_every_tile_is_in_the_saved_sheet_pixel_for_pixel(tmp_path, k, columns):
    every = tiles(k + 1, 160)
    gallery(
        every[0], every[1:], [f"hit {i}" for i in range(k)], columns=columns, title="sheet", save=tmp_path / "g.png"
    )
    picture = saved(tmp_path / "g.png")
    assert [holds(picture, tile) for tile in every] == [1] * (k + 1)


def test_a_hundred_hits_fit_and_each_has_its_caption(tmp_path):
    every = tiles(101, 130)
    figure = gallery(every[0], every[1:], [f"hit {i}" for i in range(100)], save=tmp_path / "g.png")
    picture = saved(tmp_path / "g.png")
    assert all(holds(picture, tile) == 1 for tile in every[[0, 1, 50, 100]])
    assert [t.get_text() for t in figure.texts] == ["query", *(f"hit {i}" for i in range(100))]


def test_small_tiles_are_enlarged_by_whole_pixels(tmp_path):
    every = tiles(3, 32)
    gallery(every[0], every[1:], ["a", "b"], save=tmp_path / "g.png")
    large = every[1].repeat(4, axis=0).repeat(4, axis=1)
    assert holds(saved(tmp_path / "g.png"), large) == 1


def test_the_query_comes_first_and_rows_wrap():
    figure = gallery(tiles(1, 160)[0], tiles(4, 160), list("abcd"), columns=3)
    places = {t.get_text(): (round(t.get_position()[0], 3), round(t.get_position()[1], 3)) for t in figure.texts}
    assert places["query"][1] == places["a"][1] == places["b"][1] > places["c"][1] == places["d"][1]
    assert places["query"][0] == places["c"][0] < places["a"][0] == places["d"][0] < places["b"][0]


def test_a_table_of_hits_gives_rank_distance_slide_and_id():
    table = pd.DataFrame({"rank": [1, 2], "distance": [0.0, 0.1234], "slide": ["C2", "C3"], "barcode": ["1x2", "3x4"]})
    figure = gallery(tiles(1, 160)[0], tiles(2, 160), table)
    assert [t.get_text() for t in figure.texts][1:] == ["1  0  C2\n1x2", "2  0.123  C3\n3x4"]
    with pytest.raises(UsageError, match="need slide, barcode"):
        gallery(tiles(1, 160)[0], tiles(2, 160), table[["slide"]])


def test_a_large_crop_is_reduced_to_the_size_of_the_hits():
    crop = np.full((900, 600, 3), 77, np.uint8)
    figure = gallery(crop, tiles(2, 160), ["a", "b"])
    picture = np.asarray(figure.axes[0].images[0].get_array())
    assert ((picture == 77).all(axis=2)).sum() == 160 * 107


def test_no_hits_leave_the_query_alone():
    figure = gallery(tiles(1, 160)[0], np.empty((0, 160, 160, 3), np.uint8), [])
    assert [t.get_text() for t in figure.texts] == ["query"]


def test_captions_and_tiles_must_go_together():
    with pytest.raises(UsageError, match="1 captions for 2 hits"):
        gallery(tiles(1, 160)[0], tiles(2, 160), ["a"])
    with pytest.raises(DataError, match="float32"):
        gallery(tiles(1, 160)[0], tiles(2, 160).astype(np.float32), ["a", "b"])
    with pytest.raises(UsageError, match="0 columns"):
        gallery(tiles(1, 160)[0], tiles(2, 160), ["a", "b"], columns=0)


def test_patches_are_reviewed_in_order_without_a_query(tmp_path):
    every = tiles(7, 140)
    table = pd.DataFrame({"score": np.linspace(0.9, 0.3, 7), "slide": "C2", "barcode": [f"{i}x1" for i in range(7)]})
    figure = patches(every, table, title="surest", save=tmp_path / "p.png")
    picture = saved(tmp_path / "p.png")
    assert [holds(picture, tile) for tile in every] == [1] * 7
    text = [t.get_text() for t in figure.texts]
    assert text[0] == "1  0.9  C2\n0x1"
    assert text[-1] == "surest"


def test_patches_need_tiles_and_their_captions():
    with pytest.raises(DataError, match="0 tiles"):
        patches(np.empty((0, 64, 64, 3), np.uint8), [])
    with pytest.raises(UsageError, match="1 captions for 2 tiles"):
        patches(tiles(2, 64), ["a"])
    with pytest.raises(DataError, match="expected"):
        patches(tiles(2, 64)[..., 0], ["a", "b"])
