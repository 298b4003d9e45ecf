from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from histostore.errors import DataError, UsageError
from histostore.heads.significance import holm, paired_bootstrap, sign_test


def test_all_of_23_patients_have_the_tail_of_23_heads():
    r = np.full((23, 3), 0.1)
    r[:3, 1] = -0.2
    r[:, 2] = np.where(np.arange(23) % 2, 0.1, -0.1)
    out = sign_test(r)
    np.testing.assert_array_equal(out.positive, [23, 20, 11])
    assert out.p[0] == pytest.approx(2.0**-23)
    assert out.p[1] == pytest.approx((1771 + 253 + 23 + 1) / 2**23)
    assert out.p_holm[0] == pytest.approx(3 * 2.0**-23)
    assert out.p[2] > 0.5


def test_undefined_correlations_are_no_patients_and_zero_is_not_above():
    out = sign_test(np.array([[np.nan, np.nan], [0.2, np.nan], [0.3, np.nan], [0.0, np.nan]]))
    assert (out.positive[0], out.n[0]) == (2, 3)
    assert out.p[0] == pytest.approx(0.5)
    assert np.isnan(out.p[1])
    assert out.p_holm[0] == pytest.approx(0.5)


def test_holm_is_that_of_statsmodels():
    p = np.random.default_rng(0).random(40) ** 4
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_the_bootstrap_draws_patients_and_not_rows():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(12), 200)
    of_patient = rng.normal(scale=1, size=12)
    a = of_patient[patients] + rng.normal(size=2400)
    out = paired_bootstrap(a, np.zeros(2400), patients)
    assert (out.patients, out.draws) == (12, 10_000)
    assert out.difference == pytest.approx(a.mean())
    # the interval is that of twelve means, not that of 2,400 rows
    assert 0.7 < (out.high - out.low) / (2 * 1.96 * of_patient.std() / np.sqrt(12)) < 1.3
    assert paired_bootstrap(a, np.zeros(2400), patients) == out
    assert paired_bootstrap(a + 5, a, patients).p == pytest.approx(2 / 10_001)
    assert paired_bootstrap(a, a, patients).p == 1


def test_each_patient_weighs_the_same_and_undefined_rows_count_for_neither():
    a, b = np.array([1.0, 1, 1, 5, np.nan]), np.zeros(5)
    assert paired_bootstrap(a, b, np.array(["p", "p", "p", "q", "q"])).difference == 3


def test_misuse_is_refused():
    with pytest.raises(UsageError, match="1 patient"):
        paired_bootstrap(np.ones(3), np.zeros(3), np.zeros(3))
    with pytest.raises(UsageError, match="shape"):
        paired_bootstrap(np.ones(3), np.zeros(2), np.zeros(3))
    with pytest.raises(UsageError, match="level"):
        paired_bootstrap(np.ones(2), np.zeros(2), np.arange(2), level=95)
    with pytest.raises(UsageError, match="patients, genes"):
        sign_test(np.zeros(3))


def test_rows_of_no_patient_are_not_one_patient_more():
    with pytest.raises(DataError, match="1 of 3 rows have no patient"):
        paired_bootstrap(np.array([1.0, 2.0, 3.0]), np.zeros(3), np.array(["a", "b", None], dtype=object))
