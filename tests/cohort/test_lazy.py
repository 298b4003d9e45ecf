"""Views as dask arrays and Datasets: equal to the arrays, in blocks along shards, with tasks that can be sent."""

from __future__ import annotations

import pickle
import shutil
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

import histostore as hs
from histostore.blocks.embedding_blocks import embedding_blocks, read_block
from histostore.errors import DataError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.view import View


@pytest.fixture(scope="module")
def rows(many: hs.Store) -> View:
    return many.view(backbone="made")


def test_the_dask_array_equals_the_array_and_keeps_unreadable_rows(rows: View) -> None:
    lazy, whole = rows.to_dask(), rows.numpy()
    assert (lazy.shape, lazy.dtype) == (whole.shape, np.float16)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), whole)
    assert np.isnan(whole).any(axis=1).sum() == 6
    np.testing.assert_array_equal(lazy[390:540].compute(scheduler="threads"), whole[390:540])


def test_rows_that_were_chosen_come_in_their_order(rows: View) -> None:
    for some in (rows.where("patient == 'P1'"), rows.select(np.random.default_rng(0).permutation(len(rows))[:300])):
        np.testing.assert_array_equal(some.to_dask().compute(scheduler="sync"), some.numpy())
    none = rows.where("patient == 'nobody'")
    assert none.to_dask().compute(scheduler="sync").shape == (0, 12)


def test_small_slides_share_a_block_and_no_block_cuts_a_shard(rows: View) -> None:
    assert rows.to_dask().npartitions == 1
    shard_bytes = 64 * 12 * 2
    blocks = embedding_blocks(rows.parts, "made", 2 * shard_bytes)
    np.testing.assert_array_equal(np.concatenate([b.read() for b in blocks]), rows.numpy())
    for block in blocks:
        assert len(block) <= 128
        assert all(start % 64 == 0 for _, start, _ in block.pieces)
    by_shard = embedding_blocks(rows.select(np.arange(10, 900, 3)).parts, "made", 1)
    assert all(len(block) <= 22 for block in by_shard)  # every third row of 64


def test_a_task_is_small_and_opens_the_store_by_itself(rows: View) -> None:
    block = embedding_blocks(rows.parts, "made")[0]
    sent = pickle.dumps((read_block, block))
    assert len(sent) < 6 * 3000
    read, again = pickle.loads(sent)
    np.testing.assert_array_equal(read(again), rows.numpy())


def test_equal_rows_have_equal_names(rows: View, many: hs.Store) -> None:
    assert rows.to_dask().name == many.view(backbone="made").to_dask().name
    assert rows.to_dask().name != rows.where("patient == 'P1'").to_dask().name


def test_another_store_at_the_same_address_is_refused(many: hs.Store, with_panel: hs.Store, tmp_path: Path) -> None:
    place = tmp_path / "moved"
    shutil.copytree(many.uri, place)
    block = embedding_blocks(hs.open(place).view(backbone="made").parts, "made")[0]
    shutil.rmtree(place)
    shutil.copytree(with_panel.uri, place)
    with pytest.raises(NotFoundError, match="all workers must see the same"):
        block.read()


def test_counts_equal_the_matrix(rows: View) -> None:
    counted = rows.with_counts()
    assert counted.report.counts == {"rows without counts": 10}
    lazy, whole = counted.counts_dask(), counted.counts()
    assert (lazy.ids, lazy.symbols, lazy.unmeasured) == (whole.ids, whole.symbols, {})
    assert lazy.matrix.dtype == np.int32
    assert isinstance(lazy.matrix._meta, sp.csr_array)
    assert (lazy.matrix.compute(scheduler="sync") != whole.matrix).nnz == 0
    with pytest.raises(DataError, match=r"5 of 130 rows of slide 'S1'.*with_counts"):
        rows.counts_dask()


def test_genes_that_a_panel_did_not_measure_are_nan(with_panel: hs.Store) -> None:
    view = with_panel.view()
    lazy, whole = view.counts_dask(), view.counts()
    assert lazy.unmeasured == whole.unmeasured == {"B": 100}
    assert lazy.matrix.dtype == np.float32
    np.testing.assert_array_equal(lazy.matrix.compute(scheduler="sync").toarray(), whole.matrix.toarray())
    inner = with_panel.view(genes="inner")
    assert inner.counts_dask().ids == inner.counts().ids


def test_a_dataset_has_counts_by_gene_and_units(rows: View) -> None:
    counted = rows.with_counts()
    data = counted.to_xarray(expression=True, columns=["patient", "x_um"])
    assert data["expression"].dims == ("obs", "gene")
    assert data["expression"].dtype == np.float32
    assert data["x_um"].attrs["units"] == "um"
    whole = counted.counts()
    one = data["expression"].sel(gene="G7", obs="S3:11x3").compute(scheduler="sync")
    where = np.flatnonzero(counted.names() == "S3:11x3")[0]
    assert float(one) == whole.matrix[[where]].toarray()[0, whole.symbols.index("G7")]
    assert set(data.coords) == {"obs", "patient", "x_um", "gene", "gene_id"}


def test_scanpy_takes_the_lazy_anndata(rows: View) -> None:
    lazy = rows.to_adata(images=False, lazy=True)
    whole = rows.to_adata(images=False)
    assert "n_counts" not in lazy.obs
    assert list(lazy.obs_names) == list(whole.obs_names)
    np.testing.assert_array_equal(lazy.obsm["X_made"].compute(scheduler="sync"), whole.obsm["X_made"])
    lazy.X = lazy.X.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scanpy's remarks on dask and on bins of one gene
        sc.pp.normalize_total(lazy, target_sum=1e4)
        sc.pp.log1p(lazy)
        theirs = sc.pp.highly_variable_genes(lazy, n_top_genes=30, inplace=False)
    ours = hs.pp.highly_variable_genes(rows, n_top=30)
    for column in ("means", "dispersions", "dispersions_norm"):
        np.testing.assert_allclose(theirs[column], ours[column], rtol=1e-6, atol=1e-6)
