"""What QuPath imports: one object per tile, its measurements and its class."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from histostore.errors import ConflictError, UsageError
from histostore.io.geojson import read_geojson
from histostore.io.qupath import CIRCLE_POINTS, circles, squares, write_qupath

if TYPE_CHECKING:
    from pathlib import Path

XY = np.array([[10.0, 20.0], [300.5, 40.25], [-8.0, 0.0]])
IDS = ("AAAC-1", 'odd "name"', "5x7")
VALUES = np.array([[0.25, 0.75], [0.9, 0.1], [np.nan, np.nan]], dtype=np.float32)
CALLS = ["tumour", "stroma", None]


def write(path: Path, **change: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "outlines": squares(XY, 64), "ids": IDS, "values": VALUES, "names": ("stroma", "tumour"), "calls": CALLS,
        "colours": {"tumour": (200, 0, 0)}, "key": "A1",
    }  # fmt: skip
    write_qupath(path, **(given | change))
    return dict(json.loads(path.read_text()))


def test_every_tile_is_a_detection_with_its_measurements_and_class(tmp_path: Path) -> None:
    found = write(tmp_path / "a.geojson")
    assert found["type"] == "FeatureCollection"
    first, second, third = found["features"]
    assert first["geometry"] == {
        "type": "Polygon", "coordinates": [[[10, 20], [74, 20], [74, 84], [10, 84], [10, 20]]],
    }  # fmt: skip
    assert first["properties"] == {
        "objectType": "detection",
        "name": "AAAC-1",
        "classification": {"name": "tumour", "color": [200, 0, 0]},
        "measurements": {"stroma": 0.25, "tumour": 0.75},
    }
    assert second["properties"]["classification"] == {"name": "stroma"}
    assert second["properties"]["name"] == IDS[1]
    assert third["properties"] == {"objectType": "detection", "name": "5x7"}


def test_ids_are_uuids_that_stay_the_same_and_differ_between_slides(tmp_path: Path) -> None:
    ids = [[f["id"] for f in write(tmp_path / f"{k}.geojson", key=k)["features"]] for k in ("A1", "B1")]
    assert len({str(uuid.UUID(i)) for slide in ids for i in slide}) == 6
    first = (tmp_path / "A1.geojson").read_bytes()
    write(tmp_path / "again.geojson")
    assert (tmp_path / "again.geojson").read_bytes() == first


def test_our_own_reader_takes_the_classes_back(tmp_path: Path) -> None:
    write(tmp_path / "a.geojson")
    found = read_geojson(tmp_path / "a.geojson")
    assert found.classes == ("tumour", "stroma", "unclassified")
    assert [p.area for p in found.polygons] == [64.0**2] * 3


def test_circles_are_as_wide_as_the_spot(tmp_path: Path) -> None:
    found = write(tmp_path / "a.geojson", outlines=circles(XY, 50), calls=None)
    assert "classification" not in found["features"][0]["properties"]
    ring = np.array(found["features"][1]["geometry"]["coordinates"][0])
    assert ring.shape == (CIRCLE_POINTS + 1, 2)
    np.testing.assert_allclose(np.hypot(*(ring - XY[1]).T), 25, atol=0.01)
    assert (ring[0] == ring[-1]).all()


def test_a_file_that_is_there_is_kept_unless_it_may_go(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write(path)
    with pytest.raises(ConflictError, match="there already"):
        write(path)
    assert len(write(path, overwrite=True, outlines=squares(XY[:1], 9), ids=IDS[:1], values=VALUES[:1],
                     calls=CALLS[:1])["features"]) == 1  # fmt: skip
    with pytest.raises(UsageError, match="no folder"):
        write(tmp_path / "gone" / "a.geojson")
    assert [p.name for p in tmp_path.iterdir()] == ["a.geojson"]


@pytest.mark.parametrize(
    "change",
    [{"ids": IDS[:2]}, {"calls": CALLS[:2]}, {"values": VALUES[:2]}, {"names": ("a", "a")}, {"names": ("a",)}],
    ids=["ids", "calls", "values", "names twice", "names"],
)
def test_parts_of_unequal_length_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        write(tmp_path / "a.geojson", **change)
    assert not list(tmp_path.iterdir())
