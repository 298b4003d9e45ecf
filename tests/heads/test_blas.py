"""Small fits run on one BLAS thread, and everything else keeps those it had."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from histostore.heads.blas import SMALL, one_blas_thread, threads_for
from histostore.heads.classifier import Logistic


@pytest.fixture(autouse=True)
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        yield


def threads() -> set[int]:
    """Return the threads of numpy's and scipy's BLAS; FAISS may have loaded one whose threads are each thread's own."""
    blas = [one for one in threadpool_info() if one["user_api"] == "blas"]
    return {one["num_threads"] for one in blas if one.get("threading_layer") != "openmp"}


def test_a_small_fit_runs_on_one_thread_and_a_large_one_as_before() -> None:
    small, large = np.empty((100, 64), np.float32), np.empty((SMALL // 1000, 40), np.float32)
    assert threads() == {2}
    with threads_for(small, 50):
        assert threads() == {1}
    with threads_for(large, 50):
        assert threads() == {2}
    assert threads() == {2}


def test_threads_come_back_after_an_error_and_when_the_last_of_several_is_done() -> None:
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        raise ZeroDivisionError
    assert threads() == {2}
    with one_blas_thread():
        with ThreadPoolExecutor(1) as pool, one_blas_thread():
            assert pool.submit(threads).result() == {1}
        assert threads() == {1}
    assert threads() == {2}


def test_limits_are_heeded_in_threads_whichever_was_first_and_whichever_is_last() -> None:
    def inside() -> set[int]:
        with one_blas_thread():
            return threads()

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert inside() == {1}
        assert one.submit(inside).result() == {1}
        first, last = one_blas_thread(), one_blas_thread()
        one.submit(first.__enter__).result()
        other.submit(last.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        assert threads() == {1}
        other.submit(last.__exit__, None, None, None).result()
        assert threads() == {2}
        with threadpool_limits(1, user_api="blas"):
            assert threads() == {1}
    assert threads() == {2}


def test_a_classifier_has_the_same_bits_whatever_the_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 300)).astype(np.float32)
    labels, groups = np.where(X[:, 0] + rng.normal(size=90) > 0, "a", "b"), np.repeat(["p", "q", "r"], 30)
    found = []
    for n in (1, 2):
        with threadpool_limits(n, user_api="blas"):
            found.append(Logistic().fit(X, labels, groups=groups).predict_proba(X))
    np.testing.assert_array_equal(found[0], found[1])
