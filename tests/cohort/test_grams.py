"""Gram matrices and principal components of a cohort against those of its rows in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.decomposition import PCA

from histostore import heads, tl
from histostore.errors import AlignmentError, DataError, NotFoundError, SpecMismatchError, UsageError
from histostore.heads.panels import targets

if TYPE_CHECKING:
    from collections.abc import Callable

    import histostore as hs

GENES = ["G3", "ENSG00007", "G50"]


def arrays(view: hs.view.View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return readable rows with counts: embeddings, targets, patients."""
    view = view.with_counts()
    X, counts = view.numpy().astype(np.float64), view.counts()
    columns = np.array([counts.ids.index(g) if g in counts.ids else counts.symbols.index(g) for g in GENES])
    Y, patients = targets(counts.matrix, columns, "log1p-cp10k"), view.column("patient")
    keep = np.isfinite(X).all(axis=1)
    return X[keep], Y[keep], patients[keep]


def test_ridge_from_the_gram_is_ridge_on_the_rows(many: hs.Store) -> None:
    view = many.view(backbone="made")
    X, Y, patients = arrays(view)
    found = tl.gram(view, genes=GENES, folds=3)
    assert found.symbols == ("G3", "G7", "G50")
    assert found.report.counts == {"rows of unreadable tiles": 6, "rows without counts": 10}
    assert found.sums.n_rows == len(X)
    assert sorted(s.n for s in found.sums.groups.values()) == sorted(np.unique(patients, return_counts=True)[1])
    streamed = heads.Ridge(alphas=(1.0, 100.0)).fit_gram(found.sums)
    direct = heads.Ridge(alphas=(1.0, 100.0)).fit(X, Y, groups=patients)
    assert streamed.alpha_ == direct.alpha_
    np.testing.assert_allclose(streamed.coef_, direct.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(streamed.predict(X), direct.predict(X), rtol=1e-5)


def test_rows_of_a_panel_without_the_genes_are_left_out_and_counted(with_panel: hs.Store) -> None:
    view = with_panel.view(backbone="made")
    panel = with_panel.view(slides=["B"]).counts().symbols
    lacking = next(g for g in with_panel.view(slides=["A"]).counts().symbols if g not in panel)
    found = tl.gram(view, genes=[panel[0], lacking], by="slide")
    assert found.report.counts == {"rows of panels without all genes": 80}
    assert tl.gram(view, genes=[panel[0]], by="slide").report.counts == {}


def test_genes_that_slides_name_differently_are_not_targets_of_zeros(named_otherwise: hs.Store) -> None:
    view = named_otherwise.view(backbone="made")
    for genes in (["G3"], ["ENSG00003", "G7"]):
        with pytest.raises(AlignmentError, match="'A' and 'C' share 0% of their genes"):
            tl.gram(view, genes=genes)
    assert tl.gram(view).sums.n_rows == 160  # without genes there is nothing to join


def test_requests_that_make_no_sense_are_refused(many: hs.Store, one_more: Callable[..., hs.Store]) -> None:
    view = many.view(backbone="made")
    with pytest.raises(NotFoundError, match="no gene 'G999'"):
        tl.gram(view, genes=["G999"])
    with pytest.raises(UsageError, match="by is 'centre'"):
        tl.gram(view, genes=GENES, by="centre")
    with pytest.raises(UsageError, match="log-share"):
        tl.gram(view, genes=GENES, unit="log-share")
    with pytest.raises(UsageError, match="a list of symbols"):
        tl.gram(view, genes="G3")
    with pytest.raises(NotFoundError, match="no embeddings 'other'"):
        tl.gram(view, "other")
    with pytest.raises(DataError, match="none of the 50 rows"):
        tl.gram(one_more(unreadable=50).view(backbone="made"))


def test_components_are_those_of_the_covariance(many: hs.Store) -> None:
    view = many.view(backbone="made")
    X = view.numpy().astype(np.float64)
    X = X[np.isfinite(X).all(axis=1)]
    found, expected = tl.pca(view, n_comps=4), PCA(4).fit(X)
    assert (found.exact, found.n, found.report.counts) == (True, len(X), {"rows of unreadable tiles": 6})
    np.testing.assert_allclose(found.explained_variance, expected.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(found.explained_variance_ratio, expected.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(found.components * expected.components_, axis=1)), 1, rtol=1e-10)
    scores = found.transform(view.lazy())
    assert scores.shape == (len(view), 4)
    assert np.isnan(scores).all(axis=1).sum() == 6
    np.testing.assert_allclose(np.nanvar(scores, axis=0, ddof=1), found.explained_variance, rtol=1e-5)
    with pytest.raises(SpecMismatchError):
        found.transform(X[:, :5])


def test_wide_embeddings_are_taken_batch_by_batch(many: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    view = many.view(backbone="made")
    exact = tl.pca(view, n_comps=4)
    monkeypatch.setattr("histostore.cohort.pca.GRAM_DIM", 8)
    found = tl.pca(view, n_comps=4)
    assert (found.exact, found.n, found.report.counts) == (False, exact.n, exact.report.counts)
    np.testing.assert_allclose(found.explained_variance, exact.explained_variance, rtol=0.05)
    assert (np.abs(np.sum(found.components * exact.components, axis=1))[:3] > 0.95).all()
    with pytest.raises(UsageError, match="give 1-12"):
        tl.pca(view, n_comps=13)
