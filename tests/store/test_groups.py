"""Groups: killed at any moment nothing half-written is seen, and the run goes on where it was."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from histostore.errors import CorruptionError, FormatError, NotFoundError, UsageError
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW, ZSTD
from histostore.store.files import PARTIAL
from histostore.store.manifest import Ref
from histostore.store.verify import verify

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from histostore.store.groups import GroupWriter
    from histostore.store.store import Store

_WRITER = """if True:
    import sys, time
    import numpy as np
    import histostore.store.attempts  # before "ready": it would take most of the time until the kill
    from histostore.store.arrays import ArraySpec
    from histostore.store.codecs import RAW
    from histostore.store.store import open_store

    store = open_store(sys.argv[1])
    rows = np.random.default_rng(5).normal(size=(400, 8)).astype("f4")
    spec = ArraySpec(shape=rows.shape, dtype="float32", chunk_rows=5, shard_rows=10, pipeline=RAW, fill_value="NaN")
    print("ready", flush=True)
    with store.begin("S1", "embeddings", "e", spec={}, inputs={}, engine={"device": "cpu", "threads": 1}) as writer:
        if writer.sealed is None:
            writer.create("embedding", spec)
            for shard in writer.pending("embedding"):
                start, stop = spec.shard_range(shard)
                writer.write_rows("embedding", shard, rows[start:stop], note={"status": [0] * 10})
                time.sleep(float(sys.argv[2]))
            writer.put_array("status", np.zeros(400, "u1"))
            writer.put_file("extra.json", b"{}")
            writer.seal(rows=400)
        store.commit("S1", [writer.sealed])
    print("done", flush=True)
