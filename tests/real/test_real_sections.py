"""The main job on the four real sections, with the figures it must reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.real_sections import GATES, SLIDES, build, measure
from histostore.stages.search import search

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real_sections")]


@pytest.fixture(scope="module")
def store(real_data: Path, tmp_path_factory: pytest.TempPathFactory):
    return build(tmp_path_factory.mktemp("real"), real_data)


def test_ridge_context_and_position_reach_their_figures(store) -> None:
    """Leave one section out; the table says that one patient is on both sides."""
    table, figures, split = measure(store)
    assert "same patient on both sides" in split
    assert {"training mean", "position", "image", "image + position"} <= set(table.index)
    for name, gate in GATES.items():
        assert figures[name] >= gate, f"{name}: {figures[name]:.3f}"


def test_the_cohort_opens_as_a_plain_anndata(store) -> None:
    adata = store.view(backbone="efficientnet_lite0").to_adata()
    assert adata.shape == (732, 17_208)
    assert adata.X.dtype.kind == "i"
    assert adata.obs_names.is_unique
    assert adata.uns["histostore"]["left_out"] == {"rows without counts": 7}
    assert adata.obsm["X_efficientnet_lite0"].shape == (732, 1280)
    assert np.isfinite(adata.obsm["X_efficientnet_lite0"]).all()
    assert set(adata.uns["spatial"]) == set(SLIDES)


def test_a_spots_look_alikes_on_other_sections_are_found(store) -> None:
    hits = search(store, backbone="efficientnet_lite0", slide="C2", spot="25x13", k=10, exclude_same="slide")
    assert len(hits.table) == 10
    assert "C2" not in set(hits.table["slide"])
    assert hits.table["distance"].is_monotonic_increasing
    assert hits.tiles().shape == (10, 224, 224, 3)
