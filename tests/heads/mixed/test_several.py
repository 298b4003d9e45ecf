"""RENN beside more than one random term."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load, save

from histostore.errors import DataError, UsageError
from histostore.heads.mixed import several
from histostore.heads.mixed.components import fit_components
from histostore.heads.mixed.grouping import as_terms
from histostore.heads.mixed.levels import nested
from histostore.heads.mixed.renn import RENN
from histostore.heads.mixed.terms import Intercept, Slopes, Spatial
from histostore.testing.head_contract import HeadContract


class Crossed(RENN):
    """Given one factor, it makes a second one of the first feature, so that the contract's data has two."""

    def fit(self, X, y, *, groups=None):
        half = np.asarray(X)[:, 0] > 0
        return super().fit(X, y, groups={"one": groups, "two": half})


class TestCrossedContract(HeadContract):
    def make(self):
        return Crossed(hidden=(8,), epochs=15, batch_size=16, lr=1e-2, validation=0.0)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    n = 1200
    g, h, slide = rng.choice(30, n, p=rng.dirichlet(np.full(30, 2.0))), rng.integers(0, 20, n), rng.integers(0, 2, n)
    X = rng.normal(size=(n, 3)) + 0.5 * rng.normal(size=(30, 3))[g]
    xy = rng.integers(0, 9, (n, 2)) * 1.0
    y = 2 + X @ [1, -0.5, 0.2] + 0.9 * rng.normal(size=30)[g] + 0.7 * rng.normal(size=20)[h] + rng.normal(size=n)
    y += 0.5 * rng.normal(size=20)[h] * X[:, 0] + np.sin(xy[:, 0])
    return {"X": X, "y": y, "g": g, "h": h, "slide": slide, "xy": xy}


def terms(rows, name, part=slice(None)):
    g, h = rows["g"][part], rows["h"][part]
    return {
        "crossed": lambda: {"g": Intercept(g), "h": Intercept(h)},
        "nested": lambda: {"g": Intercept(g), "g/h": Intercept(nested(g, h % 3))},
        "slopes": lambda: {"g": Intercept(g), "h": Slopes(h, rows["X"][part, 0])},
        "surface": lambda: {"s": Spatial(rows["xy"][part], rows["slide"][part]), "g": Intercept(g)},
    }[name]()


def flat(components):
    return np.concatenate([np.ravel(value) for term in components.values() for value in term.values()])


STEPS = {2: (20, 2e-3), 32: (40, 1e-2), 1200: (400, 5e-2)}
"""As many rows seen, and steps of a size that suits their noise."""


def linear(rows, given, batch_size=32):
    epochs, lr = STEPS[batch_size]
    head = RENN(hidden=(), epochs=epochs, lr=lr, batch_size=batch_size, weight_decay=0, validation=0.0)
    return head.fit(rows["X"], rows["y"], groups=given)


@pytest.mark.parametrize("batch_size", STEPS)
def test_any_batch_size_gives_the_variances_of_the_full_likelihood_of_two_factors(rows, batch_size):
    given = terms(rows, "crossed")
    fit = fit_components(rows["y"], given, rows["X"])
    head = linear(rows, given, batch_size)
    assert head.s2_e_[0] == pytest.approx(fit.s2_e, abs=1e-3)
    np.testing.assert_allclose(flat(head.components()), flat(fit.terms), atol=1e-3)
    np.testing.assert_allclose(head.predict(rows["X"], given)[:, 0], fit.predict(given, rows["X"])[0], atol=0.06)


@pytest.mark.parametrize("name", ["nested", "slopes", "surface"])
def test_nested_factors_slopes_and_surfaces_too(rows, name):
    given = terms(rows, name)
    fit = fit_components(rows["y"], given, rows["X"])
    head = linear(rows, given)
    assert head.s2_e_[0] == pytest.approx(fit.s2_e, abs=1e-3)
    np.testing.assert_allclose(flat(head.components()), flat(fit.terms), atol=1e-3)
    np.testing.assert_allclose(head.predict(rows["X"], given)[:, 0], fit.predict(given, rows["X"])[0], atol=0.06)


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_with_f_fixed_it_is_the_linear_model(rows, method):
    given = terms(rows, "crossed")
    fit = fit_components(rows["y"], given, method=method)
    head = RENN(epochs=0, method=method).fit(rows["X"], rows["y"], groups=given)
    np.testing.assert_allclose([head.s2_e_[0], *flat(head.components())], [fit.s2_e, *flat(fit.terms)], rtol=1e-5)
    for name in given:
        assert head.effects(name=name) == pytest.approx(
            dict(zip(fit.levels[name], fit.blup[name][:, 0].tolist(), strict=True)), abs=1e-5
        )


def test_too_large_for_exact_values_the_steps_end_at_the_same(rows, monkeypatch):
    given = terms(rows, "crossed")
    exact = RENN(epochs=0).fit(rows["X"], rows["y"], groups=given)
    monkeypatch.setattr(several, "EXACT", 1)
    monkeypatch.setattr(several, "EVERY", 1)
    monkeypatch.setattr(several, "HELD", 0)
    head = RENN(epochs=0).fit(rows["X"], rows["y"], groups=given)
    np.testing.assert_allclose(flat(head.components()), flat(exact.components()), rtol=2e-3)
    assert not head.notes_


