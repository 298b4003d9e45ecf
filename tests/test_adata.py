"""A view as AnnData: what scanpy expects, and what the raw files say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

import histostore as hs
from histostore.errors import DataError
from histostore.genes import join_genes, stack_counts
from histostore.io.sheet import Sample
from histostore.stages.ingest import IngestSpec, ingest
from histostore.tables import Counts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

# anndata 0.13 sets an option that pandas 3 is retiring whenever it makes a view
pytestmark = pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option is deprecated")


@pytest.fixture(scope="module")
def adata(embedded: Path) -> ad.AnnData:
    return hs.open(embedded).view(backbone="testing").to_adata()


def test_it_is_what_scanpy_and_squidpy_look_for(adata: ad.AnnData, cohort: Cohort) -> None:
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert sp.issparse(adata.X)
    assert adata.X.dtype.kind == "i"
    assert adata.obs["library_id"].cat.categories.tolist() == ["A1", "B1"]
    assert {"slide", "patient", "barcode", "n_counts", "tile_id"} <= set(adata.obs)
    assert adata.obsm["X_testing"].shape == (adata.n_obs, 64)
    for slide in cohort.slides:
        mine = (adata.obs["slide"] == slide.name).to_numpy()
        place = dict(zip(slide.spot_ids, slide.xy, strict=True))
        expected = np.array([place[b] for b in adata.obs["barcode"][mine]])
        assert np.array_equal(adata.obsm["spatial"][mine], expected)
        library = adata.uns["spatial"][slide.name]
        image, scale = library["images"]["hires"], library["scalefactors"]["tissue_hires_scalef"]
        assert image.shape[2] == 3
        assert image.shape[1] == pytest.approx(1200 * scale)
        assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(50, abs=10)


def test_counts_labels_and_rows_are_those_of_the_raw_files(adata: ad.AnnData, cohort: Cohort) -> None:
    for slide in cohort.slides:
        check_against_files(adata, slide.name, slide.counts, slide.spots, slide.obs)


def check_against_files(adata: ad.AnnData, slide: str, counts: Path, spots: Path, obs: Path) -> None:
    """Join the three tables of a slide by array position with pandas alone, and compare row by row."""
    mine = (adata.obs["slide"] == slide).to_numpy()
    table = adata.to_df().loc[mine]
    barcode = adata.obs["barcode"][mine].to_list()
    raw = pd.read_csv(counts, sep="\t", index_col=0)
    assert set(barcode) <= set(raw.index)
    assert (table[list(raw.columns)].to_numpy() == raw.loc[barcode].to_numpy()).all()
    assert (table.drop(columns=list(raw.columns)) == 0).all(axis=None)
    assert (adata.obs["n_counts"][mine].to_numpy() == raw.loc[barcode].sum(axis=1).to_numpy()).all()
    place = pd.read_csv(spots, sep="\t")
    place.index = place["x"].astype(str) + "x" + place["y"].astype(str)
    assert np.array_equal(adata.obsm["spatial"][mine], place.loc[barcode, ["pixel_x", "pixel_y"]].to_numpy())
    labels = pd.read_csv(obs, sep="\t", index_col=0)
    labels.index = labels["x"].astype(str) + "x" + labels["y"].astype(str)
    found = pd.to_numeric(adata.obs["label"][mine]).to_numpy(np.float64)
    assert np.array_equal(found, labels["label"].reindex(barcode).to_numpy(np.float64), equal_nan=True)


@pytest.mark.real
def test_a_real_section_is_aligned_with_its_raw_files(real_data: Path, tmp_path: Path) -> None:
    folder, store = real_data / "her2st", hs.create(tmp_path / "store")
    files = {
        k: folder / f"C3.{v}"
        for k, v in {"counts": "counts.tsv.gz", "spots": "spots.tsv", "obs": "clusters.tsv.gz"}.items()
    }
    sample = Sample(
        slide="C3", image=folder / "C3.jpg", mpp=0.688, st_counts=files["counts"], st_spots=files["spots"],
        obs=files["obs"], meta={"patient": "C"},
    )  # fmt: skip
    result = ingest(store, sample)
    assert result.rows == 182
    adata = store.view().to_adata()
    assert adata.n_obs == 180
    assert adata.uns["histostore"]["left_out"] == {"rows without counts": 2}
    check_against_files(adata, "C3", **files)


@pytest.mark.filterwarnings("ignore:.*spatial.*:FutureWarning")
def test_scanpy_works_on_it_as_it_is(adata: ad.AnnData, tmp_path: Path) -> None:
    mpl.use("agg")
    adata = adata.copy()
    sc.pp.calculate_qc_metrics(adata, percent_top=None, inplace=True)
    assert np.array_equal(adata.obs["total_counts"], adata.obs["n_counts"])
    assert np.array_equal(adata.obs["n_genes_by_counts"], adata.obs["n_genes"])
    sc.pp.neighbors(adata, use_rep="X_testing", n_neighbors=10)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    assert adata.obs["leiden"].nunique() > 1
    sc.tl.umap(adata)
    assert np.isfinite(adata.obsm["X_umap"]).all()
    one = adata[adata.obs["library_id"] == "A1"].copy()
    gene = one.var_names[0]
    first, second = sc.pl.spatial(one, color=["leiden", gene], library_id="A1", show=False)
    assert first.images, "the H&E lies below the spots"
    assert second.get_title() == gene
    mpl.pyplot.close("all")


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_it_goes_through_a_file_unchanged(suffix: str, embedded: Path, adata: ad.AnnData, tmp_path: Path, cli) -> None:
    path = tmp_path / f"cohort{suffix}"
    cli("export", embedded, "--backbone", "testing", "-o", path)
    back = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
    assert back.obs_names.equals(adata.obs_names)
    assert (back.X != adata.X).nnz == 0
    assert back.X.dtype == adata.X.dtype
    assert np.array_equal(back.obsm["X_testing"], adata.obsm["X_testing"])
    assert np.array_equal(back.uns["spatial"]["A1"]["images"]["hires"], adata.uns["spatial"]["A1"]["images"]["hires"])
    assert back.obs["patient"].astype(str).tolist() == adata.obs["patient"].astype(str).tolist()


def test_tiles_of_a_grid_have_no_counts_although_their_ids_look_like_those_of_spots(
    ingested: Path, copy_of: Callable[[Path], Path]
) -> None:
    store = hs.open(copy_of(ingested))
    hs.pp.tile(store, hs.TileSpec.grid(px=128))
    rows = store.view(tiles="grid")
    assert set(rows.column("barcode")) & set(store.view().column("barcode"))
    assert "n_counts" not in rows.columns()
    with pytest.raises(DataError, match="no counts"):
        rows.counts()
    adata = rows.to_adata()
    assert adata.X is None
    assert adata.n_obs == len(rows) > 10
    assert adata.uns["histostore"]["left_out"] == {}


def test_a_gene_that_a_targeted_panel_lacks_is_missing_and_not_zero(tmp_path: Path, cohort: Cohort) -> None:
    store = hs.create(tmp_path / "store")
    panels = {"A1": ["G1", "G2", "G3"], "B1": ["G2", "G3", "G4"]}
    for slide in cohort.slides:
        small = ad.AnnData(
            sp.csr_matrix(np.arange(3 * len(slide.spot_ids)).reshape(-1, 3).astype(np.int32)),
            obs=pd.DataFrame(index=list(slide.spot_ids)), var=pd.DataFrame(index=panels[slide.name]),
            obsm={"spatial": slide.xy},
        )  # fmt: skip
        path = tmp_path / f"{slide.name}.h5ad"
        small.write_h5ad(path)
        ingest(store, Sample(slide=slide.name, image=slide.image, mpp=2.0, anndata=path), IngestSpec(targeted=True))
    adata = store.view().to_adata(images=False)
    table = adata.to_df()
    on_a = adata.obs["slide"].to_numpy() == "A1"
    assert table.columns.tolist() == ["G1", "G2", "G3", "G4"]
    assert table["G4"][on_a].isna().all()
    assert table["G1"][~on_a].isna().all()
    assert table[["G2", "G3"]].notna().all(axis=None)
    assert adata.uns["histostore"]["unmeasured_genes"] == {"A1": 1, "B1": 1}
    inner = store.view(genes="inner").to_adata(images=False)
    assert inner.X.dtype.kind == "i"
    assert inner.var_names.tolist() == ["G2", "G3"]


def test_repeated_symbols_become_unique_by_their_ids() -> None:
    counts = Counts(
        ids=("a", "b"), matrix=sp.csr_array(np.array([[1, 2, 3], [0, 5, 0]], dtype=np.int32)),
        gene_ids=("E1", "E2", "E3"), symbols=("TP53", "X", "TP53"),
    )  # fmt: skip
    joined = join_genes([counts], "outer")
    assert joined.symbols == ("TP53-E1", "X", "TP53-E3")
    stacked = stack_counts(joined, [("S", counts, np.array([1, 0, 1]))])
    assert stacked.matrix.toarray().tolist() == [[0, 5, 0], [1, 2, 3], [0, 5, 0]]
