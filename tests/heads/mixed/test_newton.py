from __future__ import annotations

import numpy as np
import pytest

from histostore.heads.mixed.newton import direction, probes_of, settle
from histostore.heads.mixed.system import Model, System
from histostore.heads.mixed.terms import Intercept, Slopes, Spatial


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    n = 600
    g, h, slide = rng.integers(0, 40, n), rng.integers(0, 30, n), rng.integers(0, 2, n)
    t, xy = rng.normal(size=n), rng.integers(0, 7, (n, 2)) * 1.0
    y = rng.normal(size=40)[g] + rng.normal(size=30)[h] * (1 + t) + np.sin(xy[:, 0]) + rng.normal(size=n)
    terms = {"g": Intercept(g), "h": Intercept(h), "slopes": Slopes(h, t), "where": Spatial(xy, slide)}
    return y, terms


def model_of(rows, names, method="ml"):
    y, terms = rows
    system = System.of([terms[name].build(name) for name in names])
    return Model.of(system, np.ones((len(y), 1)), y, method)


MODELS = [("g", "h"), ("slopes", "g"), ("where",), ("where", "slopes")]


@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize("names", MODELS, ids="-".join)
def test_slopes_are_those_of_the_deviance_and_the_end_is_its_minimum(rows, names, method):
    model = model_of(rows, names, method)
    theta = model.start()
    probes = probes_of(model.system, 0, most=200)
    numeric = model._deviance_and_slope(theta)[1]
    np.testing.assert_allclose(direction(model, theta, model.at(theta), probes).slope, numeric, atol=1e-5)
    found = settle(model, theta, probes, most=30)
    best, _ = model.search(theta)
    assert found.converged
    assert not found.error.any()
    assert found.profile.deviance - model.at(best).deviance < 1e-5
    np.testing.assert_allclose(found.theta, best, atol=1e-3)


def test_estimated_traces_are_near_and_say_how_near(rows):
    model = model_of(rows, ("g", "h"))
    best, _ = model.search()
    off, said = [], []
    for seed in range(8):
        found = settle(model, model.start(), probes_of(model.system, seed, 16), most=30)
        off.append(found.theta - best)
        said.append(found.error)
    assert 0.3 < np.sqrt(np.mean(np.square(off))) / np.sqrt(np.mean(np.square(said))) < 2
    assert np.abs(off).max() < 0.03


def test_too_few_steps_are_not_called_an_end(rows):
    model = model_of(rows, ("slopes", "g"))
    assert not settle(model, model.start() + 2, probes_of(model.system, 0), most=1).converged
