"""verify: says what is gone, changed or lying about, with its kind and place; never raises for damage."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from histostore.errors import NotFoundError
from histostore.progress import Silent
from histostore.protocols import TileStatus
from histostore.store.files import PARTIAL
from histostore.store.manifest import manifest_key
from histostore.store.repair import quarantine
from histostore.store.verify import Problem, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Ref
    from histostore.store.store import Store


def only(store: Store, **options: Any) -> Problem:
    (problem,) = verify(store, **options).problems
    return problem


def test_a_whole_store_has_no_problems_and_everything_is_counted(golden: Store) -> None:
    before = list(golden.files.walk(""))
    deep, shallow = verify(golden), verify(golden, deep=False)
    assert deep.ok
    assert deep.problems == shallow.problems == ()
    assert {k: deep.counts[k] for k in ("owners", "manifests", "groups")} == {"owners": 2, "manifests": 4, "groups": 14}
    assert deep.counts["files"] == shallow.counts["files"] > 70
    assert deep.counts["chunks"] > 40
    assert "chunks" not in shallow.counts
    assert list(golden.files.walk("")) == before


def test_an_empty_store_is_whole(store: Store) -> None:
    assert verify(store).problems == ()


def test_a_file_that_is_gone_or_cut_is_found_by_a_look_alone(golden: Store) -> None:
    ref = golden.slide("G1").find("embeddings", "spots/toy-float16")
    path = golden.files.root / ref.prefix / "zarr" / "embedding" / "c" / "1" / "0"
    whole = path.read_bytes()
    for deep in (True, False):
        path.write_bytes(whole[:-1])
        found = only(golden, deep=deep)
        assert (found.severity, found.kind, found.owner) == ("error", "size", "G1")
        assert found.path == f"{ref.prefix}/zarr/embedding/c/1/0"
        assert found.ref == ref
        path.unlink()
        assert only(golden, deep=deep).kind == "missing"
    path.write_bytes(whole)
    assert verify(golden).problems == ()


def test_a_changed_byte_of_the_same_size_is_found_by_reading_and_the_rows_are_named(golden: Store) -> None:
    ref = golden.slide("G1").find("embeddings", "spots/toy-float32")
    path = golden.files.root / ref.prefix / "zarr" / "embedding" / "c" / "1" / "0"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    assert verify(golden, deep=False).ok
    report = verify(golden)
    assert [p.kind for p in report.problems] == ["sha256", "chunk"]
    assert "rows 4-5" in report.problems[1].text
    assert report.damaged() == [ref]


def test_swapped_shards_are_found(golden: Store) -> None:
    ref = golden.slide("G1").find("pixels", "lossless")
    shards = golden.files.root / ref.prefix / "zarr" / "pixels" / "c"
    (shards / "0").rename(shards / "x")
    (shards / "1").rename(shards / "0")
    (shards / "x").rename(shards / "1")
    assert not verify(golden).ok


def test_a_header_that_is_gone_or_changed_is_one_problem(golden: Store) -> None:
    ref = golden.slide("G1").find("points")
    path = golden.files.root / ref.prefix / "GROUP.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"100.0", b"200.0"))
    assert (only(golden).kind, only(golden).ref) == ("header", ref)
    path.unlink()
    assert only(golden).kind == "header"
    golden.files.delete_tree(ref.prefix)
    assert only(golden).kind == "missing"
    path.parent.mkdir(parents=True)
    path.write_bytes(whole)
    assert {p.kind for p in verify(golden).problems} == {"missing"}


def test_a_damaged_manifest_is_told_apart_from_an_older_one(golden: Store) -> None:
    for number, says in ((3, "cannot be read"), (1, "can be read")):
        path = golden.files.root / manifest_key("G1", number)
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        report = verify(golden)
        (found,) = [p for p in report.problems if p.kind == "manifest"]
        assert found.severity == "error"
        assert says in found.text
        assert found.path == manifest_key("G1", number)
        path.write_bytes(whole)


def test_a_gap_and_a_manifest_of_another_history_are_found(golden: Store) -> None:
    second = golden.files.root / manifest_key("G1", 2)
    whole = second.read_bytes()
    second.unlink()
    report = verify(golden)
    assert [(p.kind, p.text) for p in report.errors] == [("gap", "manifests 2-2 are missing")]
    second.write_bytes(whole)
    golden.files.delete(manifest_key("G1", 1))
    assert verify(golden).ok  # history that gc removed, from the oldest on
    golden.files.delete(manifest_key("G1", 3))
    golden.commit("G1", [], remove=["predictions/spots/toy"])
    golden.files.delete(manifest_key("G1", 2))
    other = golden.files.root / manifest_key("G1", 2)
    other.write_bytes(whole)
    assert verify(golden).ok


def test_a_manifest_that_follows_another_one_than_it_says_is_found(store: Store, seal_meta: Callable[..., Ref]) -> None:
    for patient in "AB":
        store.commit("S1", [seal_meta(store, patient=patient)], replace=True)
    kept = store.files.get(manifest_key("S1", 2))
    for number in (1, 2):
        store.files.delete(manifest_key("S1", number))
    store.commit("S1", [seal_meta(store, patient="A")])
    store.files.put(manifest_key("S1", 2), kept)
    assert [(p.kind, p.path) for p in verify(store).errors] == [("chain", manifest_key("S1", 2))]


def test_orphans_are_told_apart(
    store: Store, begin_vectors: Callable[..., GroupWriter], seal_vectors: Callable[..., Ref], vectors: np.ndarray
) -> None:
    uncommitted = seal_vectors(store, name="sealed")
    with begin_vectors(store, name="left") as left:
        left.write_rows("embedding", 0, vectors[:4])
    with begin_vectors(store, name="now") as now:
        found = {p.path: (p.severity, p.kind) for p in verify(store).problems}
        assert found == {
            uncommitted.prefix: ("warning", "uncommitted"),
            left.prefix: ("warning", "abandoned"),
            now.prefix: ("note", "running"),
        }
        assert verify(store).ok
        assert verify(store, deep=False).problems == verify(store).problems
    with begin_vectors(store, name="left") as again:
        assert again.attempt == left.attempt  # looking took nothing away


def test_what_does_not_belong_is_found_wherever_it_lies(golden: Store) -> None:
    ref = golden.slide("G1").find("tiles")
    strays = {
        "notes.txt": "undeclared",
        f"{PARTIAL}1": "partial",
        f"manifests/G1/{PARTIAL}2": "partial",
        "manifests/G1/5.json": "undeclared",
        f"{ref.prefix}/zarr/geometry/c/9/0": "undeclared",
        f"{ref.prefix}/{PARTIAL}3": "partial",
        f"{ref.prefix}/ATTEMPT.json": "leftover",
        "slides/G1/tiles/stray": "undeclared",
    }
    for key in strays:
        (golden.files.root / key).parent.mkdir(parents=True, exist_ok=True)
        (golden.files.root / key).write_bytes(b"x")
    report = verify(golden)
    assert report.ok
    found = {p.path: p.kind for p in report.problems}
    assert found.pop(ref.prefix) == "leftover"
    del strays[f"{ref.prefix}/ATTEMPT.json"]
    assert found == strays


def write_vectors(
    store: Store, status: list[int], nan_rows: list[int], begin_vectors: Callable[..., GroupWriter]
) -> Ref:
    values = np.ones((23, 6), np.float32)
    values[nan_rows] = np.nan
    with begin_vectors(store) as writer:
        for shard in writer.pending("embedding"):
            writer.write_rows("embedding", shard, values[4 * shard : 4 * shard + 4])
        writer.put_array("status", np.array([*status, *([0] * (23 - len(status)))], np.uint8))
        ref = writer.seal(rows=23)
    store.commit("S1", [ref])
    return ref


@pytest.mark.parametrize(
    ("status", "nan_rows", "wrong"),
    [
        ([0, 1, TileStatus.UNREADABLE], [2], None),
        ([0, 1, 2], [2], "1 rows"),
        ([TileStatus.UNREADABLE], [], "1 rows"),
        ([TileStatus.UNREADABLE, 0], [1], "2 rows"),
    ],
)
def test_rows_are_nan_exactly_where_their_tile_is_unreadable(
    store: Store, begin_vectors: Callable[..., GroupWriter], status: list[int], nan_rows: list[int], wrong: str | None
) -> None:
    ref = write_vectors(store, status, nan_rows, begin_vectors)
    assert verify(store, deep=False).ok
    if wrong is None:
        assert verify(store).problems == ()
    else:
        found = only(store)
        assert (found.kind, found.path) == ("values", f"{ref.prefix}/zarr/embedding")
        assert wrong in found.text


def test_an_array_with_other_rows_than_the_header_says_is_found(
    store: Store, begin_vectors: Callable[..., GroupWriter], vectors: np.ndarray
) -> None:
    with begin_vectors(store) as writer:
        for shard in writer.pending("embedding"):
            writer.write_rows("embedding", shard, vectors[4 * shard : 4 * shard + 4])
        writer.put_array("status", np.zeros(22, np.uint8))
        store.commit("S1", [writer.seal(rows=23)])
    assert (only(store).kind, only(store).text) == ("rows", "22 rows, the header says 23")


def test_a_group_put_aside_is_a_warning_that_does_not_hide_the_rest(golden: Store) -> None:
    ref = golden.slide("G1").find("predictions")
    (golden.files.root / ref.prefix / "zarr" / "prediction" / "c" / "0" / "0").write_bytes(b"")
    assert not verify(golden).ok
    quarantine(golden, ref)
    found = only(golden)
    assert (found.severity, found.kind, found.path) == ("warning", "quarantined", ref.prefix)


def test_slides_narrows_and_an_unknown_one_is_named(golden: Store) -> None:
    assert verify(golden, slides=["@heads"]).counts["groups"] == 1
    assert verify(golden, slides=["G1", "G1"]).counts["owners"] == 1
    with pytest.raises(NotFoundError, match=r"no slide 'g1'.*did you mean 'G1'"):
        verify(golden, slides=["g1"])


def test_the_stores_own_header_is_checked(golden: Store) -> None:
    (golden.files.root / "STORE.json").write_bytes(b"{")
    assert (only(golden).kind, only(golden).path) == ("store", "STORE.json")


def test_progress_counts_every_file(golden: Store) -> None:
    class Counting(Silent):
        total = done = 0

        def start(self, what: str, total: int, *, done: int = 0, unit: str = "tiles") -> None:
            del what, done, unit
            self.total += total

        def advance(self, n: int, seconds: dict[str, float] | None = None) -> None:
            del seconds
            self.done += n

    counting = Counting()
    report = verify(golden, progress=counting)
    assert counting.done == counting.total == report.counts["files"] + report.counts["groups"]


def test_every_file_of_a_store_may_vanish_or_be_emptied_and_verify_only_reports(golden: Store) -> None:
    for key in [key for key, _, _ in golden.files.walk("")][::2]:
        path = golden.files.root / key
        whole = path.read_bytes()
        for damage in (path.unlink, lambda p=path: p.write_bytes(b"\xff" * 500)):
            damage()
            report = verify(golden, deep=False)
            newest_or_only = key not in (manifest_key("G1", 1), manifest_key("G1", 3), manifest_key("@heads", 1))
            if newest_or_only or path.exists():  # a first or last manifest that is gone leaves no trace but orphans
                assert not report.ok or path.exists(), key
            path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert verify(golden).ok


def test_memory_does_not_grow_with_the_store(store: Store) -> None:
    from histostore.store.arrays import ArraySpec
    from histostore.store.codecs import ZSTD

    spec = ArraySpec(
        shape=(16 * 4096, 256), dtype="float32", chunk_rows=1024, shard_rows=4096, pipeline=ZSTD, fill_value="NaN"
    )  # 64 MiB decoded, a megabyte a chunk
    with store.begin("S1", "embeddings", "e", spec={}, inputs={}) as writer:
        writer.create("embedding", spec)
        for shard in range(spec.n_shards):
            writer.write_rows("embedding", shard, np.full((4096, 256), shard, np.float32))
        writer.put_array("status", np.zeros(spec.n_rows, np.uint8))
        store.commit("S1", [writer.seal(rows=spec.n_rows)])
    verify(store, slides=["S1"], deep=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert verify(store).ok
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_a_store_that_may_only_be_read_is_verified(golden: Store) -> None:
    root = golden.files.root
    folders = [p for p in [root, *root.rglob("*")] if p.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert verify(golden).problems == ()
    finally:
        for folder in folders:
            os.chmod(folder, 0o755)  # noqa: PTH101
