"""Which tiles lie in which polygons: by centre or by share of the area."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely

from histostore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from shapely import Geometry


def in_regions(centres: NDArray[np.float64], polygons: Sequence[Geometry]) -> NDArray[np.bool_]:
    """Say of each point if it lies in any of the polygons.

    Parameters
    ----------
    centres
        ``(n, 2)`` points, (x, y), in level-0 pixels.
    polygons
        Polygons or multipolygons in the same frame; may overlap.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` bool; a point on an outline is in.

    Raises
    ------
    DataError
        A polygon is invalid (it crosses itself) or is no polygon.
    """
    return first_region(centres, polygons) >= 0


def first_region(centres: NDArray[np.float64], polygons: Sequence[Geometry]) -> NDArray[np.int64]:
    """Return for each point the position of the first polygon it lies in, -1 where there is none.

    Parameters and errors as in `in_regions`; the result is ``(n,)`` int64.
    """
    centres = np.asarray(centres, dtype=np.float64).reshape(-1, 2)
    shapes = _checked(polygons)
    first = np.full(len(centres), len(shapes), dtype=np.int64)
    shapely.prepare(shapes)
    point, shape = shapely.STRtree(shapes).query(shapely.points(centres), predicate="intersects")
    np.minimum.at(first, point, shape)
    first[first == len(shapes)] = -1
    return first


def overlap_share(xy0: NDArray[np.float64], edge0: float, polygons: Sequence[Geometry]) -> NDArray[np.float64]:
    """Return the share of each square tile that the polygons cover together.

    Parameters
    ----------
    xy0
        ``(n, 2)`` top-left corners, (x, y), in level-0 pixels.
    edge0
        Edge of every tile in level-0 pixels.
    polygons
        As in `in_regions`; what several of them cover counts once.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` float64 in 0-1.

    Raises
    ------
    DataError
        A polygon is invalid (it crosses itself) or is no polygon.
    """
    xy0 = np.asarray(xy0, dtype=np.float64).reshape(-1, 2)
    share = np.zeros(len(xy0))
    parts = shapely.get_parts(shapely.union_all(_checked(polygons)))
    boxes = shapely.box(xy0[:, 0], xy0[:, 1], xy0[:, 0] + edge0, xy0[:, 1] + edge0)
    shapely.prepare(parts)
    tree = shapely.STRtree(parts)
    # most tiles lie wholly in or out: only those on an outline need the costly intersection
    inside, _ = tree.query(boxes, predicate="covered_by")
    share[inside] = 1.0
    cut, part = tree.query(boxes, predicate="intersects")
    partly = share[cut] < 1.0
    cut, part = cut[partly], part[partly]
    np.add.at(share, cut, shapely.area(shapely.intersection(boxes[cut], parts[part])) / edge0**2)
    return np.clip(share, 0.0, 1.0)


def _checked(polygons: Sequence[Geometry]) -> NDArray[np.object_]:
    shapes = np.empty(len(polygons), dtype=object)
    shapes[:] = list(polygons)
    for i, shape in enumerate(shapes):
        if shapely.get_type_id(shape) not in (3, 6):
            msg = f"region {i} is a {getattr(shape, 'geom_type', type(shape).__name__)}; give polygons"
            raise DataError(msg)
        if not shapely.is_valid(shape):
            msg = (
                f"region {i} is no valid polygon ({shapely.is_valid_reason(shape)}); repair it with shapely.make_valid"
            )
            raise DataError(msg)
    return shapes
