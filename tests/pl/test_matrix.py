from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.errors import DataError, UsageError
from histostore.pl import confusion_matrix, fold_table


def test_the_fold_table_writes_every_score_and_leaves_the_mean_over_a_gap_open():
    scores = pd.DataFrame({"C2": [0.32, 0.46], "C3": [0.352, np.nan]}, index=["ridge", "both"])
    ax = fold_table(scores).axes[0]
    assert [t.get_text() for t in ax.texts] == ["0.320", "0.352", "0.336", "0.460", "–", "–"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ridge", "both"]
    with pytest.raises(DataError, match="methods x folds"):
        fold_table(pd.DataFrame())


def test_confusion_shows_counts_shares_of_the_true_class_and_the_mean_recall():
    figure = confusion_matrix([[8, 2], [1, 4]], ["stroma", "tumour"], title="Logistic")
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.texts] == ["8\n80 %", "2\n20 %", "1\n20 %", "4\n80 %"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["stroma (n = 10)", "tumour (n = 5)"]
    assert np.allclose(ax.images[0].get_array(), [[0.8, 0.2], [0.2, 0.8]])
    assert figure.get_suptitle() == "Logistic\nbalanced accuracy 0.800, n = 15"


def test_a_class_that_no_row_has_keeps_its_line_without_shares():
    figure = confusion_matrix([[3, 1, 0], [0, 0, 0], [0, 2, 2]], ["a", "b", "c"])
    assert [t.get_text() for t in figure.axes[0].texts][3:6] == ["0\n–"] * 3
    assert "balanced accuracy 0.625" in figure.get_suptitle()


@pytest.mark.parametrize("table", [[[0, 0], [0, 0]], [[1, 2]], [[0.5, 1], [1, 1]], [[1, -1], [1, 1]], [[5]]])
def test_what_is_no_table_of_counts_is_refused(table):
    with pytest.raises(DataError, match="confusion table"):
        confusion_matrix(table, ["a"] * len(table))


def test_class_names_must_go_with_the_table():
    with pytest.raises(UsageError, match="3 class names for 2 classes"):
        confusion_matrix(np.eye(2), ["a", "b", "c"])
