from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.errors import DataError, UsageError
from histostore.pl import pca_map
from histostore.pl.embedding import principal_components


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_components_are_those_of_the_full_decomposition(shape):
    X = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
    points, share = principal_components(X)
    u, s, _ = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    assert np.allclose(np.abs(points), np.abs(u[:, :2] * s[:2]))
    assert np.allclose(share, s[:2] ** 2 / (s**2).sum())


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_the_map_does_not_depend_on_the_order_of_rows(order):
    X = np.random.default_rng(1).normal(size=(12, 5))
    assert np.allclose(principal_components(X[order])[0], principal_components(X)[0][order])


def test_rows_that_are_not_finite_are_left_out_and_counted():
    X = np.random.default_rng(0).normal(size=(20, 4))
    X[3] = np.nan
    figure = pca_map(X, ["a"] * 10 + ["b"] * 10, name="slide")
    assert figure.axes[0].get_title() == "19 rows · 1 not finite, left out"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a (9)", "b (10)"]


def test_colours_stay_with_their_rows_whatever_the_order_of_drawing():
    X = np.r_[np.zeros((10, 3)), np.ones((10, 3))] + np.random.default_rng(0).normal(size=(20, 3)) * 1e-3
    ax = pca_map(X, ["a"] * 10 + ["b"] * 10, seed=5).axes[0]
    (drawn,) = ax.collections
    left = np.asarray(drawn.get_offsets())[:, 0] < 0
    colours = drawn.get_facecolors()
    assert len(np.unique(colours[left], axis=0)) == len(np.unique(colours[~left], axis=0)) == 1
    assert not np.array_equal(colours[left][0], colours[~left][0])


def test_numbers_get_a_colour_bar_and_labels_a_legend():
    X = np.random.default_rng(0).normal(size=(20, 4))
    assert len(pca_map(X, np.arange(20), name="counts").axes) == 2
    assert pca_map(X).legends == []


def test_what_cannot_be_mapped_is_refused():
    with pytest.raises(DataError, match="2 finite rows"):
        pca_map(np.eye(2))
    with pytest.raises(UsageError, match="3 colours for 4 rows"):
        pca_map(np.eye(4), list("abc"))
