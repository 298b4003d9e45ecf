"""Heads fitted on rows that are read when asked for: what they learn, and how little they hold."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from histostore.errors import DataError, UsageError
from histostore.head_specs import FeatureSpec, HeadSpec, PanelSpec, SplitSpec
from histostore.heads import rows as rows_module
from histostore.heads import shared_sums
from histostore.heads.baselines import PositionKNN, TrainingMean
from histostore.heads.evaluate import cross_validate
from histostore.heads.features import build
from histostore.heads.fitted import fit_final
from histostore.heads.mlp import MLP
from histostore.heads.net import Schedule
from histostore.heads.pls import PLS
from histostore.heads.ridge import Ridge
from histostore.heads.rows import Mapped, Picked, RowSource, block_order, blocks, pick

WIDTH, GENES = 24, 5


class Counting(RowSource):
    """Rows of an array, and how many were read."""

    def __init__(self, values):
        self.values, self.read, self.most = values, 0, 0

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return self.values.dtype

    def __getitem__(self, rows):
        found = self.values[rows].copy()
        self.read += len(found)
        self.most = max(self.most, len(found))
        return found


def problem(n=3000, slides=5, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 3))
    X = (latent @ rng.normal(size=(3, WIDTH)) + rng.normal(size=(n, WIDTH)) + 40).astype(np.float16)
    counts = rng.poisson(3 * np.exp(0.4 * latent @ rng.normal(size=(3, GENES + 3))))
    slide = np.sort(rng.integers(0, slides, size=n))
    obs = pd.DataFrame({"slide": [f"S{s}" for s in slide], "patient": [f"P{s}" for s in slide]})
    obs["x_um"], obs["y_um"] = rng.uniform(0, 2000, size=(2, n))
    return X, counts, obs, [f"g{i}" for i in range(counts.shape[1])]


PLAIN = (FeatureSpec(),)


def spec(head="ridge", *, features=PLAIN, rule="leave-one-out:patient", **options):
    return HeadSpec(
        head=head, options=tuple(sorted(options.items())), panel=PanelSpec.parse(f"top-variance:{GENES}"),
        split=SplitSpec.parse(rule), features=features,
    )  # fmt: skip


def scores(X, counts, obs, symbols, asked):
    return cross_validate(asked, X=X, counts=counts, symbols=symbols, obs=obs)


def test_ridge_on_a_source_equals_ridge_on_the_array():
    X, counts, obs, _ = problem()
    source = Counting(X)
    groups = obs["slide"].to_numpy()
    one, other = Ridge().fit(source, counts, groups=groups), Ridge().fit(X, counts, groups=groups)
    assert one.alpha_ == other.alpha_
    np.testing.assert_allclose(one.coef_, other.coef_, rtol=1e-9)
    np.testing.assert_array_equal(one.predict(source), one.predict(X))


@pytest.mark.parametrize("standardise", ["none", "slide"])
@pytest.mark.parametrize("alphas", [(10.0, 1e3, 1e5), 30.0])
def test_cross_validation_on_a_source_equals_that_on_the_array(alphas, standardise):
    X, *rest = problem()
    asked = spec(alphas=alphas, features=(FeatureSpec(standardise=standardise),))
    one, other = scores(Counting(X), *rest, asked), scores(X, *rest, asked)
    for a, b in zip(one.folds, other.folds, strict=True):
        assert a.genes == b.genes
        assert a.chosen == b.chosen or a.chosen["alpha"] == b.chosen["alpha"]
        for method in b.predictions:
            np.testing.assert_allclose(a.predictions[method], b.predictions[method], rtol=1e-5, atol=1e-5)
    pd.testing.assert_frame_equal(one.summary, other.summary, rtol=1e-5)


def test_folds_that_share_sums_are_those_that_are_fitted_one_by_one(monkeypatch):
    """Also where each fold chooses its own genes and merges its own inner folds."""
    X, *rest = problem(slides=7)
    asked = spec(alphas=(1.0, 1e2, 1e4), inner=3)
    shared = scores(X, *rest, asked)
    assert len({f.genes for f in shared.folds}) > 1
    monkeypatch.setattr(shared_sums, "SUMS_BYTES", 0)
    alone = scores(X, *rest, asked)
    for a, b in zip(shared.folds, alone.folds, strict=True):
        assert a.chosen["alpha"] == b.chosen["alpha"]
        assert a.chosen["inner_score"] == pytest.approx(b.chosen["inner_score"], rel=1e-9)
        np.testing.assert_allclose(a.predictions["image"], b.predictions["image"], rtol=1e-6, atol=1e-6)


def test_leaving_each_slide_out_reads_the_rows_three_times_and_never_many_at_once():
    """To find unreadable rows, to sum, and to predict; not once more per fold."""
    X, *rest = problem(n=40_000, slides=6)
    source = Counting(X)
    scores(source, *rest, spec(alphas=(1.0, 1e2, 1e4)))
    assert source.read == 3 * len(X)
    assert source.most <= rows_module.READ_ROWS


def test_rows_that_are_unreadable_are_left_out_of_a_source_too():
    X, *rest = problem()
    X[[5, 900]] = np.nan
    one = scores(Counting(X), *rest, spec(alphas=10.0))
    assert one.report.counts == {"rows": 3000, "used": 2998, "unreadable": 2}
    with pytest.raises(DataError, match="rows of X hold NaN"):
        Ridge(1.0).fit(Counting(X), rest[0])
    with pytest.raises(DataError, match="2 of 3000 rows of X hold NaN"):
        MLP((4,)).fit(Counting(X), rest[0])


def test_context_of_a_source_is_made_slide_by_slide_and_is_the_same():
    X, _, obs, _ = problem(n=600)
    X[7] = np.nan
    asked = FeatureSpec(context_um=(300.0,), standardise="slide")
    slide, xy = obs["slide"].to_numpy(), obs[["x_um", "y_um"]].to_numpy()
    (one, said), (other, expected) = (build(asked, t, slide, xy) for t in (Counting(X), X))
    assert said.counts == expected.counts
    np.testing.assert_array_equal(one[:], other)


def test_standardised_rows_are_those_of_the_array():
    X, _, obs, _ = problem(n=600)
    X[:, 3] = 2.5
    X[7] = np.nan
    one, other = (build(FeatureSpec(standardise="slide"), t, obs["slide"].to_numpy())[0] for t in (Counting(X), X))
    some = np.array([500, 7, 3, 3])
    np.testing.assert_allclose(one[:], other, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one[some], one[:][some])
    assert not one[:][:7, 3].any()


def test_an_mlp_learns_the_same_from_any_source_of_the_same_rows(tmp_path):
    X, counts, obs, _ = problem()
    np.save(tmp_path / "x.npy", X)
    on_disk = Mapped(np.load(tmp_path / "x.npy", mmap_mode="r"))
    groups = obs["slide"].to_numpy()
    one, two = (MLP((8,), max_epochs=3, patience=99, batch=50) for _ in range(2))
    with pytest.warns(UserWarning, match="converge"):
        one.fit(on_disk, counts, groups=groups)
    with pytest.warns(UserWarning, match="converge"):
        two.fit(Picked(Counting(X), np.arange(len(X))), Counting(counts.astype(np.float32)), groups=groups)
    assert one.history_ == two.history_
    np.testing.assert_array_equal(one.predict(X), two.predict(Counting(X)))


def test_an_mlp_learns_from_a_source_what_it_learns_from_the_array():
    X, counts, obs, _ = problem(n=4000)
    y, groups = np.log1p(counts), obs["slide"].to_numpy()
    one, other = (MLP((16,), lr=3e-3, patience=5).fit(t, y, groups=groups) for t in (Counting(X), X))
    loss = [np.mean((head.predict(X) - y) ** 2) for head in (one, other)]
    assert loss[0] == pytest.approx(loss[1], rel=0.03)
    assert loss[0] < 0.8 * y.var(0).mean()


def test_an_order_of_blocks_has_every_row_once_and_depends_on_seed_and_epoch_alone():
    rows = np.arange(5, 10_000, 2)
    first = block_order(rows, 3, 1, block=64, window=256)
    assert sorted(first) == rows.tolist()
    np.testing.assert_array_equal(first, block_order(rows, 3, 1, block=64, window=256))
    for seed, epoch in ((3, 2), (4, 1)):
        assert (first != block_order(rows, seed, epoch, block=64, window=256)).mean() > 0.9
    runs = np.unique(np.searchsorted(rows, first[:256]) // 64)
    assert len(runs) <= 5
    assert np.ptp(runs) > 8
    assert len(block_order(rows[:0], 0, 1)) == 0


def test_targets_of_a_source_are_made_block_by_block():
    """300,000 rows: what is held at most is less than X in half precision, and than y."""
    X, counts, *_ = problem(n=1000)
    tall, y = Tiled(X, 300), Tiled(np.log1p(counts).astype(np.float32), 300)
    tracemalloc.start()
    try:
        Ridge(10.0).fit(tall, y)
        TrainingMean().fit(tall, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{peak / 2**20:.1f} MiB")
    assert peak < 2 * len(tall) * WIDTH
    assert peak < 4 * len(y) * y.shape[1]


class Tiled(Counting):
    """The same rows many times over."""

    def __init__(self, values, times):
        super().__init__(values)
        self.times = times

    @property
    def shape(self):
        return len(self.values) * self.times, self.values.shape[1]

    def __getitem__(self, rows):
        at = np.arange(len(self))[rows] if isinstance(rows, slice) else rows
        return self.values[at % len(self.values)]


def test_positions_keep_targets_where_they_are():
    _, counts, obs, _ = problem(n=500)
    xy = obs[["x_um", "y_um"]].to_numpy()
    y = counts.astype(np.float32)
    one, other = PositionKNN().fit(xy, Counting(y)), PositionKNN().fit(xy, y)
    np.testing.assert_array_equal(one.predict(xy), other.predict(xy))
    assert isinstance(one.y_, RowSource)
    np.testing.assert_array_equal(one.to_state()[0]["y"], other.to_state()[0]["y"])


def test_a_head_kept_from_a_source_predicts_what_one_from_the_array_does():
    X, counts, obs, symbols = problem()
    given = {"counts": counts, "symbols": symbols, "obs": obs}
    asked = spec(alphas=(1.0, 1e3), features=(FeatureSpec(position=True),))
    one, other = fit_final(asked, X=Counting(X), **given), fit_final(asked, X=X, **given)
    np.testing.assert_allclose(one.predict(Counting(X), obs), other.predict(X, obs), rtol=1e-5, atol=1e-5)
    arrays, meta = one.to_state()
    np.testing.assert_array_equal(type(one).from_state(arrays, meta).predict(X, obs), one.predict(X, obs))


def test_a_large_memory_map_is_a_source_and_a_small_one_is_not(tmp_path, monkeypatch):
    X, counts, _, _ = problem(n=400)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert rows_module.as_source(mapped) is None
    expected = Ridge(1.0).fit(mapped, counts).coef_
    monkeypatch.setattr(rows_module, "STREAM_BYTES", 1000)
    assert isinstance(rows_module.as_source(mapped), Mapped)
    np.testing.assert_allclose(Ridge(1.0).fit(mapped, counts).coef_, expected, rtol=1e-9)


def test_heads_that_need_all_rows_refuse_a_source_and_say_what_to_do():
    X, counts, _, _ = problem(n=50)
    with pytest.raises(UsageError, match=r"Counting of 50 x 24 float16.*a head that streams"):
        PLS(2).fit(Counting(X), counts)


def test_sources_are_cut_like_arrays():
    X, *_ = problem(n=50)
    source = Counting(X)
    mask = np.arange(50) % 3 == 0
    np.testing.assert_array_equal(pick(source, mask)[:], X[mask])
    np.testing.assert_array_equal(pick(pick(source, mask), np.array([4, 0]))[:], X[mask][[4, 0]])
    np.testing.assert_array_equal(np.concatenate([b for _, b in blocks(source, 7)]), X)
    assert repr(source) == "Counting of 50 x 24 float16"
    assert Schedule().batch < rows_module.WINDOW_ROWS
