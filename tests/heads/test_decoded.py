from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from histostore.errors import DataError, UsageError
from histostore.head_specs import HeadSpec, PanelSpec, SplitSpec
from histostore.heads.autoencoder import Autoencoder
from histostore.heads.decoded import Decoded
from histostore.heads.decoders import PCA
from histostore.heads.evaluate import IMAGE, MEAN, cross_validate
from histostore.heads.nmf import NMF
from histostore.heads.registry import make
from histostore.heads.ridge import Ridge
from histostore.testing.head_contract import HeadContract


class Decodes(HeadContract):
    def data(self, n=60, seed=0):
        X, y, groups = super().data(n, seed)
        return X, np.maximum(y, 0), groups


class TestPCAContract(Decodes):
    def make(self):
        return Decoded("ridge", "pca:1")


class TestNMFContract(Decodes):
    def make(self):
        return Decoded(Ridge(alphas=(1.0, 10.0)), NMF(1))


class TestAutoencoderContract(Decodes):
    def make(self):
        return Decoded("ridge", Autoencoder((4, 1), noise=0.0, lr=1e-3, max_epochs=1000))


def cohort(seed=0, n=150, genes=40):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 8)).astype(np.float32)
    H = rng.gamma(0.5, size=(2, genes))
    Y = np.exp(0.7 * X[:, :2]) @ H + 0.5 * rng.random((n, genes))
    return X, Y.astype(np.float32), np.repeat(["a", "b", "c"], n // 3)


@pytest.mark.parametrize("decoder", ["nmf:2", "pca:2", "autoencoder:8x2"])
def test_a_pipeline_equals_its_parts(decoder):
    X, Y, groups = cohort()
    head = Decoded("ridge", decoder).fit(X, Y, groups=groups)
    by_hand = Ridge().fit(X, head.decoder_.encode(Y), groups=groups)
    np.testing.assert_array_equal(head.predict(X), head.decoder_.decode(by_hand.predict(X)))
    assert head.alpha_ == by_hand.alpha_
    np.testing.assert_array_equal(head.predict_factors(X), by_hand.predict(X))


def test_test_rows_have_no_say_in_the_basis():
    X, Y, groups = cohort()
    head = Decoded("ridge", "nmf:2").fit(X[:100], Y[:100], groups=groups[:100])
    before = head.decoder_.components_.copy()
    head.predict(X[100:])
    head.decoder_.reconstruct(10 * Y[100:])
    np.testing.assert_array_equal(head.decoder_.components_, before)


def test_what_is_given_is_cloned_and_never_fitted():
    X, Y, groups = cohort()
    ridge, decoder = Ridge(alphas=3.0), PCA(2)
    head = Decoded(ridge, decoder).fit(X, Y, groups=groups)
    assert not hasattr(ridge, "coef_")
    assert not hasattr(decoder, "mean_")
    assert not head.tunes
    assert Decoded("ridge", "autoencoder:4x2").tunes


def test_options_reach_the_regressor_and_pass_through_json():
    X, Y, groups = cohort()
    head = make("decoded", [("decoder", "pca:2"), ("options", [["alphas", [1.0, 100.0]]])], seed=3)
    assert head.fit(X, Y, groups=groups).alphas == (1.0, 100.0)
    assert head.get_params()["seed"] == 3
    with pytest.raises(UsageError, match="no option 'alpha'"):
        Decoded(options=(("alpha", 3),)).fit(X, Y)


def test_scikit_learn_clones_it():
    head = Decoded("ridge", "nmf:4", options=(("alphas", 10.0),))
    assert clone(head).get_params() == head.get_params()


def test_negative_targets_are_refused_for_nmf():
    X, Y, groups = cohort()
    with pytest.raises(DataError, match="negative"):
        Decoded("ridge", "nmf:2").fit(X, Y - 1, groups=groups)


def test_it_runs_in_the_protocol_and_beats_the_mean(make_cohort):
    split = SplitSpec.parse("leave-one-out:patient")
    options = (("decoder", "nmf:4"),)
    spec = HeadSpec(head="decoded", options=options, panel=PanelSpec.parse("all:0.05"), split=split)
    out = cross_validate(spec, **make_cohort())
    assert out.score(IMAGE, "mse") < out.score(MEAN, "mse")
    assert all("alpha" in f.chosen for f in out.folds)
