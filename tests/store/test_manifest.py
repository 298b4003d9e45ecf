"""Commits: of many writers each keeps what it published, and a name never moves unasked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from histostore.errors import ConflictError, CorruptionError, FormatError, NotFoundError
from histostore.store.manifest import Manifest, Ref, commit, manifest_key, numbers, read_manifest, with_check

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from histostore.store.store import Store


def test_the_empty_manifest_is_number_zero_and_nothing_is_written_for_it(store: Store) -> None:
    empty = store.manifest("S1")
    assert (empty.number, dict(empty.entries), empty.deleted) == (0, {}, False)
    assert store.slides() == []
    assert store.files.children("manifests") == []


def test_a_commit_shows_what_was_added_and_a_second_one_is_a_no_op(store: Store, seal_meta: Callable[..., Ref]) -> None:
    ref = seal_meta(store)
    first = store.commit("S1", [ref])
    assert (first.added, first.already_there, first.manifest.number) == (("meta/meta",), (), 1)
    assert first.manifest == store.manifest("S1")
    second = store.commit("S1", [ref])
    assert (second.added, second.already_there, second.manifest.number) == ((), ("meta/meta",), 1)
    assert store.slides() == ["S1"]


def test_twenty_processes_with_ten_groups_each_on_one_slide_keep_all_two_hundred(
    store: Store, python: Callable[..., subprocess.Popen]
) -> None:
    script = """if True:
        import sys
        from histostore.store.store import open_store
        store, me = open_store(sys.argv[1]), sys.argv[2]
        sys.stdin.readline()
        for n in range(10):
            with store.begin("S1", "meta", f"p{me}-{n}", spec={"by": me, "n": n}, inputs={}) as writer:
                ref = writer.seal(rows=1)
            assert store.commit("S1", [ref]).added == (f"meta/p{me}-{n}",)
    """
    processes = [python(script, store.uri, n) for n in range(20)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    manifest = store.manifest("S1")
    assert sorted(manifest.entries) == sorted(f"meta/p{p}-{n}" for p in range(20) for n in range(10))
    assert manifest.number == 200
    assert numbers(store.files, "S1") == list(range(1, 201))
    assert all(store.header(ref)["spec"]["by"] == ref.name[1:].split("-")[0] for ref in manifest.entries.values())


def test_of_two_processes_with_the_same_group_one_is_kept_and_both_succeed(
    store: Store, python: Callable[..., subprocess.Popen]
) -> None:
    script = """if True:
        import sys
        from histostore.store.store import open_store
        store = open_store(sys.argv[1])
        with store.begin("S1", "meta", "meta", spec={"same": True}, inputs={}) as writer:
            print("begun", flush=True); sys.stdin.readline()
            ref = writer.seal(rows=1)
        commit = store.commit("S1", [ref])
        print(ref.attempt, "added" if commit.added else "kept another's")
    """
    processes = [python(script, store.uri) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "begun\n"
    said = [process.communicate("go\n", timeout=60)[0].split(" ", 1) for process in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert sorted(text.strip() for _, text in said) == ["added", "kept another's"]
    assert said[0][0] != said[1][0]
    (winner,) = [attempt for attempt, text in said if text.strip() == "added"]
    assert store.slide("S1").find("meta").attempt == winner


def test_a_name_that_is_taken_by_another_spec_is_refused_unless_it_may_be_replaced(
    store: Store, seal_meta: Callable[..., Ref]
) -> None:
    old, new = seal_meta(store, patient="A"), seal_meta(store, patient="B")
    store.commit("S1", [old])
    with pytest.raises(ConflictError, match="is there with another spec") as problem:
        store.commit("S1", [new])
    assert problem.value.exit_code == 3
    assert store.manifest("S1").number == 1
    assert store.commit("S1", [new], replace=True).added == ("meta/meta",)
    assert store.slide("S1").find("meta") == new
    assert store.manifest("S1", 1).find("meta") == old
    assert store.group(old).attrs["fields"] == {"patient": "A"}


def test_the_same_digest_made_again_is_taken_only_when_asked(store: Store, seal_meta: Callable[..., Ref]) -> None:
    cpu, gpu = seal_meta(store, device="cpu"), seal_meta(store, device="gpu")
    assert cpu.digest == gpu.digest
    assert cpu.attempt != gpu.attempt
    store.commit("S1", [cpu])
    assert store.commit("S1", [gpu]).already_there == ("meta/meta",)
    assert store.slide("S1").find("meta") == cpu
    store.commit("S1", [gpu], replace=True)
    assert store.slide("S1").find("meta") == gpu


def test_expect_refuses_a_change_that_was_computed_from_an_older_value(
    store: Store, seal_meta: Callable[..., Ref]
) -> None:
    a, b, c = (seal_meta(store, patient=p) for p in "ABC")
    store.commit("S1", [a], expect={"meta/meta": None})
    with pytest.raises(ConflictError, match="changed meanwhile"):
        store.commit("S1", [b], replace=True, expect={"meta/meta": None})
    store.commit("S1", [b], replace=True, expect={"meta/meta": a.digest})
    with pytest.raises(ConflictError, match="changed meanwhile"):
        store.commit("S1", [c], replace=True, expect={"meta/meta": a.digest})
    assert store.slide("S1").find("meta") == b


def test_expect_lets_one_of_many_editors_win_each_round(
    store: Store, python: Callable[..., subprocess.Popen], seal_meta: Callable[..., Ref]
) -> None:
    store.commit("S1", [seal_meta(store, patient="0")])
    script = """if True:
        import sys
        from histostore.errors import ConflictError
        from histostore.store.store import open_store
        store, done = open_store(sys.argv[1]), 0
        sys.stdin.readline()
        while done < 10:  # add one to a counter, ten times
            old = store.slide("S1").find("meta")
            count = int(store.header(old)["attrs"]["fields"]["patient"])
            fields = {"patient": str(count + 1)}
            with store.begin("S1", "meta", "meta", spec={"fields": fields, "by": sys.argv[2]}, inputs={}) as writer:
                ref = writer.seal(rows=1, attrs={"fields": fields})
            try:
                store.commit("S1", [ref], replace=True, expect={"meta/meta": old.digest})
                done += 1
            except ConflictError:
                pass
    """
    processes = [python(script, store.uri, n) for n in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert store.header(store.slide("S1").find("meta"))["attrs"]["fields"]["patient"] == "40"


def test_removing_a_key_leaves_the_rest_and_the_past(store: Store, seal_meta: Callable[..., Ref]) -> None:
    refs = [seal_meta(store, name=n, patient=n) for n in ("a", "b")]
    store.commit("S1", refs)
    store.commit("S1", [], remove=["meta/a"])
    assert set(store.slide("S1").entries) == {"meta/b"}
    assert set(store.manifest("S1", 1).entries) == {"meta/a", "meta/b"}
    assert store.commit("S1", [], remove=["meta/none"]).manifest.number == 2


def test_a_deleted_slide_is_gone_for_readers_and_may_come_anew(store: Store, seal_meta: Callable[..., Ref]) -> None:
    a, b = seal_meta(store, patient="A"), seal_meta(store, name="other", patient="B")
    store.commit("S1", [a])
    store.delete_slide("S1")
    assert store.slides() == []
    with pytest.raises(NotFoundError, match="no slide 'S1'"):
        store.slide("S1")
    with pytest.raises(NotFoundError):
        store.delete_slide("S1")
    assert store.group(a).attrs["fields"] == {"patient": "A"}
    store.commit("S1", [b])
    assert set(store.slide("S1").entries) == {"meta/other"}
    assert store.manifest("S1").number == 3


def test_a_damaged_newest_manifest_is_an_error_and_no_older_one_is_taken(
    store: Store, seal_meta: Callable[..., Ref]
) -> None:
    for patient in "ABC":
        store.commit("S1", [seal_meta(store, patient=patient)], replace=True)
    path = store.files.root / manifest_key("S1", 3)
    whole = path.read_bytes()
    for damage in (b"", b"{}", b"[]", b"null", whole[:50], whole.replace(b"meta/meta", b"meta/mete"), b"[" * 100_000):
        path.write_bytes(damage)
        for call in (lambda: store.slide("S1"), store.slides, lambda: store.commit("S1", [seal_meta(store)])):
            with pytest.raises(CorruptionError, match=r"00000003\.json"):
                call()
    path.write_bytes(store.files.get(manifest_key("S1", 2)))
    with pytest.raises(CorruptionError, match="it was moved here"):
        store.slide("S1")
    path.write_bytes(whole)
    assert store.slide("S1").number == 3


def test_a_manifest_of_a_newer_format_names_both_versions(store: Store, seal_meta: Callable[..., Ref]) -> None:
    store.commit("S1", [seal_meta(store)])
    path = store.files.root / manifest_key("S1", 1)
    body = json.loads(path.read_bytes())
    del body["check"]
    for document in (with_check({**body, "format": "2.0"}), {**body, "format": "2.0", "check": "made by another rule"}):
        path.write_text(json.dumps(document))
        with pytest.raises(FormatError, match=r"format 2\.0; this histostore reads up to 1\.x"):
            store.slide("S1")


def test_files_that_are_no_manifests_are_not_taken_for_one(store: Store, seal_meta: Callable[..., Ref]) -> None:
    store.commit("S1", [seal_meta(store)])
    for name in ("9.json", "00000009.txt", "0000000².json", "-0000009.json", "00000009.json.bak", "000000009.json"):
        store.files.put(f"manifests/S1/{name}", b"")
    assert numbers(store.files, "S1") == [1]
    store.files.put(f"manifests/S1/{10**8}.json", b"")
    assert numbers(store.files, "S1") == [1, 10**8]


def test_a_group_that_is_gone_before_its_commit_is_not_named(store: Store, seal_meta: Callable[..., Ref]) -> None:
    ref = seal_meta(store)
    store.files.delete_tree(ref.prefix)
    with pytest.raises(ConflictError, match="not there any more"):
        store.commit("S1", [ref])
    assert store.manifest("S1").number == 0


def test_a_commit_into_history_that_gc_removed_is_not_lost(
    store: Store, seal_meta: Callable[..., Ref], monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [seal_meta(store, name=f"n{i}", patient=str(i)) for i in range(4)]
    store.commit("S1", [refs[0]])
    stale = store.manifest("S1")
    store.commit("S1", [refs[1]])
    store.commit("S1", [refs[2]])
    for number in (1, 2):
        store.files.delete(manifest_key("S1", number))
    answers = iter([stale])  # what a writer that slept for a day still believes

    def believed(files: Any, owner: str, number: int | None = None) -> Manifest:
        return next(answers, None) or read_manifest(files, owner, number)

    monkeypatch.setattr("histostore.store.manifest.read_manifest", believed)
    done = commit(store.files, "S1", [refs[3]])
    monkeypatch.undo()
    assert done.manifest.number == 4
    assert set(store.slide("S1").entries) == {f"meta/n{i}" for i in range(4)}
    assert numbers(store.files, "S1") == [3, 4]


def test_an_answer_that_was_lost_on_the_way_is_no_conflict(
    store: Store, seal_meta: Callable[..., Ref], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_new = store.files.put_new
    monkeypatch.setattr(store.files, "put_new", lambda key, data: put_new(key, data) and False)
    assert store.commit("S1", [seal_meta(store)]).manifest.number == 1
    assert numbers(store.files, "S1") == [1]


def test_find_lists_what_there_is(store: Store, seal_meta: Callable[..., Ref]) -> None:
    store.commit("S1", [seal_meta(store, name=n, patient=n) for n in ("a", "b")])
    manifest = store.slide("S1")
    assert manifest.find("meta", "a").name == "a"
    assert [r.name for r in manifest.of_kind("meta")] == ["a", "b"]
    assert manifest.get("meta", "c") is None
    with pytest.raises(NotFoundError, match="several meta: give one of a, b"):
        manifest.find("meta")
    with pytest.raises(NotFoundError, match="no meta 'c'; it has a, b"):
        manifest.find("meta", "c")
    with pytest.raises(NotFoundError, match="no tiles; it has none"):
        manifest.find("tiles")
