from __future__ import annotations

import numpy as np
import pytest

from histostore.errors import UsageError
from histostore.heads.baselines import PositionKNN, TrainingMean
from histostore.testing.head_contract import HeadContract


class TestTrainingMeanContract(HeadContract):
    def make(self):
        return TrainingMean()


class TestPositionKNNContract(HeadContract):
    n_features = 3

    def make(self):
        return PositionKNN(k=5)


def test_the_mean_ignores_the_features():
    y = np.array([[1.0, 2.0], [3.0, 6.0]])
    out = TrainingMean().fit(np.zeros((2, 1)), y).predict(np.array([[9.0], [-9.0]]))
    np.testing.assert_array_equal(out, [[2, 4], [2, 4]])


def test_position_takes_the_mean_of_the_nearest_rows():
    X = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0], [9.0, 0.0]])
    head = PositionKNN(k=2).fit(X, np.array([1.0, 3.0, 10.0, 20.0]))
    np.testing.assert_array_equal(head.predict(np.array([[0.4, 0.0], [7.5, 0.0]]))[:, 0], [2, 15])


def test_fewer_training_rows_than_neighbours_are_all_used():
    head = PositionKNN(k=15).fit(np.zeros((3, 2)), np.array([1.0, 2.0, 3.0]))
    assert head.predict(np.ones((1, 2)))[0, 0] == 2


def test_no_neighbours_are_refused():
    with pytest.raises(UsageError, match="k is 0"):
        PositionKNN(k=0).fit(np.zeros((3, 2)), np.zeros(3))
