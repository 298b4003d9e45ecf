from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from histostore.errors import SpecMismatchError, UsageError
from histostore.pl import mask_overlay, plan_overlay, tile_map
from histostore.pl.tissue import STATUS_COLOURS
from histostore.protocols import TileStatus

OVERVIEW = np.full((60, 80, 3), 240, np.uint8)


def test_the_mask_is_outlined_and_its_share_told():
    mask = np.zeros((60, 80), bool)
    mask[20:50, 30:70] = True
    ax = mask_overlay(OVERVIEW, mask, mpp=8.0).axes[0]
    assert ax.get_title() == "tissue 25.0 %"
    outline = np.concatenate([p.vertices for c in ax.collections for p in c.get_paths()])
    # pixel 30 covers [30, 31): the outline runs along its left edge, within half a pixel
    assert np.allclose(outline.min(axis=0), (30, 20), atol=0.51)
    assert np.allclose(outline.max(axis=0), (70, 50), atol=0.51)
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 80), (60, 0))


@pytest.mark.parametrize("value", [False, True])
def test_a_mask_of_nothing_or_everything_is_drawn(value):
    figure = mask_overlay(OVERVIEW, np.full((60, 80), value))
    assert figure.axes[0].get_title() == f"tissue {100 * value:.1f} %"


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(SpecMismatchError, match=r"\(30, 80\)"):
        mask_overlay(OVERVIEW, np.zeros((30, 80), bool))


def test_tiles_lie_where_they_are_read_from():
    xy0 = np.array([[0, 0], [320, 160]])
    figure = plan_overlay(OVERVIEW, 16.0, xy0, 160)
    (tiles,) = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    corners = [p.vertices[:4] for p in tiles.get_paths()]
    assert corners[0].tolist() == [[0, 0], [10, 0], [10, 10], [0, 10]]
    assert corners[1].tolist() == [[20, 10], [30, 10], [30, 20], [20, 20]]
    assert figure.axes[0].get_title() == "2 tiles"


def test_the_legend_counts_tiles_by_status_in_the_colours_drawn():
    xy0 = np.arange(12).reshape(6, 2) * 50
    figure = plan_overlay(OVERVIEW, 16.0, xy0, 160, status=[0, 0, 0, 1, 3, 3], tissue=np.linspace(0, 1, 6))
    legend = figure.legends[0]
    assert [t.get_text() for t in legend.get_texts()] == ["ok (3)", "padded (1)", "unreadable (2)"]
    drawn = [h.get_edgecolor() for h in legend.legend_handles]
    filled, *outlines = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    assert [len(c.get_paths()) for c in outlines] == [3, 1, 2]
    assert [tuple(c.get_edgecolor()[0]) for c in outlines] == drawn
    assert (filled.norm.vmin, filled.norm.vmax) == (0, 1)


def test_every_status_has_a_colour_of_its_own():
    assert set(STATUS_COLOURS) == set(TileStatus)
    assert len(set(STATUS_COLOURS.values())) == len(TileStatus)


def test_a_plan_without_tiles_is_an_overview():
    assert plan_overlay(OVERVIEW, 16.0, np.empty((0, 2)), 160, status=[]).axes[0].get_title() == "0 tiles"


def test_a_status_of_another_length_is_refused():
    with pytest.raises(UsageError, match="2 status codes for 1 tiles"):
        plan_overlay(OVERVIEW, 16.0, np.zeros((1, 2)), 160, status=[0, 1])


def test_a_heat_map_fills_every_tile_with_the_colour_of_its_value():
    overview = np.full((100, 200, 3), 240, np.uint8)
    corners = np.array([(x, y) for y in (0, 400) for x in (0, 400, 800)], dtype=float)
    values = np.array([0.0, 0.5, 1.0, 0.25, np.nan, 0.75])
    figure = tile_map(overview, 10.0, corners, 400.0, values, vmin=0, vmax=1, title="T")
    filled, missing = (c for c in figure.axes[0].collections)
    np.testing.assert_array_equal(filled.get_array(), values[np.isfinite(values)])
    assert filled.get_clim() == (0, 1)
    np.testing.assert_allclose(filled.get_paths()[1].get_extents().extents, (40, 0, 80, 40))
    assert len(missing.get_paths()) == 1
    assert figure.axes[0].get_title() == "T · 6 tiles · 1 without value"


def test_a_class_has_its_colour_on_every_heat_map():
    overview = np.full((100, 100, 3), 240, np.uint8)
    corners = np.array([(0, 0), (50, 0)], dtype=float)

    def colours(calls):
        figure = tile_map(overview, 1.0, corners, 50.0, calls, classes=("a", "b"))
        drawn = [c.get_facecolor() for c in figure.axes[0].collections if len(c.get_paths())]
        return {tuple(faces[0][:3]) for faces in drawn if len(faces)}

    assert colours(["b", "b"]) <= colours(["a", "b"])
    assert colours(["b", None]) == colours(["b", "b"])
