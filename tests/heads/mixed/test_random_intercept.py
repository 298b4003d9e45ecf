from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from histostore.errors import DataError, UsageError
from histostore.heads.mixed.random_intercept import fit_random_intercept, nll


def simulated(n=400, q=23, s2_b=0.7, seed=0):
    rng = np.random.default_rng(seed)
    groups = rng.choice(q, n, p=rng.dirichlet(np.ones(q)))
    X = rng.normal(size=(n, 2))
    y = 1 + X @ [2.0, -1.0] + rng.normal(0, np.sqrt(s2_b), q)[groups] + rng.normal(size=n)
    return y, groups, X


REFERENCE = [
    ("all", "ml", 2.866159, 1.004767, 0.112562, -1478.707036),
    ("all", "reml", 2.863117, 1.004621, 0.119593, -1480.344457),
    ("tiled", "ml", 2.884400, 1.044291, 0.118426, -1344.935931),
    ("tiled", "reml", 2.882025, 1.044153, 0.125865, -1346.533297),
    ("cases", "ml", 2.865164, 1.020341, 0.120179, -1394.850074),
    ("cases", "reml", 2.861750, 1.020171, 0.127917, -1396.444822),
]
BLUPS = {
    "BH": -0.37264, "D8": 0.12472, "A2": 0.13577, "E2": 0.03499, "A8": 0.60003, "AR": 0.54124, "E9": -0.16382,
    "A7": -0.02950, "4H": 0.00728, "UL": -0.01262, "W8": -0.18128,
}  # fmt: skip


def part(table, rows):
    if rows == "tiled":
        return table[table["Tile Width"] != ""]
    return table.drop_duplicates("case_id") if rows == "cases" else table


@pytest.mark.real
@pytest.mark.parametrize(("rows", "method", "mu", "s2_e", "s2_b", "loglik"), REFERENCE)
def test_the_tcga_table_gives_the_reference_fit(mki67, rows, method, mu, s2_e, s2_b, loglik):
    table = part(mki67, rows)
    assert len(table) == {"all": 1027, "tiled": 921, "cases": 963}[rows]
    fit = fit_random_intercept(table["y"], table["tss_code"], method=method)
    assert [fit.coef[0], fit.s2_e, fit.s2_b, fit.loglik] == pytest.approx([mu, s2_e, s2_b, loglik], abs=2e-6)
    assert fit.notes == ()


@pytest.mark.real
def test_the_tcga_table_gives_the_reference_effects(mki67):
    effects = fit_random_intercept(mki67["y"], mki67["tss_code"]).effects()
    assert {k: effects[k] for k in BLUPS} == pytest.approx(BLUPS, abs=1e-5)


@pytest.mark.real
def test_the_likelihood_itself_at_two_points(mki67):
    assert nll(mki67["y"], mki67["tss_code"], 1, 1) == pytest.approx(1607.936753, abs=1e-6)
    assert nll(mki67["y"] - 3, mki67["tss_code"], 1, 0.1) == pytest.approx(1480.275155, abs=1e-6)


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_it_is_what_dense_algebra_says(dense, z_of, method):
    y, groups, X = simulated(150, 12)
    fit = fit_random_intercept(y, groups, X, method=method)
    columns = np.column_stack([np.ones(len(y)), X])
    z = z_of(groups.astype(str))
    long = dense(y, columns, [z], [fit.s2_b * np.eye(z.shape[1])], fit.s2_e, reml=method == "reml")
    assert fit.loglik == pytest.approx(long.loglik, abs=1e-9)
    np.testing.assert_allclose(fit.coef, long.coef, atol=1e-10)
    np.testing.assert_allclose(fit.coef_cov, long.coef_cov, atol=1e-10)
    np.testing.assert_allclose(fit.blup, long.blup, atol=1e-10)
    np.testing.assert_allclose(fit.blup_var, np.diag(long.blup_cov), atol=1e-10)
    if method == "ml":
        assert nll(y - columns @ fit.coef, groups, fit.s2_e, fit.s2_b) == pytest.approx(-fit.loglik, abs=1e-9)


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_no_neighbouring_variances_are_better(dense, z_of, method):
    y, groups, X = simulated(150, 12, seed=3)
    fit = fit_random_intercept(y, groups, X, method=method)
    columns = np.column_stack([np.ones(len(y)), X])
    for e, b in ((1.01, 1), (0.99, 1), (1, 1.05), (1, 0.95), (1.01, 0.95), (0.99, 1.05)):
        z = z_of(groups.astype(str))
        d = [b * fit.s2_b * np.eye(z.shape[1])]
        assert dense(y, columns, [z], d, e * fit.s2_e, reml=method == "reml").loglik < fit.loglik


@pytest.mark.parametrize("reml", [False, True])
def test_it_agrees_with_statsmodels(reml):
    from statsmodels.regression.mixed_linear_model import MixedLM

    y, groups, X = simulated()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the default optimiser stops short of the optimum
        theirs = MixedLM(y, np.column_stack([np.ones(len(y)), X]), groups).fit(reml=reml, method="powell")
    fit = fit_random_intercept(y, groups, X, method="reml" if reml else "ml")
    assert fit.loglik == pytest.approx(theirs.llf, abs=1e-5)
    assert fit.loglik >= theirs.llf - 1e-9
    assert [fit.s2_e, fit.s2_b] == pytest.approx([theirs.scale, theirs.cov_re[0, 0]], rel=2e-3)
    np.testing.assert_allclose(fit.coef, theirs.fe_params, atol=1e-4)


