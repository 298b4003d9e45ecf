"""Filters: brute force over the rows that pass, and never fewer than k where k pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histostore.index.ann import AnnIndex
from histostore.index.build import build
from histostore.index.exact import ExactIndex
from histostore.index.filters import effort_under
from histostore.index.spec import IndexSpec

N, D = 3000, 16


def rows_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, D)).astype(np.float32)
    x[rng.integers(0, N, 300)] = x[rng.integers(0, N, 300)]  # duplicates: ties must break by row
    return x


X = rows_of(0)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    share=st.sampled_from([0.0005, 0.01, 0.2, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 2**31),
    k=st.sampled_from([1, 5, 20]),
    metric=st.sampled_from(["cosine", "ip", "l2"]),
    as_mask=st.booleans(),
)
def test_exact_answers_equal_brute_force_over_the_rows_that_pass(
    share: float, seed: int, k: int, metric: str, as_mask: bool
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(N) < share
    rows = np.flatnonzero(mask)
    q = X[rng.integers(0, N, 1)]
    found, distance = ExactIndex(X, metric=metric).search(q, k, rows=mask if as_mask else rows)
    part = X[rows].astype(np.float64)
    one = q[0].astype(np.float64)
    if metric == "cosine":
        true = 1 - part @ one / np.linalg.norm(part, axis=1) / np.linalg.norm(one)
    else:
        true = -part @ one if metric == "ip" else ((part - one) ** 2).sum(axis=1)
    want = min(k, len(rows))
    order = rows[np.lexsort((rows, true.round(12).astype(np.float32)))][:want]
    assert (found[0, :want] == order).all()
    assert (found[0, want:] == -1).all()
    assert np.allclose(distance[0, :want], np.sort(true)[:want], atol=1e-4)


@pytest.fixture(scope="module", params=["ivf-flat", "ivf-sq8", "hnsw"])
def ann(request: pytest.FixtureRequest) -> AnnIndex:
    built = build(X, IndexSpec(kind=request.param, nlist=40, recall=0.8), device="cpu")
    assert isinstance(built.index, AnnIndex)
    return built.index


@pytest.mark.parametrize("with_vectors", [True, False])
def test_approximate_kinds_never_return_fewer_than_k(ann: AnnIndex, with_vectors: bool) -> None:
    index = AnnIndex(ann.index, ann.tuning, vectors=X if with_vectors else None, device="cpu")
    rng = np.random.default_rng(1)
    for share in (0.001, 0.01, 0.1, 0.5, 0.9):
        for k in (1, 10, 100):
            mask = rng.random(N) < share
            found, distance = index.search(X[:7], k, rows=mask)
            want = min(k, int(mask.sum()))
            assert ((found >= 0).sum(axis=1) == want).all()
            assert mask[found[found >= 0]].all()
            assert all(len(set(r[r >= 0])) == want for r in found)
            assert (np.diff(distance[:, :want], axis=1) >= 0).all()


def test_small_filters_are_answered_exactly(ann: AnnIndex) -> None:
    mask = np.random.default_rng(2).random(N) < 0.02
    found, _ = ann.search(X[:50], 10, rows=mask)
    assert (found == ExactIndex(X).search(X[:50], 10, rows=mask)[0]).all()


def test_large_filters_keep_the_recall(ann: AnnIndex) -> None:
    mask = np.random.default_rng(3).random(N) < 0.3
    found, _ = ann.search(X[:200], 10, rows=mask)
    true, _ = ExactIndex(X).search(X[:200], 10, rows=mask)
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, true, strict=True)])
    assert recall > 0.75


def test_a_filter_that_nothing_passes_finds_nothing(ann: AnnIndex) -> None:
    found, distance = ann.search(X[:3], 4, rows=np.zeros(N, dtype=bool))
    assert (found == -1).all()
    assert np.isinf(distance).all()


def test_effort_grows_as_fewer_pass_and_ends_at_all() -> None:
    assert [effort_under(4, s, 1000) for s in (1.0, 0.5, 0.01, 0.0001)] == [4, 8, 400, 1000]
