"""Annotated polygons label tiles when a view is opened, by centre or by share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import histostore as hs
from histostore.errors import UsageError
from histostore.testing.cohort import write_cohort

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> hs.Store:
    cohort = write_cohort(tmp_path / "cohort", n_patients=1, slides_per_patient=1, spots=40, genes=40, px=1200)
    store = hs.create(tmp_path / "store")
    hs.pp.ingest(store, sheet=cohort.sheet)
    hs.pp.tile(store, hs.TileSpec.at_spots(px=64))
    tiles = store.view(tiles="spots")
    x, y = tiles.column("x")[0], tiles.column("y")[0]
    corner = [[x - 4, y - 4], [x + 60, y - 4], [x + 60, y + 60], [x - 4, y + 60], [x - 4, y - 4]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corner]},
        "properties": {"classification": {"name": "corner"}},
    }
    (tmp_path / "jd.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    hs.pp.annotate(store, "A1", geojson=tmp_path / "jd.geojson")
    return store


def test_a_tile_whose_centre_lies_in_a_polygon_has_its_class(store: hs.Store) -> None:
    assert store.view(tiles="spots").column("region_jd")[0] == "corner"


def test_a_tile_that_is_covered_too_little_has_none(store: hs.Store) -> None:
    """The polygon covers about 32 % of the first tile."""
    assert store.view(tiles="spots", region_share=0.25).column("region_jd")[0] == "corner"
    assert store.view(tiles="spots", region_share=0.5).column("region_jd")[0] == ""


def test_a_share_outside_0_to_1_is_refused(store: hs.Store) -> None:
    with pytest.raises(UsageError, match="region_share is 2"):
        store.view(tiles="spots", region_share=2)
