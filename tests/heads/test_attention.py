from __future__ import annotations

import numpy as np
import pytest
import torch

from histostore.errors import DataError, UsageError
from histostore.heads.attention import AttentionPool

TILES, D = 6, 8


def bags(n=120, seed=0):
    """Slides whose target is a feature of the one tile that is marked; other tiles carry the same feature as noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, TILES, D)).astype(np.float32)
    marked = rng.integers(0, TILES, n)
    X[:, :, 0] = 0
    X[np.arange(n), marked, 0] = 4
    y = 3 * X[np.arange(n), marked, 1:2] + 5
    return X.reshape(n, -1), y, marked


@pytest.fixture(scope="module")
def fitted():
    torch.set_num_threads(1)
    X, y, _ = bags()
    return AttentionPool(TILES, hidden=16, dropout=0.0, lr=1e-2, max_epochs=400, patience=40).fit(X, y)


def test_it_finds_the_tile_that_counts(fitted):
    X, y, marked = bags(60, seed=1)
    error = ((fitted.predict(X) - y) ** 2).mean()
    mean_pool = X.reshape(60, TILES, D).mean(1)
    ols = np.linalg.lstsq(np.column_stack([mean_pool, np.ones(60)]), y, rcond=None)[0]
    of_means = ((np.column_stack([mean_pool, np.ones(60)]) @ ols - y) ** 2).mean()
    assert error < 0.2 * of_means
    weights = fitted.attention(X)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-4)
    assert (weights.argmax(1) == marked).mean() > 0.95


def test_missing_tiles_weigh_nothing_and_order_does_not_matter(fitted):
    X, _, marked = bags(20, seed=2)
    whole = fitted.predict(X)
    turned = X.reshape(20, TILES, D)[:, ::-1].reshape(20, -1)
    np.testing.assert_allclose(fitted.predict(turned), whole, rtol=1e-4)
    holes = X.reshape(20, TILES, D).copy()
    gone = (marked + 1) % TILES
    holes[np.arange(20), gone] = np.nan
    weights = fitted.attention(holes.reshape(20, -1))
    assert (weights[np.arange(20), gone] == 0).all()
    assert np.isfinite(fitted.predict(holes.reshape(20, -1))).all()
    assert np.isnan(fitted.predict(np.full((1, TILES * D), np.nan))).all()


def test_it_survives_its_state_and_its_seed(fitted):
    X, y, _ = bags(60)
    again = AttentionPool.from_state(*fitted.to_state())
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    options = {"hidden": 4, "max_epochs": 400, "patience": 3}
    a, b = (AttentionPool(TILES, seed=3, **options).fit(X, y).predict(X) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_bad_bags_are_one_line():
    X, y, _ = bags(20)
    with pytest.raises(UsageError, match="no 5 tiles side by side"):
        AttentionPool(5).fit(X[:, :-1], y)
    X[3] = np.nan
    with pytest.raises(DataError, match="1 of 20 slides have no readable tile"):
        AttentionPool(TILES).fit(X, y)
