from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from histostore.errors import AlignmentError, DataError
from histostore.pl import roc_pr


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.3
    return truth, (truth + rng.normal(size=300)).round(1)  # with ties


def legend(figure):
    return [t.get_text() for t in figure.legends[0].get_texts()]


def test_areas_are_those_of_scikit_learn(rows):
    truth, score = rows
    figure = roc_pr({"image": rows})
    auroc, ap = roc_auc_score(truth, score), average_precision_score(truth, score)
    assert legend(figure) == [f"image: AUROC {auroc:.3f}, AP {ap:.3f}  ({truth.sum()} of 300 positive)"]


def test_the_roc_curve_is_that_of_scikit_learn(rows):
    line = roc_pr({"image": rows}).axes[0].lines[0]
    false, true, _ = roc_curve(*rows, drop_intermediate=False)
    assert np.allclose(line.get_xydata(), np.c_[false, true])


def test_chance_is_the_diagonal_and_the_share_of_positives(rows):
    roc, pr = roc_pr({"image": rows}).axes
    assert [line.get_gid() for line in roc.lines] == [None, "chance"]
    (chance,) = [line for line in pr.lines if line.get_gid() == "chance"]
    assert chance.get_ydata()[0] == pytest.approx(rows[0].mean())


def test_rows_of_one_class_are_said_and_not_drawn(rows):
    figure = roc_pr({"A": rows, "B": (np.zeros(4), np.arange(4.0))})
    assert legend(figure)[1] == "B: one class only (0 of 4 positive)"
    assert len([line for line in figure.axes[1].lines if line.get_gid() is None]) == 1
    with pytest.raises(DataError, match="one class only"):
        roc_pr({"B": (np.zeros(4), np.arange(4.0))})


def test_a_constant_score_is_chance(rows):
    share = rows[0].mean()
    assert f"AUROC 0.500, AP {share:.3f}" in legend(roc_pr({"none": (rows[0], np.ones(300))}))[0]


def test_bad_scores_are_refused(rows):
    with pytest.raises(DataError, match="0 curves"):
        roc_pr({})
    with pytest.raises(AlignmentError, match="give equal"):
        roc_pr({"a": (rows[0][:5], rows[1])})
    with pytest.raises(DataError, match="1 of 2 scores are not finite"):
        roc_pr({"a": ([0, 1], [0.1, np.nan])})
