from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.decomposition import NMF as SklearnNMF

from histostore.errors import DataError, UsageError
from histostore.heads.convergence import NotConvergedWarning
from histostore.heads.lowrank import leading_svd
from histostore.heads.nmf import NMF


def data(n=120, g=60, k=4, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.gamma(0.4, size=(n, k)) @ rng.gamma(0.4, size=(k, g)) + 0.1 * rng.random((n, g))).astype(np.float32)


def test_its_error_is_that_of_coordinate_descent():
    Y = data() + np.random.default_rng(1).random((120, 60)).astype(np.float32)
    ours = NMF(4).fit(Y)
    theirs = SklearnNMF(4, init="nndsvda", max_iter=2000).fit(Y)
    assert ours.error_ <= 1.001 * theirs.reconstruction_err_ / np.linalg.norm(Y)
    np.testing.assert_allclose(ours.error_, np.linalg.norm(Y - ours.reconstruct(Y)) / np.linalg.norm(Y), rtol=1e-3)


def test_projection_is_non_negative_least_squares():
    Y = data()
    decoder = NMF(4).fit(Y[:80])
    H = decoder.components_.astype(np.float64)
    expected = np.array([nnls(H.T, row)[0] for row in Y[80:].astype(np.float64)])
    np.testing.assert_allclose(decoder.encode(Y[80:]), expected, rtol=1e-3, atol=1e-4)


def test_nothing_is_below_zero_and_predicted_factors_are_clipped():
    decoder = NMF(4).fit(data())
    assert decoder.components_.min() >= 0
    assert decoder.encode(data(seed=1)).min() >= 0
    out = decoder.decode(np.array([[-1.0, 2.0, -3.0, 0.0], [0.0, 2.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(out[0], out[1])


def test_programs_have_unit_length_and_come_by_what_they_carry():
    Y = data()
    decoder = NMF(4).fit(Y)
    np.testing.assert_allclose(np.linalg.norm(decoder.components_, axis=1), 1, rtol=1e-5)
    carried = decoder.encode(Y).sum(0)
    assert (np.diff(carried) <= 1e-2 * carried[0]).all()


def test_programs_are_named_by_their_marking_genes():
    rng = np.random.default_rng(0)
    H = np.zeros((2, 9))
    H[0, :4], H[1, 4:8] = 1, 1
    H[:, 8] = 3  # abundant everywhere, marks nothing
    programs = (
        NMF(2).fit((rng.gamma(1.0, size=(60, 2)) @ H).astype(np.float32)).programs([f"G{i}" for i in range(9)], 4)
    )
    assert {frozenset(p.genes) for p in programs} == {frozenset(f"G{i}" for i in r) for r in (range(4), range(4, 8))}
    assert programs[0].name.startswith("NMF1 (G")
    assert min(programs[0].specificity) > 0.9
    with pytest.raises(UsageError, match="8 names for 9 targets"):
        NMF(2).fit(data(g=9)).programs([f"G{i}" for i in range(8)])


def test_negative_targets_are_refused_in_training_and_in_projection():
    Y = data()
    spoilt = Y.copy()
    spoilt[[3, 5], 2] = -0.5
    with pytest.raises(DataError, match=r"2 of 120 rows of targets are negative \(least -0.5\)"):
        NMF(4).fit(spoilt)
    with pytest.raises(DataError, match="negative"):
        NMF(4).fit(Y).encode(spoilt)


def test_empty_rows_constant_genes_and_silent_genes_do_no_harm():
    Y = data()
    Y[:, 3], Y[:, 4] = 0, 2
    Y[7] = 0
    decoder = NMF(4).fit(Y)
    np.testing.assert_array_equal(decoder.encode(Y)[7], 0)
    out = decoder.reconstruct(Y)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:, 3], 0, atol=1e-3)
    with pytest.raises(UsageError, match="all targets are zero"):
        NMF(2).fit(np.zeros((5, 4)))


def test_more_programs_than_there_is_rank_stay_finite():
    Y = np.outer(np.arange(1, 11), np.arange(1, 8)).astype(np.float32)
    decoder = NMF(3).fit(Y)
    np.testing.assert_allclose(decoder.reconstruct(Y), Y, rtol=1e-3, atol=1e-2)


def test_an_iteration_that_is_cut_short_says_so():
    with pytest.warns(NotConvergedWarning, match="NMF did not converge within 2 iterations"):
        decoder = NMF(4, max_iter=2, tol=0).fit(data())
    assert decoder.notes_
    assert not NMF(4).fit(data()).notes_


def test_the_leading_triplets_of_a_large_matrix_are_those_of_its_svd(monkeypatch):
    Y = (data(n=90, g=70, k=5) - 1).astype(np.float32)
    exact = leading_svd(Y, 4)
    monkeypatch.setattr("histostore.heads.lowrank.EXACT", 10)
    for a, b in zip(leading_svd(Y, 4), exact, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    np.testing.assert_allclose(exact[1], np.linalg.svd(Y, compute_uv=False)[:4], rtol=1e-4)
