"""Choosing among candidates: caps, radius, threshold, diversity."""

from __future__ import annotations

import numpy as np
import pytest

from histostore.errors import UsageError
from histostore.index.results import beyond_radius, capped, diverse, within


def test_a_cap_keeps_the_nearest_of_each_group_in_order() -> None:
    slides = np.array(["a", "a", "b", "a", "b", "c", "b"])
    assert capped(slides, 1).tolist() == [0, 2, 5]
    assert capped(slides, 2).tolist() == [0, 1, 2, 4, 5]
    assert capped(slides, 99).tolist() == list(range(7))
    with pytest.raises(UsageError, match="cap per group is 0"):
        capped(slides, 0)


def test_the_threshold_includes_itself() -> None:
    assert within(np.array([0.1, 0.2, 0.3]), 0.2).tolist() == [0, 1]
    with pytest.raises(UsageError, match="NaN"):
        within(np.array([0.1]), float("nan"))


def test_the_radius_counts_on_the_own_slide_only() -> None:
    slides = np.array(["a", "a", "b", "a"])
    xy = np.array([[0.0, 0], [30, 40], [0, 0], [60, 80]])
    keep = beyond_radius(slides, xy, slide="a", centre_um=(0, 0), radius_um=50)
    assert keep.tolist() == [2, 3]
    with pytest.raises(UsageError, match="not a length"):
        beyond_radius(slides, xy, slide="a", centre_um=(0, 0), radius_um=-1)
    xy[1] = np.nan
    with pytest.raises(UsageError, match="no mpp"):
        beyond_radius(slides, xy, slide="a", centre_um=(0, 0), radius_um=5)
    assert len(beyond_radius(slides, xy, slide="b", centre_um=(9, 9), radius_um=5)) == 4


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_diversity_takes_one_of_each_clump(metric: str) -> None:
    rng = np.random.default_rng(0)
    clumps = np.repeat(np.eye(3)[:, :], 5, axis=0) + 0.01 * rng.standard_normal((15, 3))
    distance = np.linspace(0.1, 0.12, 15)
    chosen = diverse(distance, clumps, 3, weight=0.5, metric=metric)
    assert {int(c) // 5 for c in chosen} == {0, 1, 2}
    assert chosen[0] == 0
    assert diverse(distance, clumps, 4, weight=1.0).tolist() == [0, 1, 2, 3]
    assert sorted(diverse(distance, clumps, 99)) == list(range(15))


def test_bad_weights_and_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="weight is 2"):
        diverse(np.zeros(2), np.ones((2, 2)), 1, weight=2)
    with pytest.raises(UsageError, match="one for each"):
        diverse(np.zeros(3), np.ones((2, 2)), 1)
    with pytest.raises(UsageError, match="k is 0"):
        diverse(np.zeros(2), np.ones((2, 2)), 0)
