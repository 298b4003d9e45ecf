from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from histostore.errors import FormatError, UsageError
from histostore.head_specs import FeatureSpec, HeadSpec, PanelSpec, SplitSpec
from histostore.heads.fitted import FittedHead, fit_final
from histostore.heads.metrics import pearson
from histostore.heads.panels import targets

SPEC = HeadSpec(
    head="ridge",
    options=(("alphas", (1.0, 100.0)), ("select", "pearson")),
    panel=PanelSpec.parse("top-variance:9"),
    split=SplitSpec.parse("leave-one-out:patient"),
    features=(
        FeatureSpec(standardise="slide", position=True),
        FeatureSpec(context_um=(200.0,), standardise="slide", position=True),
    ),
    min_counts=20,
)


@pytest.fixture(scope="module")
def data(make_cohort):
    return make_cohort()


@pytest.fixture(scope="module")
def head(data):
    return fit_final(SPEC, **data)


def test_it_predicts_slides_it_has_not_seen(head, data, make_cohort):
    new = make_cohort(seed=1)
    out = head.predict(new["X"], new["obs"])
    assert out.shape == (360, 9)
    assert out.dtype == np.float32
    genes = np.array([data["symbols"].index(g) for g in head.names])
    by_image = [i for i, g in enumerate(genes) if g < 9]
    truth = targets(new["counts"], genes, "log1p-cp10k")
    assert pearson(truth, out)[by_image].mean() > 0.3


def test_it_survives_safetensors_and_json(head, data):
    arrays, meta = head.to_state()
    again = FittedHead.from_state(load(save(arrays)), json.loads(json.dumps(meta, allow_nan=False)))
    assert again.spec == SPEC
    assert again.spec.digest == SPEC.digest
    assert (again.names, again.features, again.chosen) == (head.names, head.features, head.chosen)
    np.testing.assert_array_equal(again.predict(data["X"], data["obs"]), head.predict(data["X"], data["obs"]))


def test_an_unreadable_tile_has_no_prediction(head, data):
    X = data["X"].copy()
    X[7] = np.nan
    out = head.predict(X, data["obs"])
    assert np.isnan(out[7]).all()
    assert np.isfinite(np.delete(out, 7, 0)).all()


def test_it_refuses_what_it_was_not_trained_for(head, data):
    with pytest.raises(UsageError, match="use its backbone"):
        head.predict(data["X"][:, :-1], data["obs"])
    with pytest.raises(UsageError, match="align them by id"):
        head.predict(data["X"][:-1], data["obs"])
    with pytest.raises(UsageError, match="positions"):
        head.predict(data["X"], data["obs"].drop(columns="x_um"))
    arrays, meta = head.to_state()
    with pytest.raises(FormatError, match="version 99"):
        FittedHead.from_state(arrays, {**meta, "version": 99})


def test_one_slide_of_one_patient_is_enough_to_train_on(data):
    one = data["obs"]["slide"] == "s0"
    part = {"X": data["X"][one], "counts": data["counts"][np.flatnonzero(one)], "symbols": data["symbols"]}
    head = fit_final(SPEC, obs=data["obs"][one], **part)
    assert "stripes" in head.chosen["inner"]


@pytest.mark.parametrize("name", ["mean", "position-knn"])
def test_baselines_can_be_kept_too(data, name):
    spec = HeadSpec(head=name, panel=PanelSpec.parse("top-mean:3"), split=SPEC.split)
    head = fit_final(spec, **data)
    arrays, meta = head.to_state()
    again = FittedHead.from_state(arrays, meta)
    np.testing.assert_array_equal(again.predict(data["X"], data["obs"]), head.predict(data["X"], data["obs"]))


def test_a_spec_survives_json_with_all_that_is_inside():
    assert HeadSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
