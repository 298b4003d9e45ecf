"""Embeddings never all in memory, from a store to a kept head. At 2,000,000 rows: benchmarks/out_of_core.py."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from benchmarks.out_of_core import BACKBONE, write_store
from histostore.embedding_rows import RELEASE_BYTES
from histostore.errors import UsageError
from histostore.head_specs import HeadSpec, PanelSpec, SplitSpec
from histostore.heads.evaluate import cross_validate
from histostore.heads.rows import RowSource
from histostore.stages.fit import fit
from histostore.stages.training_data import training_data
from histostore.view import view

SLIDES, ROWS, DIM = 4, 8_000, 256
N = SLIDES * ROWS


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("large") / "store", slides=SLIDES, rows=ROWS, dim=DIM, genes=4)


def spec(head="ridge", rule="leave-one-out:patient", **options):
    return HeadSpec(
        head=head, options=tuple(sorted(options.items())), panel=PanelSpec.parse("top-mean:4"),
        split=SplitSpec.parse(rule),
    )  # fmt: skip


def test_ridge_streamed_from_the_store_is_ridge_in_memory(store):
    asked = spec(alphas=(10.0, 1e3, 1e5))
    one = fit(store, asked, backbone=BACKBONE, in_memory=0, save_as="streamed")
    other = fit(store, asked, backbone=BACKBONE, save_as="held")
    assert isinstance(one.data.X, RowSource)
    assert isinstance(other.data.X, np.ndarray)
    for a, b in zip(one.evaluation.folds, other.evaluation.folds, strict=True):
        assert a.chosen["alpha"] == b.chosen["alpha"]
        np.testing.assert_allclose(a.predictions["image"], b.predictions["image"], rtol=1e-5, atol=1e-6)
    assert one.evaluation.score() == pytest.approx(other.evaluation.score(), rel=1e-6)
    assert one.evaluation.score() > 0.3
    np.testing.assert_allclose(one.head.estimator.coef_, other.head.estimator.coef_, rtol=1e-6, atol=1e-12)


def peak_of(run):
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_no_array_of_all_rows_is_made(store):
    asked, whole = spec(rule="group-kfold:2:patient", alphas=10.0), 4 * N * DIM
    peaks = []
    for limit in (0, None):
        data = training_data(store, asked, backbone=BACKBONE, in_memory=limit)
        peaks.append(peak_of(lambda data=data: cross_validate(asked, **data.arrays(asked))))
    print(f"{peaks[0] / 2**20:.0f} and {peaks[1] / 2**20:.0f} MiB; float32 embeddings are {whole / 2**20:.0f}")
    # blocks, sums, positions, and held-out truth and predictions, which are 16 bytes a row and gene
    assert peaks[0] < 0.9 * whole < peaks[1]


def test_an_mlp_is_trained_from_the_store_block_by_block(store):
    asked = spec("mlp", "group-kfold:2:patient", hidden=8, max_epochs=1, batch=256)
    with pytest.warns(UserWarning, match="converge"):
        result = fit(store, asked, backbone=BACKBONE, in_memory=0)
    assert isinstance(result.data.X, RowSource)
    assert result.evaluation.score() > 0.3


def test_what_cannot_stream_is_refused_with_its_size_and_what_can(store):
    with pytest.raises(
        UsageError, match=r"32,000 x 256 take 31 MiB and the limit is 1 .*mean, mlp, .*ridge.*stream"
    ) as error:
        fit(store, spec("pls"), backbone=BACKBONE, in_memory=1 << 20)
    assert "\n" not in str(error.value)


def test_a_view_is_read_by_rows_and_gives_its_pages_back(store):
    rows = view(store, backbone=BACKBONE).where("slide != 'S02'")
    source, whole = rows.lazy(), rows.numpy()
    assert source.shape == (N - ROWS, DIM)
    rng = np.random.default_rng(0)
    some = rng.integers(0, len(source), size=5000)
    np.testing.assert_array_equal(source[some], whole[some])
    np.testing.assert_array_equal(source[ROWS - 7 : ROWS + 9], whole[ROWS - 7 : ROWS + 9])
    assert source[10:10].shape == (0, DIM)
    with pytest.raises(IndexError, match="of a view of 24000"):
        source[np.array([24_000])]
    for _ in range(2 + RELEASE_BYTES // whole.nbytes):
        np.testing.assert_array_equal(source[:][-3:], whole[-3:])
