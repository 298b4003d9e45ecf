from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.errors import DataError, UsageError
from histostore.pl import gene_heatmap


@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    index = [f"{'S2' if i % 2 else 'S1'}:{i}" for i in range(40)]
    truth = pd.DataFrame(rng.normal(size=(40, 3)) * [1, 5, 2] + [0, 3, 9], index=index, columns=["A", "B", "C"])
    return truth, truth * 0.3 + 1


def slides(truth):
    return pd.Series([i.partition(":")[0] for i in truth.index], index=truth.index)


def images(figure):
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes[:2]]


def test_the_same_spot_stands_above_itself_on_one_scale(tables):
    truth, prediction = tables
    figure = gene_heatmap(truth, prediction.iloc[::-1], slides=slides(truth), standardise=False)
    measured, predicted = images(figure)
    assert measured.shape == (3, 40)
    assert np.allclose(predicted, measured * 0.3 + 1)
    assert figure.axes[0].images[0].norm is figure.axes[1].images[0].norm


def test_spots_stand_slide_by_slide_with_a_line_between(tables):
    truth, prediction = tables
    figure = gene_heatmap(truth, prediction, slides=slides(truth).iloc[::-1], standardise=False)
    first = {tuple(v) for v in images(figure)[0].T[:20].round(6)}
    assert first == {tuple(v) for v in truth[slides(truth) == "S1"].to_numpy().round(6)}
    (line,) = [item for item in figure.axes[0].lines if item.get_gid() == "slide"]
    assert line.get_xdata()[0] == 19.5
    assert [t.get_text() for t in figure.axes[1].get_xticklabels()] == ["S1", "S2"]


def test_both_panels_are_standardised_by_what_was_measured(tables):
    truth, prediction = tables
    measured, predicted = images(gene_heatmap(truth, prediction))
    assert np.allclose(measured.mean(axis=1), 0)
    assert np.allclose(measured.std(axis=1), 1)
    assert np.allclose(predicted.std(axis=1), 0.3)
    along = measured[:, :10].mean() - measured[:, -10:].mean()
    assert along < 0  # more expression to the right


def test_a_constant_gene_is_drawn_and_spots_without_a_value_are_counted(tables):
    truth, prediction = tables
    prediction.iloc[:4, 0] = np.nan
    figure = gene_heatmap(truth.assign(C=2.0), prediction.assign(C=2.0))
    assert figure.get_suptitle() == "3 genes, 36 spots · 4 spots without all values"
    assert np.array_equal(images(figure)[0][2], np.zeros(36))
    with pytest.raises(DataError, match="none of 40 spots has all 3 genes"):
        gene_heatmap(truth.assign(A=np.nan), prediction)
    with pytest.raises(UsageError, match="0 genes"):
        gene_heatmap(truth, prediction, [])
