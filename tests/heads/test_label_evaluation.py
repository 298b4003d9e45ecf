from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.errors import UsageError
from histostore.head_specs import FeatureSpec, SplitSpec
from histostore.heads.class_metrics import class_metrics
from histostore.heads.classifier import Logistic
from histostore.heads.label_evaluation import IMAGE, LIBRARY, POSITION, PRIOR, cross_validate_labels
from histostore.heads.metrics import ALL
from histostore.heads.mlp_classifier import MLPClassifier

SPLIT = SplitSpec.parse("leave-one-out:patient")


@pytest.fixture(scope="module")
def data(make_cohort):
    made = make_cohort()
    X, obs = made["X"], made["obs"]
    labels = np.where(X[:, 0] + 0.5 * np.random.default_rng(0).normal(size=len(X)) > 0.3, "tumour", "stroma")
    return {"X": X, "labels": labels, "obs": obs, "library": np.asarray(made["counts"].sum(1)).ravel()}


@pytest.fixture(scope="module")
def evaluation(data):
    return cross_validate_labels(Logistic(), split=SPLIT, **data)


def test_the_head_stands_beside_its_baselines(evaluation):
    assert list(evaluation.summary.index) == [PRIOR, POSITION, LIBRARY, IMAGE]
    assert evaluation.classes == ("stroma", "tumour")
    assert evaluation.score() > 0.9
    assert evaluation.score(PRIOR) == 0.5
    assert abs(evaluation.score(POSITION) - 0.5) < 0.15
    assert set(evaluation.by_fold()) == {"p0", "p1", "p2"}
    assert evaluation.confusion.sum() == 360
    assert "no patient on both sides" in evaluation.split_text
    assert len(evaluation.slides) == 6 * 4


def test_a_fold_equals_doing_it_by_hand(data, evaluation):
    from histostore.heads.splits import inner_folds

    fold = evaluation.folds[1]
    train = np.flatnonzero(data["obs"]["patient"] != fold.name)
    inner = inner_folds(data["obs"].iloc[train], "patient")[0]
    head = Logistic().fit(data["X"][train], data["labels"][train], groups=inner)
    np.testing.assert_allclose(fold.probabilities[IMAGE], head.predict_proba(data["X"][fold.rows]), rtol=1e-5)
    assert fold.chosen["setting"] == head.chosen_


def test_no_line_is_scored_on_labels_it_was_trained_on(data, evaluation):
    """Shuffling the labels of held-out rows changes truth alone: no prediction, no baseline, no choice."""
    held = (data["obs"]["patient"] == "p1").to_numpy()
    changed = data["labels"].copy()
    changed[held] = np.where(changed[held] == "tumour", "stroma", "tumour")
    again = cross_validate_labels(Logistic(), split=SPLIT, **{**data, "labels": changed})
    before, after = evaluation.folds[1], again.folds[1]
    for method, p in before.probabilities.items():
        np.testing.assert_array_equal(p, after.probabilities[method])
    assert before.chosen == after.chosen
    assert (before.truth != after.truth).all()


def test_rows_without_a_label_or_an_embedding_are_left_out_and_counted(data):
    labels, X = data["labels"].astype(object), data["X"].copy()
    labels[[1, 2]], labels[70] = None, float("nan")
    X[5] = np.nan
    out = cross_validate_labels(Logistic(0.1), split=SPLIT, **{**data, "X": X, "labels": labels})
    assert out.report.counts == {"rows": 360, "used": 356, "unreadable": 1, "without a label": 3}
    assert not {1, 2, 5, 70} & {int(r) for f in out.folds for r in f.rows}


def test_features_are_chosen_by_inner_folds(data):
    shifted = {**data, "X": data["X"] + 20 * np.random.default_rng(0).normal(size=(6, 16))[np.repeat(np.arange(6), 60)]}
    out = cross_validate_labels(
        Logistic(), split=SPLIT, features=(FeatureSpec(), FeatureSpec(standardise="slide")), **shifted
    )
    assert {f.chosen["features"]["standardise"] for f in out.folds} == {"slide"}
    with pytest.raises(UsageError, match="choosing features"):
        cross_validate_labels(Logistic(0.1), split=SPLIT, features=(FeatureSpec(), FeatureSpec()), **data)


def test_several_classes_and_a_network(data):
    labels = np.digitize(data["X"][:, 0], (-0.5, 0.5)).astype(str)
    head = MLPClassifier((16,), lr=1e-2, dropout=0.0, inner=2)
    out = cross_validate_labels(head, split=SPLIT, **{**data, "labels": labels})
    assert out.classes == ("0", "1", "2")
    assert out.score() > 0.8
    assert out.confusion.shape == (3, 3)


