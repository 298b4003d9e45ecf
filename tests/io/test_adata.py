from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from histostore.errors import DataError
from histostore.io.adata import read_anndata
from histostore.io.mpp import mpp_from_pitch
from histostore.io.visium import read_visium

if TYPE_CHECKING:
    from pathlib import Path

COUNTS = np.array([[1, 0, 2], [0, 3, 0], [4, 0, 0], [0, 0, 5]])
XY = np.array([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0], [70.0, 80.0]])


def _adata(**options: Any) -> ad.AnnData:
    obs = pd.DataFrame(index=options.pop("ids", ["a", "b", "c", "d"]))
    var = pd.DataFrame(index=options.pop("genes", ["A", "B", "C"]))
    made = ad.AnnData(options.pop("X", sp.csr_matrix(COUNTS, dtype=np.float32)), obs=obs, var=var)
    made.obsm["spatial"] = options.pop("spatial", XY)
    for name, layer in options.pop("layers", {}).items():
        made.layers[name] = layer
    return made


def _write(adata: ad.AnnData, folder: Path, form: str = "h5ad") -> Path:
    path = folder / f"a.{form}"
    adata.write_h5ad(path) if form == "h5ad" else adata.write_zarr(path)
    return path


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(sp.csr_matrix(COUNTS, dtype=np.float32), id="csr_float"),
        pytest.param(sp.csc_matrix(COUNTS), id="csc_int"),
        pytest.param(COUNTS.astype(np.float64), id="dense"),
    ],
)
def test_counts_in_any_storage_become_int32_csr(tmp_path: Path, form: str, matrix: Any) -> None:
    points, counts, report = read_anndata(_write(_adata(X=matrix), tmp_path, form))
    assert points.ids == counts.ids == ("a", "b", "c", "d")
    assert points.xy.tolist() == XY.tolist()
    assert counts.matrix.toarray().tolist() == COUNTS.tolist()
    assert counts.matrix.dtype == np.int32
    assert counts.gene_ids == ("A", "B", "C")
    assert report.notes == ("counts from X",)
    assert points.assay == "points"


def test_the_counts_layer_is_taken_where_x_is_normalised_and_said_so(tmp_path: Path) -> None:
    path = _write(_adata(X=np.log1p(COUNTS), layers={"counts": sp.csr_matrix(COUNTS)}), tmp_path)
    _, counts, report = read_anndata(path)
    assert counts.matrix.toarray().tolist() == COUNTS.tolist()
    assert report.notes == ("X is not counts: counts from layers['counts']",)
    _, counts, report = read_anndata(path, allow_normalised=True)
    assert counts.normalised
    assert report.notes == ("counts from X",)
    with pytest.raises(DataError, match=r"X \(layers: 'counts'\).*not raw counts"):
        read_anndata(path, layer="X")


def test_a_named_layer_is_taken(tmp_path: Path) -> None:
    path = _write(_adata(layers={"twice": sp.csr_matrix(2 * COUNTS)}), tmp_path)
    _, counts, report = read_anndata(path, layer="twice")
    assert counts.matrix.sum() == 2 * COUNTS.sum()
    assert report.notes == ("counts from layers['twice']",)
    with pytest.raises(DataError, match="no layer 'once'; it has X, 'twice'"):
        read_anndata(path, layer="once")


def test_accessions_are_gene_ids_and_symbols_stand_beside_them(tmp_path: Path) -> None:
    adata = _adata()
    adata.var["gene_ids"] = ["E1", "E2", "E3"]
    adata.var["feature_types"] = pd.Categorical(["Gene Expression"] * 3)
    _, counts, _ = read_anndata(_write(adata, tmp_path))
    assert counts.gene_ids == ("E1", "E2", "E3")
    assert counts.symbols == ("A", "B", "C")
    assert counts.feature_types == ("Gene Expression",) * 3
    adata = _adata(genes=["E1", "E2", "E3"])
    adata.var["gene_name"] = ["A", "A", "C"]
    _, counts, _ = read_anndata(_write(adata, tmp_path))
    assert counts.gene_ids == ("E1", "E2", "E3")
    assert counts.symbols == ("A", "A", "C")


