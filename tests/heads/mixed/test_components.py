from __future__ import annotations

import numpy as np
import pytest

from histostore.errors import DataError, UsageError
from histostore.heads.mixed.components import fit_components
from histostore.heads.mixed.levels import nested
from histostore.heads.mixed.random_intercept import fit_random_intercept
from histostore.heads.mixed.surface import JITTER
from histostore.heads.mixed.terms import Intercept, Slopes, Spatial


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    n = 150
    g, h, slide = rng.integers(0, 12, n), rng.integers(0, 9, n), rng.integers(0, 2, n)
    t, X = rng.normal(size=n), rng.normal(size=(n, 2))
    xy = rng.integers(0, 9, (n, 2)) * 200.0
    y = 1 + X @ [1, -1] + rng.normal(size=12)[g] + 0.7 * rng.normal(size=9)[h] + 0.5 * rng.normal(size=12)[g] * t
    y += np.sin(xy[:, 0] / 300) + 0.8 * rng.normal(size=n)
    return {"y": y, "X": X, "g": g, "h": h, "t": t, "xy": xy, "slide": slide}


def kernel_of(rows, term, kernel):
    """Return Z and D of a surface, one column per distinct position of each slide."""
    keys = np.column_stack([rows["slide"], rows["xy"]])
    places, codes = np.unique(keys, axis=0, return_inverse=True)
    away = np.linalg.norm(places[:, None, 1:] - places[None, :, 1:], axis=2) / term["length"]
    correlation = np.exp(-(away**2) / 2) if kernel == "gaussian" else np.exp(-away)
    correlation[places[:, None, 0] != places[None, :, 0]] = 0
    z = (codes.ravel()[:, None] == np.arange(len(places))).astype(float)
    return z, term["variance"] * (correlation + JITTER * np.eye(len(places)))


def matrices(rows, name, found, z_of):
    """Return Z and D of one term the long way."""
    if name in ("g", "h", "g/h"):
        labels = nested(rows["g"], rows["h"]) if name == "g/h" else rows[name].astype(str)
        z = z_of(labels)
        return z, found["variance"] * np.eye(z.shape[1])
    if name == "slopes":
        z = z_of(rows["g"].astype(str))
        both = np.stack([z, z * rows["t"][:, None]], 2).reshape(len(z), -1)
        return both, np.kron(np.eye(z.shape[1]), found["covariance"])
    return kernel_of(rows, found, name)


def term(rows, name):
    return {
        "g": lambda: Intercept(rows["g"]),
        "h": lambda: Intercept(rows["h"]),
        "g/h": lambda: Intercept(nested(rows["g"], rows["h"])),
        "slopes": lambda: Slopes(rows["g"], rows["t"]),
        "gaussian": lambda: Spatial(rows["xy"], rows["slide"]),
        "exponential": lambda: Spatial(rows["xy"], rows["slide"], "exponential"),
    }[name]()


MODELS = [
    pytest.param(("g", "h"), id="crossed"),
    pytest.param(("g", "g/h"), id="nested"),
    pytest.param(("slopes",), id="slopes"),
    pytest.param(("slopes", "h"), id="slopes_and_crossed"),
    pytest.param(("gaussian",), id="spatial"),
    pytest.param(("exponential", "h"), id="spatial_and_crossed"),
]


@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize("names", MODELS)
def test_it_is_what_dense_algebra_says_and_no_neighbour_is_better(rows, dense, z_of, names, method):
    fit = fit_components(rows["y"], {n: term(rows, n) for n in names}, rows["X"], method=method)
    assert fit.converged
    columns = np.column_stack([np.ones(len(rows["y"])), rows["X"]])

    ones = [1.0] * len(names)

    def long(scale=ones, s2_e=1.0):
        pairs = [matrices(rows, n, fit.terms[n], z_of) for n in names]
        ds = [s * d for s, (_, d) in zip(scale, pairs, strict=True)]
        return dense(rows["y"], columns, [z for z, _ in pairs], ds, s2_e * fit.s2_e, reml=method == "reml")

    same = long()
    assert fit.loglik == pytest.approx(same.loglik, abs=1e-7)
    np.testing.assert_allclose(fit.coef, same.coef, atol=1e-8)
    np.testing.assert_allclose(fit.coef_cov, same.coef_cov, atol=1e-8)
    at, variance = 0, np.diag(same.blup_cov)
    for name in names:
        width = fit.blup[name].size
        # positions are in the same order as np.unique's, labels in that of their text
        np.testing.assert_allclose(fit.blup[name].ravel(), same.blup[at : at + width], atol=1e-7)
        np.testing.assert_allclose(fit.blup_var[name].ravel(), variance[at : at + width], atol=1e-7)
        at += width
    for i in range(len(names)):
        for change in (0.95, 1.05):
            scale = [change if j == i else 1.0 for j in range(len(names))]
            assert long(scale).loglik < fit.loglik + 1e-8
    assert max(long(s2_e=0.98).loglik, long(s2_e=1.02).loglik) < fit.loglik


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_one_factor_is_the_random_intercept(rows, method):
    one = fit_random_intercept(rows["y"], rows["g"], rows["X"], method=method)
    fit = fit_components(rows["y"], {"g": Intercept(rows["g"])}, rows["X"], method=method)
    assert [fit.s2_e, fit.terms["g"]["variance"], fit.loglik] == pytest.approx([one.s2_e, one.s2_b, one.loglik])
    np.testing.assert_allclose(fit.blup["g"][:, 0], one.blup, atol=1e-6)