@pytest.mark.parametrize(("probes", "near"), [(256, 1e-3), (64, 0.1)], ids=["exact_traces", "estimated_traces"])
def test_a_large_surface_is_first_looked_for_on_some_of_its_positions(rows, probes, near, monkeypatch):
    given = terms(rows, "surface")
    exact = RENN(epochs=0).fit(rows["X"], rows["y"], groups=given)
    for name, value in (("EXACT", 1), ("EVERY", 1), ("THIN", 40), ("LAST_PROBES", probes)):
        monkeypatch.setattr(several, name, value)
    head = RENN(epochs=0).fit(rows["X"], rows["y"], groups=given)
    np.testing.assert_allclose(flat(head.components()), flat(exact.components()), rtol=near)
    assert any("estimated traces" in note for note in head.notes_) == (probes == 64)


def test_one_factor_given_in_any_way_is_the_same_fit(rows):
    g = rows["g"]
    heads = [
        RENN(hidden=(4,), epochs=2).fit(rows["X"], rows["y"], groups=given)
        for given in (g, g[:, None], {"groups": g}, {"groups": Intercept(g)}, pd.DataFrame({"groups": g}))
    ]
    for head in heads[1:]:
        np.testing.assert_array_equal(head.predict(rows["X"], g), heads[0].predict(rows["X"], g))
        assert head.components() == heads[0].components()


def test_several_factors_are_columns_of_a_matrix_or_of_a_table(rows):
    both = np.column_stack([rows["g"], rows["h"]])
    table = pd.DataFrame({"site": rows["g"], "batch": [f"b{h}" for h in rows["h"]]})
    first, second = (RENN(hidden=(4,), epochs=2).fit(rows["X"], rows["y"], groups=given) for given in (both, table))
    np.testing.assert_allclose(first.s2_b_, second.s2_b_, rtol=1e-6)
    assert first.s2_b_.shape == (1, 2)
    assert first.history_["s2_b"].shape == (2, 1, 2)
    assert list(as_terms(both, 1200)) == ["groups[0]", "groups[1]"]
    assert set(second.components()) == {"site", "batch"}
    assert set(second.effects(name="batch")) == {f"b{k}" for k in range(20)}


def test_levels_that_were_not_there_have_no_effect_and_wider_intervals(rows):
    given = {"g": rows["g"], "h": rows["h"]}
    head = RENN(hidden=(4,), epochs=2, validation=0.0).fit(rows["X"], rows["y"], groups=given)
    one = np.zeros((4, 3))
    g, h = str(rows["g"][0]), str(rows["h"][0])
    new = {"g": [g, g, "elsewhere", "elsewhere"], "h": [h, "other", h, "other"]}
    plain, known = head.predict(one)[:, 0], head.predict(one, new)[:, 0]
    a, b = head.effects(name="g")[g], head.effects(name="h")[h]
    np.testing.assert_allclose(known - plain, [a + b, a, b, 0], atol=1e-5)
    low, high = head.predict_interval(one, new)
    width = (high - low)[:, 0]
    assert width[0] < min(width[1:3]) < max(width[1:3]) < width[3]
    expected = 2 * 1.6448536 * np.sqrt(head.noise_[0] + head.s2_b_[0].sum())
    np.testing.assert_allclose(width[3], expected, rtol=1e-5)
    np.testing.assert_allclose(np.subtract(*head.predict_interval(one)[::-1])[:, 0], expected, rtol=1e-5)


def test_intervals_hold_what_they_should_also_beside_held_out_rows(rows):
    train, test = slice(0, 900), slice(900, None)
    head = RENN(hidden=(), epochs=30, lr=1e-2, validation=0.15, method="reml")
    head.fit(rows["X"][train], rows["y"][train], groups=terms(rows, "surface", train))
    low, high = head.predict_interval(rows["X"][test], terms(rows, "surface", test))
    assert 0.85 < np.mean((low[:, 0] < rows["y"][test]) & (rows["y"][test] < high[:, 0])) < 0.95


