"""Means and variances over slides that do not list the same genes, against the matrix they are of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from histostore import pp
from histostore.blocks.gene_lists import GeneList
from histostore.cohort.moments import Moments
from histostore.errors import AlignmentError, DataError, NotFoundError, UsageError
from histostore.heads.panels import normalise

if TYPE_CHECKING:
    from collections.abc import Callable

    import histostore as hs


def whole_matrix(store: hs.Store, **options: Any) -> tuple[Any, Any]:
    genes = store.view(**options).with_counts().counts()
    return genes, genes.matrix


def test_means_and_variances_are_those_of_the_matrix(many: hs.Store) -> None:
    genes, counts = whole_matrix(many)
    found = pp.gene_stats(many.view())
    values = normalise(counts, "log1p-cp10k").toarray()
    assert tuple(found.index) == genes.symbols
    assert tuple(found["gene_ids"]) == genes.ids
    np.testing.assert_allclose(found["means"], values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["variances"], values.var(0, ddof=1), rtol=1e-11)
    np.testing.assert_array_equal(found["n_cells"], (counts.toarray() > 0).sum(0))
    assert (found["n_rows"] == 1655).all()
    assert (found["n_missing"] == 0).all()
    about = found.attrs["histostore"]
    assert about == {
        "rows": 1655, "left_out": {"rows without counts": 10}, "unmeasured_genes": {}, "values": "log1p-cp10k",
    }  # fmt: skip


@pytest.mark.parametrize("values", ["counts", "cp10k", "log1p"])
def test_other_values(many: hs.Store, values: Any) -> None:
    _, counts = whole_matrix(many)
    dense = counts.toarray().astype(float)
    expected = {
        "counts": dense, "cp10k": 1e4 * dense / dense.sum(1, keepdims=True).clip(1), "log1p": np.log1p(dense),
    }[values]  # fmt: skip
    found = pp.gene_stats(many.view(), values=values)
    np.testing.assert_allclose(found["means"], expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["variances"], expected.var(0, ddof=1), rtol=1e-11)


def test_a_gene_that_a_panel_lacks_is_missing_and_not_zero(with_panel: hs.Store) -> None:
    genes, counts = whole_matrix(with_panel)
    found = pp.gene_stats(with_panel.view(), values="counts")
    dense = counts.toarray()
    assert tuple(found.index) == genes.symbols
    np.testing.assert_allclose(found["means"], np.nanmean(dense, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["variances"], np.nanvar(dense, axis=0, ddof=1), rtol=1e-11)
    np.testing.assert_array_equal(found["n_missing"], np.isnan(dense).sum(0))
    assert sorted(set(found["n_missing"])) == [0, 80]
    assert found.attrs["histostore"]["unmeasured_genes"] == {"B": 100}


def test_chosen_rows_and_genes(many: hs.Store) -> None:
    view = many.view(genes=["G7", "ENSG00003"], where="patient != 'P0'")
    found = pp.gene_stats(view, values="counts")
    counts = view.with_counts().counts()
    assert list(found.index) == ["G7", "G3"]
    np.testing.assert_allclose(found["means"], counts.matrix.toarray().mean(0), rtol=1e-12)
    inner = pp.gene_stats(many.view(genes="inner"))
    assert tuple(inner["gene_ids"]) == many.view(genes="inner").with_counts().counts().ids
    with pytest.raises(NotFoundError, match="no gene 'nothing'"):
        pp.gene_stats(many.view(genes=["nothing"]))


def test_slides_of_ids_and_slides_of_symbols_are_not_joined_as_zeros(named_otherwise: hs.Store) -> None:
    view = named_otherwise.view()
    with pytest.raises(AlignmentError) as of_the_view:
        view.counts()
    for refused in (view, view.of_slides({"B", "D"}), named_otherwise.view(genes=["ENSG00007", "G3"])):
        with pytest.raises(AlignmentError, match=r"'(A|B)' and '(C|D)' share 0% of their genes"):
            pp.gene_stats(refused)
    with pytest.raises(AlignmentError) as ours:
        pp.gene_stats(view, values="counts", workers=1)
    assert str(ours.value) == str(of_the_view.value)
    for batch_key in (None, "slide", "patient"):
        with pytest.raises(AlignmentError, match="share 0% of their genes"):
            pp.highly_variable_genes(view, n_top=5, batch_key=batch_key)
    assert len(pp.gene_stats(named_otherwise.view(slides=["A", "B"]))) == 120
    assert len(pp.gene_stats(named_otherwise.view(slides=["C", "D"]))) == 120


def test_slides_of_different_spans_are_compared_too(named_otherwise: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histostore.cohort.spans.SPAN_ROWS", 40)  # a span a slide
    with (
        ThreadPoolExecutor(2) as client,
        pytest.raises(AlignmentError, match="'A' and 'C' share 0% of their genes"),
    ):
        pp.gene_stats(named_otherwise.view(), client=client)


def test_what_are_no_counts_is_refused(one_more: Callable[..., hs.Store]) -> None:
    store = one_more(normalised=True)
    with pytest.raises(DataError, match="slide 'N' has normalised values"):
        pp.gene_stats(store.view())
    with pytest.raises(UsageError, match="values is 'tpm'"):
        pp.gene_stats(store.view(), values="tpm")
    with pytest.raises(DataError, match="none of the 0 rows"):
        pp.gene_stats(store.view(where="patient == 'nobody'"))


def test_no_digits_are_lost_to_a_large_mean_or_to_many_parts() -> None:
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    values = 1e6 + rng.normal(size=(5000, 1))
    genes = GeneList(("a",), ("a",), {"a": 0})
    whole = Moments()
    for begin in range(0, 5000, 5):
        one = Moments()
        one.add(sp.csr_array(values[begin : begin + 5]), genes, whole=True)
        whole.merge(one)
    assert whole.variance()[0] == pytest.approx(values.var(ddof=1), rel=1e-9)


def test_genes_asked_for_that_a_panel_lacks_are_counted_as_the_view_counts_them(with_panel: hs.Store) -> None:
    panel = set(with_panel.view(slides=["B"]).counts().ids)
    every = with_panel.view(slides=["A"]).counts().ids
    genes = [g for g in every if g not in panel][:3] + [g for g in every if g in panel][:2]
    view = with_panel.view(slides=["A", "B"], genes=genes)
    assert view.counts().unmeasured == {"B": 3}
    for found in (pp.gene_stats(view), pp.highly_variable_genes(view, n_top=2)):
        assert found.attrs["histostore"]["unmeasured_genes"] == {"B": 3}


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_slides_that_a_filter_emptied_lend_no_genes(with_panel: hs.Store, join: Any) -> None:
    view = with_panel.view(genes=join).where("slide == 'C'")
    assert view.counts().ids == with_panel.view(genes=join, slides=["C"]).counts().ids
    assert tuple(pp.gene_stats(view)["gene_ids"]) == view.counts().ids
    assert view.counts_dask().ids == view.counts().ids
