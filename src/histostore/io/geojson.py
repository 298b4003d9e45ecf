"""Polygons drawn by people (QuPath, or plain GeoJSON), and the labels they give to tiles.

Coordinates are (x, y) in level-0 pixels, as QuPath exports them. The file is taken from strangers: numbers are
strict, sizes are limited, a shape that crosses itself is not guessed at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.validation import explain_validity

from histostore.errors import DataError, NotFoundError, UsageError, near
from histostore.io.delimited import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MAX_BYTES = 64 << 20
MAX_FEATURES = 100_000
MAX_VERTICES = 1_000_000
MAX_COORDINATE = 1e7
"""No slide is that many pixels wide."""

MAX_REPAIR = 0.01
"""A shape that crosses itself is repaired where that changes its area by no more than this share."""

UNCLASSIFIED = "unclassified"


@dataclass(frozen=True, slots=True)
class Annotations:
    """Polygons of one slide with their classes."""

    polygons: tuple[Polygon | MultiPolygon, ...]
    """Valid, in level-0 pixels (x, y)."""
    classes: tuple[str, ...]
    """Never empty text; ``unclassified`` where the file gives none."""
    names: tuple[str, ...]
    """The annotation's own name, ``""`` where it has none."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.polygons)

    def off_image(self, size_px: tuple[int, int]) -> tuple[str, ...]:
        """Return a line about the polygons that lie wholly off an image of (width, height); none where all touch it."""
        off = ~shapely.intersects(np.array(self.polygons, dtype=object), shapely.box(0, 0, *size_px))
        said = f"{off.sum()} of {len(self)} polygons lie off the image of {size_px[0]:,} x {size_px[1]:,} px"
        return (f"{said}: are they in full-resolution pixels?",) if off.any() else ()


def read_geojson(
    path: str | Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_features: int = MAX_FEATURES,
    max_vertices: int = MAX_VERTICES,
) -> Annotations:
    """Read the polygons of a GeoJSON file.

    The class is QuPath's ``properties.classification.name``, else ``properties.label`` or ``class``, else (where
    the file is not QuPath's) ``properties.name``. Features that are no polygons are left out and counted in a note.

    Parameters
    ----------
    path
        A FeatureCollection, a list of Features, one Feature or one geometry; plain or gzip.
    max_bytes, max_features, max_vertices
        Limits.

    Raises
    ------
    DataError
        Naming the field: no JSON, NaN or infinite numbers, a limit passed, a ring that is none or crosses itself.
    """
    content = _parse(path, read_text(path, max_bytes=max_bytes))
    features = _features(content, path)
    if len(features) > max_features:
        msg = f"{path} holds {len(features)} features, at most {max_features} are read"
        raise DataError(msg)
    polygons: list[Polygon | MultiPolygon] = []
    classes: list[str] = []
    names: list[str] = []
    skipped: dict[str, int] = {}
    repaired: list[str] = []
    left = max_vertices
    for field, feature in features:
        geometry, properties = _parts(feature, field, path)
        kind = geometry.get("type")
        if kind not in ("Polygon", "MultiPolygon"):
            skipped[str(kind)] = skipped.get(str(kind), 0) + 1
            continue
        shape, used = _shape(
            geometry, f"{field}geometry.coordinates" if feature is not geometry else "coordinates", left, path
        )
        left -= used
        if not shape.is_valid:
            shape = _repair(shape, field, path)
            repaired.append(field.rstrip("."))
        polygons.append(shape)
        class_name, name = _names(properties, field, path)
        classes.append(class_name)
        names.append(name)
    notes = [f"{n} features of type {kind} were left out (no polygons)" for kind, n in sorted(skipped.items())]
    if repaired:
        notes.append(
            f"{len(repaired)} self-crossing shapes were repaired, by at most 1 % of their area: {repaired[0]}, …"
        )
    if UNCLASSIFIED in classes:
        notes.append(f"{classes.count(UNCLASSIFIED)} polygons have no class: '{UNCLASSIFIED}'")
    return Annotations(tuple(polygons), tuple(classes), tuple(names), tuple(notes))


