"""The synthetic cohort: files as the real ones, truth that holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import shapely

from histostore.slides import open_slide
from histostore.testing.cohort import PITCH_PX, Cohort, write_cohort

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"n_patients": 2, "slides_per_patient": 1, "spots": 60, "genes": 100, "px": 1200}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"), **SMALL)


def test_the_sheet_names_files_that_are_there(cohort: Cohort) -> None:
    sheet = pd.read_csv(cohort.sheet)
    assert list(sheet.columns) == [
        "slide", "image", "mpp", "st_counts", "st_spots", "obs", "geojson", "patient", "centre",
    ]  # fmt: skip
    assert sheet["slide"].tolist() == ["A1", "B1"]
    for column in ("image", "st_counts", "st_spots", "obs", "geojson"):
        assert all((cohort.folder / name).is_file() for name in sheet[column])
    assert sheet["image"].tolist() == ["A1.jpg", "B1.svs"]


def test_images_open_and_say_their_resolution_where_they_can(cohort: Cohort) -> None:
    for slide in cohort.slides:
        with open_slide(slide.image) as image:
            assert image.size_px == (1200, 1200)
            assert image.mpp == (cohort.mpp if slide.image.suffix == ".svs" else None)


def test_counts_and_spots_join_by_array_position(cohort: Cohort) -> None:
    for slide in cohort.slides:
        counts = pd.read_csv(slide.counts, sep="\t", index_col=0)
        spots = pd.read_csv(slide.spots, sep="\t")
        assert list(spots.columns) == ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
        ids = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)]
        assert tuple(ids) == slide.spot_ids
        assert set(ids) == set(counts.index)
        assert list(counts.index) != ids
        assert (counts.sum(axis=0) > 0).all()
        assert np.allclose((spots[["new_x", "new_y"]] - 0.5) * PITCH_PX, spots[["pixel_x", "pixel_y"]], atol=0.06)
        assert 40 <= len(ids) <= 80
        assert 500 < counts.sum(axis=1).median() < 20_000


def test_genes_follow_what_they_are_said_to_follow(cohort: Cohort) -> None:
    """Morphology genes their latent, place genes the position, noise genes neither."""
    truth = json.loads(cohort.truth.read_text())["genes"]
    right: list[float] = []
    noise: list[float] = []
    for slide in cohort.slides:
        counts = pd.read_csv(slide.counts, sep="\t", index_col=0).loc[list(slide.spot_ids)]
        logged = np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e4)
        place = slide.xy / 600 - 1
        for gene in logged:
            row = truth[gene]
            signal = slide.latents @ np.array(row["on_latents"]) + place @ np.array(row["on_place"])
            if signal.any():
                right.append(np.corrcoef(logged[gene], signal)[0, 1])
            elif row["share"] > 0.005:
                noise.append(np.abs(np.corrcoef(logged[gene], slide.latents[:, 0])[0, 1]))
    assert np.median(right) > 0.6
    assert np.median(noise) < 0.35
    assert len(cohort.morphology_genes) == 20
    assert len(cohort.place_genes) == 10


def test_polygons_hold_the_spots_they_are_said_to_hold(cohort: Cohort) -> None:
    for slide in cohort.slides:
        features = json.loads(slide.geojson.read_text())["features"]
        parts = {f["properties"]["classification"]["name"]: shapely.geometry.shape(f["geometry"]) for f in features}
        assert set(parts) == {"region", "tumour"}
        assert all(part.is_valid and not part.is_empty for part in parts.values())
        assert parts["region"].buffer(0.1).contains(parts["tumour"])
        inside = shapely.contains_xy(parts["tumour"], slide.xy[:, 0], slide.xy[:, 1])
        assert np.array_equal(inside, slide.in_tumour)
        assert 0 < inside.mean() < 1
        assert slide.latents[inside, 0].mean() > slide.latents[~inside, 0].mean() + 0.5


def test_the_same_seed_gives_the_same_bytes(cohort: Cohort, tmp_path: Path) -> None:
    again = write_cohort(tmp_path, **SMALL)
    for path in sorted(cohort.folder.iterdir()):
        assert (again.folder / path.name).read_bytes() == path.read_bytes(), path.name
