from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from histostore.errors import UsageError
from histostore.heads.metrics import mean_defined, pearson, per_gene


def test_every_metric_equals_its_reference():
    rng = np.random.default_rng(0)
    truth = np.round(rng.normal(size=(50, 7)), 1)
    guess = (truth + rng.normal(size=(50, 7))).astype(np.float32)
    out = per_gene(truth, guess)
    for g in range(7):
        t, p = truth[:, g], guess[:, g].astype(float)
        assert out["pearson"][g] == pytest.approx(stats.pearsonr(t, p)[0])
        assert out["spearman"][g] == pytest.approx(stats.spearmanr(t, p)[0])
        assert out["mse"][g] == pytest.approx(mean_squared_error(t, p))
        assert out["mae"][g] == pytest.approx(mean_absolute_error(t, p))
        assert out["r2"][g] == pytest.approx(r2_score(t, p))


def test_undefined_values_are_nan_and_counted():
    truth = np.column_stack([np.arange(5.0), np.full(5, 0.1), np.arange(5.0)])
    guess = np.column_stack([np.arange(5.0), np.arange(5.0), np.full(5, 0.1, np.float32)])
    out = per_gene(truth, guess)
    np.testing.assert_array_equal(np.isnan(out["pearson"]), [False, True, True])
    np.testing.assert_array_equal(np.isnan(out["spearman"]), [False, True, True])
    np.testing.assert_array_equal(np.isnan(out["r2"]), [False, True, False])
    assert np.isfinite(out["mse"]).all()
    assert mean_defined(out["pearson"]) == (pytest.approx(1.0), 2)
    assert mean_defined(np.array([np.nan]))[1] == 1


def test_one_row_has_an_error_and_no_correlation():
    out = per_gene(np.ones((1, 2)), np.zeros((1, 2)))
    assert np.isnan(out["pearson"]).all()
    assert (out["mse"] == 1).all()


def test_a_large_offset_costs_no_digits():
    x = np.random.default_rng(0).normal(size=(100, 1))
    assert pearson(x + 1e4, x)[0] == pytest.approx(1.0, abs=1e-9)


def test_nan_and_other_shapes_are_refused():
    with pytest.raises(UsageError, match="holds NaN"):
        per_gene(np.full((3, 1), np.nan), np.zeros((3, 1)))
    with pytest.raises(UsageError, match="equal"):
        per_gene(np.zeros((3, 1)), np.zeros((3, 2)))
