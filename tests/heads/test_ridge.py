from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge as Reference

from histostore.errors import SpecMismatchError, UsageError
from histostore.heads.gram import GramAccumulator
from histostore.heads.metrics import pearson
from histostore.heads.ridge import ALPHAS, Ridge
from histostore.testing.head_contract import HeadContract

GRID = (0.1, 1.0, 10.0, 100.0, 1e4)


class TestRidgeContract(HeadContract):
    def make(self):
        return Ridge(alphas=GRID)


class TestRidgeOfMoreFeaturesThanRowsContract(HeadContract):
    n_features = 80

    def make(self):
        return Ridge(alphas=GRID, scale="features", select="pearson")


def problem(n=90, d=20, t=4, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.1, 3, size=d) + offset
    y = X @ rng.normal(size=(d, t)) + rng.normal(scale=8, size=(n, t)) + 7
    return X, y, rng.integers(0, 4, size=n)


def scale_in(X, scale):
    if scale == "none":
        return np.ones(X.shape[1])
    return X.std(0) if scale == "features" else np.full(X.shape[1], np.sqrt(X.var(0).mean()))


def refit(X, y, new, alpha, scale):
    """Return what scikit-learn predicts, everything fitted on X and y."""
    s = scale_in(X, scale)
    return Reference(alpha=alpha, solver="svd").fit(X / s, y).predict(new / s)


@pytest.mark.parametrize("scale", ["global", "features", "none"])
@pytest.mark.parametrize("d", [20, 150], ids=["gram", "kernel"])
def test_one_alpha_equals_scikit_learn(d, scale):
    X, y, _ = problem(d=d, offset=50.0)
    head = Ridge(3.0, scale=scale).fit(X, y)
    expected = refit(X, y, X, 3.0, scale)
    np.testing.assert_allclose(X @ head.coef_.T + head.intercept_, expected, rtol=1e-9)
    np.testing.assert_allclose(head.predict(X), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("select", ["mse", "pearson"])
@pytest.mark.parametrize("scale", ["global", "features", "none"])
@pytest.mark.parametrize("d", [20, 150], ids=["gram", "kernel"])
def test_inner_scores_equal_refitting_every_fold_and_alpha(d, scale, select):
    X, y, groups = problem(d=d)
    expected = np.zeros(len(GRID))
    for group in range(4):
        held = groups == group
        for i, alpha in enumerate(GRID):
            guess = refit(X[~held], y[~held], X[held], alpha, scale)
            score = -((guess - y[held]) ** 2).mean() if select == "mse" else pearson(y[held], guess).mean()
            expected[i] += score / 4
    head = Ridge(GRID, scale=scale, select=select).fit(X, y, groups=groups)
    np.testing.assert_allclose(head.inner_scores_, expected, rtol=1e-8)
    assert head.alpha_ == GRID[int(expected.argmax())]
    assert head.inner_score_ == pytest.approx(expected.max())


def test_streaming_half_precision_blocks_equals_fitting_at_once():
    X, y, groups = problem(n=500, offset=200.0)
    X = X.astype(np.float16)
    sums = GramAccumulator()
    for start in range(0, 500, 37):
        rows = slice(start, start + 37)
        for group in range(4):
            at = groups[rows] == group
            if at.any():
                sums.add(X[rows][at], y[rows][at], group)
    streamed = Ridge(GRID).fit_gram(sums)
    at_once = Ridge(GRID).fit(X, y, groups=groups)
    reference = refit(X.astype(float), y, X.astype(float), at_once.alpha_, "global")
    assert sums.n_rows == 500
    assert streamed.alpha_ == at_once.alpha_
    np.testing.assert_allclose(streamed.coef_, at_once.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(X.astype(float) @ streamed.coef_.T + streamed.intercept_, reference, rtol=1e-8)


def test_many_groups_are_merged_into_at_most_inner_folds():
    X, y, _ = problem(n=120)
    head = Ridge(GRID, inner=5).fit(X, y, groups=np.arange(120) // 3)
    assert np.isfinite(head.inner_scores_).all()


def test_without_groups_rows_are_dealt_by_seed():
    X, y, _ = problem()
    first, again = Ridge(GRID, seed=3).fit(X, y), Ridge(GRID, seed=3).fit(X, y)
    np.testing.assert_array_equal(first.inner_scores_, again.inner_scores_)


def test_pure_noise_takes_the_largest_penalty():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 30)), rng.normal(size=(200, 5))
    assert Ridge().fit(X, y, groups=np.arange(200) % 4).alpha_ >= 1e3
    assert max(ALPHAS) == 1e6


def test_constant_features_and_targets_are_harmless():
    X, y, groups = problem()
    X[:, 3], y[:, 1] = 0.1, 2.5
    for scale in ("global", "features", "none"):
        head = Ridge(GRID, scale=scale).fit(X, y, groups=groups)
        out = head.predict(X)
        assert np.isfinite(out).all()
        np.testing.assert_allclose(out[:, 1], 2.5, rtol=1e-5)
        assert np.isfinite(Ridge(1.0, scale=scale).fit(np.ones((5, 9)), y[:5]).predict(np.ones((2, 9)))).all()


def test_scikit_learn_can_clone_it():
    head = clone(Ridge(alphas=GRID, scale="none"))
    assert head.get_params() == Ridge(alphas=GRID, scale="none").get_params()
    assert head.set_params(seed=4).seed == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"alphas": ()}, "one or more positive", id="no alpha"),
        pytest.param({"alphas": (1.0, -1.0)}, "one or more positive", id="negative alpha"),
        pytest.param({"alphas": float("nan")}, "one or more positive", id="nan alpha"),
        pytest.param({"scale": "rows"}, "global, features, none", id="scale"),
        pytest.param({"select": "r2"}, "mse, pearson", id="select"),
        pytest.param({"inner": 1}, "2 folds or more", id="inner"),
    ],
)
def test_wrong_options_are_named(options, says):
    X, y, groups = problem()
    with pytest.raises(UsageError, match=says):
        Ridge(**{"alphas": GRID, **options}).fit(X, y, groups=groups)


def test_one_group_cannot_choose_a_penalty_but_can_be_fitted_with_one():
    X, y, _ = problem()
    with pytest.raises(UsageError, match="needs two groups"):
        Ridge(GRID).fit(X, y, groups=np.zeros(len(X)))
    assert Ridge(1.0).fit(X, y, groups=np.zeros(len(X))).alpha_ == 1.0


def test_collinear_features_need_a_penalty_worth_the_name():
    X = np.outer(np.arange(30.0), np.ones(5)) * 1e6
    with pytest.raises(UsageError, match="collinear"):
        Ridge(1e-30, scale="none").fit(X, X[:, 0])


def test_blocks_of_another_width_are_refused():
    sums = GramAccumulator()
    with pytest.raises(UsageError, match="no rows"):
        sums.total()
    sums.add(np.ones((3, 4)), np.ones((3, 2)))
    with pytest.raises(SpecMismatchError, match="5 features"):
        sums.add(np.ones((3, 5)), np.ones((3, 2)))


def test_unknown_parameters_suggest_near_ones():
    with pytest.raises(UsageError, match="alphas"):
        Ridge().set_params(alpha=3)
