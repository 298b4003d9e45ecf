"""Building: as good as asked, measured on held-out rows, the same by seed, and honest about what it took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import CorruptionError, DataError, SpecMismatchError, StorageError, UsageError
from histostore.index.ann import AnnIndex
from histostore.index.build import build, recall_of, sample_rows, without_self
from histostore.index.exact import ExactIndex
from histostore.index.files import check_file, write_faiss
from histostore.index.spec import IndexSpec

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ["ivf-flat", "ivf-sq8", "ivf-pq", "hnsw"]


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 32))
    values = centres[rng.integers(0, 60, 4000)] + 0.4 * rng.standard_normal((4000, 32))
    values = values.astype(np.float16)
    values[11] = np.nan
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_every_kind_reaches_the_recall_asked_for(x: np.ndarray, kind: str, metric: str) -> None:
    spec = IndexSpec(kind=kind, metric=metric, nlist=32, pq_bytes=16, recall=0.95)
    built = build(x, spec, device="cpu")
    report = built.report
    assert report.recall >= 0.95
    assert (report.rows, report.left_out, len(built.rows)) == (3999, 1, 3999)
    q = x[100:400].astype(np.float32) + 0.1
    found, distance = built.index.search(q, 10)
    true, measured = ExactIndex(x, metric=metric).search(q, 10)
    assert recall_of(built.rows[found], true) > 0.9
    scale = np.abs(measured).mean()
    assert np.abs(distance - measured).mean() < 0.05 * scale


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_answers_the_same_from_its_memory_map(x: np.ndarray, kind: str, tmp_path: Path) -> None:
    built = build(x, IndexSpec(kind=kind, nlist=32), device="cpu")
    assert isinstance(built.index, AnnIndex)
    record = write_faiss(tmp_path, "a.faiss", built.index)
    opened = AnnIndex.open(check_file(tmp_path, record, "sha256"), built.index.tuning, vectors=built.index.vectors)
    q = x[50:80].astype(np.float32)
    for mine, theirs in zip(built.index.search(q, 7), opened.search(q, 7), strict=True):
        assert (mine == theirs).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.faiss"]


def test_the_same_seed_builds_the_same_index(x: np.ndarray) -> None:
    one, two = (build(x, IndexSpec(kind="ivf-sq8", nlist=32, seed=4), device="cpu") for _ in range(2))
    assert one.report.effort == two.report.effort
    for a, b in zip(one.index.search(x[:9], 10), two.index.search(x[:9], 10), strict=True):
        assert (a == b).all()


def test_auto_is_exact_for_few_rows_and_says_why(x: np.ndarray) -> None:
    built = build(x, IndexSpec(), device="cpu")
    assert isinstance(built.index, ExactIndex)
    assert built.report.kind == "exact"
    assert built.report.recall == 1.0
    assert "3999 rows" in built.report.why


def test_auto_takes_what_is_good_enough_and_fits(x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histostore.index.build.EXACT_ROWS", 1000)
    built = build(x, IndexSpec(nlist=32, recall=0.9), device="cpu")
    assert built.report.kind == "ivf-sq8"
    tight = build(x, IndexSpec(nlist=32, recall=0.9, max_bytes=100_000), device="cpu")
    assert tight.report.kind == "ivf-pq"
    noise = np.random.default_rng(0).standard_normal((3000, 32)).astype(np.float32)
    hard = build(noise, IndexSpec(nlist=32, recall=0.999), device="cpu")
    assert hard.report.kind == "exact"
    assert "no approximate index" in hard.report.why


def test_a_recall_out_of_reach_is_said_not_hidden() -> None:
    noise = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    report = build(noise, IndexSpec(kind="ivf-sq8", nlist=16, recall=1.0), device="cpu").report
    assert report.effort == 16
    assert report.recall < 1
    assert "below the 1 asked for" in report.why


def test_the_training_sample_is_even_over_slides() -> None:
    slides = np.repeat(["big", "mid", "small"], [900, 90, 10])
    rows = sample_rows(1000, 60, slides, 0)
    assert dict(zip(*np.unique(slides[rows], return_counts=True), strict=True)) == {"big": 25, "mid": 25, "small": 10}
    assert (rows == sample_rows(1000, 60, slides, 0)).all()
    assert (rows != sample_rows(1000, 60, slides, 1)).any()
    held = np.arange(500)
    assert not np.isin(sample_rows(1000, 400, None, 0, but=held), held).any()


def test_a_query_is_not_its_own_neighbour() -> None:
    found = np.array([[4, 1, 2], [7, 8, 9]])
    assert without_self(found, np.array([1, 5])).tolist() == [[4, 2], [7, 8]]
    assert recall_of(np.array([[1, 2], [3, -1]]), np.array([[2, 1], [3, 4]])) == 0.75


def test_bad_specs_and_rows_are_refused(x: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kind is 'lsh'"):
        IndexSpec(kind="lsh")
    with pytest.raises(UsageError, match="recall is 2"):
        IndexSpec(recall=2)
    with pytest.raises(UsageError, match="nlist is 0"):
        IndexSpec(nlist=0)
    with pytest.raises(UsageError, match="does not divide the width 32"):
        build(x, IndexSpec(kind="ivf-pq", pq_bytes=7, nlist=8))
    with pytest.raises(DataError, match="none of 5 rows"):
        build(np.full((5, 4), np.nan), IndexSpec())
    with pytest.raises(UsageError, match="1-dimensional"):
        build(x[0], IndexSpec())
    index = build(x, IndexSpec(kind="ivf-flat", nlist=8), device="cpu").index
    assert isinstance(index, AnnIndex)
    with pytest.raises(SpecMismatchError, match="16 features"):
        index.search(x[:1, :16], 3)
    with pytest.raises(DataError, match="not finite"):
        index.search(x[11:12], 3)
    with pytest.raises(UsageError, match="k is 0"):
        index.search(x[:1], 0)
    found, _ = index.search(x[:1], 5000)
    assert (found >= 0).sum() == 3999
    with pytest.raises(StorageError, match="cannot write"):
        index.save(tmp_path / "nowhere" / "a.faiss")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        write_faiss(tmp_path / "file", "a.faiss", index)
    (tmp_path / "bad.faiss").write_bytes(b"not an index")
    with pytest.raises(CorruptionError, match="rebuild the index"):
        AnnIndex.open(tmp_path / "bad.faiss", index.tuning)


def test_a_spec_has_a_digest_of_its_own() -> None:
    assert IndexSpec().digest == IndexSpec().digest
    assert IndexSpec().digest != IndexSpec(kind="hnsw").digest
    assert IndexSpec.from_json(IndexSpec(nlist=7).to_json()) == IndexSpec(nlist=7)