@pytest.mark.parametrize("name", ["crossed", "slopes", "surface"])
def test_terms_survive_saving(rows, name):
    given = terms(rows, name)
    y = np.column_stack([rows["y"], np.full(len(rows["y"]), 3.0), rows["y"] ** 2])
    head = RENN(hidden=(4,), epochs=2).fit(rows["X"], y, groups=given)
    arrays, meta = head.to_state()
    again = RENN.from_state(load(save(arrays)), json.loads(json.dumps(meta)))
    for mine, theirs in zip(
        head.predict_interval(rows["X"], given), again.predict_interval(rows["X"], given), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert again.to_state()[1] == meta
    assert again.effects(2, next(iter(given))) == head.effects(2, next(iter(given)))
    assert head.components(1) == {}


def lmmnn(n=5000, q=(60, 200), s2=(0.5, 5.0), seed=0):
    """Draw the design of LMMNN's simulation with two factors."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (n, 10))
    eta = 1 + X.sum(1)
    f = eta * np.cos(eta) + 2 * X[:, 0] * X[:, 1]
    groups = np.column_stack([rng.choice(k, n, p=rng.dirichlet(np.full(k, 4.0))) for k in q])
    effects = [rng.normal(0, np.sqrt(v), k) for k, v in zip(q, s2, strict=True)]
    y = f + effects[0][groups[:, 0]] + effects[1][groups[:, 1]] + rng.normal(size=n)
    return X.astype(np.float32), y, f, groups


def test_a_small_lmmnn_simulation_with_two_factors_comes_near_the_model_that_knows_f():
    X, y, f, groups = lmmnn()
    train, test = slice(0, 4000), slice(4000, None)
    options = {"hidden": (64, 64), "activation": "tanh", "epochs": 40, "lr": 5e-3, "weight_decay": 0.2}
    head = RENN(validation=0.0, **options).fit(X[train], y[train], groups=groups[train])
    knowing = fit_components((y - f)[train], as_terms(groups[train], 4000))
    mse = np.mean((head.predict(X[test], groups[test])[:, 0] - y[test]) ** 2)
    oracle = np.mean((f[test] + knowing.predict(as_terms(groups[test], 1000))[0] - y[test]) ** 2)
    assert mse < 1.10 * oracle
    found = [v["variance"] for v in knowing.terms.values()]
    np.testing.assert_allclose([head.s2_e_[0], *head.s2_b_[0]], [knowing.s2_e, *found], rtol=0.08)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"g": r["g"], "again": [f"x{v}" for v in r["g"]]}, "cut the rows in the same 30 parts"),
        (lambda r: {"g": r["g"], "one": r["h"] * 0}, "one has one level"),
        (lambda r: {"g": r["g"], "each": np.arange(len(r["g"]))}, "each of the 1200 levels of each has one row"),
        (lambda r: {"g": r["g"], "h": np.where(r["h"] > 2, r["h"], np.nan)}, "rows have no h"),
    ],
)
def test_what_cannot_be_estimated_is_one_clear_error(rows, change, message):
    with pytest.raises(DataError, match=message):
        RENN(epochs=1).fit(rows["X"], rows["y"], groups=change(rows))


def test_misuse_is_one_clear_error(rows):
    X, y, g, h = rows["X"], rows["y"], rows["g"], rows["h"]
    with pytest.raises(UsageError, match="loss 'nll' is of one factor"):
        RENN(epochs=1, loss="nll").fit(X, y, groups={"g": g, "h": h})
    with pytest.raises(UsageError, match="no random effects: give one factor or none"):
        RENN(epochs=1, loss="no_re").fit(X, y, groups={"g": g, "h": h})
    with pytest.raises(UsageError, match=r"1200 rows \(g\), 1199 rows \(h\)"):
        RENN(epochs=1).fit(X, y, groups={"g": g, "h": h[1:]})
    with pytest.raises(UsageError, match="hold no factor"):
        RENN(epochs=1).fit(X, y, groups={})
    head = RENN(epochs=0).fit(X, y, groups={"g": g, "h": h})
    with pytest.raises(UsageError, match="terms are g, k; at fit they were g, h"):
        head.predict(X, {"g": g, "k": h})
    with pytest.raises(UsageError, match="name one of g, h"):
        head.effects()
    with pytest.raises(UsageError, match="give labels, not Spatial"):
        head.predict(X, {"g": g, "h": Spatial(rows["xy"])})
    with pytest.raises(AttributeError, match="several terms"):
        _ = head.blup_
    with pytest.raises(UsageError, match="at fit there was one factor"):
        RENN(epochs=0).fit(X, y, groups=g).predict(X, {"g": g, "h": h})


def test_few_levels_and_an_unfinished_search_are_said(rows, monkeypatch):
    given = {"g": rows["g"], "h": rows["h"] % 3}
    assert any("h has 3 levels" in note for note in RENN(epochs=0).fit(rows["X"], rows["y"], groups=given).notes_)
    monkeypatch.setattr("histostore.heads.mixed.system.Model.search", lambda self, start: (start + 0.1, False))
    assert any("did not converge" in note for note in RENN(epochs=0).fit(rows["X"], rows["y"], groups=given).notes_)


def test_a_factor_that_explains_nothing_has_variance_zero_and_that_is_said(rows):
    rng = np.random.default_rng(1)
    nothing = np.tile(np.arange(12), 100)
    y = rng.normal(size=1200)
    y -= np.bincount(nothing, y)[nothing] / 100
    y += rng.normal(size=30)[rows["g"]]
    head = RENN(epochs=0).fit(rows["X"], y, groups={"g": rows["g"], "none": nothing})
    assert head.components()["none"]["variance"] == 0
    assert any("between none is estimated as 0" in note for note in head.notes_)
