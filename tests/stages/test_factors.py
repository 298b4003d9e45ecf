from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import histostore as hs
from histostore.errors import ConflictError, DataError
from histostore.heads.nmf import NMF


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.5, size=(80, 3)) @ rng.gamma(0.5, size=(3, 40)) * 3
    out = ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    out.var_names = [f"G{i}" for i in range(40)]
    return out


def test_factors_and_loadings_land_in_the_slots_of_scanpy(adata, tmp_path):
    made = hs.tl.factors(adata, "nmf:3", genes="top-variance:20")
    assert isinstance(made, NMF)
    assert adata.obsm["X_nmf"].shape == (80, 3)
    assert (adata.obsm["X_nmf"] >= 0).all()
    chosen = adata.uns["nmf"]["genes"]
    known = adata.var_names.isin(chosen)
    assert np.isnan(adata.varm["nmf"][~known]).all()
    rebuilt = adata.obsm["X_nmf"] @ adata[:, list(chosen)].varm["nmf"].T
    np.testing.assert_allclose(rebuilt, made.decode(adata.obsm["X_nmf"]), rtol=1e-4)
    assert len(adata.uns["nmf"]["programs"]) == 3
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.obsm["X_nmf"], adata.obsm["X_nmf"])


def test_new_spots_are_encoded_in_the_old_basis_and_never_refitted(adata):
    made = hs.tl.factors(adata[:60].copy(), "nmf:3", genes=list(adata.var_names))
    before = made.components_.copy()
    new = adata[60:].copy()
    assert hs.tl.factors(new, made, genes=list(adata.var_names)) is made
    np.testing.assert_array_equal(made.components_, before)
    assert new.obsm["X_nmf"].shape == (20, 3)


def test_taken_slots_and_negative_targets_are_refused(adata):
    hs.tl.factors(adata, "pca:2")
    with pytest.raises(ConflictError, match="overwrite=True"):
        hs.tl.factors(adata, "pca:2")
    hs.tl.factors(adata, "pca:3", overwrite=True)
    assert adata.obsm["X_pca"].shape[1] == 3
    with pytest.raises(DataError, match="negative"):
        hs.tl.factors(adata, "nmf:2", unit="log-share", key="other")
    assert "X_other" not in adata.obsm
