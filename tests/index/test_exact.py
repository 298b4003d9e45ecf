"""Exact search: the answers of brute force, whatever the blocks, the metric, the type or the ties."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from histostore.errors import DataError, SpecMismatchError, UsageError
from histostore.index.exact import ExactIndex, search_blocks
from histostore.index.products import TorchProducts
from histostore.index.topk import TopK
from histostore.index.vectors import Joined, Picked, usable_norms

METRICS = ["cosine", "ip", "l2"]


def brute(q: np.ndarray, x: np.ndarray, k: int, metric: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Ten lines of float64, ties as float32: row numbers by (distance, row), -1 where there are too few."""
    q, x = q.astype(np.float64), x.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "cosine":
            d = 1 - (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
        else:
            d = -q @ x.T if metric == "ip" else ((q[:, None] - x[None]) ** 2).sum(axis=2)
    d = np.where(np.isfinite(d), d.round(12), np.inf).astype(np.float32)
    if rows is not None:
        d[:, np.setdiff1d(np.arange(len(x)), rows)] = np.inf
    order = np.argsort(d, axis=1, kind="stable")[:, :k]
    found = np.where(np.isfinite(np.take_along_axis(d, order, axis=1)), order, -1)
    return np.pad(found, ((0, 0), (0, max(0, k - found.shape[1]))), constant_values=-1)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """6,000 rows sorted by cluster, as slides are: late blocks hold what a query wants most."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.standard_normal((6, 32)), 1000, axis=0)
    return (centres + 0.3 * rng.standard_normal((6000, 32))).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("k", [1, 10, 700])
def test_answers_equal_brute_force(x: np.ndarray, metric: str, dtype: str, k: int) -> None:
    values = x.astype(dtype)
    q = x[::500] + 0.1
    rows, distance = ExactIndex(values, metric=metric).search(q, k)
    assert (rows == brute(q, values, k, metric)).all()
    assert (np.diff(distance, axis=1) >= 0).all()


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_ids_equal_those_of_faiss(x: np.ndarray, metric: str) -> None:
    peer = faiss.IndexFlatIP(32) if metric == "ip" else faiss.IndexFlatL2(32)
    peer.add(x)
    q = x[::30] + 0.05
    value, ids = peer.search(q, 10)
    rows, distance = ExactIndex(x, metric=metric).search(q, 10)
    assert (rows == ids).mean() > 0.999  # the rest are ties within float32
    assert np.allclose(distance, -value if metric == "ip" else value, rtol=1e-4, atol=1e-4)


def test_blocks_and_memory_do_not_change_a_bit(x: np.ndarray, tmp_path) -> None:
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    q = x[::100]
    rows, distance = ExactIndex(mapped).search(q, 12)
    for size in (7, 1000, 6000):
        blocks = ((np.arange(s, min(s + size, 6000)), x[s : s + size]) for s in range(0, 6000, size))
        again, measured = search_blocks(q, blocks, 12)
        assert (again == rows).all()
        assert (measured == distance).all()
    one = [ExactIndex(x).search(q[i], 12) for i in range(0, len(q), 20)]
    assert all((r[0] == rows[i * 20]).all() and (d[0] == distance[i * 20]).all() for i, (r, d) in enumerate(one))


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_come_by_lowest_row(x: np.ndarray, metric: str) -> None:
    same = np.tile(x[:3], (2000, 1))
    rows, _ = ExactIndex(same, metric=metric).search(x[:1], 5)
    first = int(rows[0, 0])
    assert rows[0].tolist() == [first + 3 * i for i in range(5)]
    backwards = ((np.arange(s, s + 500)[::-1], same[s : s + 500][::-1]) for s in range(5500, -1, -500))
    assert (search_blocks(x[:1], backwards, 5, metric=metric)[0] == rows).all()


def test_rows_that_cannot_be_placed_are_never_found(x: np.ndarray) -> None:
    values = x[:50].copy()
    values[3, 0], values[4, 1], values[5] = np.nan, np.inf, 0
    for metric in METRICS:
        rows, distance = ExactIndex(values, metric=metric).search(x[3:6], 60)
        lost = {3, 4, 5} if metric == "cosine" else {3, 4}
        assert all(set(r) == (set(range(50)) - lost) | {-1} for r in rows.tolist())
        assert np.isinf(distance[:, -3 if metric == "cosine" else -2 :]).all()


def test_a_row_of_huge_length_does_not_hide_others(x: np.ndarray) -> None:
    values = x[:3000].copy()
    values[17] *= 1e4
    for metric in METRICS:
        assert (ExactIndex(values, metric=metric).search(x[:5], 10)[0] == brute(x[:5], values, 10, metric)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_torch_products_give_the_same_answers(x: np.ndarray, metric: str) -> None:
    """The code that runs on CUDA, on torch's CPU device: candidates may differ by rounding, answers not by a bit."""
    q = x[::200].copy()
    if metric == "cosine":
        q /= np.linalg.norm(q, axis=1, keepdims=True)
    top = TopK(q, 10, metric, TorchProducts(q, metric, "cpu"), take=lambda rows: x[rows])
    for start in range(0, 6000, 1500):
        part = x[start : start + 1500]
        top.add(np.arange(start, start + 1500), part, usable_norms(part, metric))
    rows, distance = top.result()
    expected, measured = ExactIndex(x, metric=metric).search(q, 10)
    assert (rows == expected).all()
    assert np.allclose(distance, measured, rtol=0, atol=1e-6)


def test_joined_and_picked_read_like_one_array(x: np.ndarray) -> None:
    joined = Joined([x[:10], Picked(x, np.arange(10, 30)), x[30:40]])
    assert joined.shape == (40, 32)
    assert (joined[5:35] == x[5:35]).all()
    assert (joined[np.array([39, 2, 12])] == x[[39, 2, 12]]).all()


def test_bad_calls_say_what_is_wrong(x: np.ndarray) -> None:
    index = ExactIndex(x)
    with pytest.raises(SpecMismatchError, match="16 features, the embeddings 32"):
        index.search(x[:1, :16], 3)
    with pytest.raises(UsageError, match="k is 0"):
        index.search(x[:1], 0)
    with pytest.raises(DataError, match="not finite"):
        index.search(np.full((1, 32), np.nan), 3)
    with pytest.raises(DataError, match="all zero"):
        index.search(np.zeros((1, 32)), 3)
    with pytest.raises(UsageError, match="metric is 'dot'"):
        ExactIndex(x, metric="dot")
    with pytest.raises(UsageError, match="the mask has shape"):
        index.search(x[:1], 3, rows=np.ones(5, dtype=bool))
    with pytest.raises(UsageError, match="do not all lie in 0-5999"):
        index.search(x[:1], 3, rows=np.array([1, 6000]))
    assert index.search(np.zeros((0, 32), dtype=np.float32), 3)[0].shape == (0, 3)


def test_cuda_without_a_device_is_refused(x: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        assert (ExactIndex(x, device="cuda").search(x[:50], 5)[0] == ExactIndex(x).search(x[:50], 5)[0]).all()
        return
    with pytest.raises(UsageError, match="torch sees no CUDA device"):
        ExactIndex(x, device="cuda").search(x[:1], 5)
    assert (ExactIndex(x, device="auto").search(x[:9], 5)[0] == ExactIndex(x).search(x[:9], 5)[0]).all()
