"""Slides that name genes differently are not joined as zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.sparse as sp

import histostore as hs
from histostore.content.tables import write_counts, write_points
from histostore.errors import AlignmentError, NotFoundError, UsageError
from histostore.genes import GeneNames, JoinedGenes, Listed, as_called, check_naming
from histostore.stages.metadata import write_meta
from histostore.tables import Counts, Points
from histostore.view import View

if TYPE_CHECKING:
    from pathlib import Path

SYMBOLS = tuple(f"GENE{i}" for i in range(40))
ENSEMBL = tuple(f"ENSG{i:011d}" for i in range(40))


def listed(slide: str, ids: tuple[str, ...], *, whole: bool = True) -> Listed:
    return Listed(slide, ids, whole)


def test_lists_that_share_less_than_half_are_refused_with_a_gene_of_each() -> None:
    with pytest.raises(AlignmentError, match=r"'A' and 'B' share 0% .* GENE0 and ENSG00000000000\).*genes='inner'"):
        check_naming([listed("A", SYMBOLS), listed("B", ENSEMBL)], "outer")
    with pytest.raises(AlignmentError, match="'A' and 'C' share 40%"):
        check_naming([listed("A", SYMBOLS), listed("C", (*SYMBOLS[:16], *ENSEMBL[:24]))], "outer")
    with pytest.raises(AlignmentError, match="'A' and 'P'"):  # zeros for the panel's genes on the whole transcriptome
        check_naming([listed("A", SYMBOLS), listed("P", ENSEMBL, whole=False)], "outer")
    with pytest.raises(AlignmentError, match="'A' and 'B'"):
        check_naming([listed("A", SYMBOLS), listed("B", ENSEMBL)], ("GENE0",))


def test_what_may_differ_is_let_through() -> None:
    check_naming([listed("A", SYMBOLS), listed("B", SYMBOLS[:25])], "outer")
    check_naming([listed("A", SYMBOLS), listed("B", ENSEMBL[:20])], "outer")  # too few to tell
    check_naming([listed("A", SYMBOLS, whole=False), listed("B", ENSEMBL, whole=False)], "outer")  # NaN, not 0
    check_naming([listed("A", SYMBOLS), listed("B", ENSEMBL)], "inner")
    check_naming([listed("A", SYMBOLS), listed("B", (*ENSEMBL, "GENE0"))], ("GENE0",))
    check_naming([], "outer")


def test_a_view_of_both_refuses_counts_in_memory_and_in_blocks(tmp_path: Path) -> None:
    store = hs.create(tmp_path / "store")
    for slide, genes in (("A", SYMBOLS), ("B", ENSEMBL)):
        points = write_points(store, slide, "spots", Points(ids=("1x1", "1x2"), xy=np.ones((2, 2)), assay="visium"))
        matrix = sp.csr_array(np.ones((2, 40), dtype=np.int32))
        counts = write_counts(
            store, slide, "counts", Counts(ids=("1x1", "1x2"), matrix=matrix, gene_ids=genes, symbols=genes)
        )
        store.commit(slide, [write_meta(store, slide, {}, mpp=0.5, origin="given"), points, counts])
    for read in (View.counts, View.counts_dask):
        with pytest.raises(AlignmentError, match="'A' and 'B' share 0% of their genes"):
            read(store.view())
        assert read(store.view(slides=["B"])).ids == ENSEMBL
        assert read(store.view(where="slide == 'A'")).matrix.shape[0] == 2


TWICE = ("ENSG0", "ENSG1", "ENSG2", "X-1"), ("HLA-A", "HLA-A", "CD74", "HLA-DR")


def test_a_gene_is_called_by_its_id_its_own_symbol_or_both() -> None:
    names = GeneNames(*TWICE)
    called = ("ENSG1", "CD74", "HLA-A-ENSG0", "CD74-ENSG2", "HLA-DR-X-1", "X-1")
    assert [names.place(n) for n in called] == [1, 2, 0, 2, 3, 3]
    assert all(n in names for n in (*called, "HLA-A"))
    assert not any(n in names for n in ("HLA", "CD74-ENSG0", "HLA-A-", ""))
    assert names.unique(range(4)) == ("HLA-A-ENSG0", "HLA-A-ENSG1", "CD74", "HLA-DR")
    with pytest.raises(NotFoundError, match=r"no gene 'CD47'.*did you mean 'CD74'"):
        names.place("CD47")
    with pytest.raises(
        UsageError, match=r"'HLA-A' is the symbol of 2 genes: give an id \(ENSG0, ENSG1\), or 'HLA-A-ENSG0'"
    ):
        names.place("HLA-A")
    joined = JoinedGenes(TWICE[0], names.unique(range(4)))
    assert as_called(("ENSG0", "CD74", "HLA-A-ENSG1", "none"), joined) == ("HLA-A-ENSG0", "CD74", "HLA-A-ENSG1", "none")
    with pytest.raises(UsageError, match="ENSG0, ENSG1"):
        as_called(("HLA-A",), joined)
