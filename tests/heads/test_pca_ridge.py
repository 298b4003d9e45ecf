from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histostore.errors import UsageError
from histostore.heads.pca_ridge import PCARidge
from histostore.testing.head_contract import HeadContract


class TestPCARidgeContract(HeadContract):
    def make(self):
        return PCARidge(8)


def test_it_is_scikit_learns_pipeline():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 30)) @ rng.normal(size=(30, 30)) + 3
    y = X @ rng.normal(size=(30, 4)) + rng.normal(size=(200, 4))
    head = PCARidge(10).fit(X[:150], y[:150])
    assert head.alpha_ == 100 / 40
    steps = make_pipeline(StandardScaler(), PCA(10, svd_solver="full"), Ridge(alpha=100 / 40))
    want = steps.fit(X[:150], y[:150]).predict(X[150:])
    np.testing.assert_allclose(head.predict(X[150:]), want, rtol=1e-3, atol=1e-3)
    assert head.explained_ == pytest.approx(steps[1].explained_variance_ratio_.sum(), rel=1e-6)


def test_components_are_at_least_one():
    with pytest.raises(UsageError, match="give 1 or more"):
        PCARidge(0).fit(np.eye(3), np.arange(3))


def test_of_constant_features_no_variance_is_kept_and_the_mean_is_predicted():
    X, y = np.full((9, 3), 2.5), np.arange(9.0)
    head = PCARidge(2).fit(X, y)
    assert head.explained_ == 0
    np.testing.assert_allclose(head.predict(X), 4.0)
