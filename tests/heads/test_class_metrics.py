from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from histostore.errors import UsageError
from histostore.heads.class_metrics import (
    CLASS_METRICS,
    auprc,
    auroc,
    calibration_error,
    calibration_table,
    class_metrics,
    confusion,
    f1_scores,
    pr_curve,
    roc_curve,
)


@pytest.fixture
def binary():
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.3
    return truth, np.round(np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1), 2)  # with ties


def test_rankings_are_those_of_scikit_learn(binary):
    truth, score = binary
    assert auroc(truth, score) == pytest.approx(sk.roc_auc_score(truth, score))
    assert auprc(truth, score) == pytest.approx(sk.average_precision_score(truth, score))
    false, true, _ = roc_curve(truth, score)
    assert sk.auc(false, true) == pytest.approx(auroc(truth, score))
    recall, precision, _ = pr_curve(truth, score)
    assert recall[-1] == 1
    assert precision[-1] == pytest.approx(truth.mean())


def test_decisions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    table = confusion(truth, guess, 4)
    np.testing.assert_array_equal(table, sk.confusion_matrix(truth, guess))
    np.testing.assert_allclose(f1_scores(table), sk.f1_score(truth, guess, average=None))
    p = np.full((200, 4), 0.1)
    p[np.arange(200), guess] = 0.7
    out = class_metrics(truth, p)
    assert tuple(out) == CLASS_METRICS
    assert out["f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert out["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert out["log_loss"] == pytest.approx(sk.log_loss(truth, p))
    assert out["auroc"] == pytest.approx(sk.roc_auc_score(truth, p, multi_class="ovr"))


def test_what_is_undefined_is_nan():
    assert np.isnan(auroc([True, True], [0.1, 0.2]))
    assert np.isnan(auprc([False, False], [0.1, 0.2]))
    out = class_metrics(np.zeros(3, int), np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
    assert np.isnan(out["auroc"])
    assert out["balanced_accuracy"] == pytest.approx(2 / 3)
    three = class_metrics(np.array([0, 0, 1]), np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.7, 0]]))
    assert three["auroc"] == 1.0 or 0 < three["auroc"] < 1
    assert np.isnan(f1_scores(confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 3))[2])


def test_calibration_is_the_gap_between_said_and_seen():
    p = np.repeat([0.15, 0.85], 100)
    truth = np.concatenate((np.arange(100) < 35, np.arange(100) < 85))
    assert calibration_error(truth, p) == pytest.approx(0.1)
    table = calibration_table(truth, p)
    np.testing.assert_array_equal(table["n"][[1, 8]], 100)
    assert np.isnan(table["observed"][0])
    assert calibration_error(np.array([True]), np.array([1.0])) == 0


def test_misuse_is_refused():
    with pytest.raises(UsageError):
        auroc([True], [0.1, 0.2])
    with pytest.raises(UsageError, match="NaN"):
        class_metrics(np.array([0, 1]), np.array([[np.nan, 1], [0, 1]]))
    with pytest.raises(UsageError):
        confusion(np.zeros(3, int), np.zeros(4, int), 2)
