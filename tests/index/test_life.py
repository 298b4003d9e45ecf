"""The life of an index: what is added is found, what is deleted is not, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from histostore.errors import ConflictError, CorruptionError, FormatError, SpecMismatchError, UsageError
from histostore.index.exact import ExactIndex
from histostore.index.life import append, compact, create, delete, orphans
from histostore.index.reader import IndexReader
from histostore.index.snapshot import Snapshot
from histostore.index.spec import IndexSpec

DIM = 8
RNG = np.random.default_rng(0)
POOL = RNG.integers(-8, 8, (400, DIM)).astype(np.float16)
POOL[(POOL == 0).all(axis=1)] = 1


class Life(RuleBasedStateMachine):
    """Any order of add, delete, compact and query, held against a dictionary and brute force."""

    folder: Path

    @initialize(kind=st.sampled_from(["exact", "ivf-flat"]), metric=st.sampled_from(["cosine", "l2"]))
    def begin(self, kind: str, metric: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        # every cell is visited, so that the approximate kind has one right answer too
        spec = IndexSpec(kind=kind, metric=metric, nlist=2, recall=1.0, refine=4)
        self.live = set(range(60))
        self.snapshot = create(self.folder, POOL[:60], spec, device="cpu")
        self.old: list[tuple[IndexReader, set[int]]] = []

    @rule(ids=st.sets(st.integers(0, 399), min_size=1, max_size=40))
    def add(self, ids: set[int]) -> None:
        new = np.array(sorted(ids - self.live), dtype=np.int64)
        if taken := ids & self.live:
            with pytest.raises(ConflictError, match="in the index already"):
                append(self.folder, self.snapshot, POOL[list(taken)], ids=np.array(list(taken)))
        self.snapshot = append(self.folder, self.snapshot, POOL[new], ids=new, device="cpu")
        self.live |= ids

    @rule(ids=st.sets(st.integers(0, 399), max_size=60))
    def remove(self, ids: set[int]) -> None:
        done = delete(self.folder, self.snapshot, np.array(sorted(ids), dtype=np.int64))
        assert (done.deleted, done.absent) == (len(ids & self.live), len(ids - self.live))
        self.snapshot = done.snapshot
        self.live -= ids

    @rule(whole=st.booleans())
    def tidy(self, whole: bool) -> None:
        self.snapshot = compact(self.folder, self.snapshot, embeddings=POOL, whole=whole, device="cpu")

    @rule()
    @precondition(lambda self: len(self.old) < 2)
    def keep_a_reader(self) -> None:
        self.old.append((self.reader(), set(self.live)))

    @rule(query=st.integers(0, 399), k=st.sampled_from([1, 5, 90]), half=st.booleans())
    def ask(self, query: int, k: int, half: bool) -> None:
        for reader, live in [(self.reader(), self.live), *self.old]:
            allowed = np.array(sorted(i for i in live if not half or i % 2), dtype=np.int64)
            only = np.arange(1, 400, 2) if half else None
            found, distance = reader.search(POOL[query : query + 1], k, only=only)
            exact = ExactIndex(POOL[allowed], metric=self.snapshot.spec.metric)
            rows, true = exact.search(POOL[query : query + 1], k)
            n = min(k, len(allowed))
            assert np.allclose(distance[0, :n], true[0, :n], atol=1e-5)
            assert (found[0, n:] == -1).all()
            assert found[0, :n].tolist() == allowed[rows[0, :n]].tolist()

    @invariant()
    def the_snapshot_counts_what_is_live(self) -> None:
        if hasattr(self, "snapshot"):
            assert self.snapshot.live == len(self.live)
            assert Snapshot.from_json(json.loads(json.dumps(self.snapshot.to_json()))) == self.snapshot

    def reader(self) -> IndexReader:
        return IndexReader(self.folder, self.snapshot, embeddings=POOL, device="cpu")

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


Life.TestCase.settings = settings(
    max_examples=200, stateful_step_count=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestLife = Life.TestCase


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Snapshot]:
    return tmp_path, create(tmp_path, POOL[:300], IndexSpec(kind="ivf-sq8", nlist=4), device="cpu")


def test_appended_rows_are_found_at_once_and_old_readers_stay(made: tuple[Path, Snapshot]) -> None:
    folder, first = made
    before = IndexReader(folder, first, embeddings=POOL)
    second = append(folder, first, POOL[300:], ids=np.arange(300, 400))
    after = IndexReader(folder, second, embeddings=POOL)
    q = POOL[300:400]
    assert (after.search(q, 1)[1] < 1e-6).all()
    assert before.search(q, 1)[0].max() < 300
    assert (len(before), len(after)) == (300, 400)
    assert second.segments[0] == first.segments[0]


def test_a_killed_writer_leaves_only_orphans(made: tuple[Path, Snapshot]) -> None:
    folder, first = made
    second = append(folder, first, POOL[300:], ids=np.arange(300, 400))  # written, never published
    (folder / ".partial-abc").write_bytes(b"torn")
    left = {p.name for p in orphans(folder, [first])}
    assert left == {f.name for f in second.segments[1].files()} | {".partial-abc"}
    for path in orphans(folder, [first]):
        path.unlink()
    assert len(IndexReader(folder, first)) == 300
    assert orphans(folder, [first]) == []


@pytest.mark.parametrize("check", ["crc32c", "sha256"])
def test_a_flipped_byte_anywhere_is_refused_and_the_file_is_named(made: tuple[Path, Snapshot], check: str) -> None:
    folder, first = made
    snapshot = append(folder, first, POOL[300:], ids=np.arange(300, 400))
    snapshot = delete(folder, snapshot, np.array([3, 310])).snapshot
    rng = np.random.default_rng(0)
    for record in snapshot.files():
        whole = (folder / record.name).read_bytes()
        for at in rng.integers(0, len(whole), 5):
            torn = bytearray(whole)
            torn[at] ^= 1 << int(rng.integers(0, 8))
            (folder / record.name).write_bytes(torn)
            with pytest.raises(CorruptionError, match=record.name):
                IndexReader(folder, snapshot, check=check)
        (folder / record.name).write_bytes(whole[:-1])
        with pytest.raises(CorruptionError, match=r"bytes, not .*rebuild"):
            IndexReader(folder, snapshot, check="size")
        (folder / record.name).unlink()
        with pytest.raises(CorruptionError, match="is gone"):
            IndexReader(folder, snapshot)
        (folder / record.name).write_bytes(whole)
    assert len(IndexReader(folder, snapshot, check=check)) == 398


def test_a_damaged_segment_is_rebuilt_from_the_embeddings(made: tuple[Path, Snapshot]) -> None:
    folder, first = made
    (folder / first.segments[0].body.name).write_bytes(b"")
    again = compact(folder, first, embeddings=POOL, whole=True)
    assert (IndexReader(folder, again).search(POOL[:50], 1)[1] < 1e-2).all()


def test_compaction_drops_the_dead_and_merges_the_small(made: tuple[Path, Snapshot]) -> None:
    folder, snapshot = made
    for start in range(300, 400, 25):
        snapshot = append(folder, snapshot, POOL[start : start + 25], ids=np.arange(start, start + 25))
    snapshot = delete(folder, snapshot, np.arange(290, 320)).snapshot
    small = compact(folder, snapshot)
    assert [s.report.kind for s in small.segments] == ["ivf-sq8", "ivf-sq8"]
    assert (small.live, small.dead) == (370, 10)  # ten of 300: not hollow enough to build again
    whole = compact(folder, small, embeddings=POOL, whole=True)
    assert (len(whole.segments), whole.live, whole.dead) == (1, 370, 0)
    assert compact(folder, whole, embeddings=POOL) == whole
    with pytest.raises(UsageError, match="needs the embeddings"):
        compact(folder, small, whole=True)


def test_rows_that_cannot_be_placed_are_counted(tmp_path: Path) -> None:
    values = POOL[:20].copy()
    values[4] = np.nan
    snapshot = create(tmp_path, values, IndexSpec(), ids=np.arange(100, 120))
    assert (snapshot.live, snapshot.segments[0].report.left_out) == (19, 1)
    assert 104 not in IndexReader(tmp_path, snapshot).search(POOL[:1], 30)[0]


def test_ids_may_come_in_any_order(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).permutation(400)
    for kind in ("exact", "ivf-flat"):
        snapshot = create(tmp_path, POOL[ids], IndexSpec(kind=kind, nlist=1), ids=ids)
        found, _ = IndexReader(tmp_path, snapshot).search(POOL[:40], 3)
        assert (found == ExactIndex(POOL).search(POOL[:40], 3)[0]).all() or kind != "exact"
        assert (ExactIndex(POOL).search(POOL[:40], 3)[1] >= 0).all()


def test_what_does_not_fit_is_refused(made: tuple[Path, Snapshot]) -> None:
    folder, snapshot = made
    with pytest.raises(SpecMismatchError, match="4 features, the index 8"):
        append(folder, snapshot, POOL[:2, :4], ids=np.array([900, 901]))
    with pytest.raises(UsageError, match="one id for each row"):
        append(folder, snapshot, POOL[:2], ids=np.array([900]))
    with pytest.raises(UsageError, match="each once"):
        append(folder, snapshot, POOL[:2], ids=np.array([900, 900]))
    with pytest.raises(SpecMismatchError, match="metric 'cosine', not 'l2'"):
        IndexReader(folder, snapshot, metric="l2")
    with pytest.raises(SpecMismatchError, match="4 features, the index 8"):
        IndexReader(folder, snapshot, embeddings=POOL[:, :4])
    with pytest.raises(SpecMismatchError, match="4 features"):
        IndexReader(folder, snapshot).search(POOL[:1, :4], 3)
    with pytest.raises(FormatError, match="format 9"):
        Snapshot.from_json({**snapshot.to_json(), "format": 9})
    pq = create(folder, POOL, IndexSpec(kind="ivf-pq", pq_bytes=4, nlist=4))
    with pytest.raises(UsageError, match="open it with embeddings"):
        IndexReader(folder, pq)
    empty = dataclasses.replace(snapshot, segments=())
    assert (IndexReader(folder, empty).search(POOL[:2], 3)[0] == -1).all()
