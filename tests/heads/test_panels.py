from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from histostore.errors import DataError, NotFoundError, UsageError
from histostore.head_specs import PanelSpec
from histostore.heads.panels import choose_genes, empty_rows, library_size, targets


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.5, 4, size=200)
    return rng.poisson(rates * rng.gamma(2, 0.5, size=(150, 1))).astype(np.int32)


SYMBOLS = [f"G{i:03d}" for i in range(200)]


def logged(counts):
    return np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 1e4)


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, sp.csc_matrix], ids=["dense", "csr", "csc"])
@pytest.mark.parametrize(("rule", "statistic"), [("top-variance", np.var), ("top-mean", np.mean)])
def test_top_genes_are_ranked_on_log1p_counts_per_10_000(counts, rule, statistic, make):
    expected = np.argsort(-statistic(logged(counts), axis=0), kind="stable")[:20]
    chosen = choose_genes(PanelSpec.parse(f"{rule}:20"), make(counts), SYMBOLS)
    np.testing.assert_array_equal(chosen, expected)


def test_ties_are_broken_by_name_whatever_the_order_of_rows_and_columns(counts):
    twins = np.repeat(counts[:, :40], 3, axis=1)
    names = np.array([f"{g}{c}" for g in SYMBOLS[:40] for c in "cab"])
    expected = names[choose_genes(PanelSpec.parse("top-variance:10"), twins, names)]
    rng = np.random.default_rng(1)
    for _ in range(5):
        rows, columns = rng.permutation(len(twins)), rng.permutation(len(names))
        again = choose_genes(PanelSpec.parse("top-variance:10"), twins[rows][:, columns], names[columns])
        np.testing.assert_array_equal(names[columns][again], expected)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_hvg_are_scanpy_s(counts, flavor):
    adata = AnnData(sp.csr_matrix(logged(counts)))
    adata.var_names = SYMBOLS
    sc.pp.highly_variable_genes(adata, n_top_genes=25, flavor=flavor)
    chosen = choose_genes(PanelSpec.parse(f"hvg:25:{flavor}"), counts, SYMBOLS)
    assert {SYMBOLS[i] for i in chosen} == set(adata.var_names[adata.var["highly_variable"]])


def test_hvg_of_seurat_v3_are_scanpy_s(counts):
    adata = AnnData(sp.csr_matrix(counts.astype(np.float64)))
    theirs = sc.pp.highly_variable_genes(adata, n_top_genes=25, flavor="seurat_v3", inplace=False)
    chosen = choose_genes(PanelSpec.parse("hvg:25:seurat_v3"), counts, SYMBOLS)
    np.testing.assert_array_equal(np.sort(chosen), np.flatnonzero(theirs["highly_variable"]))


def test_seurat_v3_of_too_few_genes_is_one_clear_error(counts):
    panel = PanelSpec.parse("hvg:2:seurat_v3")
    with pytest.raises(DataError, match="10 genes or more, and 3 vary over 150 training rows"):
        choose_genes(panel, counts[:, :3], SYMBOLS[:3])
    with pytest.raises(DataError, match="no curve fits means and variances"):
        choose_genes(panel, np.repeat(counts[:, :1], 40, axis=1), SYMBOLS[:40])


def test_all_keeps_the_genes_seen_in_more_than_a_share(counts):
    chosen = choose_genes(PanelSpec.parse("all:0.5"), counts, SYMBOLS)
    np.testing.assert_array_equal(chosen, np.flatnonzero((counts > 0).mean(0) > 0.5))


def test_a_list_keeps_its_order_and_names_what_is_unknown(counts):
    np.testing.assert_array_equal(choose_genes(PanelSpec.parse("G007,G003"), counts, SYMBOLS), [7, 3])
    with pytest.raises(NotFoundError, match="no gene 'G0O3' among 200; did you mean"):
        choose_genes(PanelSpec.parse("G007,G0O3"), counts, SYMBOLS)


def test_targets_use_the_library_of_all_genes(counts):
    genes = np.array([5, 2, 9])
    np.testing.assert_allclose(targets(sp.csr_array(counts), genes, "log1p-cp10k"), logged(counts)[:, genes], rtol=1e-6)
    np.testing.assert_allclose(targets(counts, genes, "log1p"), np.log1p(counts[:, genes]), rtol=1e-6)
    assert targets(counts, genes, "log1p").dtype == np.float32
    np.testing.assert_array_equal(library_size(counts), counts.sum(1))


def test_a_row_without_counts_is_zero_and_counted(counts):
    empty = counts.copy()
    empty[4] = 0
    out = targets(empty, np.arange(200), "log1p-cp10k")
    assert (out[4] == 0).all()
    assert np.isfinite(out).all()
    assert empty_rows(empty) == 1


def test_stored_zeros_and_repeated_entries_do_not_count_as_seen():
    matrix = sp.csr_array(
        (np.array([0, 2, 1, 1, 3, 1, 5]), np.array([0, 1, 0, 0, 1, 2, 1]), np.array([0, 2, 5, 7])), shape=(3, 3)
    )
    before = matrix.data.copy()
    np.testing.assert_array_equal(choose_genes(PanelSpec.parse("all:0.9"), matrix, list("abc")), [1])
    np.testing.assert_array_equal(matrix.data, before)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        pytest.param({"panel": "top-mean:201"}, UsageError, "wants 201 genes and there are 200", id="too many"),
        pytest.param({"panel": "all:0.999", "rows": 2, "zero": True}, UsageError, "no gene is seen", id="none seen"),
        pytest.param({"rows": 0}, UsageError, "training rows and there are none", id="no rows"),
        pytest.param({"symbols": ["G"] * 200}, UsageError, "symbols repeat", id="repeated"),
        pytest.param({"symbols": SYMBOLS[:-1]}, UsageError, "199 symbols for 200", id="one missing"),
        pytest.param({"value": -1}, DataError, "negative", id="negative"),
        pytest.param({"value": np.nan}, DataError, "NaN", id="nan"),
    ],
)
def test_what_cannot_be_chosen_from_is_named(counts, change, error, says):
    matrix = counts[: change.get("rows", 150)].astype(float) * (0 if change.get("zero") else 1)
    if "value" in change:
        matrix[3, 3] = change["value"]
    with pytest.raises(error, match=says):
        choose_genes(PanelSpec.parse(change.get("panel", "top-mean:5")), matrix, change.get("symbols", SYMBOLS))
