from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely

from histostore.errors import DataError, NotFoundError, UsageError
from histostore.io.geojson import Annotations, label_points, read_geojson

if TYPE_CHECKING:
    from pathlib import Path

SQUARE = [[[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]]
HOLE = [[[40, 40], [60, 40], [60, 60], [40, 60], [40, 40]]]


def _feature(coordinates: Any, kind: str = "Polygon", **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def _write(path: Path, *features: Any) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def _square(x: float, y: float, edge: float) -> shapely.Polygon:
    return shapely.box(x, y, x + edge, y + edge)


def test_qupath_classes_and_names_are_read(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "a.geojson",
        _feature(SQUARE, objectType="annotation", classification={"name": "Tumor", "color": [200, 0, 0]}, name="T1"),
        _feature([SQUARE, [[[p[0] + 200, p[1]] for p in SQUARE[0]]]], "MultiPolygon", classification="Stroma"),
        _feature(SQUARE + HOLE, label=3, name="third"),
        _feature(SQUARE, name="plain"),
        _feature(SQUARE, objectType="annotation", name="not a class"),
        _feature([[5, 5]], "MultiPoint", label="cells"),
    )
    annotations = read_geojson(path)
    assert annotations.classes == ("Tumor", "Stroma", "3", "plain", "unclassified")
    assert annotations.names == ("T1", "", "third", "plain", "not a class")
    assert [p.area for p in annotations.polygons] == [10_000, 20_000, 9_600, 10_000, 10_000]
    assert annotations.notes == (
        "1 features of type MultiPoint were left out (no polygons)",
        "1 polygons have no class: 'unclassified'",
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([_feature(SQUARE, label="a")], id="list_of_features"),
        pytest.param(_feature(SQUARE, label="a"), id="one_feature"),
    ],
)
def test_older_forms_are_read(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    assert read_geojson(path).classes == ("a",)


def test_a_bare_geometry_is_unclassified(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": SQUARE}))
    assert read_geojson(path).classes == ("unclassified",)


def _with(number: str) -> str:
    return json.dumps(_feature(SQUARE)).replace("[100, 0]", f"[{number}, 0]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(_with("NaN"), "NaN is no finite number", id="nan"),
        pytest.param(_with("-Infinity"), "-Infinity is no finite number", id="infinity"),
        pytest.param(
            _with("1e999"),
            r"field geometry.coordinates\[0\]\[1\] lies beyond 1e\+07 pixels, or is not finite",
            id="overflow",
        ),
        pytest.param(_with("9" * 5000), "thousands of digits", id="five_thousand_digits"),
        pytest.param(_with("9" * 900), r"\[0\]\[1\] lies beyond", id="nine_hundred_digits"),
        pytest.param(_with("1e8"), r"coordinates\[0\]\[1\] lies beyond", id="beyond_any_slide"),
        pytest.param(_with('"7"'), r"geometry.coordinates\[0\]\[1\] is no \(x, y\) pair", id="text_number"),
        pytest.param(_with("true"), r"is no \(x, y\) pair", id="true_is_no_number"),
        pytest.param("[" * 200_000, "nested too deeply", id="nested"),
        pytest.param("{", "no JSON: .* line 1", id="cut"),
        pytest.param("", "no JSON", id="empty"),
        pytest.param('{"type": "Topology"}', "no GeoJSON: type is 'Topology'", id="other_json"),
        pytest.param('{"type": "FeatureCollection", "features": 3}', "no GeoJSON", id="features_no_list"),
        pytest.param(
            '{"type": "FeatureCollection", "features": [3]}', r"features\[0\].geometry is no object", id="number"
        ),
        pytest.param(json.dumps(_feature([])), "geometry.coordinates is empty", id="no_rings"),
        pytest.param(json.dumps(_feature([[[0, 0], [1, 1], [0, 0]]])), "fewer than 3 different points", id="line"),
        pytest.param(json.dumps(_feature(SQUARE, label=["a"])), "properties.label is no name", id="label_list"),
        pytest.param(
            json.dumps([_feature(SQUARE), _feature([[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]])]),
            r"field \[1\].geometry crosses itself \(Self-intersection",
            id="bowtie",
        ),
    ],
)
def test_bad_files_name_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_geojson(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_limits_hold(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.geojson", _feature(SQUARE), _feature(SQUARE))
    for limit, message in [
        ({"max_bytes": 100}, "more than 100 bytes"),
        ({"max_features": 1}, "2 features, at most 1"),
        ({"max_vertices": 9}, r"features\[1\].geometry.coordinates passes the limit on vertices"),
    ]:
        with pytest.raises(DataError, match=message):
            read_geojson(path, **limit)


def test_a_tiny_crossing_is_repaired_and_noted(tmp_path: Path) -> None:
    nearly = [[[0, 0], [100, 0], [100, 100], [50, 100], [49.9, 100.1], [50, 100.1], [49.9, 100], [0, 100], [0, 0]]]
    annotations = read_geojson(_write(tmp_path / "a.geojson", _feature(nearly, label="a")))
    assert annotations.polygons[0].is_valid
    assert annotations.polygons[0].area == pytest.approx(10_000, rel=1e-3)
    assert "1 self-crossing shapes were repaired" in annotations.notes[0]


def test_the_centre_decides_and_the_inner_polygon_wins() -> None:
    annotations = Annotations((_square(20, 20, 20), _square(0, 0, 100)), ("tumour", "tissue"), ("", ""))
    centres = np.array([[30.0, 30.0], [80.0, 80.0], [300.0, 30.0], [20.0, 20.0]])
    assert label_points(annotations, centres).tolist() == ["tumour", "tissue", "", "tumour"]
    labels = label_points(annotations, centres, region_class="tissue")
    assert labels.tolist() == ["tumour", "", "", "tumour"]


def test_labels_do_not_depend_on_the_order_of_tiles() -> None:
    rng = np.random.default_rng(0)
    polygons = tuple(_square(*rng.uniform(0, 900, 2), edge) for edge in rng.uniform(10, 300, 40))
    annotations = Annotations(polygons, tuple(f"c{i % 5}" for i in range(40)), ("",) * 40)
    centres = rng.uniform(0, 1000, (500, 2))
    order = rng.permutation(500)
    for rule in ("centre", "overlap"):
        labels = label_points(annotations, centres, 20, rule=rule)
        assert (label_points(annotations, centres[order], 20, rule=rule) == labels[order]).all()
    # a slow oracle: the smallest polygon that holds the centre
    by_area = sorted(range(40), key=lambda i: polygons[i].area)
    expected = [
        next((annotations.classes[i] for i in by_area if polygons[i].intersects(shapely.Point(c))), "") for c in centres
    ]
    assert label_points(annotations, centres).tolist() == expected


def test_the_share_of_overlap_decides() -> None:
    annotations = Annotations((_square(0, 0, 50), _square(0, 0, 50), _square(50, 0, 30)), ("a", "a", "b"), ("",) * 3)
    centres = np.array([[25.0, 25.0], [45.0, 25.0], [62.0, 15.0], [50.0, 50.0]])
    assert label_points(annotations, centres, 20, rule="overlap").tolist() == ["a", "a", "b", ""]
    # a quarter of the last tile lies in "a": counted once although two polygons cover it
    assert label_points(annotations, centres, 20, rule="overlap", share=0.25).tolist() == ["a", "a", "b", "a"]
    assert label_points(annotations, centres, 20, rule="overlap", share=0.26)[3] == ""


def test_bad_calls_are_refused() -> None:
    annotations = Annotations((_square(0, 0, 50),), ("tumour",), ("",))
    centres = np.zeros((1, 2))
    with pytest.raises(UsageError, match="overlap needs a tile edge"):
        label_points(annotations, centres, rule="overlap")
    with pytest.raises(UsageError, match="rule is 'center'"):
        label_points(annotations, centres, rule="center")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="did you mean 'tumour'"):
        label_points(annotations, centres, region_class="tumor")
    assert label_points(Annotations((), (), ()), centres).tolist() == [""]


def test_polygons_that_no_tile_touches_label_none() -> None:
    """A small class between the tiles, or off them all."""
    annotations = Annotations((_square(0, 0, 4), _square(50, 50, 100)), ("small", "large"), ("", ""))
    centres = np.array([[60.0, 60.0], [500.0, 500.0]])
    assert label_points(annotations, centres, 20, rule="overlap").tolist() == ["large", ""]
    assert label_points(annotations, centres[1:], 20, rule="overlap").tolist() == [""]
