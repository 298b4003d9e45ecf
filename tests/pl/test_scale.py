from __future__ import annotations

import numpy as np
import pytest

from histostore.errors import UsageError
from histostore.pl.scale import shared_bins, shared_norm


def test_a_scale_that_cuts_values_says_so():
    values = np.arange(101.0)
    assert shared_norm([values], None, None)[1] == "neither"
    norm, extend = shared_norm([values], "p10", "p90")
    assert (norm.vmin, norm.vmax, extend) == (10.0, 90.0, "both")
    with pytest.raises(UsageError, match="'99%' is no end"):
        shared_norm([values], None, "99%")
    with pytest.raises(UsageError, match="vmin below vmax"):
        shared_norm([values], 5, 2)


def bin_of(norm, values):
    return np.searchsorted(norm.boundaries, values, side="right") - 1


def test_bins_hold_as_many_measured_values_and_reach_over_all_panels():
    measured = np.arange(100.0)
    norm = shared_bins(measured, [measured, np.array([-5.0, 130.0, np.nan])], 4)
    assert np.bincount(bin_of(norm, measured)).tolist() == [25] * 4
    assert norm.boundaries[0] < -5
    assert norm.boundaries[-1] > 130


def test_the_zeros_of_a_rare_gene_are_one_bin_also_below_predictions_of_less():
    measured = np.append(np.zeros(70), np.arange(1, 31) / 10)
    norm = shared_bins(measured, [measured, np.array([-0.2, 0.01])], 5)
    which = bin_of(norm, measured)
    assert (which[:70] == 0).all()
    assert (which[70:] > 0).all()
    assert bin_of(norm, np.array([-0.2, 0.01])).tolist() == [0, 0]


def test_edges_can_be_given_and_a_constant_gene_has_one_bin():
    values = np.arange(10.0)
    assert shared_bins(values, [values], [2, 5]).boundaries[1:-1].tolist() == [2, 5]
    assert len(shared_bins(np.zeros(5), [np.zeros(5)], 4).boundaries) == 2
    for bins in ([5, 2], 1, 13, [1, np.nan]):
        with pytest.raises(UsageError, match="colour scale"):
            shared_bins(values, [values], bins)
