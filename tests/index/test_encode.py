"""Codes of rows: the same bytes whatever the threads and whoever makes them, and what FAISS's own add would keep."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from histostore.errors import DataError
from histostore.index.build import build, new_index
from histostore.index.encode import add_codes, encode, encode_here, engine, from_bytes, to_bytes, width_of
from histostore.index.spec import IndexSpec

CELLS, DIM = 203, 64  # of shapes for which FAISS's distances differ in their last bits between one thread and two


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((9000, DIM)).astype(np.float16)


@pytest.fixture(scope="module", params=["ivf-flat", "ivf-sq8", "ivf-pq"])
def trained(request: pytest.FixtureRequest, x: np.ndarray) -> bytes:
    index = new_index(request.param, DIM, CELLS, IndexSpec())
    index.cp.niter, index.cp.min_points_per_centroid = 2, 1
    if request.param == "ivf-pq":
        index.pq.cp.niter, index.pq.cp.min_points_per_centroid = 2, 1
    index.train(x[:4000].astype(np.float32))
    return to_bytes(index)


def test_codes_do_not_depend_on_threads_or_on_whose_copy_of_the_index_makes_them(trained: bytes, x: np.ndarray) -> None:
    before, found, engines = faiss.omp_get_max_threads(), [], []
    try:
        for threads in (1, 2, 3):
            faiss.omp_set_num_threads(threads)
            index = from_bytes(trained)
            found.append(encode(index, x, "l2").tobytes())
            engines.append(engine(index))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert found[0] == found[1] == found[2]
    assert engines[0] == engines[1] == engines[2]
    assert len(found[0]) == len(x) * width_of(index)
    assert to_bytes(index) == trained


def test_rows_added_by_their_codes_lie_as_faiss_would_have_laid_them(
    trained: bytes, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histostore.index.encode.BLOCK_ROWS", 5000)
    rows = np.flatnonzero(np.arange(len(x)) % 7)
    ours, theirs = from_bytes(trained), from_bytes(trained)
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)
        for codes in encode_here(x)(ours, "l2", rows):
            add_codes(ours, codes)
        theirs.add(x[rows].astype(np.float32))
    finally:
        faiss.omp_set_num_threads(before)
    assert ours.ntotal == len(rows)
    lists = [faiss.extract_index_ivf(i).invlists for i in (ours, theirs)]
    for cell in range(CELLS):
        of = [faiss.rev_swig_ptr(own.get_ids(cell), own.list_size(cell)).tolist() for own in lists]
        assert of[0] == of[1]
    assert to_bytes(ours) == to_bytes(theirs)


def test_machines_that_keep_other_centroids_or_round_otherwise_are_told_apart(trained: bytes) -> None:
    index = from_bytes(trained)
    centroids = index.quantizer.reconstruct_n(0, CELLS)
    index.quantizer.reset()
    centroids[:] = np.nextafter(centroids, np.float32(9))  # by one bit each
    index.quantizer.add(centroids)
    mine, other = engine(from_bytes(trained)), engine(index)
    assert mine["faiss"] == other["faiss"] == faiss.__version__
    assert mine["rounding"] != other["rounding"]


def test_too_few_rows_for_codebooks_are_one_clear_error(x: np.ndarray) -> None:
    with pytest.raises(DataError, match="learns 256 codewords, and there are 100 rows"):
        build(x[:100], IndexSpec(kind="ivf-pq"), device="cpu")
