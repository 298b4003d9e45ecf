from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load, save
from scipy.special import softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from histostore.errors import DataError, SpecMismatchError, UsageError
from histostore.heads.calibration import Calibrator, best_threshold
from histostore.heads.class_metrics import auroc, calibration_error
from histostore.heads.classifier import Logistic
from histostore.heads.convergence import NotConvergedWarning
from histostore.heads.mlp_classifier import MLPClassifier

MAKE = {
    "logistic": lambda **o: Logistic((0.01, 1.0), **o),
    "mlp": lambda **o: MLPClassifier((8,), lr=3e-3, **o),
}


def data(n=240, classes=("a", "b", "c"), seed=0, shift=2.0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % len(classes)
    X = rng.normal(size=(n, 6)) + shift * np.eye(6)[codes]
    return X.astype(np.float32), np.array(classes)[codes], np.repeat(["p", "q", "r", "s"], n // 4)


@pytest.fixture(params=list(MAKE))
def make(request):
    return MAKE[request.param]


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_classes_are_told_apart(make, classes):
    X, y, groups = data(classes=classes)
    head = make(calibration="temperature").fit(X, y, groups=groups)
    new, truth, _ = data(classes=classes, seed=1)
    p = head.predict_proba(new)
    assert head.classes_ == classes
    assert (p.shape, p.dtype) == ((240, len(classes)), np.float32)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert (head.predict(new) == truth).mean() > 0.75
    assert auroc(truth == "b", p[:, 1]) > 0.9


def test_a_row_is_judged_alike_alone_and_among_others(make):
    X, y, groups = data()
    head = make().fit(X, y, groups=groups)
    whole = head.predict_proba(X)
    alone = np.concatenate([head.predict_proba(X[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, whole[:20], rtol=1e-4, atol=1e-5)
    extreme = np.concatenate((X[:3], 1e3 * X[3:]))
    np.testing.assert_allclose(head.predict_proba(extreme)[:3], whole[:3], rtol=1e-4, atol=1e-5)


def test_the_order_of_training_rows_does_not_matter_and_the_seed_settles_the_rest(make):
    X, y, groups = data()
    order = np.random.default_rng(3).permutation(len(X))
    a = make(calibration="temperature").fit(X, y, groups=groups).predict_proba(X)
    b = make(calibration="temperature").fit(X[order], y[order], groups=groups[order]).predict_proba(X)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_row_of_nan_has_no_class(make):
    X, y, groups = data()
    head = make().fit(X, y, groups=groups)
    holed = X.copy()
    holed[3] = np.nan
    assert np.isnan(head.predict_proba(holed)[3]).all()
    assert head.predict(holed)[3] is None
    np.testing.assert_array_equal(np.delete(head.predict(holed), 3), np.delete(head.predict(X), 3))


@pytest.mark.parametrize("calibration", ["none", "temperature", "isotonic"])
def test_state_survives_safetensors_and_json(make, calibration):
    X, y, groups = data()
    options = {"calibration": calibration, "class_weight": {"a": 2.0}, "classes": ("a", "b", "c", "d")}
    head = make(**options).fit(X, y, groups=groups)
    arrays, meta = head.to_state()
    kept = load(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    again = type(head).from_state(kept, json.loads(json.dumps(meta, allow_nan=False)))
    np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))
    np.testing.assert_array_equal(again.predict(X), head.predict(X))
    assert again.to_state()[1] == meta


def test_scikit_learn_clones_it(make):
    head = make(classes=("a", "b"))
    assert clone(head).get_params() == head.get_params()


def test_logistic_is_scikit_learns():
    X, y, _ = data()
    Z = (X - X.mean(0)) / X.std(0)
    expected = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8).fit(Z, y).predict_proba(Z)
    np.testing.assert_allclose(Logistic(0.1).fit(X, y).predict_proba(X), expected, atol=1e-3)


def test_balanced_weights_let_a_rare_class_weigh_as_much():
    X, y, _ = data(classes=("no", "yes"), shift=0.7)
    keep = (y == "no") | (np.arange(len(y)) % 10 == 1)
    X, y = X[keep], y[keep]
    plain, balanced = Logistic(0.1).fit(X, y), Logistic(0.1, class_weight="balanced").fit(X, y)
    assert (balanced.predict(X) == "yes").sum() > 2 * (plain.predict(X) == "yes").sum()
    explicit = Logistic(0.1, class_weight={"yes": (y == "no").sum() / (y == "yes").sum()}).fit(X, y)
    np.testing.assert_allclose(explicit.predict_proba(X), balanced.predict_proba(X), atol=1e-3)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_calibration_mends_scores_that_are_too_sure(method):
    rng = np.random.default_rng(0)
    honest = rng.normal(scale=1.5, size=(3000, 1)) * [0, 1]
    codes = (rng.random(3000) < softmax(honest, axis=1)[:, 1]).astype(np.int64)
    sure = 4 * honest
    fitted = Calibrator.fit(method, sure[:1500], codes[:1500])
    after = fitted(sure[1500:])[:, 1]
    assert calibration_error(codes[1500:] == 1, softmax(sure[1500:], axis=1)[:, 1]) > 0.1
    assert calibration_error(codes[1500:] == 1, after) < 0.05
    if method == "temperature":
        assert fitted.temperature == pytest.approx(4, rel=0.15)
        assert auroc(codes[1500:] == 1, after) == pytest.approx(auroc(codes[1500:] == 1, sure[1500:, 1]))


def test_the_threshold_is_the_best_on_the_rows_given():
    p = np.array([0.1, 0.2, 0.3, 0.35, 0.6, 0.9])
    truth = np.array([False, False, True, True, True, True])
    for criterion in ("f1", "balanced_accuracy"):
        assert best_threshold(p, truth, criterion) == pytest.approx(0.25)
    assert best_threshold(np.full(4, 0.3), np.array([True, True, False, False]), "f1") < 0.3


def test_a_threshold_is_chosen_on_rows_left_out():
    X, y, groups = data(classes=("no", "yes"), shift=0.7)
    keep = (y == "no") | (np.arange(len(y)) % 10 == 1)
    head = Logistic(0.1, threshold="f1").fit(X[keep], y[keep], groups=groups[keep])
    assert head.threshold_ < 0.4
    called = head.predict_proba(X)[:, 1] >= head.threshold_
    np.testing.assert_array_equal(head.predict(X) == "yes", called)
    assert Logistic(0.1, threshold=0.2).fit(X, y).threshold_ == 0.2


def test_labels_are_checked(make):
    X, y, groups = data()
    missing = y.astype(object)
    missing[[2, 3]] = None
    with pytest.raises(DataError, match="2 of 240 rows have no label"):
        make().fit(X, missing, groups=groups)
    typo = np.where(np.arange(240) == 4, "tumuor", np.where(y == "a", "tumour", "stroma"))
    with pytest.raises(UsageError, match=r"label 'tumuor' \(1 rows\).*did you mean 'tumour'"):
        make(classes=("stroma", "tumour")).fit(X, typo, groups=groups)
    with pytest.raises(UsageError, match="all 240 training rows are 'a'"):
        make().fit(X, np.full(240, "a"), groups=groups)
    numbers = make().fit(X, np.arange(240) % 3, groups=groups)
    assert numbers.classes_ == ("0", "1", "2")


def test_a_class_that_is_not_there_gets_nothing_and_a_note(make):
    X, y, groups = data()
    head = make(classes=("a", "b", "c", "d")).fit(X, y, groups=groups)
    np.testing.assert_array_equal(head.predict_proba(X)[:, 3], 0)
    assert head.notes_ == ("no training row is 'd': its probability is 0",)


def test_a_class_that_lies_in_one_group_only_is_survived_by_the_inner_folds(make):
    X, y, _ = data()
    groups = np.where(y == "c", "p", np.where(np.arange(len(y)) % 2, "q", "r"))
    head = make(calibration="temperature").fit(X, y, groups=groups)
    assert np.isfinite(head.predict_proba(X)).all()


def test_misuse_is_one_clear_error(make):
    X, y, groups = data()
    with pytest.raises(UsageError, match="not fitted"):
        make().predict(X)
    with pytest.raises(SpecMismatchError, match="5 features"):
        make().fit(X, y, groups=groups).predict(X[:, 1:])
    for wrong in (
        {"calibration": "platt"}, {"threshold": "f2"}, {"threshold": 1.5}, {"class_weight": {"z": 1.0}},
        {"classes": ("a", "a", "b", "c")},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            make(**wrong).fit(X, y, groups=groups)
    with pytest.raises(UsageError, match="two groups"):
        make(calibration="temperature").fit(X, y, groups=np.zeros(240))
    with pytest.raises(DataError, match="1 of 240 rows of X"):
        make().fit(np.where(np.arange(240)[:, None] == 3, np.nan, X), y, groups=groups)


def test_non_convergence_is_said():
    X, y, groups = data()
    with pytest.warns(NotConvergedWarning, match="1 iterations"):
        assert Logistic(100.0, max_iter=1).fit(X, y).notes_
    with pytest.warns(NotConvergedWarning, match="2 epochs"):
        MLPClassifier((4,), calibration="none", max_epochs=2).fit(X, y, groups=groups)
