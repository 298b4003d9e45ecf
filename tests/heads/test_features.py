from __future__ import annotations

import numpy as np
import pytest

from histostore.errors import DataError, UsageError
from histostore.head_specs import FeatureSpec
from histostore.heads.features import build, section_positions, spatial_context, standardise


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    n = 40
    return (
        rng.normal(size=(n, 6)).astype(np.float32),
        np.array(["a", "b"])[np.arange(n) % 2],
        rng.uniform(0, 900, (n, 2)),
    )


def test_context_is_the_gaussian_mean_of_the_other_rows_of_the_slide(rows):
    X, slide, xy = rows
    out, alone = spatial_context(X, slide, xy, 300.0)
    for i in range(len(X)):
        distance = np.hypot(*(xy - xy[i]).T)
        weights = np.exp(-0.5 * (distance / 300) ** 2) * (slide == slide[i]) * (distance <= 1200)
        weights[i] = 0
        np.testing.assert_allclose(out[i], weights @ X / weights.sum(), rtol=1e-4, atol=1e-6)
    assert alone == 0
    assert out.dtype == np.float32


def test_slides_do_not_see_each_other(rows):
    X, slide, xy = rows
    first, _ = spatial_context(X, slide, xy, 200.0)
    changed = X.copy()
    changed[slide == "b"] = 99
    second, _ = spatial_context(changed, slide, xy, 200.0)
    np.testing.assert_array_equal(first[slide == "a"], second[slide == "a"])


def test_unreadable_rows_are_no_neighbours_and_stay_nan(rows):
    X, slide, xy = rows
    X[5, 0] = np.nan
    spec = FeatureSpec(context_um=(200.0, 400.0), standardise="slide")
    out, report = build(spec, X, slide, xy)
    assert out.shape == (40, 18)
    assert np.isnan(out[5]).any()
    assert np.isfinite(np.delete(out, 5, 0)).all()
    assert report.counts["unreadable"] == 1
    without, _ = build(spec, np.delete(X, 5, 0), np.delete(slide, 5), np.delete(xy, 5, 0))
    np.testing.assert_allclose(np.delete(out, 5, 0), without, atol=1e-6)


def test_a_lonely_row_gets_its_own_embedding_and_is_counted():
    X = np.arange(6, dtype=np.float32).reshape(3, 2)
    xy = np.array([[0.0, 0], [10, 0], [9000, 0]])
    out, alone = spatial_context(X, np.array(["a"] * 3), xy, 50.0)
    assert alone == 1
    np.testing.assert_array_equal(out, [X[1], X[0], X[2]])


def test_standardising_is_per_slide_and_leaves_constants_at_zero(rows):
    X, slide, _ = rows
    X[slide == "a", 2] = 0.3
    X[slide == "b"] += 1000
    out = standardise(X, slide)
    for name in "ab":
        np.testing.assert_allclose(out[slide == name].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out[slide == "b"].std(0), 1, atol=1e-3)
    assert (out[slide == "a", 2] == 0).all()
    assert (standardise(X[:1], slide[:1]) == 0).all()


def test_features_do_not_depend_on_the_order_of_rows(rows):
    X, slide, xy = rows
    spec = FeatureSpec(context_um=(250.0,), standardise="slide")
    out, _ = build(spec, X, slide, xy)
    order = np.random.default_rng(1).permutation(len(X))
    again, _ = build(spec, X[order], slide[order], xy[order])
    np.testing.assert_allclose(again, out[order], atol=1e-5)


def test_sections_are_centred_on_their_own_rows(rows):
    _, slide, xy = rows
    xy[slide == "b"] += 5000
    out = section_positions(xy, slide)
    for name in "ab":
        np.testing.assert_allclose(out[slide == name].mean(0), 0, atol=1e-9)


def test_missing_positions_are_an_error_only_where_they_are_needed(rows):
    X, slide, xy = rows
    assert build(FeatureSpec(), X, slide)[0].shape == X.shape
    with pytest.raises(UsageError, match="needs positions"):
        build(FeatureSpec(context_um=(100.0,)), X, slide)
    xy[3] = np.nan
    with pytest.raises(DataError, match="1 of 40 rows have no finite position"):
        build(FeatureSpec(context_um=(100.0,)), X, slide, xy)
    with pytest.raises(UsageError, match="positive number"):
        spatial_context(X, slide, np.zeros((40, 2)), -3)