def test_a_visium_anndata_keeps_its_array(tmp_path: Path, real_data: Path) -> None:
    points, counts, extras = read_visium(real_data / "visium_mini" / "outs")
    obs = pd.DataFrame(
        {"in_tissue": points.in_tissue.astype(int), "array_row": points.array_row, "array_col": points.array_col},  # type: ignore[union-attr]
        index=points.ids,
    )
    adata = ad.AnnData(sp.csr_matrix(counts.matrix), obs=obs, var=pd.DataFrame(index=counts.gene_ids))
    adata.obsm["spatial"] = points.xy
    adata.uns["spatial"] = {"mini": {"scalefactors": dict(extras.scalefactors)}}
    again, same, _ = read_anndata(_write(adata, tmp_path))
    assert again.assay == "visium"
    assert again.in_tissue is not None
    assert again.in_tissue.sum() == 22
    assert mpp_from_pitch(again) == mpp_from_pitch(points)
    assert (same.matrix != counts.matrix).nnz == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"ids": ["a", "b", "a", "d"]}, "1 duplicate barcodes: 'a'", id="barcodes"),
        pytest.param({"genes": ["A", "B", "A"]}, "1 duplicate gene ids: 'A'", id="genes"),
        pytest.param({"spatial": np.where(XY == 60, np.nan, XY)}, r"1 spots .* row 3 \('c'\)", id="nan_coordinates"),
        pytest.param({"spatial": np.zeros((4, 3))}, r"shape \(4, 3\), not \(4, 2\)", id="three_dimensions"),
        pytest.param({"X": -COUNTS}, "5 counts are negative", id="negative"),
        pytest.param({"X": np.log1p(COUNTS)}, r"X \(no layers\).*not raw counts", id="log_counts"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_bad_contents_are_one_clear_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_anndata(_write(_adata(**options), tmp_path))
    assert "\n" not in str(caught.value)


def test_no_spatial_no_spots_and_two_slides_are_refused(tmp_path: Path) -> None:
    adata = _adata()
    del adata.obsm["spatial"]
    adata.obsm["X_umap"] = XY
    with pytest.raises(DataError, match=r"no obsm\['spatial'\]; obsm holds 'X_umap'"):
        read_anndata(_write(adata, tmp_path))
    with pytest.raises(DataError, match="holds 0 spots"):
        read_anndata(_write(_adata()[:0].copy(), tmp_path))
    adata = _adata()
    adata.uns["spatial"] = {"s1": {"a": 1}, "s2": {"a": 1}}
    with pytest.raises(DataError, match="holds 2 slides \\('s1', 's2'\\)"):
        read_anndata(_write(adata, tmp_path))


def _set(key: str, at: int, value: float) -> Any:
    def damage(file: h5py.File) -> None:
        file[key][at] = value

    return damage


def _replace(key: str, value: np.ndarray) -> Any:
    def damage(file: h5py.File) -> None:
        attributes = dict(file[key].attrs)
        del file[key]
        file[key] = value
        file[key].attrs.update(attributes)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_set("X/indices", 2, 99), "invalid CSR at row 1: column 99 of 3", id="csr_index"),
        pytest.param(_set("X/indptr", 2, 99), "invalid CSR at row 2", id="csr_indptr"),
        pytest.param(_replace("obsm/spatial", np.zeros((3, 2))), r"shape \(3, 2\), not \(4, 2\)", id="obsm_rows"),
        pytest.param(lambda file: file.__delitem__("obs"), "no AnnData file", id="no_obs"),
        pytest.param(lambda file: file.__delitem__("X"), "no AnnData file", id="no_x"),
    ],
)
def test_damaged_files_are_one_clear_line(tmp_path: Path, damage: Any, message: str) -> None:
    path = _write(_adata(), tmp_path)
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(DataError, match=message) as caught:
        read_anndata(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_anndata(tmp_path / "no.h5ad")
    (tmp_path / "text.h5ad").write_text("hello")
    with pytest.raises(DataError, match="no h5ad or zarr file"):
        read_anndata(tmp_path / "text.h5ad")
    with pytest.raises(DataError, match="zarr"):
        read_anndata(tmp_path)
