"""Stores: made once, opened by path, and refused in one line when they are not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from histostore.errors import ConflictError, CorruptionError, FormatError, NotFoundError, StorageError, UsageError
from histostore.store.manifest import with_check
from histostore.store.store import create_store, open_store

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from histostore.store.manifest import Ref
    from histostore.store.store import Store

BAD_IDS = [
    "../x", "..", ".", "a/../b", "/etc", "a\\b", "a\0b", "a" * 300, "", "con", "NUL", ".hidden", "heads", "a b",
    "S1\n", "Ѕ1", "S1\u202e", "a..b", "@heads2", "-rf",
]  # fmt: skip


def set_format(store: Store, text: str) -> Store:
    path = Path(store.uri) / "STORE.json"
    header = json.loads(path.read_bytes())
    del header["check"]
    path.write_text(json.dumps(with_check({**header, "format": text})))
    return store


def test_a_store_is_made_and_opened_again(tmp_path: Path) -> None:
    made = create_store(tmp_path / "her2st")
    found = open_store(str(tmp_path / "her2st"))
    assert (found.name, found.uuid, found.format) == ("her2st", made.uuid, "1.0")
    assert found.slides() == []
    assert create_store(tmp_path / "b", name="other").uuid != made.uuid
    (tmp_path / "empty").mkdir()
    assert create_store(tmp_path / "empty").name == "empty"


def test_a_store_is_made_in_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert create_store(".").name == "here"
    monkeypatch.chdir(tmp_path)
    assert open_store("here").uri == str(tmp_path / "here")


def test_a_folder_that_is_taken_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ConflictError, match="is a store already"):
        create_store(store.uri)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.docx").write_text("")
    with pytest.raises(ConflictError, match="not an empty folder"):
        create_store(tmp_path / "full")
    with pytest.raises(ConflictError, match="not an empty folder"):
        create_store(tmp_path / "full" / "thesis.docx")
    with pytest.raises(StorageError):
        create_store(tmp_path / "full" / "thesis.docx" / "s")
    with pytest.raises(UsageError, match="invalid store name"):
        create_store(tmp_path / "new", name="../x")
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["thesis.docx"]
    assert not (tmp_path / "new").exists()


def test_of_many_processes_that_make_a_store_one_does(tmp_path: Path, python: Callable[..., subprocess.Popen]) -> None:
    script = """if True:
        import sys
        from histostore.errors import ConflictError
        from histostore.store.store import create_store
        sys.stdin.readline()
        try:
            print(create_store(sys.argv[1]).uuid)
        except ConflictError:
            pass
    """
    processes = [python(script, tmp_path / "s") for _ in range(6)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    made = [line for p in processes for line in p.communicate(timeout=60)[0].split()]
    assert [p.returncode for p in processes] == [0] * 6
    assert made == [open_store(tmp_path / "s").uuid]


def test_what_is_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "odd" / "STORE.json").mkdir(parents=True)
    for path in (tmp_path, tmp_path / "none", tmp_path / "file", tmp_path / "odd"):
        with pytest.raises(NotFoundError, match=r"no store at .* make one with `histostore init"):
            open_store(path)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"format": "1.0"}', b"[" * 100_000, b"\xff\xfe"], ids=repr
)
def test_a_damaged_header_is_corruption(store: Store, data: bytes) -> None:
    (Path(store.uri) / "STORE.json").write_bytes(data)
    with pytest.raises(CorruptionError, match=r"STORE\.json"):
        open_store(store.uri)


def test_a_header_of_something_else_is_refused(store: Store) -> None:
    (Path(store.uri) / "STORE.json").write_text(json.dumps(with_check({"format": "1.0"})))
    with pytest.raises(FormatError, match="lacks 'name'"):
        open_store(store.uri)


def test_a_newer_major_is_refused_and_a_newer_minor_may_only_be_read(
    store: Store, seal_meta: Callable[..., Ref]
) -> None:
    store.commit("S1", [seal_meta(store)])
    set_format(store, "2.0")
    with pytest.raises(FormatError, match=r"format 2\.0; this histostore reads up to 1\.x") as problem:
        open_store(store.uri)
    assert problem.value.exit_code == 3
    set_format(store, "1.9")
    newer = open_store(store.uri)
    assert newer.slides() == ["S1"]
    assert newer.group(newer.slide("S1").find("meta")).attrs["fields"] == {"patient": "A"}
    before = list(store.files.walk(""))
    ref = newer.slide("S1").find("meta")
    for call in (
        lambda: newer.begin("S1", "meta", "x", spec={}, inputs={}),
        lambda: newer.commit("S1", [ref]),
        lambda: newer.delete_slide("S1"),
    ):
        with pytest.raises(FormatError, match=r"format 1\.9; this histostore writes 1\.0 and may only read it"):
            call()
    assert list(store.files.walk("")) == before
    for text in ("x", "1", "1.0.0", "one.two", ""):
        set_format(store, text)
        with pytest.raises(FormatError, match="no version"):
            open_store(store.uri)


@pytest.mark.parametrize("text", ["1.9", "2.0"])
def test_a_handle_that_stayed_open_writes_nothing_once_the_store_is_of_a_newer_format(
    store: Store, seal_meta: Callable[..., Ref], text: str
) -> None:
    ref = seal_meta(store)
    store.commit("S1", [ref])
    with store.begin("S2", "meta", "meta", spec={}, inputs={}) as writer:  # begun before, sealed after
        set_format(store, text)
        sealed = writer.seal(rows=1, attrs={"fields": {}})
    before = list(store.files.walk(""))
    for call in (
        lambda: store.begin("S1", "meta", "x", spec={}, inputs={}),
        lambda: store.commit("S2", [sealed]),
        lambda: store.delete_slide("S1"),
    ):
        with pytest.raises(FormatError, match=rf"is of format {text}; this histostore"):
            call()
    assert list(store.files.walk("")) == before
    assert store.slides() == ["S1"]
    set_format(store, "1.0")
    assert store.commit("S2", [sealed]).added == ("meta/meta",)


@pytest.mark.parametrize("slide", BAD_IDS, ids=lambda s: repr(s[:12]))
def test_an_id_that_could_be_a_path_is_refused_and_makes_nothing(store: Store, slide: str) -> None:
    before = sorted(Path(store.uri).parent.rglob("*"))
    for call in (
        lambda: store.begin(slide, "meta", "meta", spec={}, inputs={}),
        lambda: store.begin("S1", "meta", slide, spec={}, inputs={}),
        lambda: store.slide(slide),
        lambda: store.delete_slide(slide),
    ):
        with pytest.raises(UsageError, match=r"invalid .*use 1-80 of") as problem:
            call()
        assert len(str(problem.value)) < 250
        assert "\0" not in str(problem.value)
    assert sorted(Path(store.uri).parent.rglob("*")) == before


def test_a_manifest_that_points_outside_is_refused(store: Store, seal_meta: Callable[..., Ref]) -> None:
    store.commit("S1", [seal_meta(store)])
    path = Path(store.uri) / "manifests" / "S1" / "00000001.json"
    body = json.loads(path.read_bytes())
    del body["check"]
    body["entries"]["meta/meta"][1] = "../../../../../../etc"
    path.write_text(json.dumps(with_check(body)))
    with pytest.raises(UsageError, match="keys stay inside the store"):
        store.group(store.slide("S1").find("meta"))


def test_names_may_have_parts_and_kinds_must_be_known(store: Store) -> None:
    with store.begin("S1", "meta", "labels/jd@0.5", spec={}, inputs={}) as writer:
        ref = writer.seal(rows=1)
    store.commit("S1", [ref])
    assert store.slide("S1").find("meta").name == "labels/jd@0.5"
    for owner, kind in (("S1", "nonsense"), ("S1", "heads"), ("@heads", "meta"), ("@indexes", "heads")):
        with pytest.raises(UsageError, match=f"holds no groups of kind '{kind}'"):
            store.begin(owner, kind, "x", spec={}, inputs={})
    with pytest.raises(UsageError):
        store.begin("@others", "meta", "x", spec={}, inputs={})


def test_heads_belong_to_the_store_and_are_no_slide(store: Store) -> None:
    with store.begin("@heads", "heads", "ridge", spec={}, inputs={}) as writer:
        writer.put_file("head.json", b"{}")
        ref = writer.seal(rows=0)
    store.commit("@heads", [ref])
    assert ref.prefix.startswith("heads/")
    assert store.slides() == []
    assert store.owners() == ["@heads"]
    assert store.group(store.manifest("@heads").find("heads")).bytes("head.json") == b"{}"


def test_a_slide_that_is_not_there_suggests_near_names(store: Store, seal_meta: Callable[..., Ref]) -> None:
    for slide in ("Block-A1", "Block-B2"):
        store.commit(slide, [seal_meta(store, slide=slide)])
    with pytest.raises(NotFoundError, match=r"no slide 'Block-A2'.*did you mean 'Block-"):
        store.slide("Block-A2")
    assert store.slides() == ["Block-A1", "Block-B2"]


def test_a_slide_whose_first_commit_never_landed_is_not_listed(store: Store) -> None:
    (Path(store.uri) / "manifests" / "S1").mkdir(parents=True)
    assert store.slides() == []
    with pytest.raises(NotFoundError):
        store.slide("S1")


def test_committed_tells_whether_there_is_anything_to_do(store: Store, seal_meta: Callable[..., Ref]) -> None:
    spec = {"fields": {"patient": "A"}}
    assert store.committed("S1", "meta", "meta", spec=spec, inputs={}) is None
    ref = seal_meta(store)
    assert store.committed("S1", "meta", "meta", spec=spec, inputs={}) is None
    store.commit("S1", [ref])
    assert store.committed("S1", "meta", "meta", spec=spec, inputs={}) == ref
    assert store.committed("S1", "meta", "meta", spec={}, inputs={}) is None


def test_a_folder_of_another_owner_is_a_storage_error(tmp_path: Path, python: Callable[..., subprocess.Popen]) -> None:
    tmp_path.chmod(0o700)
    script = """if True:
        import os, sys
        from histostore.errors import StorageError
        from histostore.store.store import create_store, open_store
        if os.geteuid() == 0:
            os.setgid(65534); os.setuid(65534)
        else:
            os.chmod(sys.argv[1], 0)
        for call in (create_store, open_store):
            try:
                call(sys.argv[1] + "/s")
            except StorageError as error:
                print(error)
    """
    out, err = python(script, tmp_path).communicate(timeout=60)
    os.chmod(tmp_path, 0o700)  # noqa: PTH101
    lines = out.splitlines()
    assert len(lines) == 2, err
    assert all("ermission denied" in line for line in lines)
