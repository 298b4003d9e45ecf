"""Two backbones on the same tiles: how much they agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import histostore as hs
from histostore.errors import AlignmentError, DataError, UsageError
from histostore.index.drift import compare, linear_cka

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
X = RNG.standard_normal((800, 16)).astype(np.float32)


def test_a_rotation_and_a_scale_are_no_drift() -> None:
    turn = np.linalg.qr(RNG.standard_normal((16, 16)))[0]
    drift = compare(X, (3 * X @ turn).astype(np.float32), k=10, queries=200)
    assert drift.overlap > 0.99
    assert drift.cka == pytest.approx(1, abs=1e-6)
    assert (drift.rows, drift.queries, drift.left_out) == (800, 200, 0)


def test_unrelated_embeddings_share_as_many_neighbours_as_chance() -> None:
    drift = compare(X, RNG.standard_normal((800, 24)), k=10)
    assert drift.overlap == pytest.approx(10 / 799, abs=0.01)
    assert drift.cka < 0.1


def test_cka_equals_the_kernel_form() -> None:
    y = np.tanh(X[:, :9]).astype(np.float32)
    centre = np.eye(800) - 1 / 800
    k, m = (centre @ (v.astype(float) @ v.T.astype(float)) @ centre for v in (X, y))
    assert linear_cka(X, y) == pytest.approx((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m), rel=1e-9)


def test_rows_missing_in_either_are_left_out_and_counted() -> None:
    a, b = X.copy(), X.copy()
    a[3], b[4] = np.nan, np.nan
    drift = compare(a, b, queries=50)
    assert (drift.rows, drift.left_out) == (798, 2)
    assert drift.overlap == 1


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(AlignmentError, match="800 rows and the other 799"):
        compare(X, X[1:])
    with pytest.raises(DataError, match="0 of 800 rows"):
        compare(np.full_like(X, np.nan), X)
    with pytest.raises(DataError, match="constant"):
        compare(np.ones_like(X), X)


def test_a_backbone_beside_itself_is_refused(embedded: Path) -> None:
    with pytest.raises(UsageError, match="the same embeddings: name two"):
        hs.tl.drift(hs.open(embedded), "testing", "spots/testing")
