"""Programs that are learned minibatch by minibatch are about as good as those of all rows at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore import tl
from histostore.errors import AlignmentError, DataError, UsageError
from histostore.heads.nmf import NMF
from histostore.heads.panels import targets

if TYPE_CHECKING:
    from collections.abc import Callable

    import histostore as hs


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histostore.cohort.nmf.START_ROWS", 200)
    monkeypatch.setattr("histostore.cohort.nmf.BATCH_ROWS", 128)


@pytest.mark.usefixtures("small_batches")
def test_minibatches_come_close_to_all_rows(many: hs.Store) -> None:
    view = many.view()
    counts = view.with_counts().counts()
    Y = targets(counts.matrix, np.arange(len(counts.ids)), "log1p-cp10k")
    found, whole = tl.nmf(view, 4, genes=counts.ids, passes=3), NMF(4).fit(Y)
    decoder = found.decoder

    def error(decoder: NMF) -> float:
        return float(np.linalg.norm(Y - decoder.decode(decoder.encode(Y))) / np.linalg.norm(Y))

    assert found.genes == counts.ids
    assert found.report.counts == {"rows without counts": 10}
    assert error(decoder) < 1.02 * error(whole)
    assert decoder.error_ == pytest.approx(error(decoder), rel=0.03)
    np.testing.assert_allclose(np.linalg.norm(decoder.components_, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(decoder.mean_, Y.mean(0), rtol=1e-4)
    alike = decoder.components_ @ whole.components_.T
    assert (alike.max(axis=1) > 0.9).all()


@pytest.mark.usefixtures("small_batches")
def test_the_seed_decides_and_an_anndata_takes_the_programs(many: hs.Store) -> None:
    view = many.view()
    genes = view.with_counts().counts().symbols[:40]
    one, same, other = (tl.nmf(view, 3, genes=genes, seed=s).decoder for s in (1, 1, 2))
    np.testing.assert_array_equal(one.components_, same.components_)
    assert not np.array_equal(one.components_, other.components_)
    adata = view.to_adata(images=False)
    tl.factors(adata, one, genes=list(genes))
    assert adata.obsm["X_nmf"].shape == (adata.n_obs, 3)
    assert NMF.from_state(*one.to_state()).error_ == one.error_


def test_slides_that_name_genes_differently_are_refused(named_otherwise: hs.Store) -> None:
    with pytest.raises(AlignmentError, match="'A' and 'C' share 0% of their genes"):
        tl.nmf(named_otherwise.view(), 2, genes=["G3", "G4", "G5"])


def test_rows_that_lack_genes_and_bad_requests(with_panel: hs.Store, one_more: Callable[..., hs.Store]) -> None:
    genes = with_panel.view(slides=["A"]).counts().symbols
    assert tl.nmf(with_panel.view(), 2, genes=genes).report.counts == {"rows of panels without all genes": 80}
    with pytest.raises(UsageError, match="5 programs of 2 genes"):
        tl.nmf(with_panel.view(), 5, genes=genes[:2])
    with pytest.raises(UsageError, match="log-share"):
        tl.nmf(with_panel.view(), 2, genes=genes, unit="log-share")
    with pytest.raises(DataError, match="normalised"):
        tl.nmf(one_more(normalised=True).view(), 2, genes=["G1", "G2"])
