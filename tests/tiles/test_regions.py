from __future__ import annotations

import numpy as np
import pytest
import shapely
from shapely import LineString, MultiPolygon, Polygon, box

from histostore.errors import DataError
from histostore.tiles.regions import first_region, in_regions, overlap_share

RING = box(0, 0, 100, 100).difference(box(40, 40, 60, 60))


def test_a_point_is_in_when_any_polygon_holds_it_and_never_in_a_hole():
    points = np.array([[10.0, 10], [50, 50], [150, 50], [310, 10], [100, 50]])
    regions = [RING, MultiPolygon([box(300, 0, 320, 20), box(400, 0, 420, 20)])]
    assert in_regions(points, regions).tolist() == [True, False, False, True, True]
    assert first_region(points, regions).tolist() == [0, -1, -1, 1, 0]
    assert first_region(points[:1], [regions[1], RING, box(0, 0, 50, 50)]).tolist() == [1]


def test_no_polygons_hold_nothing():
    points = np.ones((3, 2))
    assert in_regions(points, []).tolist() == [False] * 3
    assert overlap_share(points, 10.0, []).tolist() == [0.0] * 3
    assert in_regions(np.empty((0, 2)), [RING]).shape == (0,)
    assert overlap_share(np.empty((0, 2)), 10.0, [RING]).shape == (0,)


def test_shares_are_exact_and_what_two_polygons_cover_counts_once():
    corners = np.array([[0.0, 0.0], [40, 40], [30, 30], [95, 10], [200, 200]])
    expected = [1.0, 0.0, 1 - 100 / 400, 5 * 20 / 400, 0.0]
    assert overlap_share(corners, 20.0, [RING]) == pytest.approx(expected)
    assert overlap_share(corners, 20.0, [RING, RING, box(0, 0, 30, 30)]) == pytest.approx(expected)
    two = [box(0, 0, 10, 20), box(10, 0, 15, 20)]
    assert overlap_share(corners[:1], 20.0, two) == pytest.approx([0.75])


def test_shares_agree_with_one_intersection_at_a_time():
    rng = np.random.default_rng(0)
    blobs = list(shapely.buffer(shapely.points(rng.random((12, 2)) * 500), rng.random(12) * 80 + 5))
    corners = rng.random((300, 2)) * 600 - 50
    union = shapely.union_all(blobs)
    plain = [union.intersection(box(x, y, x + 37, y + 37)).area / 37**2 for x, y in corners]
    assert overlap_share(corners, 37.0, blobs) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("shape", "says"),
    [(Polygon([(0, 0), (9, 9), (9, 0), (0, 9)]), "Self-intersection"), (LineString([(0, 0), (1, 1)]), "LineString")],
)
def test_shapes_that_are_no_proper_polygons_are_refused_with_their_number(shape, says):
    with pytest.raises(DataError, match=f"region 1 .*{says}"):
        in_regions(np.ones((1, 2)), [RING, shape])
