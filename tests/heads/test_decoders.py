from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from histostore.errors import DataError, NotFoundError, SpecMismatchError, UsageError
from histostore.heads.autoencoder import Autoencoder
from histostore.heads.convergence import NotConvergedWarning
from histostore.heads.decoders import PCA, parse_decoder
from histostore.heads.nmf import NMF

MAKE = {
    "nmf": lambda: NMF(3),
    "pca": lambda: PCA(3),
    "autoencoder": lambda: Autoencoder((8, 3), lr=1e-3),
    "plain autoencoder": lambda: Autoencoder((16, 3), linear=False, lr=1e-2, max_epochs=500),
}


def counts_like(n=80, g=30, k=3, seed=0, noise=0.05):
    """Return targets of a few non-negative programs."""
    rng = np.random.default_rng(seed)
    H = rng.gamma(0.5, size=(k, g))
    return (rng.gamma(1.0, size=(n, k)) @ H + noise * rng.random((n, g))).astype(np.float32)


@pytest.fixture(params=list(MAKE))
def fitted(request):
    return MAKE[request.param]().fit(counts_like())


def test_factors_and_targets_have_their_shapes(fitted):
    Y = counts_like()
    factors = fitted.encode(Y)
    assert (factors.shape, factors.dtype) == ((80, 3), np.float32)
    out = fitted.decode(factors)
    assert (out.shape, out.dtype) == ((80, 30), np.float32)
    assert fitted.decode(factors[:0]).shape == (0, 30)
    np.testing.assert_array_equal(fitted.reconstruct(Y), out)


def test_three_programs_are_rebuilt_by_three_factors(fitted):
    Y = counts_like()
    left = np.mean((fitted.reconstruct(Y) - Y) ** 2) / np.mean((Y - Y.mean(0)) ** 2)
    assert left < (0.15 if isinstance(fitted, Autoencoder) else 0.01)


def test_new_rows_are_encoded_in_the_basis_of_the_training_rows(fitted):
    """Never refitted on test: each new row's factors are the same whichever rows come with it."""
    before = fitted.to_state()[0]
    new = counts_like(seed=0, n=120)[80:]
    together = fitted.encode(new)
    alone = np.concatenate([fitted.encode(new[i : i + 1]) for i in range(len(new))])
    np.testing.assert_allclose(alone, together, rtol=1e-3, atol=1e-4)
    shifted = fitted.encode(np.concatenate((new, 50 * new)))[: len(new)]
    np.testing.assert_allclose(shifted, together, rtol=1e-3, atol=1e-4)
    after = fitted.to_state()[0]
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_one_row_at_a_time_is_decoded_as_among_others(fitted):
    factors = fitted.encode(counts_like())
    alone = np.concatenate([fitted.decode(factors[i : i + 1]) for i in range(len(factors))])
    np.testing.assert_allclose(alone, fitted.decode(factors), rtol=1e-4, atol=1e-4)
    factors[2] = np.nan
    out = fitted.decode(factors)
    assert np.isnan(out[2]).all()
    assert np.isfinite(np.delete(out, 2, axis=0)).all()


def test_state_survives_safetensors_and_json(fitted):
    arrays, meta = fitted.to_state()
    kept = load(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    again = type(fitted).from_state(kept, json.loads(json.dumps(meta, allow_nan=False)))
    Y = counts_like(seed=0)
    np.testing.assert_array_equal(again.reconstruct(Y), fitted.reconstruct(Y))
    assert again.to_state()[1] == meta


@pytest.mark.parametrize("name", list(MAKE))
def test_the_order_of_training_rows_does_not_matter(name):
    Y = counts_like()
    order = np.random.default_rng(1).permutation(len(Y))
    a, b = MAKE[name]().fit(Y), MAKE[name]().fit(Y[order])
    np.testing.assert_allclose(a.encode(Y), b.encode(Y), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", list(MAKE))
def test_misuse_is_one_clear_error(name):
    Y = counts_like()
    with pytest.raises(UsageError, match="not fitted"):
        MAKE[name]().encode(Y)
    with pytest.raises(UsageError, match="3 factors of 2 rows"):
        MAKE[name]().fit(Y[:2])
    with pytest.raises(DataError, match="1 of 80 rows"):
        MAKE[name]().fit(np.where(np.arange(80)[:, None] == 4, np.nan, Y))
    fitted = MAKE[name]().fit(Y)
    with pytest.raises(SpecMismatchError, match="29 targets"):
        fitted.encode(Y[:, 1:])
    with pytest.raises(SpecMismatchError, match="2 factors"):
        fitted.decode(np.zeros((4, 2)))


def test_a_text_means_a_decoder():
    assert parse_decoder("nmf:7", seed=2).get_params()["k"] == 7
    assert parse_decoder("pca").get_params()["k"] == 10
    assert parse_decoder("autoencoder:32x4").get_params()["sizes"] == (32, 4)
    with pytest.raises(NotFoundError, match=r"did you mean 'nmf'"):
        parse_decoder("nfm:3")
    for wrong in ("nmf:0", "nmf:x", "pca:3x4"):
        with pytest.raises(UsageError, match="give it as"):
            parse_decoder(wrong)


def test_pca_is_the_best_plane():
    Y = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    out = PCA(4).fit(Y).reconstruct(Y)
    u, s, v = np.linalg.svd(Y - Y.mean(0), full_matrices=False)
    np.testing.assert_allclose(out, (u[:, :4] * s[:4]) @ v[:4] + Y.mean(0), atol=1e-4)
    np.testing.assert_allclose(PCA(4).fit(Y).explained_, s[:4] ** 2 / np.sum(s**2), rtol=1e-4)


def test_an_autoencoder_that_is_cut_short_says_so():
    with pytest.warns(NotConvergedWarning, match="2 epochs"):
        short = Autoencoder((4, 2), max_epochs=2).fit(counts_like())
    assert "did not converge" in short.notes_[0]


def test_an_autoencoder_stops_by_whole_groups():
    Y = counts_like(n=90)
    groups = np.repeat(["a", "b", "c"], 30)
    head = Autoencoder((8, 3), lr=1e-3).fit(Y, groups=groups)
    assert len(head.history_["validation"]) > head.history_["best_epoch"]
    with pytest.raises(UsageError, match="groups has shape"):
        Autoencoder((8, 3)).fit(Y, groups=groups[:5])
