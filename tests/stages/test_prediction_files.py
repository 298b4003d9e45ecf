"""Predictions as files: for scanpy, QuPath, Loupe Browser, and as maps."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import histostore as hs
from histostore.errors import DataError, NotFoundError, UsageError
from histostore.stages.predict import read_prediction, write_predictions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

TUMOUR = hs.LabelSpec(column="region_annotations", positive=("tumour",), negative=("region",))
SPLIT = "leave-one-out:patient"
BARCODES = ["".join("ACGT"[(i // 4**k) % 4] for k in range(16)) + "-1" for i in range(30)]


@pytest.fixture(scope="module")
def store(embedded: Path, cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """A classifier and a head of genes, applied to ST spots, to a grid, and to a slide ``V`` with barcodes of 10x."""
    folder = tmp_path_factory.mktemp("outputs")
    store = hs.open(shutil.copytree(embedded, folder / "S"))
    hs.tl.fit(store, hs.heads.Logistic(1e-2), labels=TUMOUR, split=SPLIT, save="c")
    hs.tl.fit(store, "ridge", genes="MORPH001,PLACE001", split=SPLIT, save="r", slides=["A1", "B1"])
    points = pd.DataFrame(cohort.slides[0].xy[:30], columns=["x", "y"], index=pd.Index(BARCODES, name="id"))
    points.to_csv(folder / "points.csv")
    hs.pp.ingest(store, "V", image=cohort.slides[0].image, mpp=2.0, points=folder / "points.csv")
    hs.pp.tile(store, "V", hs.TileSpec.at_spots(px=96), pixels=hs.PixelSpec(codec="slide"))
    hs.pp.tile(store, "A1", hs.TileSpec.grid(px=96), name="grid", pixels=hs.PixelSpec(codec="slide"))
    hs.tl.embed(store, "testing", slides=["V"])
    hs.tl.embed(store, "testing", slides=["A1"], tiles="grid")
    for head in "cr":
        hs.tl.predict(store, head, tiles="spots")
        hs.tl.predict(store, head, slides="A1", tiles="grid")
    return store


def objects(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["features"])


def test_spots_of_an_array_are_circles_with_probabilities_and_call(store: hs.Store, tmp_path: Path) -> None:
    path = write_predictions(store, ["A1"], "c", tmp_path / "a.geojson", tiles="spots")
    found = read_prediction(store, "A1", "c", tiles="spots")
    spots = {f["properties"]["name"]: f for f in objects(path)}
    assert list(spots) == found.view.column("barcode").tolist()
    xy = np.column_stack([found.view.column("x"), found.view.column("y")])
    for row, (one, centre) in enumerate(zip(spots.values(), xy, strict=True)):
        ring = np.array(one["geometry"]["coordinates"][0])
        # ST v1 spots are 100 µm wide, a pixel 2 µm
        np.testing.assert_allclose(np.hypot(*(ring - centre).T), 25, atol=0.02)
        measured = one["properties"]["measurements"]
        np.testing.assert_allclose([measured[n] for n in found.names], found.values[row], rtol=1e-5)
        assert one["properties"]["classification"]["name"] == found.calls()[row]


def test_tiles_of_a_grid_are_the_squares_that_were_read(store: hs.Store, tmp_path: Path) -> None:
    path = write_predictions(store, ["A1"], "r", tmp_path / "g.geojson", tiles="grid", names=["PLACE001"])
    part = store.view(tiles="grid", slides=["A1"]).parts[0]
    squares = np.array([f["geometry"]["coordinates"][0] for f in objects(path)])
    np.testing.assert_allclose(squares[:, 0], part.group(part.tiles).read("geometry")[:, 2:4])
    np.testing.assert_allclose(np.ptp(squares, axis=1), 96)
    about = objects(path)[0]["properties"]
    assert set(about) == {"objectType", "name", "measurements"}
    assert set(about["measurements"]) == {"PLACE001"}


def test_an_unreadable_tile_stays_without_numbers(store: hs.Store, tmp_path: Path) -> None:
    from dataclasses import replace

    from histostore.stages.viewer_files import write_geojson

    found = read_prediction(store, "A1", "c", tiles="spots")
    values = found.values.copy()
    values[3] = np.nan
    properties = objects(write_geojson(replace(found, values=values), "c", tmp_path / "a.geojson"))[3]["properties"]
    assert set(properties) == {"objectType", "name"}


def test_loupe_gets_barcodes_with_the_call_or_genes_in_bins(store: hs.Store, tmp_path: Path) -> None:
    calls = pd.read_csv(write_predictions(store, ["V"], "c", tmp_path / "c.loupe.csv"))
    found = read_prediction(store, "V", "c")
    assert calls.columns.tolist() == ["Barcode", "c"]
    assert dict(calls.to_numpy()) == dict(zip(BARCODES, found.calls(), strict=True))
    genes = pd.read_csv(write_predictions(store, ["V"], "r", tmp_path / "r.loupe.csv", names=["MORPH001"]))
    assert genes.columns.tolist() == ["Barcode", "r MORPH001"]
    assert genes["r MORPH001"].value_counts().tolist() == [6] * 5
    with pytest.raises(UsageError, match="choose genes"):
        write_predictions(store, ["V"], "r", tmp_path / "x.loupe.csv")
    with pytest.raises(NotFoundError, match="did you mean 'MORPH001'"):
        write_predictions(store, ["V"], "r", tmp_path / "x.loupe.csv", names=["MORPH01"])
    with pytest.raises(DataError, match="no 10x barcode"):
        write_predictions(store, ["A1"], "c", tmp_path / "x.loupe.csv", tiles="spots")


def test_several_slides_make_several_files_where_a_file_is_of_one_image(
    store: hs.Store, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    place = store.uri.removeprefix("file://")
    common = ("predict", place, "--head", "c", "--tiles", "spots", "--slides", "A1,B1", "-o")
    told = cli(*common, tmp_path / "all.geojson", code=2)
    assert "put {slide} into the name" in told.stderr
    cli(*common, tmp_path / "{slide}.geojson")
    assert {p.name for p in tmp_path.iterdir()} == {"A1.geojson", "B1.geojson"}
    assert "there already" in cli(*common, tmp_path / "{slide}.geojson", code=3).stderr
    cli(*common, tmp_path / "{slide}.geojson", "--overwrite")
    cli(*common, tmp_path / "all.csv")
    table = pd.read_csv(tmp_path / "all.csv", index_col=0)
    assert table.columns.tolist() == ["call", "region", "tumour"]
    assert len(table) == len(objects(tmp_path / "A1.geojson")) + len(objects(tmp_path / "B1.geojson"))
    assert "must end in" in cli(*common, tmp_path / "all.txt", code=2).stderr


def test_genes_choose_the_columns_of_every_table(store: hs.Store, tmp_path: Path, cli: Callable[..., Any]) -> None:
    place = store.uri.removeprefix("file://")
    common = ("predict", place, "--head", "r", "--tiles", "spots", "--slides", "A1,B1", "--genes")
    told = cli(*common, "MORPH01", "-o", tmp_path / "no.csv", code=2)
    assert "did you mean 'MORPH001'" in told.stderr
    assert not (tmp_path / "no.csv").exists()
    whole = write_predictions(store, ["A1", "B1"], "r", tmp_path / "whole.csv", tiles="spots")
    everything = pd.read_csv(whole, index_col=0)
    assert everything.columns.tolist() == ["MORPH001", "PLACE001"]
    cli(*common, "PLACE001,MORPH001", "-o", tmp_path / "both.csv")
    assert pd.read_csv(tmp_path / "both.csv", index_col=0).equals(everything[["PLACE001", "MORPH001"]])
    for end, read in ((".h5ad", ad.read_h5ad), (".zarr", ad.read_zarr)):
        cli(*common, "PLACE001", "-o", tmp_path / f"one{end}")
        one = read(tmp_path / f"one{end}")
        assert one.var_names.tolist() == ["PLACE001"]
        assert np.allclose(one.X[:, 0], everything["PLACE001"].to_numpy(), equal_nan=True)
    of_classes = write_predictions(store, ["A1"], "c", tmp_path / "c.h5ad", tiles="spots", names=["region"])
    classes = ad.read_h5ad(of_classes)
    assert classes.var_names.tolist() == ["region"]
    assert set(classes.obs["call"].cat.categories) <= {"region", "tumour"}


@pytest.mark.parametrize(
    ("slide", "tiles", "head", "names", "drawn"),
    [
        ("A1", "grid", "c", None, {"call", "tumour"}),
        ("A1", "spots", "r", ["MORPH001"], {"MORPH001"}),
        ("V", "spots", "c", ["region"], {"call", "region"}),
    ],
    ids=["grid", "beside the measured", "without counts"],
)
def test_maps_are_drawn_with_and_without_counts(store, tmp_path, slide, tiles, head, names, drawn) -> None:
    from histostore.stages.prediction_maps import prediction_maps

    written = prediction_maps(store, [slide], head, tmp_path / "maps", tiles=tiles, names=names)
    assert {p.name for p in written} == {f"{slide}-{head}-{n}.png" for n in drawn}
    for path in written:
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert min(picture.shape[:2]) > 300
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
