from __future__ import annotations

import numpy as np
import pytest

from histostore.errors import AlignmentError, DataError, UsageError
from histostore.heads.class_metrics import calibration_error, calibration_table
from histostore.pl import calibration


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    p = np.append(rng.random(400) * 0.9, 1.0)
    return rng.random(401) < p**2, p


def drawn(figure):
    return figure.axes[0].containers[0].lines[0].get_xydata()


def test_points_and_error_are_those_of_the_metrics(rows):
    figure = calibration({"image": rows}, bins=8)
    table = calibration_table(*rows, bins=8)
    assert np.allclose(drawn(figure), np.c_[table["predicted"], table["observed"]])
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == f"image: calibration error {calibration_error(*rows, bins=8):.3f}  (n = 401)"


def test_the_rows_of_each_bin_stand_below(rows):
    (counts,) = calibration({"image": rows}, bins=8).axes[1].patches
    assert np.array_equal(counts.get_data().values, calibration_table(*rows, bins=8)["n"])


def test_intervals_are_wilsons():
    figure = calibration({"image": (np.arange(10) < 3, np.full(10, 0.25))}, bins=2)
    (bars,) = figure.axes[0].containers[0].lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(0.10779, abs=1e-5), pytest.approx(0.60322, abs=1e-5))


def test_empty_bins_have_no_point():
    assert len(drawn(calibration({"image": ([0, 1], [0.05, 0.95])}))) == 2


def test_what_are_no_probabilities_is_refused():
    for p in ([0.5, 1.2], [0.5, np.nan]):
        with pytest.raises(DataError, match="1 of 2 probabilities are not in 0-1"):
            calibration({"a": ([0, 1], p)})
    with pytest.raises(DataError, match="0 curves"):
        calibration({})
    with pytest.raises(AlignmentError, match="give equal"):
        calibration({"a": ([0], [0.5, 0.5])})
    with pytest.raises(UsageError, match="1 bins"):
        calibration({"a": ([0, 1], [0.5, 0.5])}, bins=1)