def _parse(path: str | Path, text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        msg = f"{path}: {constant} is no finite number; GeoJSON allows none but finite ones"
        raise DataError(msg)

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        msg = f"{path} is no JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise DataError(msg) from None
    except RecursionError:
        msg = f"{path} is nested too deeply for GeoJSON"
        raise DataError(msg) from None
    except DataError:
        raise
    except ValueError:
        # Python's own limit on the digits of a whole number
        msg = f"{path} holds a whole number of thousands of digits"
        raise DataError(msg) from None


def _features(content: Any, path: str | Path) -> list[tuple[str, Any]]:
    """Return the features with the path of their field in the file."""
    if isinstance(content, list):
        return [(f"[{i}].", feature) for i, feature in enumerate(content)]
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection":
        features = content.get("features")
        if isinstance(features, list):
            return [(f"features[{i}].", feature) for i, feature in enumerate(features)]
    elif kind in ("Feature", "Polygon", "MultiPolygon"):
        return [("", content)]
    msg = f"{path} is no GeoJSON: type is {str(kind)[:40]!r}, with no list of features"
    raise DataError(msg)


def _parts(feature: Any, field: str, path: str | Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if isinstance(feature, dict) and feature.get("type") in ("Polygon", "MultiPolygon"):
        return feature, {}
    geometry = feature.get("geometry") if isinstance(feature, dict) else None
    if not isinstance(geometry, dict):
        msg = f"{path} field {field}geometry is no object"
        raise DataError(msg)
    properties = feature.get("properties")
    return geometry, properties if isinstance(properties, dict) else {}


def _shape(
    geometry: Mapping[str, Any], field: str, max_vertices: int, path: str | Path
) -> tuple[Polygon | MultiPolygon, int]:
    coordinates = geometry.get("coordinates")
    multi = geometry["type"] == "MultiPolygon"
    parts = coordinates if multi else [coordinates]
    used = 0
    made: list[Polygon] = []
    for i, part in enumerate(_list(parts, field, path)):
        at = f"{field}[{i}]" if multi else field
        rings = []
        for j, ring in enumerate(_list(part, at, path)):
            rings.append(_ring(ring, f"{at}[{j}]", path))
            used += len(rings[-1])
            if used > max_vertices:
                msg = f"{path} field {at} passes the limit on vertices of the file"
                raise DataError(msg)
        made.append(Polygon(rings[0], rings[1:]))
    return (MultiPolygon(made) if multi else made[0]), used


def _list(value: Any, field: str, path: str | Path) -> list[Any]:
    if not isinstance(value, list) or not value:
        msg = f"{path} field {field} is {'empty' if value == [] else 'no list'}"
        raise DataError(msg)
    return value


def _ring(value: Any, field: str, path: str | Path) -> NDArray[np.float64]:
    points = _list(value, field, path)
    # a million vertices: looked at one by one only to name the bad one
    if not (set(map(type, points)) == {list} and set(map(len, points)) <= {2, 3}):
        _name_bad_point(points, field, path)
    if not set(map(type, chain.from_iterable(points))) <= {int, float}:
        _name_bad_point(points, field, path)
    try:
        ring = np.array([point[:2] for point in points], dtype=np.float64)
    except OverflowError:
        _name_bad_point(points, field, path)
    if not (np.abs(ring) <= MAX_COORDINATE).all():
        _name_bad_point(points, field, path)
    others = ring[(ring != ring[0]).any(axis=1)]
    if not len(others) or not (others != others[0]).any():
        msg = f"{path} field {field} has fewer than 3 different points"
        raise DataError(msg)
    return ring


def _name_bad_point(points: list[Any], field: str, path: str | Path) -> NoReturn:
    for i, point in enumerate(points):
        if not isinstance(point, list) or not 2 <= len(point) <= 3 or any(type(v) not in (int, float) for v in point):
            msg = f"{path} field {field}[{i}] is no (x, y) pair of numbers"
            raise DataError(msg)
        if not all(abs(v) <= MAX_COORDINATE for v in point[:2]):
            msg = f"{path} field {field}[{i}] lies beyond {MAX_COORDINATE:g} pixels, or is not finite"
            raise DataError(msg)
    msg = f"{path} field {field} is no ring of (x, y) pairs"
    raise DataError(msg)


def _repair(shape: Polygon | MultiPolygon, field: str, path: str | Path) -> Polygon | MultiPolygon:
    mended = shapely.make_valid(shape)
    parts = [part for part in shapely.get_parts(mended) if part.geom_type == "Polygon"]
    parts += [p for part in shapely.get_parts(mended) if part.geom_type == "MultiPolygon" for p in part.geoms]
    area = sum(part.area for part in parts)
    if not parts or abs(area - shape.area) > MAX_REPAIR * max(area, shape.area):
        msg = (
            f"{path} field {field}geometry crosses itself ({explain_validity(shape)}) and mending it would change its "
            f"area from {shape.area:.0f} to {area:.0f} px²; redraw it"
        )
        raise DataError(msg)
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _names(properties: Mapping[str, Any], field: str, path: str | Path) -> tuple[str, str]:
    classification = properties.get("classification")
    found = classification.get("name") if isinstance(classification, dict) else classification
    from_qupath = "objectType" in properties or "classification" in properties
    candidates = [("classification", found), ("label", properties.get("label")), ("class", properties.get("class"))]
    name = properties.get("name")
    if not from_qupath:
        candidates.append(("name", name))
    for key, value in candidates:
        if value in (None, ""):
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > 200:
            msg = f"{path} field {field}properties.{key} is no name of at most 200 characters"
            raise DataError(msg)
        return str(value).strip() or UNCLASSIFIED, name if isinstance(name, str) else ""
    return UNCLASSIFIED, name if isinstance(name, str) else ""


def label_points(
    annotations: Annotations,
    centres: NDArray[np.float64],
    edge0: float | None = None,
    *,
    rule: Literal["centre", "overlap"] = "centre",
    share: float = 0.5,
    region_class: str | None = None,
) -> NDArray[np.str_]:
    """Give every tile the class of the polygons it lies in.

    Parameters
    ----------
    annotations
        Polygons in level-0 pixels.
    centres
        ``(n, 2)`` tile centres, (x, y), level-0 pixels.
    edge0
        Edge of a tile in level-0 pixels; needed for ``overlap``.
    rule
        ``centre``: the class of the smallest polygon that holds the centre (a polygon inside another wins).
        ``overlap``: the class that covers most of the tile, if it covers at least `share` of it (what two cover counts
        for the class of the smaller polygons).
    share
        For ``overlap``, 0-1.
    region_class
        The class of polygons that only say which region was looked at: they give no label.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` str; ``""`` where nothing was drawn.

    Raises
    ------
    NotFoundError
        No polygon has `region_class`.
    """
    if rule not in ("centre", "overlap"):
        msg = f"rule is {rule!r}, not centre or overlap"
        raise UsageError(msg)
    if region_class is not None and region_class not in annotations.classes:
        msg = f"no polygon has the class '{region_class}'{near(region_class, set(annotations.classes))}"
        raise NotFoundError(msg)
    drawn = [
        (polygon, name)
        for polygon, name in zip(annotations.polygons, annotations.classes, strict=True)
        if name != region_class
    ]
    centres = np.asarray(centres, dtype=np.float64).reshape(-1, 2)
    if not drawn or not len(centres):
        return np.full(len(centres), "", dtype="U1")
    if rule == "centre":
        return _by_centre(drawn, centres)
    if edge0 is None or not edge0 > 0 or not 0 < share <= 1:
        msg = f"overlap needs a tile edge (got {edge0}) and a share in 0-1 (got {share})"
        raise UsageError(msg)
    return _by_overlap(drawn, centres, edge0, share)


type _Drawn = Sequence[tuple[Polygon | MultiPolygon, str]]


def _by_centre(drawn: _Drawn, centres: NDArray[np.float64]) -> NDArray[np.str_]:
    # largest first, so that what is written last is the smallest; the sort is stable
    ordered = sorted(drawn, key=lambda item: -item[0].area)
    point, polygon = shapely.STRtree([p for p, _ in ordered]).query(shapely.points(centres), predicate="intersects")
    names = np.array([name for _, name in ordered])
    labels = np.zeros(len(centres), dtype=names.dtype)
    order = np.argsort(polygon, kind="stable")
    labels[point[order]] = names[polygon[order]]
    return labels


def _by_overlap(drawn: _Drawn, centres: NDArray[np.float64], edge0: float, share: float) -> NDArray[np.str_]:
    half = edge0 / 2
    tiles = shapely.box(*(centres - half).T, *(centres + half).T)
    sizes = {name: float(np.median([p.area for p, n in drawn if n == name])) for _, name in drawn}
    classes = sorted(sizes, key=lambda name: (sizes[name], name))
    # finer classes first: what lies in a polygon inside another is the inner one's, as for centres
    so_far = [_covered(tiles, [p for p, n in drawn if n in classes[: i + 1]]) for i in range(len(classes))]
    covered = np.diff(np.column_stack(so_far), axis=1, prepend=0.0)
    best = covered.argmax(axis=1)
    enough = covered[np.arange(len(centres)), best] >= share * edge0**2 * (1 - 1e-9)
    return np.where(enough, np.array(classes)[best], "")


def _covered(tiles: NDArray[Any], polygons: Sequence[Polygon | MultiPolygon]) -> NDArray[np.float64]:
    """Return the area of each tile that the polygons cover; where they overlap it counts once."""
    parts = shapely.get_parts(np.array(polygons, dtype=object))
    tile, part = shapely.STRtree(parts).query(tiles, predicate="intersects")
    shapely.prepare(parts)
    # clipping costs as much as the polygon is long: most tiles lie wholly inside, and need none
    pieces = tiles[tile]
    cut = ~shapely.contains_properly(parts[part], pieces)
    pieces[cut] = shapely.intersection(pieces[cut], parts[part[cut]])
    area = np.zeros(len(tiles))
    order = np.argsort(tile, kind="stable")
    hit, start = np.unique(tile[order], return_index=True)
    for i, group in zip(hit, np.split(pieces[order], start)[1:], strict=True):  # before the first start is nothing
        area[i] = (group[0] if len(group) == 1 else shapely.union_all(group)).area
    return area
