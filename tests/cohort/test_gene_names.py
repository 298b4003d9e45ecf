"""Wherever a gene is named, the same names mean the same gene; a symbol of several genes is refused with their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import histostore as hs
from histostore.errors import HistostoreError, NotFoundError
from histostore.stages.factors import factors
from tests.cohort.conftest import BACKBONE, add_slide

if TYPE_CHECKING:
    from collections.abc import Callable

HOW = {"backbone": BACKBONE, "split": "leave-one-out:patient"}
RIDGE = hs.heads.Ridge(alphas=(1.0,))
TWINS = r"'G0' is the symbol of 2 genes: give an id \(ENSG0000[01], ENSG0000[01]\), or 'G0-ENSG0000[01]'"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Three slides on which the genes ENSG00000 and ENSG00001 are both called G0."""
    store = hs.create(tmp_path_factory.mktemp("twins") / "store")
    for seed, slide in enumerate("ABC"):
        add_slide(store, slide, f"P{seed}", 40, seed=seed, twins=True)
    return store


@pytest.mark.parametrize(
    "ask",
    [
        lambda s: s.view(genes=["G0"]).counts(),
        lambda s: s.view(genes=["G0"]).counts_dask(),
        lambda s: s.view().column("G0"),
        lambda s: s.view(where="G0 > 2"),
        lambda s: hs.tl.gram(s.view(backbone=BACKBONE), genes=["G0", "G7"]),
        lambda s: hs.tl.nmf(s.view(), 2, genes=["G0", "G5", "G6", "G7"]),
        lambda s: hs.tl.fit(s, RIDGE, genes=["G0", "G7"], **HOW),
        lambda s: factors(s.view().to_adata(images=False), "nmf:2", genes=["G0", "G5", "G6"]),
        lambda s: hs.tl.search(s, slide="A", spot="3x0", k=2, backbone=BACKBONE, expressing=["G0"]),
    ],
)
def test_a_symbol_of_two_genes_is_refused_with_their_ids(store: hs.Store, ask: Callable[[hs.Store], object]) -> None:
    with pytest.raises(HistostoreError, match=TWINS):
        ask(store)


def test_ids_symbols_and_both_mean_one_gene_everywhere(store: hs.Store) -> None:
    names = ["ENSG00001", "G0-ENSG00000", "G7"]
    unique = ("G0-ENSG00001", "G0-ENSG00000", "G7")
    rows = store.view(backbone=BACKBONE)
    everything = rows.counts()
    dense = {s: everything.matrix[:, [i]].toarray()[:, 0] for i, s in enumerate(everything.symbols)}
    found = store.view(genes=names).counts()
    assert found.symbols == unique
    for i, (name, symbol) in enumerate(zip(names, unique, strict=True)):
        np.testing.assert_array_equal(rows.column(name), dense[symbol])
        np.testing.assert_array_equal(found.matrix[:, [i]].toarray()[:, 0], dense[symbol])
        assert len(rows.where(f"`{name}` > 2")) == (dense[symbol] > 2).sum()
    assert hs.tl.gram(rows, genes=names).symbols == unique
    assert hs.tl.nmf(rows, 2, genes=names).symbols == unique
    assert hs.tl.fit(store, RIDGE, genes=names, **HOW).evaluation.folds[0].genes == unique
    adata = rows.to_adata(images=False)
    factors(adata, "nmf:2", genes=names)
    assert tuple(adata.uns["nmf"]["genes"]) == unique
    with pytest.raises(NotFoundError, match="no gene 'G999' among 120; did you mean"):
        hs.tl.fit(store, RIDGE, genes=["G999"], **HOW)


def test_variable_genes_can_be_asked_for_as_they_are_listed(store: hs.Store) -> None:
    rows = store.view(backbone=BACKBONE)
    listed = list(hs.pp.highly_variable_genes(rows, n_top=120, flavor="seurat").index)
    assert {"G0-ENSG00000", "G0-ENSG00001"} <= set(listed)
    assert hs.tl.gram(rows, genes=listed).symbols == tuple(listed)
    assert hs.tl.fit(store, "mean", genes=listed, **HOW).evaluation.folds[0].genes == tuple(listed)


def test_a_panel_of_ids_is_saved_by_its_symbols_and_one_of_symbols_as_it_was_given(store: hs.Store) -> None:
    hs.tl.fit(store, RIDGE, genes=["ENSG00001", "ENSG00007"], save="ids", **HOW)
    hs.tl.fit(store, RIDGE, genes=["G0-ENSG00001", "G7"], save="symbols", **HOW)
    ids, symbols = (hs.get.head(store, name) for name in ("ids", "symbols"))
    assert ids["genes"] == ["G0-ENSG00001", "G7"]
    assert ids["spec"]["panel"]["genes"] == symbols["spec"]["panel"]["genes"] == ["G0-ENSG00001", "G7"]
    assert ids["spec"] == symbols["spec"]
