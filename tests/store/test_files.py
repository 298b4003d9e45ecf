"""Bytes by key: atomic, exclusive, inside the store, and clear when the disk refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from histostore.errors import StorageError, UsageError
from histostore.store.files import PARTIAL, LocalFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path / "root", make=True)


def test_put_writes_all_parts_and_replaces_what_was_there(files: LocalFiles) -> None:
    files.put("a/b/c", b"one", b"", memoryview(b"two"))
    assert files.get("a/b/c") == b"onetwo"
    files.put("a/b/c", b"three")
    assert files.get("a/b/c") == b"three"
    assert files.read_ranges("a/b/c", [(1, 3), (0, 2), (3, 9), (7, 1)]) == [b"hre", b"th", b"ee", b""]
    assert files.size("a/b/c") == 5
    assert files.size("a/b") is not None
    assert files.size("a/b/none") is None
    assert files.size("a/b/c/below-a-file") is None
    assert files.map("a/b/c") == b"three"
    files.put("empty")
    assert files.map("empty") == b""


def test_a_reader_sees_the_old_or_the_new_file_never_a_part(files: LocalFiles) -> None:
    contents = [bytes([n]) * 300_000 for n in range(2)]
    files.put("key", contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                files.put("key", content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(files.get("key") in contents for _ in range(300))
    finally:
        stop.set()
        thread.join()
    assert [k for k, _, _ in files.walk("")] == ["key"]


def test_put_new_has_one_winner_among_eight_processes(
    files: LocalFiles, python: Callable[..., subprocess.Popen]
) -> None:
    script = """if True:
        import sys
        from histostore.store.files import LocalFiles
        files, me = LocalFiles(sys.argv[1]), sys.argv[2]
        print("ready", flush=True); sys.stdin.readline()
        print(*[k for k in range(40) if files.put_new(f"m/{k:08d}.json", me.encode() * 1000)])
    """
    processes = [python(script, files.root, n) for n in range(8)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    won = {}
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for n, process in enumerate(processes):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        won[n] = out.split()
    assert sorted(k for keys in won.values() for k in keys) == sorted(map(str, range(40)))
    for n, keys in won.items():
        assert all(files.get(f"m/{int(k):08d}.json") == str(n).encode() * 1000 for k in keys)
    assert not [k for k, _, _ in files.walk("") if PARTIAL in k]


def test_put_new_without_hard_links_still_has_one_winner(
    files: LocalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:  # a file system that has renameat2 alone
    def refuse(*_args: object) -> None:
        raise PermissionError(1, "links are not to be had")

    monkeypatch.setattr(os, "link", refuse)
    assert files.probe_publish() == "renameat2"
    assert files.put_new("key", b"first")
    assert not files.put_new("key", b"second")
    assert files.get("key") == b"first"
    assert [k for k, _, _ in files.walk("")] == ["key"]


@pytest.mark.parametrize(
    "key", ["../evil", "a/../../evil", "/etc/passwd", "a/..", "", ".", "..", "a\0b", "a/../b"], ids=repr
)
def test_a_key_that_leaves_the_store_is_refused(files: LocalFiles, key: str) -> None:
    for call in (files.put, files.get, files.size, files.delete, files.delete_tree, files.lock, files.map):
        with pytest.raises(UsageError, match="keys stay inside the store"):
            call(key)
    with pytest.raises(UsageError):
        files.put_new(key, b"")
    assert not (files.root.parent / "evil").exists()


def test_children_and_walk_list_in_order_and_tell_folders(files: LocalFiles) -> None:
    for key in ("f/b", "f/a/x", "f/a/y", f"f/{PARTIAL}123"):
        files.put(key, b"12")
    assert files.children("f") == ["a/", "b"]
    assert files.children("none") == []
    assert [(k, n) for k, n, _ in files.walk("f")] == [(f"f/{PARTIAL}123", 2), ("f/b", 2), ("f/a/x", 2), ("f/a/y", 2)]
    assert list(files.walk("none")) == []
    assert [k for k, _, _ in files.walk("f", recurse=False)] == [f"f/{PARTIAL}123", "f/b"]


def test_delete_tree_removes_all_and_follows_no_link(files: LocalFiles, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("me")
    files.put("f/a/x", b"1")
    (files.root / "f" / "link").symlink_to(outside)
    files.delete_tree("f")
    files.delete_tree("f")
    files.delete("f/none")
    assert not (files.root / "f").exists()
    assert (outside / "keep").exists()


def test_a_lock_is_exclusive_and_dies_with_its_process(
    files: LocalFiles, python: Callable[..., subprocess.Popen]
) -> None:
    script = """if True:
        import sys
        from histostore.store.files import LocalFiles
        lock = LocalFiles(sys.argv[1]).lock("LOCK")
        print("held" if lock else "refused", flush=True); sys.stdin.readline()
    """
    process = python(script, files.root)
    assert process.stdout.readline() == "held\n"
    assert files.lock("LOCK") is None
    assert files.locked("LOCK")
    process.kill()
    process.communicate()
    assert not files.locked("LOCK")
    lock = files.lock("LOCK")
    assert lock is not None
    lock.release()
    lock.release()
    assert not files.locked("none")
    assert files.size("none") is None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that users beside root can reach; those of pytest are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="histostore-test-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_a_clear_error_and_changes_nothing(
    open_folder: Path, python: Callable[..., subprocess.Popen]
) -> None:
    LocalFiles(open_folder).put("key", b"old")
    open_folder.chmod(0o555)
    script = """if True:
        import os, sys
        from histostore.errors import StorageError
        from histostore.store.files import LocalFiles
        if os.geteuid() == 0:
            os.setgid(65534); os.setuid(65534)  # root may write anywhere
        files = LocalFiles(sys.argv[1])
        for call in (lambda: files.put("key", b"new"), lambda: files.put_new("other", b"new"),
                     lambda: files.lock("LOCK"), lambda: files.delete("key"), lambda: files.put("deeper/key", b"")):
            try:
                call()
                print("no error")
            except StorageError as error:
                print(error)
        print(files.get("key").decode())
    """
    out, err = python(script, open_folder).communicate(timeout=60)
    *messages, content = out.splitlines()
    assert content == "old", err
    assert len(messages) == 5
    assert all(m.startswith(f"cannot write {open_folder}") and "permission denied" in m for m in messages)
    assert [k for k, _, _ in LocalFiles(open_folder).walk("")] == ["key"]


_FULL = """if True:
    import json, os, sys
    import numpy as np
    from histostore.errors import StorageError
    from histostore.store.arrays import ArraySpec
    from histostore.store.codecs import RAW
    from histostore.store.store import create_store

    folder, how = sys.argv[1:]
    if how == "limit":
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
    store = create_store(os.path.join(folder, "s"))
    rows = np.random.default_rng(0).normal(size=(8000, 32)).astype("f4")
    spec = ArraySpec(shape=rows.shape, dtype="float32", chunk_rows=500, shard_rows=1000, pipeline=RAW, fill_value="NaN")
    last = ArraySpec(shape=(4000, 32), dtype="float32", chunk_rows=500, shard_rows=4000, pipeline=RAW, fill_value="NaN")

    def write():
        with store.begin("S", "embeddings", "e", spec={}, inputs={}) as writer:
            writer.create("embedding", spec)
            writer.create("big", last)
            before = {s: (files / f"c/{s}/0").stat() for s in range(8) if s not in writer.pending("embedding")}
            for shard in writer.pending("embedding"):
                a, b = spec.shard_range(shard)
                writer.write_rows("embedding", shard, rows[a:b])
            for shard in writer.pending("big"):
                writer.write_rows("big", shard, rows[:4000])
            after = {s: (files / f"c/{s}/0").stat() for s in before}
            same = all((a.st_ino, a.st_mtime_ns) == (after[s].st_ino, after[s].st_mtime_ns) for s, a in before.items())
            writer.put_array("status", np.zeros(8000, "u1"))
            return len(before), same, writer.seal(rows=8000)

    from pathlib import Path
    class Files:
        def __truediv__(self, name):
            return next(Path(folder).glob("s/slides/S/embeddings/*/*/zarr/embedding")) / name
    files = Files()
    try:
        write()
        error = None
    except StorageError as problem:
        error = str(problem)
    visible = store.slides()
    partial = [str(p) for p in Path(folder).rglob(".partial-*")]
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        os.system(f"mount -o remount,size=8m {folder}")
    kept, same, ref = write()
    store.commit("S", [ref])
    equal = bool((store.group(ref).read("embedding") == rows).all())
    found = {"error": error, "visible": visible, "partial": partial, "kept": kept, "same": same, "equal": equal}
    print(json.dumps(found))