def test_slopes_agree_with_statsmodels():
    import warnings

    from statsmodels.regression.mixed_linear_model import MixedLM

    rng = np.random.default_rng(1)
    g, t = rng.integers(0, 30, 600), rng.normal(size=600)
    y = 1 + t + rng.normal(size=30)[g] + 0.6 * rng.normal(size=30)[g] * t + rng.normal(size=600)
    both = np.column_stack([np.ones(600), t])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MixedLM(y, both, g, exog_re=both).fit(reml=False, method="powell")
    fit = fit_components(y, {"g": Slopes(g, t)}, t[:, None])
    assert fit.loglik == pytest.approx(theirs.llf, abs=1e-4)
    np.testing.assert_allclose(fit.terms["g"]["covariance"], theirs.cov_re, rtol=0.02, atol=1e-3)


def test_predictions_of_new_rows_are_conditional_normal(rows, dense, z_of):
    terms = {"slopes": Slopes(rows["g"], rows["t"]), "h": Intercept(rows["h"])}
    fit = fit_components(rows["y"], terms, rows["X"])
    new = {"slopes": Slopes(["3", "new"], [0.5, 2.0]), "h": Intercept(["4", "4"])}
    mean, variance = fit.predict(new, rows["X"][:2])
    pairs = [matrices(rows, n, fit.terms[n], z_of) for n in ("slopes", "h")]
    columns = np.column_stack([np.ones(len(rows["y"])), rows["X"]])
    long = dense(rows["y"], columns, [z for z, _ in pairs], [d for _, d in pairs], fit.s2_e)
    row = np.zeros(len(long.blup))
    row[sorted(map(str, range(12))).index("3") * 2 + np.arange(2)] = [1, 0.5]
    row[24 + 4] = 1
    assert mean[0] == pytest.approx(columns[0] @ fit.coef + row @ long.blup, abs=1e-7)
    assert variance[0] == pytest.approx(fit.s2_e + row @ long.blup_cov @ row, abs=1e-7)
    known, x = np.zeros(len(row)), np.array([1, 2.0])
    known[24 + 4] = 1
    assert mean[1] == pytest.approx(columns[1] @ fit.coef + known @ long.blup, abs=1e-7)
    prior = x @ fit.terms["slopes"]["covariance"] @ x
    assert variance[1] == pytest.approx(fit.s2_e + known @ long.blup_cov @ known + prior, abs=1e-7)


def test_new_positions_are_kriged_and_new_slides_get_the_prior(rows):
    here = Spatial(rows["xy"], rows["slide"])
    fit = fit_components(rows["y"], {"where": here}, rows["X"])
    mean, variance = fit.predict({"where": here}, rows["X"])
    beside = {"where": Spatial(rows["xy"] + 1e-3, rows["slide"])}
    near_mean, near_variance = fit.predict(beside, rows["X"])
    np.testing.assert_allclose(near_mean, mean, atol=1e-3)
    np.testing.assert_allclose(near_variance, variance, atol=1e-3)
    away = fit.predict({"where": Spatial(rows["xy"][:1], ["third slide"])}, rows["X"][:1])
    assert away[0][0] == pytest.approx(fit.coef @ [1, *rows["X"][0]])
    assert away[1][0] == pytest.approx(fit.s2_e + fit.terms["where"]["variance"])
    assert variance.max() < away[1][0]


def test_a_factor_that_explains_nothing_has_variance_zero_and_that_is_said():
    rng = np.random.default_rng(5)
    g, idle = np.repeat(np.arange(15), 10), np.tile(np.arange(10), 15)
    y = rng.normal(size=15)[g] + 0.5 * rng.normal(size=150)
    y -= np.array([y[idle == i].mean() for i in range(10)])[idle]
    fit = fit_components(y, {"g": Intercept(g), "idle": Intercept(idle)})
    assert fit.terms["idle"]["variance"] == 0
    assert fit.terms["g"]["variance"] > 0.2
    assert any("the variance of idle is estimated as 0" in note for note in fit.notes)
    np.testing.assert_array_equal(fit.blup["idle"], 0)


def test_what_cannot_be_estimated_is_one_clear_error(rows):
    y, g = rows["y"], rows["g"]
    renamed = np.array([f"centre {i}" for i in g])
    for terms, message in (
        ({"g": Intercept(g), "centre": Intercept(renamed)}, "same 12 parts"),
        ({"g": Intercept(g * 0)}, "one level"),
        ({"g": Intercept(np.arange(150))}, "has one row"),
        ({"g": Intercept(g), "t": Slopes(np.arange(150), rows["t"])}, "has one row"),
        ({"g": Slopes(g, np.where(rows["t"] > 1, np.nan, rows["t"]))}, "NaN"),
        ({"w": Spatial(rows["xy"], np.arange(150))}, "no slide has two positions"),
    ):
        with pytest.raises(DataError, match=message):
            fit_components(y, terms)
    for terms, message in (
        ({}, "no random terms"),
        ({"g": Intercept(g[1:])}, "149 rows and y 150"),
        ({"w": Spatial(rows["xy"], kernel="rbf")}, "gaussian or exponential"),
    ):
        with pytest.raises(UsageError, match=message):
            fit_components(y, terms)
    with pytest.raises(UsageError, match="at fit they were g"):
        fit_components(y, {"g": Intercept(g)}).predict({"h": Intercept(g)})


def test_few_levels_are_said(rows):
    fit = fit_components(rows["y"], {"g": Intercept(rows["g"]), "site": Intercept(rows["slide"])}, rows["X"])
    assert any("site has 2 levels" in note for note in fit.notes)


def test_nested_labels_keep_pairs_apart():
    assert nested(["a", "a", "b"], [1, 2, 1]).tolist() == ["a/1", "a/2", "b/1"]
    with pytest.raises(DataError, match="two different pairs alike"):
        nested(["a/b", "a"], ["c", "b/c"])