def test_no_difference_between_groups_is_a_variance_of_zero_and_said():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 5)
    y = np.tile([-2.0, -1, 0, 1, 2], 20) + rng.normal(0, 1e-3, 100)
    fit = fit_random_intercept(y, groups)
    assert fit.s2_b == 0
    assert fit.loglik == pytest.approx(-0.5 * 100 * (np.log(2 * np.pi * y.var()) + 1))
    np.testing.assert_array_equal(fit.blup, 0)
    assert any("estimated as 0" in note for note in fit.notes)


def test_large_offsets_cost_no_digits():
    y, groups, X = simulated()
    near, far = fit_random_intercept(y, groups, X), fit_random_intercept(y + 1e6, groups, X + 1e4)
    assert [far.s2_e, far.s2_b] == pytest.approx([near.s2_e, near.s2_b], rel=1e-6)


def test_new_groups_have_no_effect_and_a_wider_variance():
    y, groups, X = simulated()
    fit = fit_random_intercept(y, groups, X)
    old, new = fit.predict(groups[:1], X[:1]), fit.predict(["elsewhere"], X[:1])
    assert old - new == pytest.approx(fit.effects()[str(groups[0])])
    assert fit.variance(["elsewhere"])[0] == pytest.approx(fit.s2_e + fit.s2_b)
    assert fit.s2_e < fit.variance(groups).max() < fit.s2_e + fit.s2_b
    with pytest.raises(UsageError, match="2 columns at fit"):
        fit.predict(groups[:1])


def test_few_groups_are_said():
    y, groups, _ = simulated(q=5)
    assert "5 levels" in fit_random_intercept(y, groups).notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda y, g, X: (y, g * 0, X), "one level", id="one_group"),
        pytest.param(lambda y, g, X: (y, np.arange(len(y)), X), "has one row", id="singletons"),
        pytest.param(lambda y, g, X: (y, g, np.column_stack([X, X[:, 0] * 2])), "column 2 of X", id="collinear_X"),
        pytest.param(lambda y, g, X: (y, g, np.ones((len(y), 1))), "column 0 of X", id="second_intercept"),
        pytest.param(lambda y, g, X: (g * 2.0, g, None), "same value", id="nothing_left"),
        pytest.param(lambda y, g, X: (np.where(y > 3, np.nan, y), g, X), "NaN", id="nan_target"),
        pytest.param(lambda y, g, X: (y, np.where(g == g[0], np.nan, g), X), "have no groups", id="nan_group"),
        pytest.param(lambda y, g, X: (y[:2], g[:2], X[:2]), "nothing is left", id="too_few_rows"),
    ],
)
def test_what_cannot_be_estimated_is_one_clear_error(change, message):
    y, groups, X = change(*simulated())
    with pytest.raises(DataError, match=message):
        fit_random_intercept(y, groups, X)


def test_misuse_is_one_clear_error():
    y, groups, X = simulated()
    with pytest.raises(UsageError, match="method"):
        fit_random_intercept(y, groups, method="ML")
    with pytest.raises(UsageError, match="400 rows and groups 399"):
        fit_random_intercept(y, groups[1:], X)
    with pytest.raises(UsageError, match="above 0"):
        nll(y, groups, 0, 1)


def test_labels_of_pandas_are_taken():
    y, groups, _ = simulated()
    names = pd.Series(groups).map("site {}".format)
    for labels in (names, names.astype("category"), names.astype("string")):
        assert fit_random_intercept(y, labels).s2_b == pytest.approx(fit_random_intercept(y, groups).s2_b)
    with pytest.raises(DataError, match="have no groups"):
        fit_random_intercept(y, names.where(names != names[0]))
    assert fit_random_intercept(y, groups.astype(float)).levels.find(groups).min() == 0


def test_groups_that_lie_ten_thousand_times_as_far_apart_as_their_rows_are_fitted():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    y = rng.normal(0, 1e4, 30)[groups] + rng.normal(size=300)
    fit = fit_random_intercept(y, groups, method="reml")
    # balanced groups: REML is the analysis of variance
    table = y.reshape(30, 10)
    within = table.var(axis=1, ddof=1).mean()
    assert fit.s2_e == pytest.approx(within, rel=1e-4)
    assert fit.s2_b == pytest.approx(table.mean(1).var(ddof=1) - within / 10, rel=1e-6)


@pytest.mark.parametrize("y", [np.full(40, 0.1), np.zeros(40), np.linspace(0, 1, 40), np.full(200_000, 5.3)])
def test_targets_that_the_fixed_effects_give_exactly_have_no_variances(y):
    with pytest.raises(DataError, match="nothing is left to estimate variances from"):
        fit_random_intercept(y, np.arange(len(y)) % 4, np.linspace(3, 7, len(y))[:, None])