"""


def test_a_full_disk_is_a_clear_error_and_the_run_goes_on_where_it_was_once_there_is_space(tmp_path: Path) -> None:
    enter = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    can_mount = (
        shutil.which("unshare") and not subprocess.run([*enter, "sh", "-c", mount], capture_output=True).returncode
    )
    if can_mount:
        command = [*enter, "sh", "-c", f'{mount} && exec "$0" -c "$1" {tmp_path} tmpfs', sys.executable, _FULL]
        advice = "the disk is full"
    else:  # no namespaces here: a limit on the size of one file refuses in the middle of a write too
        command = [sys.executable, "-c", _FULL, str(tmp_path), "limit"]
        advice = "File too large"
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert advice in found["error"]
    assert found["visible"] == []
    assert found["partial"] == []
    assert found["kept"] > 0
    assert found["same"]
    assert found["equal"]


def test_a_folder_that_cannot_publish_safely_names_its_file_system(
    files: LocalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes
    import errno

    class Library:
        def renameat2(self, *_args: object) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_kw: Library())
    with pytest.raises(StorageError, match=r"this file system \(\w+\) offers neither hard links nor renameat2"):
        files.probe_publish()
    assert list(files.walk("")) == []


def test_what_cannot_be_read_is_told_as_damage_or_as_a_refusal_and_never_looks_empty(
    open_folder: Path, python: Callable[..., subprocess.Popen]
) -> None:
    files = LocalFiles(open_folder)
    files.put("closed/folder/key", b"1")
    files.put("closed-key", b"2")
    (open_folder / "loop").symlink_to("loop")
    (open_folder / "closed").chmod(0)
    (open_folder / "closed-key").chmod(0)
    script = """if True:
        import os, sys
        from histostore.errors import HistostoreError
        from histostore.store.files import LocalFiles
        if os.geteuid() == 0:
            os.setgid(65534); os.setuid(65534)  # root may read anything
        files = LocalFiles(sys.argv[1])
        for call in (lambda: files.get("closed-key"), lambda: files.map("closed-key"),
                     lambda: files.read_ranges("closed-key", [(0, 1)]),
                     lambda: files.locked("closed-key"), lambda: files.size("closed/folder/key"),
                     lambda: files.children("closed"), lambda: list(files.walk("")), lambda: list(files.walk("closed")),
                     lambda: files.get("loop"), lambda: files.children("loop")):
            try:
                print("no error:", call())
            except HistostoreError as error:
                print(error.kind, error)
        try:
            files.get("closed-key/below")
        except FileNotFoundError:
            print("none")
    """
    out, err = python(script, open_folder).communicate(timeout=60)
    (open_folder / "closed").chmod(0o755)
    *told, last = out.splitlines()
    assert last == "none", err
    assert len(told) == 10
    assert all(line.startswith(f"storage cannot read {open_folder}/closed") for line in told[:8]), out
    assert all("permission denied" in line for line in told[:8])
    assert all(line.startswith(f"corruption cannot read {open_folder}/loop") for line in told[8:])