def test_a_class_missing_in_a_training_fold_is_noted_and_one_missing_in_a_test_fold_undefined(data):
    labels = data["labels"].astype(object)
    labels[(data["obs"]["patient"] == "p0").to_numpy() & (np.arange(360) % 7 == 0)] = "rare"
    out = cross_validate_labels(Logistic(0.1), split=SPLIT, **{**data, "labels": labels})
    assert any("fold p0" in note and "'rare'" in note for note in out.report.notes)
    np.testing.assert_array_equal(out.folds[0].probabilities[IMAGE][:, out.classes.index("rare")], 0)
    one = np.where(data["obs"]["patient"] == "p0", "stroma", data["labels"])
    flat = cross_validate_labels(Logistic(0.1), split=SPLIT, **{**data, "labels": one})
    assert flat.summary.loc[IMAGE, "auroc_undefined"] == 2


def test_what_is_missing_is_said(data):
    blind = {k: v for k, v in data.items() if k != "library"}
    out = cross_validate_labels(
        Logistic(0.1), split=SPLIT, **{**blind, "obs": data["obs"].drop(columns=["x_um", "y_um"])}
    )
    assert list(out.summary.index) == [PRIOR, IMAGE]
    assert len(out.report.notes) == 2


def test_misuse_is_refused(data):
    with pytest.raises(UsageError, match="align them by id"):
        cross_validate_labels(Logistic(), split=SPLIT, **{**data, "labels": data["labels"][:-1]})
    with pytest.raises(UsageError, match="did you mean 'tumour'"):
        cross_validate_labels(
            Logistic(classes=("stroma", "tumour")), split=SPLIT,
            **{**data, "labels": np.where(np.arange(360) == 3, "tumor", data["labels"])},
        )  # fmt: skip
    with pytest.raises(UsageError, match="both sides"):
        cross_validate_labels(Logistic(), split=SplitSpec.parse("leave-one-out:slide"), **data)
    with pytest.raises(UsageError, match="library"):
        cross_validate_labels(Logistic(), split=SPLIT, **{**data, "library": np.full(360, -1.0)})


def test_inner_folds_of_a_stratified_split_keep_patients_whole_and_hold_all_classes(make_cohort):
    made = make_cohort(per_patient=1)
    obs = made["obs"].assign(kind=np.where(made["X"][:, 0] > 0, "tumour", "stroma"))
    split = SplitSpec.parse("stratified-kfold:3:kind")
    found = cross_validate_labels(Logistic(), X=made["X"], labels=obs["kind"].to_numpy(), obs=obs, split=split)
    assert {f.chosen["inner"] for f in found.folds} == {"4 inner folds by patient"}
    assert found.score() > 0.9


def test_slides_that_are_rows_are_ranked_beside_each_other():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)).astype(np.float32)
    labels = np.where(X[:, 0] + 0.3 * rng.normal(size=60) > 0, "high", "low")
    obs = pd.DataFrame({"slide": [f"s{i}" for i in range(60)], "patient": [f"p{i // 2}" for i in range(60)]})
    found = cross_validate_labels(
        Logistic(), X=X, labels=labels, obs=obs, split=SplitSpec.parse("group-kfold:3:patient")
    )
    assert set(found.slides["slide"]) == {ALL}
    assert found.summary.loc[PRIOR, "auroc"] == 0.5
    assert found.summary.loc[PRIOR, "auprc"] < 0.8
    for name in ("auroc", "auprc", "f1", "balanced_accuracy", "calibration_error"):
        by_hand = [class_metrics(f.truth, f.probabilities[IMAGE], f.guess[IMAGE])[name] for f in found.folds]
        assert found.score(metric=name) == pytest.approx(np.mean(by_hand))


def test_slides_with_one_labelled_row_are_ranked_beside_each_other():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(180, 4)).astype(np.float32)
    labels = np.where(X[:, 0] > 0, "high", "low").astype(object)
    labels[60:] = None  # two more rows of each slide, seen as context
    of = np.arange(180) % 60
    obs = pd.DataFrame({"slide": [f"s{i}" for i in of], "patient": [f"p{i // 2}" for i in of]})
    found = cross_validate_labels(
        Logistic(), X=X, labels=labels, obs=obs, split=SplitSpec.parse("group-kfold:3:patient")
    )
    assert set(found.slides["slide"]) == {ALL}
    assert found.score() > 0.9
