"""Low-rank linear heads and nearest neighbours: PLS, reduced-rank ridge, kNN."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression

from histostore.errors import UsageError
from histostore.heads.convergence import NotConvergedWarning
from histostore.heads.knn import KNN
from histostore.heads.pls import PLS
from histostore.heads.reduced_rank import ReducedRankRidge
from histostore.heads.ridge import Ridge
from histostore.testing.head_contract import HeadContract


class TestPLSContract(HeadContract):
    def make(self):
        return PLS((1, 2, 3))


class TestReducedRankContract(HeadContract):
    def make(self):
        return ReducedRankRidge((1, 2, 3), (0.1, 1.0, 10.0))


class TestKNNContract(HeadContract):
    def make(self):
        return KNN((3, 6), metric="euclidean")


class TestCosineKNNContract(HeadContract):
    def make(self):
        return KNN(5)


def low_rank(n=120, d=15, t=9, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    B = rng.normal(size=(d, rank)) @ rng.normal(size=(rank, t))
    return X, X @ B + rng.normal(scale=2, size=(n, t)), np.arange(n) % 4


def test_pls_is_scikit_learns_at_each_number_of_components():
    X, y, groups = low_rank()
    for scale in (False, True):
        head = PLS(3, scale=scale).fit(X, y)
        np.testing.assert_allclose(head.predict(X), PLSRegression(3, scale=scale).fit(X, y).predict(X), atol=1e-3)
    chosen = PLS((1, 2, 3, 8)).fit(X, y, groups=groups)
    refitted = [
        -np.mean([np.mean((PLS(k).fit(X[groups != g], y[groups != g]).predict(X[groups == g]) - y[groups == g]) ** 2)
                  for g in range(4)]) for k in (1, 2, 3, 8)
    ]  # fmt: skip
    np.testing.assert_allclose(chosen.inner_scores_, refitted, rtol=1e-4)
    assert chosen.n_components_ == (1, 2, 3, 8)[int(np.argmax(refitted))]


def test_pls_of_constant_targets_predicts_the_constant():
    X, y, _ = low_rank()
    y[:, 2] = 4
    assert np.isfinite(PLS(2).fit(X, y).predict(X)).all()
    np.testing.assert_allclose(PLS(2).fit(X, np.full((len(X), 2), 7.0)).predict(X), 7, rtol=1e-6)


def test_pls_says_what_it_cannot_do():
    X, y, _ = low_rank()
    with pytest.raises(UsageError, match="40 components of 120 rows and 15 features"):
        PLS(40).fit(X, y)
    with pytest.warns(NotConvergedWarning, match="NIPALS"):
        assert PLS(2, max_iter=1, tol=1e-30).fit(X, y).notes_


@pytest.mark.parametrize("shape", [(120, 15), (40, 60)])
def test_full_rank_is_ridge(shape):
    X, y, _ = low_rank(*shape)
    for scale in ("global", "features", "none"):
        head = ReducedRankRidge(9, 5.0, scale=scale).fit(X, y)
        np.testing.assert_allclose(head.predict(X), Ridge(5.0, scale=scale).fit(X, y).predict(X), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(120, 15), (40, 60)])
def test_reduced_rank_is_the_projection_of_ridge_on_its_augmented_fit(shape):
    X, y, _ = low_rank(*shape)
    alpha, rank = 5.0, 2
    Z, Y = X - X.mean(0), y - y.mean(0)
    B = np.linalg.solve(Z.T @ Z + alpha * np.eye(Z.shape[1]), Z.T @ Y)
    _, _, v = np.linalg.svd(np.vstack((Z @ B, np.sqrt(alpha) * B)), full_matrices=False)
    expected = Z @ B @ v[:rank].T @ v[:rank] + y.mean(0)
    head = ReducedRankRidge(rank, alpha, scale="none").fit(X, y)
    np.testing.assert_allclose(head.predict(X), expected, rtol=1e-3, atol=1e-3)
    assert head.predict_factors(X).shape == (len(X), rank)


def test_rank_and_penalty_are_chosen_as_refitting_would():
    X, y, groups = low_rank()
    ranks, alphas = (1, 2, 5), (1.0, 10.0, 100.0)
    head = ReducedRankRidge(ranks, alphas).fit(X, y, groups=groups)
    for i, alpha in enumerate(alphas):
        for j, rank in enumerate(ranks):
            errors = []
            for g in range(4):
                part = ReducedRankRidge(rank, alpha).fit(X[groups != g], y[groups != g])
                errors.append(np.mean((part.predict(X[groups == g]) - y[groups == g]) ** 2))
            np.testing.assert_allclose(head.inner_scores_[i, j], -np.mean(errors), rtol=1e-4)
    i, j = np.unravel_index(head.inner_scores_.argmax(), (3, 3))
    assert (head.alpha_, head.rank_) == (alphas[i], ranks[j])
    assert head.rank_ == 2


def test_neighbours_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    X, y, new = rng.normal(size=(90, 6)), rng.normal(size=(90, 2)), rng.normal(size=(20, 6))
    mean, spread = KNN(4, metric="euclidean").fit(X, y).predict_with_spread(new)
    near = np.argsort(((new[:, None] - X) ** 2).sum(-1), axis=1)[:, :4]
    np.testing.assert_allclose(mean, y[near].mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spread, y[near].std(1), rtol=1e-4, atol=1e-4)


def test_the_spread_is_wide_where_neighbours_disagree():
    X = np.concatenate((np.zeros((20, 2)), np.ones((20, 2)) * 9)) + np.random.default_rng(0).normal(size=(40, 2)) * 0.1
    y = np.concatenate((np.arange(20) % 2, np.ones(20)))
    _, spread = KNN(10, metric="euclidean").fit(X, y).predict_with_spread(np.array([[0.0, 0.0], [9.0, 9.0]]))
    assert spread[0, 0] > 0.4
    assert spread[1, 0] == 0


def test_the_number_of_neighbours_is_chosen_by_groups_left_out():
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(200, 3)), np.arange(200) % 4
    y = X[:, 0] + rng.normal(scale=3, size=200)
    assert KNN((1, 40), metric="euclidean").fit(X, y, groups=groups).k_ == 40
    assert KNN((1, 150), metric="euclidean").fit(X, X[:, 0], groups=groups).k_ == 1


@pytest.mark.parametrize("head", [PLS(), ReducedRankRidge(), KNN()])
def test_one_group_leaves_nothing_to_choose_by(head):
    X, y, _ = low_rank()
    with pytest.raises(UsageError, match="two groups"):
        head.fit(X, y, groups=np.zeros(len(X)))


@pytest.mark.parametrize("wrong", [PLS(0), PLS(()), ReducedRankRidge(2, -1.0), ReducedRankRidge(2, scale="x"), KNN(0)])
def test_options_that_make_no_sense_are_refused(wrong):
    X, y, _ = low_rank()
    with pytest.raises(UsageError):
        wrong.fit(X, y)
