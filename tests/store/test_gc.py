"""gc: removes what nothing names, after a grace, and never what is being written."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import NotFoundError, StorageError, UsageError
from histostore.store.files import PARTIAL, LocalFiles
from histostore.store.gc import DAY, plan_gc, run_gc
from histostore.store.manifest import GROUP, manifest_key, numbers
from histostore.store.verify import verify

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from histostore.store.gc import GcPlan
    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Ref
    from histostore.store.store import Store


def age(store: Store, prefix: str = "", seconds: float = 2 * DAY) -> None:
    then = time.time() - seconds
    for key, _, _ in store.files.walk(prefix):
        os.utime(store.files.root / key, (then, then))


def reasons(plan: GcPlan) -> dict[str, str]:
    return {item.path: item.reason for item in plan.items}


def listing(store: Store) -> list[str]:
    return [key for key, _, _ in store.files.walk("")]


def test_a_whole_store_loses_nothing_however_old(golden: Store) -> None:
    age(golden)
    before = listing(golden)
    plan = plan_gc(golden)
    assert (plan.items, plan.files, plan.bytes) == ((), 0, 0)
    assert run_gc(plan, erase=True).removed == ()
    assert listing(golden) == before


def test_orphans_go_after_the_grace_and_running_ones_never(
    store: Store, begin_vectors: Callable[..., GroupWriter], seal_vectors: Callable[..., Ref], vectors: np.ndarray
) -> None:
    committed, sealed = seal_vectors(store, name="committed"), seal_vectors(store, name="sealed")
    store.commit("S1", [committed])
    with begin_vectors(store, name="left") as left:
        left.write_rows("embedding", 0, vectors[:4])
    with begin_vectors(store, name="now") as now:
        now.write_rows("embedding", 0, vectors[:4])
        young = plan_gc(store)
        assert (young.items, young.running, young.young) == ((), 1, 2)
        age(store)
        plan = plan_gc(store)
        assert reasons(plan) == {sealed.prefix: "uncommitted", left.prefix: "abandoned"}
        assert plan.running == 1
        before = listing(store)
        assert plan.by_reason()["uncommitted"] == (
            sum(k.startswith(sealed.prefix) for k in before),
            sum(n for _, n, _ in store.files.walk(sealed.prefix)),
        )
        assert listing(store) == before  # a plan changes nothing
        done = run_gc(plan)
        assert done.removed == plan.items
        assert (done.files, done.bytes) == (plan.files, plan.bytes)
        assert [k for k in before if k not in listing(store)] == [
            k for k in before if k.startswith((sealed.prefix, left.prefix))
        ]
        for shard in now.pending("embedding"):
            now.write_rows("embedding", shard, vectors[4 * shard : 4 * shard + 4])
        now.put_array("status", np.zeros(23, np.uint8))
        store.commit("S1", [now.seal(rows=23)])
    assert verify(store).problems == ()
    np.testing.assert_array_equal(store.group(committed).read("embedding"), vectors)


def test_what_is_adopted_or_committed_after_the_plan_is_kept(
    store: Store, begin_vectors: Callable[..., GroupWriter], seal_vectors: Callable[..., Ref]
) -> None:
    refs = [seal_vectors(store, name=n) for n in ("committed", "adopted", "gone")]
    with begin_vectors(store, name="resumed") as left:
        pass
    age(store)
    plan = plan_gc(store)
    assert len(plan.items) == 4
    store.commit("S1", [refs[0]])
    assert seal_vectors(store, name="adopted") == refs[1]  # a run that is about to commit it
    with begin_vectors(store, name="resumed") as again:
        assert again.attempt == left.attempt
        done = run_gc(plan)
    assert [i.path for i in done.removed] == [refs[2].prefix]
    assert sorted(i.path for i in done.kept) == sorted([refs[0].prefix, refs[1].prefix, left.prefix])
    store.commit("S1", [refs[1]])
    assert verify(store).ok
    assert not [k for k in listing(store) if k.startswith(refs[0].prefix) and k.endswith("LOCK")]


def test_a_sealed_attempt_that_a_run_took_up_again_is_young_again(
    store: Store, seal_vectors: Callable[..., Ref]
) -> None:
    ref = seal_vectors(store)
    age(store)
    assert reasons(plan_gc(store)) == {ref.prefix: "uncommitted"}
    assert seal_vectors(store) == ref
    plan = plan_gc(store)
    assert (plan.items, plan.young) == ((), 1)
    store.commit("S1", [ref])
    age(store)
    assert reasons(plan_gc(store)) == {f"{ref.prefix}/ATTEMPT.json": "leftover"}
    run_gc(plan_gc(store))
    assert verify(store).problems == ()
    assert seal_vectors(store) == ref
    assert verify(store).problems == ()  # committed: nothing is written into it


def test_single_files_of_killed_writers_go_after_the_grace(golden: Store) -> None:
    ref = golden.slide("G1").find("tiles")
    keys = [
        f"{PARTIAL}1", f"manifests/G1/{PARTIAL}2", f"{ref.prefix}/{PARTIAL}3", f"{ref.prefix}/LOCK",
        f"{ref.prefix}/receipts/x.0.json",
    ]  # fmt: skip
    for key in keys:
        (golden.files.root / key).parent.mkdir(exist_ok=True)
        (golden.files.root / key).write_bytes(b"12345")
    assert plan_gc(golden).items == ()
    assert plan_gc(golden).young == 5
    age(golden)
    plan = plan_gc(golden)
    assert sorted(reasons(plan)) == sorted(keys)
    assert plan.bytes == 25
    run_gc(plan)
    assert verify(golden).problems == ()


def test_history_goes_only_when_asked_and_what_the_newest_names_stays(golden: Store) -> None:
    age(golden)
    old = golden.manifest("G1", 1).find("meta")
    newest = golden.slide("G1")
    plan = plan_gc(golden, keep_history=False)
    assert reasons(plan) == {
        manifest_key("G1", 1): "history", manifest_key("G1", 2): "history", old.prefix: "superseded",
    }  # fmt: skip
    run_gc(plan)
    assert numbers(golden.files, "G1") == [3]
    assert golden.slide("G1") == newest
    assert verify(golden).problems == ()
    assert golden.commit("G1", [], remove=["predictions/spots/toy"]).manifest.number == 4


def test_history_superseded_within_the_grace_stays_for_its_readers(golden: Store) -> None:
    age(golden)
    os.utime(golden.files.root / manifest_key("G1", 3))
    plan = plan_gc(golden, keep_history=False)
    assert reasons(plan) == {manifest_key("G1", 1): "history"}
    run_gc(plan)
    assert verify(golden).ok
    assert golden.group(golden.manifest("G1", 2).find("meta")).attrs["fields"] == {"patient": "A"}


def test_a_deleted_slide_goes_only_when_erased_and_then_wholly(golden: Store) -> None:
    with golden.begin("G2", "meta", "meta", spec={}, inputs={}) as writer:
        golden.commit("G2", [writer.seal(rows=1)])
    golden.delete_slide("G1")
    plan = plan_gc(golden)
    assert {i.reason for i in plan.items} == {"deleted"}
    before = listing(golden)
    kept = run_gc(plan)
    assert (kept.removed, kept.kept) == ((), plan.items)
    assert listing(golden) == before
    assert run_gc(plan, erase=True).removed == plan.items
    assert not [k for k in listing(golden) if "G1" in k]
    assert golden.slides() == ["G2"]
    assert verify(golden).problems == ()
    with pytest.raises(NotFoundError):
        golden.slide("G1")


def test_an_erase_killed_half_way_never_brings_the_slide_back(golden: Store) -> None:
    golden.delete_slide("G1")
    plan = plan_gc(golden)
    for n in range(len(plan.items)):
        first = type(plan)(**{**{f: getattr(plan, f) for f in plan.__slots__}, "items": plan.items[n : n + 1]})
        run_gc(first, erase=True)
        assert golden.slides() == []
    assert not [k for k in listing(golden) if "G1" in k]


def test_a_slide_that_came_anew_after_the_plan_is_not_erased(golden: Store) -> None:
    refs = list(golden.slide("G1").entries.values())
    golden.delete_slide("G1")
    plan = plan_gc(golden)
    golden.commit("G1", refs)
    done = run_gc(plan, erase=True)
    assert done.removed == ()
    assert set(golden.slide("G1").entries) == {r.key for r in refs}
    assert verify(golden).ok


def test_an_owner_with_a_manifest_that_cannot_be_read_is_left_alone(
    golden: Store, seal_meta: Callable[..., Ref]
) -> None:
    orphan = seal_meta(golden, slide="G1", name="orphan", patient="Z")
    (golden.files.root / manifest_key("G1", 3)).write_bytes(b"{")
    age(golden)
    plan = plan_gc(golden, keep_history=False)
    assert plan.items == ()
    assert set(plan.left) == {"G1"}
    assert "manifest 3 cannot be read" in plan.left["G1"]
    assert orphan.prefix in {a.rpartition("/")[0] for a in listing(golden)}


def test_a_clock_that_runs_ahead_or_behind_harms_nothing_that_is_named_or_written(
    golden: Store, begin_vectors: Callable[..., GroupWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    with begin_vectors(golden, slide="G1") as now:
        for shift in (3 * DAY, -3 * DAY):
            monkeypatch.setattr(time, "time", lambda s=shift, real=time.time_ns: real() / 1e9 + s)
            run_gc(plan_gc(golden))
            monkeypatch.undo()
        assert now.pending("embedding") == list(range(6))
        assert golden.files.size(f"{now.prefix}/ATTEMPT.json") is not None
        assert verify(golden).ok


def test_a_grace_below_zero_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="grace is -1 s"):
        plan_gc(store, grace_s=-1)


def test_gc_and_a_run_that_takes_up_the_same_attempt_never_lose_a_commit(
    store: Store, seal_vectors: Callable[..., Ref], vectors: np.ndarray
) -> None:
    import threading

    for turn in range(8):
        name = f"n{turn}"
        seal_vectors(store, name=name)
        age(store, "slides")
        plan = plan_gc(store)
        thread = threading.Thread(target=run_gc, args=(plan,))
        thread.start()
        ref = seal_vectors(store, name=name)
        thread.join()
        if store.files.size(f"{ref.prefix}/GROUP.json") is not None:
            store.commit("S1", [ref])
            np.testing.assert_array_equal(store.group(ref).read("embedding"), vectors)
    assert verify(store).ok


def test_so_many_of_the_newest_versions_are_kept(store: Store, seal_meta: Callable[..., Ref]) -> None:
    refs = [seal_meta(store, patient=f"P{i}") for i in range(5)]
    for ref in refs:
        store.commit("S1", [ref], replace=True)
    for keep, gone in ((9, 0), (5, 0), (3, 2), (1, 4)):
        plan = plan_gc(store, grace_s=0, keep_history=False, keep_last=keep)
        assert {i.path for i in plan.items} == {
            *(manifest_key("S1", n) for n in range(1, gone + 1)),
            *(ref.prefix for ref in refs[:gone]),
        }
    run_gc(plan_gc(store, grace_s=0, keep_history=False, keep_last=3))
    assert numbers(store.files, "S1") == [3, 4, 5]
    assert store.manifest("S1", 3).find("meta") == refs[2]
    assert verify(store).ok
    with pytest.raises(UsageError, match="1 or more"):
        plan_gc(store, keep_history=False, keep_last=0)


def test_a_plan_is_summed_by_slide_kind_and_reason(
    store: Store, seal_meta: Callable[..., Ref], seal_vectors: Callable[..., Ref]
) -> None:
    for slide in ("S1", "S2"):
        store.commit(slide, [seal_meta(store, slide), seal_vectors(store, slide)])
    store.commit("S1", [seal_meta(store, "S1", patient="B")], replace=True)
    store.delete_slide("S2")
    (store.files.root / f"{PARTIAL}left").write_bytes(b"12345")
    plan = plan_gc(store, grace_s=0, keep_history=False)
    found = plan.by_group()
    assert {key: files for key, (files, _) in found.items() if key[1] in ("manifest", "file")} == {
        ("", "file", "partial"): 1,
        ("S1", "manifest", "history"): 1,
        ("S2", "manifest", "deleted"): 2,
    }
    assert {key for key in found if key[1] not in ("manifest", "file")} == {
        ("S1", "meta", "superseded"),
        ("S2", "embeddings", "deleted"),
        ("S2", "meta", "deleted"),
    }
    assert sum(size for _, size in found.values()) == plan.bytes
    assert sum(files for files, _ in found.values()) == plan.files


def test_a_folder_of_manifests_that_cannot_be_listed_is_refused_and_never_taken_for_none(
    golden: Store, python: Callable[..., subprocess.Popen]
) -> None:
    closed = golden.files.root / "manifests" / "G1"
    script = """if True:
        import os, sys
        from pathlib import Path
        from histostore.errors import StorageError
        from histostore.store.gc import plan_gc
        from histostore.store.store import open_store
        from histostore.store.verify import verify
        os.chdir(sys.argv[1])
        store = open_store(".")
        Path("manifests/G1").chmod(0)
        if os.geteuid() == 0:
            store.files.root = Path(".")  # the folders above are closed to others
            os.setgid(65534); os.setuid(65534)  # root may list anything
        for call in (lambda: verify(store).ok, lambda: plan_gc(store, grace_s=0).items):
            try:
                print("no error:", call())
            except StorageError as error:
                print(error)
    """
    try:
        out, err = python(script, golden.files.root).communicate(timeout=60)
    finally:
        closed.chmod(0o755)
    told = out.splitlines()
    assert len(told) == 2, err
    assert all(line.startswith("cannot read manifests/G1: permission denied") for line in told), out


def test_a_header_that_was_withdrawn_is_put_back_where_it_cannot_be_found_out_whether_it_is_wanted(
    golden: Store, seal_meta: Callable[..., Ref], monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = seal_meta(golden, slide="G1", name="orphan", patient="Z")
    age(golden)
    plan = plan_gc(golden)
    delete = LocalFiles.delete

    def refuse(_files: LocalFiles, prefix: str) -> list[str]:
        raise StorageError(f"cannot read {prefix}: no answer")

    with monkeypatch.context() as medium:

        def then_refuse(files: LocalFiles, key: str) -> None:
            delete(files, key)
            if key.endswith(GROUP):
                medium.setattr(LocalFiles, "children", refuse)

        medium.setattr(LocalFiles, "delete", then_refuse)
        with pytest.raises(StorageError, match="no answer"):
            run_gc(plan)
    golden.commit("G1", [orphan])
    assert verify(golden).ok
