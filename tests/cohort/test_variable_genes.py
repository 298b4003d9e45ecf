"""Highly variable genes of a cohort are scanpy's of its AnnData."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scanpy as sc

from histostore import pp
from histostore.errors import DataError, NotFoundError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    import histostore as hs
    from histostore.view import View

TOP = 25


def of_scanpy(view: View, **options: Any) -> pd.DataFrame:
    adata = view.to_adata(images=False)
    adata.X = adata.X.astype(np.float64)
    for column in ("slide", "patient"):
        adata.obs[column] = adata.obs[column].astype(str).astype("category")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its remarks on bins of one gene
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        return sc.pp.highly_variable_genes(adata, n_top_genes=TOP, inplace=False, **options)


def assert_same(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    assert list(ours.index) == list(theirs.index)
    for column in ("means", "dispersions", "dispersions_norm"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-6, atol=1e-6, err_msg=column)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_one_batch(many: hs.Store, flavor: Any) -> None:
    ours, theirs = (
        pp.highly_variable_genes(many.view(), n_top=TOP, flavor=flavor),
        of_scanpy(many.view(), flavor=flavor),
    )
    assert_same(ours, theirs)
    # in a bin of two genes both scores are 0.7071 in size: such ties are broken by the last digit, by either
    last = np.sort(theirs["dispersions_norm"].dropna())[-TOP]
    clear = (theirs["dispersions_norm"] - last).abs() > 1e-6
    np.testing.assert_array_equal(ours["highly_variable"][clear], theirs["highly_variable"][clear])
    assert ours["highly_variable"].sum() >= TOP


@pytest.mark.parametrize(("flavor", "key"), [("seurat", "patient"), ("cell_ranger", "patient"), ("seurat", "slide")])
def test_batches(many: hs.Store, flavor: Any, key: str) -> None:
    view = many.view(slides=["S3", "S0", "S1", "S2", "S5"])  # patients mixed; one spot has no variance in scanpy
    ours = pp.highly_variable_genes(view, n_top=TOP, flavor=flavor, batch_key=key)
    theirs = of_scanpy(view, flavor=flavor, batch_key=key)
    assert_same(ours, theirs)
    unlike = ours["highly_variable_nbatches"] != theirs["highly_variable_nbatches"]
    assert unlike.sum() <= 4  # of the ties above
    assert ours["highly_variable"].sum() == TOP
    assert (ours["highly_variable"] & theirs["highly_variable"]).sum() >= TOP - 2


def test_a_slide_cut_over_spans_is_one_batch(many: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pp.highly_variable_genes(many.view(), n_top=TOP, batch_key="slide")
    monkeypatch.setattr("histostore.cohort.spans.SPAN_ROWS", 100)
    cut = pp.highly_variable_genes(many.view(), n_top=TOP, batch_key="slide", workers=2)
    for column in ("means", "dispersions", "dispersions_norm"):
        np.testing.assert_allclose(cut[column], whole[column], rtol=1e-9, atol=1e-9)


def test_genes_that_a_panel_lacks_are_scored_where_they_are_measured(with_panel: hs.Store) -> None:
    found = pp.highly_variable_genes(with_panel.view(), n_top=TOP)
    alone = pp.highly_variable_genes(with_panel.view(slides=["A", "C"]), n_top=TOP)
    lacking = set(alone.index) - set(with_panel.view(slides=["B"]).counts().symbols)
    assert len(lacking) == 100
    some = sorted(lacking)
    np.testing.assert_allclose(found.loc[some, "means"], alone.loc[some, "means"], rtol=1e-12)
    by_slide = pp.highly_variable_genes(with_panel.view(), n_top=TOP, batch_key="slide")
    assert (by_slide.loc[some, "highly_variable_nbatches"] <= 2).all()
    assert found.attrs["histostore"]["unmeasured_genes"] == {"B": 100}


def test_bad_requests_are_one_clear_error(many: hs.Store) -> None:
    view = many.view()
    with pytest.raises(UsageError, match="flavor is 'pearson', not seurat, cell"):
        pp.highly_variable_genes(view, flavor="pearson")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="n_top is 0"):
        pp.highly_variable_genes(view, n_top=0)
    with pytest.raises(NotFoundError, match=r"'patien'.*did you mean 'patient'"):
        pp.highly_variable_genes(view, batch_key="patien")
    with pytest.raises(DataError, match="cell_ranger bins genes"):
        pp.highly_variable_genes(many.view(genes=["G1"]), flavor="cell_ranger")
    with pytest.raises(DataError, match="10 genes or more, and 1 vary over all rows"):
        pp.highly_variable_genes(many.view(genes=["G1"]), flavor="seurat_v3")


@pytest.mark.parametrize(("key", "close"), [(None, 1e-6), ("patient", 1e-6), ("slide", 5e-3)])
def test_seurat_v3_is_scanpy_s(many: hs.Store, key: str | None, close: float) -> None:
    # few rows, equal means: scanpy's differ in their last digits when it has batches, and its curve with them
    view = many.view(slides=["S3", "S0", "S1", "S2", "S5"])
    ours = pp.highly_variable_genes(view, n_top=TOP, flavor="seurat_v3", batch_key=key)
    adata = view.to_adata(images=False)
    adata.X = adata.X.astype(np.float64)
    for column in ("slide", "patient"):
        adata.obs[column] = adata.obs[column].astype(str).astype("category")
    theirs = sc.pp.highly_variable_genes(adata, n_top_genes=TOP, flavor="seurat_v3", batch_key=key, inplace=False)
    assert list(ours.index) == list(theirs.index)
    for column in ("means", "variances", "variances_norm"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=close, atol=1e-9, err_msg=column)
    if key == "slide":
        assert (ours["highly_variable"] & theirs["highly_variable"]).sum() >= TOP - 2
        return
    np.testing.assert_array_equal(ours["highly_variable_rank"], theirs["highly_variable_rank"])
    np.testing.assert_array_equal(ours["highly_variable"], theirs["highly_variable"])
    if key:
        np.testing.assert_array_equal(ours["highly_variable_nbatches"], theirs["highly_variable_nbatches"])
    assert ours["highly_variable"].sum() == TOP


def test_seurat_v3_is_the_same_with_workers_and_leaves_out_what_a_panel_lacks(with_panel: hs.Store) -> None:
    one, two = (
        pp.highly_variable_genes(with_panel.view(), n_top=TOP, flavor="seurat_v3", batch_key="slide", workers=n)
        for n in (1, 2)
    )
    assert one.equals(two)
    alone = pp.highly_variable_genes(
        with_panel.view(slides=["A", "C"]), n_top=TOP, flavor="seurat_v3", batch_key="slide"
    )
    lacking = sorted(set(alone.index) - set(with_panel.view(slides=["B"]).counts().symbols))
    np.testing.assert_allclose(one.loc[lacking, "variances_norm"], alone.loc[lacking, "variances_norm"], rtol=1e-12)


@pytest.mark.parametrize("key", [None, "slide"])
@pytest.mark.parametrize("genes", ["outer", "chosen"])
def test_seurat_v3_takes_genes_that_only_a_slide_without_counted_rows_lists(
    many: hs.Store, genes: str, key: str | None
) -> None:
    of_s1, of_s2 = (many.view(slides=[s]).with_counts().counts().symbols for s in ("S1", "S2"))
    alone = sorted(set(of_s1) - set(of_s2))  # S1 has five spots without counts
    view = many.view(slides=["S1", "S2"], genes="outer" if genes == "outer" else [*of_s2, alone[0]])
    view = view.select((view.column("slide") == "S2") | np.isnan(view.column("n_counts")))
    found = pp.highly_variable_genes(view, n_top=5, flavor="seurat_v3", batch_key=key)
    assert found["highly_variable"].sum() == 5
    assert (alone[0] in found.index) == (genes == "chosen")
    if genes == "chosen":
        assert found.loc[alone[0], "variances_norm"] == 0
        assert np.isnan(found.loc[alone[0], "highly_variable_rank"]) or key is None


def test_seurat_v3_ranks_the_genes_of_the_view_alone(many: hs.Store) -> None:
    genes = [f"G{i}" for i in range(60)]
    found = pp.highly_variable_genes(many.view(genes=genes), n_top=5, flavor="seurat_v3")
    assert sorted(found.index) == sorted(genes)
    assert found["highly_variable"].sum() == 5
