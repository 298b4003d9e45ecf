"""The obs of an AnnData comes in as labels: what an export wrote is what an ingest reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.content.tables import write_counts, write_points
from histostore.io.adata import read_anndata, read_obs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata as ad

    from histostore.testing.cohort import Cohort

META = {"patient": "A"}


@pytest.fixture
def image(cohort: Cohort) -> dict[str, Any]:
    return {"image": cohort.slides[0].image, "mpp": 2.0}


@pytest.fixture
def exported(ingested: Path) -> ad.AnnData:
    return hs.open(ingested).view(slides=["A1"]).to_adata()


@pytest.fixture
def store(tmp_path: Path) -> hs.Store:
    return hs.create(tmp_path / "S")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[ad.AnnData], Path]:
    def write(adata: ad.AnnData) -> Path:
        path = tmp_path / "a.h5ad"
        adata.write_h5ad(path)
        return path

    return write


def labels(store: hs.Store) -> dict[str, list[Any]]:
    (part,) = store.view(slides=["A1"]).parts
    refs = store.slide("A1").of_kind("labels")
    names = [c for r in refs for k in ("numeric_columns", "code_columns") for c in store.group(r).attrs[k]]
    return {name: part.column(name).tolist() for name in sorted(names)}


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_an_export_comes_back_with_the_same_ids_and_labels(
    store: hs.Store,
    exported: ad.AnnData,
    ingested: Path,
    cohort: Cohort,
    image: dict[str, Any],
    form: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / f"a.{form}"
    exported.write_h5ad(path) if form == "h5ad" else exported.write_zarr(path)
    files = {**image, "anndata": path, "geojson": cohort.slides[0].geojson}
    meta = hs.get.slides(hs.open(ingested)).loc["A1"].drop("slide").to_dict()
    told = hs.pp.ingest(store, "A1", **files, meta=meta)[0].report
    old, new = (s.view(slides=["A1"]) for s in (hs.open(ingested), store))
    assert new.names().tolist() == old.names().tolist()
    assert labels(store) == labels(hs.open(ingested))
    assert set(new.columns()) == set(old.columns())
    np.testing.assert_array_equal(new.counts().matrix.toarray(), old.counts().matrix.toarray())
    assert told.counts["obs columns kept as labels"] == len(labels(store)) + len(meta) - 1
    assert "spots are named 'A1:…' in the file: taken without that prefix" in told.notes
    assert hs.pp.ingest(store, "A1", **files, meta=meta)[0].done == "already there"


def test_an_export_keeps_its_ids_under_another_slide_id(
    store: hs.Store, exported: ad.AnnData, image: dict[str, Any], written: Callable[[ad.AnnData], Path]
) -> None:
    hs.pp.ingest(store, "Z9", **image, anndata=written(exported))
    assert store.view().names()[0] == exported.obs_names[0].replace("A1:", "Z9:")


def test_names_of_which_not_all_have_the_prefix_stay(
    store: hs.Store, exported: ad.AnnData, image: dict[str, Any], written: Callable[[ad.AnnData], Path]
) -> None:
    exported.obs_names = ["other", *exported.obs_names[1:]]
    hs.pp.ingest(store, "A1", **image, anndata=written(exported))
    assert store.view().column("barcode").tolist() == exported.obs_names.tolist()


def test_a_slide_that_came_in_with_the_names_of_an_export_keeps_them(
    store: hs.Store, exported: ad.AnnData, image: dict[str, Any], written: Callable[[ad.AnnData], Path]
) -> None:
    path = written(exported)
    points, counts, _ = read_anndata(path)
    hs.pp.ingest(store, "A1", **image)
    store.commit("A1", [write_points(store, "A1", "spots", points), write_counts(store, "A1", "counts", counts)])
    hs.pp.ingest(store, "A1", **image, anndata=path)
    assert store.view().column("barcode").tolist() == exported.obs_names.tolist()
    assert "label" in store.view().columns()


def test_numbers_are_measures_and_categories_and_truth_values_are_names(
    store: hs.Store, exported: ad.AnnData, image: dict[str, Any], written: Callable[[ad.AnnData], Path]
) -> None:
    n = len(exported)
    exported.obs = pd.DataFrame(
        {
            "leiden": pd.Categorical([*"01"] * (n // 2) + ["1"] * (n % 2)),
            "gap": pd.Categorical([None, *["t"] * (n - 1)]),
            "score": np.linspace(0, 1, n, dtype=np.float32),
            "whole": np.arange(n),
            "holes": pd.array([None, *range(n - 1)], dtype="Int64"),
            "kept": [True, False] * (n // 2) + [True] * (n % 2),
            "n_counts": 1.0,
        },
        index=exported.obs_names,
    )
    told = hs.pp.ingest(store, "A1", **image, anndata=written(exported))[0].report
    found = store.view()
    assert found.column("leiden")[:2].tolist() == ["0", "1"]
    assert found.column("gap")[:2].tolist() == [None, "t"]
    assert found.column("kept")[:2].tolist() == ["True", "False"]
    np.testing.assert_allclose(found.column("score"), np.linspace(0, 1, n), rtol=1e-6)
    np.testing.assert_array_equal(found.column("whole"), np.arange(n))
    np.testing.assert_array_equal(found.column("holes"), [np.nan, *range(n - 1)])
    assert (found.column("n_counts") > 1).all(), "the counts' own"
    assert (told.counts["obs columns kept as labels"], told.counts["obs columns left out"]) == (6, 1)


def test_labels_that_came_along_never_hide_anything_nor_stop_a_slide(
    store: hs.Store,
    exported: ad.AnnData,
    image: dict[str, Any],
    written: Callable[[ad.AnnData], Path],
    tmp_path: Path,
) -> None:
    exported.obs["ward"] = "obs"
    exported.obs["leiden"] = "a"
    path = written(exported)
    told = hs.pp.ingest(store, "A1", **image, anndata=path, meta={"ward": "7"})[0].report
    assert set(store.view().column("ward")) == {"7"}
    assert "obs columns left out, their names are taken: 'ward' is of the metadata" in told.notes
    assert "patient" not in store.view().columns()
    assert any(n.startswith("obs column 'patient' (A) is metadata") for n in told.notes)
    hs.pp.annotate(store, "A1", **META)
    exported.obs["leiden"] = "b"
    again = hs.pp.ingest(store, "A1", **image, anndata=written(exported))[0]
    assert again.done == "already there"
    assert "labels 'obs' are there already: not changed by the file's obs" in again.report.notes
    assert set(store.view().column("leiden")) == {"a"}


def test_a_table_that_is_named_counts_more_than_the_obs_of_the_file(
    store: hs.Store,
    exported: ad.AnnData,
    image: dict[str, Any],
    written: Callable[[ad.AnnData], Path],
    tmp_path: Path,
) -> None:
    exported.obs["leiden"] = "a"
    table = tmp_path / "t.csv"
    pd.DataFrame({"barcode": exported.obs["barcode"], "leiden": "b"}).to_csv(table, index=False)
    hs.pp.ingest(store, "A1", **image, anndata=written(exported), obs=table)
    assert set(store.view().column("leiden")) == {"b"}
    assert "label" in store.view().columns()


def test_obs_is_read_as_numbers_and_text(exported: ad.AnnData, written: Callable[[ad.AnnData], Path]) -> None:
    found = read_obs(written(exported))
    assert found.exported
    assert {d.kind for d in found.columns.dtypes} == {"f", "O"}
    assert found.columns.index.tolist() == exported.obs_names.tolist()