"""


def test_a_writer_killed_at_ten_moments_leaves_nothing_to_see_and_resumes_to_the_same_bytes(
    store: Store, python: Callable[..., subprocess.Popen]
) -> None:
    python(_WRITER, store.uri, 0).communicate(timeout=60)
    truth = store.header(store.slide("S1").find("embeddings"))["files"]
    store.files.delete_tree("manifests")
    store.files.delete_tree("slides")

    rng, redone = random.Random(3), []
    finished: dict[str, tuple[int, int]] = {}
    for _ in range(10):
        process = python(_WRITER, store.uri, 0.05)  # ten times 0.15 s do not finish 40 shards
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.communicate()
        assert store.slides() == []
        assert verify(store).ok
        now = {
            r.stem: r
            for r in store.files.root.glob("slides/S1/embeddings/*/*/receipts/*.json")
            if PARTIAL not in r.name
        }
        for name, receipt in now.items():
            shard = receipt.parents[1] / "zarr" / "embedding" / "c" / name.split(".")[1] / "0"
            stat = shard.stat()
            if finished.setdefault(name, (stat.st_ino, stat.st_mtime_ns)) != (stat.st_ino, stat.st_mtime_ns):
                redone.append(name)
    out, err = python(_WRITER, store.uri, 0).communicate(timeout=60)
    assert out == "ready\ndone\n", err
    ref = store.slide("S1").find("embeddings")
    assert store.header(ref)["files"] == truth
    shards = store.files.root / ref.prefix / "zarr" / "embedding" / "c"
    for name, (inode, mtime) in finished.items():
        stat = (shards / name.split(".")[1] / "0").stat()
        assert (stat.st_ino, stat.st_mtime_ns) == (inode, mtime), name
    assert redone == []
    assert finished
    assert verify(store).ok
    attempts = {path.parents[4] for path in store.files.root.glob("slides/S1/embeddings/*/*/zarr/embedding/c/*/0")}
    assert len(attempts) == 1


def test_a_reader_polling_during_a_hundred_commits_sees_whole_groups_only(
    store: Store, python: Callable[..., subprocess.Popen]
) -> None:
    script = """if True:
        import sys
        import numpy as np
        from histostore.store.arrays import ArraySpec
        from histostore.store.codecs import RAW
        from histostore.store.store import open_store
        store = open_store(sys.argv[1])
        spec = ArraySpec(shape=(12, 4), dtype="float32", chunk_rows=2, shard_rows=6, pipeline=RAW, fill_value="NaN")
        for n in range(100):
            refs = []
            for name in ("a", "b"):
                with store.begin("S1", "embeddings", name, spec={"n": n}, inputs={"of": name}) as writer:
                    writer.create("embedding", spec)
                    for shard in range(2):
                        writer.write_rows("embedding", shard, np.full((6, 4), n, "f4"))
                    writer.put_array("status", np.zeros(12, "u1"))
                    refs.append(writer.seal(rows=12, attrs={"n": n}))
            store.commit("S1", refs, replace=True)
    """
    process = python(script, store.uri)
    seen, last = set(), -1
    while process.poll() is None:
        manifest = store.manifest("S1")
        if not manifest.number:
            continue
        a, b = (store.group(manifest.find("embeddings", n)) for n in "ab")
        n = a.attrs["n"]
        assert n == b.attrs["n"]
        assert n >= last
        assert (a.read("embedding") == n).all()
        assert (b.read("embedding") == n).all()
        seen.add(n)
        last = n
    assert process.returncode == 0, process.stderr.read()
    process.communicate()
    assert len(seen) > 5
    assert store.manifest("S1").number == 100


def test_an_attempt_belongs_to_one_process(store: Store, begin_vectors: Callable[..., GroupWriter]) -> None:
    with begin_vectors(store) as first:
        with begin_vectors(store) as second:
            assert second.attempt != first.attempt
        with begin_vectors(store) as third:
            assert third.attempt == second.attempt
            assert third.resumed
    with begin_vectors(store) as fourth:
        assert fourth.attempt in (first.attempt, second.attempt)


def test_an_attempt_is_adopted_only_by_the_same_engine(
    store: Store, vectors: np.ndarray, begin_vectors: Callable[..., GroupWriter]
) -> None:
    with begin_vectors(store, device="cpu", threads=2) as first:
        first.write_rows("embedding", 0, vectors[:4])
    for engine in ({"device": "cpu", "threads": 4}, {"device": "cuda", "threads": 2}, {}):
        with begin_vectors(store, **engine) as other:
            assert other.attempt != first.attempt
            assert other.pending("embedding") == list(range(6))
    with begin_vectors(store, device="cpu", threads=2) as again:
        assert again.attempt == first.attempt
        assert again.pending("embedding") == [1, 2, 3, 4, 5]


def test_a_sealed_attempt_that_was_not_committed_is_taken_as_it_is(
    store: Store, seal_vectors: Callable[..., Ref], begin_vectors: Callable[..., GroupWriter]
) -> None:
    ref = seal_vectors(store, device="cpu")
    with begin_vectors(store, device="cpu") as again:
        assert again.sealed == ref
        assert again.seal(rows=0) == ref
    with begin_vectors(store, device="gpu") as other:
        assert other.sealed is None
    (store.files.root / ref.prefix / "zarr" / "status" / "c" / "0").write_bytes(b"cut")
    with begin_vectors(store, device="cpu") as fresh:
        assert fresh.sealed is None
        assert fresh.attempt != ref.attempt


def test_a_sealed_header_that_changed_is_not_adopted(
    store: Store, seal_vectors: Callable[..., Ref], begin_vectors: Callable[..., GroupWriter]
) -> None:
    ref = seal_vectors(store)
    path = store.files.root / ref.prefix / "GROUP.json"
    path.write_bytes(path.read_bytes().replace(b'"rows": 23', b'"rows": 24'))
    with begin_vectors(store) as fresh:
        assert fresh.sealed is None


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b'{"format": "1.0", "engine": {}, "check": "0"}'], ids=repr)
def test_an_attempt_whose_note_is_damaged_or_newer_is_left_alone(
    store: Store, begin_vectors: Callable[..., GroupWriter], note: bytes
) -> None:
    with begin_vectors(store) as first:
        pass
    (store.files.root / first.prefix / "ATTEMPT.json").write_bytes(note)
    with begin_vectors(store) as second:
        assert second.attempt != first.attempt


def test_a_shard_whose_file_is_gone_or_cut_is_pending_again(
    store: Store, vectors: np.ndarray, begin_vectors: Callable[..., GroupWriter]
) -> None:
    with begin_vectors(store) as first:
        for shard in range(3):
            first.write_rows("embedding", shard, vectors[4 * shard : 4 * shard + 4], note={"status": [shard]})
        assert first.receipt("embedding", 1)["note"] == {"status": [1]}
    shards = store.files.root / first.prefix / "zarr" / "embedding" / "c"
    (shards / "0" / "0").unlink()
    (shards / "1" / "0").write_bytes(b"cut")
    with begin_vectors(store) as again:
        assert again.pending("embedding") == [0, 1, 3, 4, 5]
        assert again.receipt("embedding", 0) is None


def test_an_array_declared_with_another_layout_starts_anew(store: Store) -> None:
    def begin(pipeline: Any) -> GroupWriter:
        spec = ArraySpec(shape=(8, 2), dtype="float32", chunk_rows=2, shard_rows=4, pipeline=pipeline, fill_value="NaN")
        writer = store.begin("S1", "embeddings", "e", spec={}, inputs={})
        writer.create("embedding", spec)
        return writer

    rows = np.ones((4, 2), np.float32)
    with begin(RAW) as writer:
        writer.write_rows("embedding", 0, rows)
        writer.write_rows("embedding", 1, rows)
    with begin(ZSTD) as writer:  # killed here: what RAW wrote must not be taken for ZSTD, now or later
        assert writer.pending("embedding") == [0, 1]
        writer.write_rows("embedding", 0, rows)
    with begin(ZSTD) as writer:
        assert writer.pending("embedding") == [1]
        writer.write_rows("embedding", 1, rows)
        writer.put_array("status", np.zeros(8, np.uint8))
        ref = writer.seal(rows=8)
    np.testing.assert_array_equal(store.group(ref).read("embedding"), np.ones((8, 2)))


def test_nested_arrays_resume_from_their_receipts(store: Store) -> None:
    spec = ArraySpec(shape=(6,), dtype="int32", chunk_rows=2, shard_rows=2, pipeline=ZSTD)

    def begin() -> GroupWriter:
        writer = store.begin("S1", "expression", "counts", spec={}, inputs={})
        for name in ("X/data", "X/indices"):
            writer.create(name, spec)
        return writer

    with begin() as writer:
        writer.write_rows("X/data", 1, np.array([3, 4], np.int32))
    with begin() as writer:
        assert writer.resumed
        assert writer.pending("X/data") == [0, 2]
        assert writer.pending("X/indices") == [0, 1, 2]


def test_what_is_incomplete_cannot_be_sealed(
    store: Store, vectors: np.ndarray, begin_vectors: Callable[..., GroupWriter]
) -> None:
    with begin_vectors(store) as writer:
        writer.write_rows("embedding", 0, vectors[:4])
        with pytest.raises(UsageError, match=r"embedding lacks shards \[1, 2, 3, 4, 5\]"):
            writer.seal(rows=23)
        for shard in writer.pending("embedding"):
            writer.write_rows("embedding", shard, vectors[4 * shard : 4 * shard + 4])
        with pytest.raises(UsageError, match="must have an array 'status'"):
            writer.seal(rows=23)
        writer.put_array("status", np.zeros(23, np.uint8))
        path = store.files.root / writer.prefix / "zarr" / "status" / "c" / "0"
        whole = path.read_bytes()
        path.write_bytes(b"")
        with pytest.raises(CorruptionError, match="was written with"):
            writer.seal(rows=23)
        path.write_bytes(whole)
        writer.seal(rows=23)


def test_two_writers_cannot_share_a_shard(store: Store, begin_vectors: Callable[..., GroupWriter]) -> None:
    with begin_vectors(store) as writer:
        with pytest.raises(UsageError, match="holds 4 rows, got 2"):
            writer.write_rows("embedding", 0, np.zeros((2, 6), np.float32))
        with pytest.raises(UsageError, match="holds 2 chunks, got 1"):
            writer.write_shard("embedding", 0, [b""])
        with pytest.raises(UsageError, match="float32"):
            writer.write_rows("embedding", 0, np.zeros((4, 6), np.int32))


def test_a_sealed_folder_holds_what_its_header_lists_and_nothing_else(
    store: Store, vectors: np.ndarray, begin_vectors: Callable[..., GroupWriter], seal_vectors: Callable[..., Ref]
) -> None:
    with begin_vectors(store) as writer:
        writer.write_rows("embedding", 0, vectors[:4])
        store.files.put(f"{writer.prefix}/zarr/embedding/c/0/{PARTIAL}1", b"torn")
        store.files.put(f"{writer.prefix}/zarr/old/c/0", b"of an array that is no more")
    ref = seal_vectors(store)
    assert ref.attempt == writer.attempt
    found = {key[len(ref.prefix) + 1 :] for key, _, _ in store.files.walk(ref.prefix)}
    assert found == {*store.header(ref)["files"], "GROUP.json"}


def test_a_header_that_is_not_the_committed_one_is_not_opened(store: Store, seal_vectors: Callable[..., Ref]) -> None:
    ref = seal_vectors(store)
    path = store.files.root / ref.prefix / "GROUP.json"
    whole = path.read_bytes()
    path.write_bytes(whole + b" ")
    for call in (store.group, store.header):
        with pytest.raises(CorruptionError, match="differs from what was committed"):
            call(ref)
    path.unlink()
    for call in (store.group, store.header):
        with pytest.raises(CorruptionError, match="is missing"):
            call(ref)


def test_an_arrays_own_description_is_checked_before_it_is_believed(
    store: Store, seal_vectors: Callable[..., Ref]
) -> None:
    ref = seal_vectors(store)
    path = store.files.root / ref.prefix / "zarr" / "embedding" / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b"23", b"22", 1))
    with pytest.raises(CorruptionError, match=r"zarr\.json differs"):
        store.group(ref).read("embedding")
    path.unlink()
    with pytest.raises(CorruptionError, match=r"zarr\.json is missing"):
        store.group(ref).read("embedding")
    with pytest.raises(NotFoundError, match="no such file"):
        store.group(ref).array("none")


def test_a_group_of_a_newer_kind_is_refused_by_name(store: Store, seal_vectors: Callable[..., Ref]) -> None:
    import hashlib

    ref = seal_vectors(store)
    path = store.files.root / ref.prefix / "GROUP.json"
    header = json.loads(path.read_bytes())
    path.write_text(json.dumps({**header, "version": 9}))
    newer = Ref(ref.owner, ref.kind, ref.name, ref.digest, ref.attempt, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(FormatError, match="'embeddings' version 9: this histostore knows version 1"):
        store.group(newer)


def test_engine_and_attributes_must_be_plain_json(store: Store, begin_vectors: Callable[..., GroupWriter]) -> None:
    with pytest.raises((TypeError, ValueError)), begin_vectors(store, device=float("nan")):
        pass
    with store.begin("S1", "meta", "meta", spec={}, inputs={}) as writer, pytest.raises(ValueError):
        writer.seal(rows=1, attrs={"x": float("inf")})
    assert store.slides() == []
