"""A disk that is full or read-only: one line, nothing half-written, and the same command goes on afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from histostore.store.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DATA = 3


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount something on a new folder, where this machine lets us."""
    mounted: list[Path] = []

    def at(*args: str) -> Path:
        place = tmp_path / f"mount{len(mounted)}"
        place.mkdir()
        if os.geteuid():
            pytest.skip("only root can mount")
        done = subprocess.run(["mount", *args, str(place)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield at
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def size(*folders: Path) -> int:
    return sum(p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file())


def only_error(told: Any) -> str:
    assert told.code == DATA, told
    assert "Traceback" not in told.err, told.err
    assert len(told.errors) == 1, told.err
    assert told.errors[0].startswith("histostore: error: ")
    return str(told.errors[0])


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_when_there_is_room(
    ingested: Path, mount: Callable[..., Path], call: Any
) -> None:
    files = sum(1 for _ in ingested.rglob("*"))
    room = size(ingested) + 4096 * files + 300_000
    place = mount("-t", "tmpfs", "-o", f"size={room}", "tmpfs")
    store = shutil.copytree(ingested, place / "S")
    before = open_store(store).slide("A1")
    argv = ["tile", store, "--at", "spots", "--px", 224, "--codec", "lossless", "--shard-tiles", 2]
    line = only_error(told := call(*argv))
    assert "the disk is full" in line
    assert "finished shards are kept" in line
    assert "A1" in line
    assert "1 not tried" in told.err, "the second slide would meet the same full disk"
    assert open_store(store).slide("A1") == before
    assert not list(store.rglob(".partial-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    told = call(*argv)
    assert told.code == 0
    assert "A1: tile resumed" in told.out
    assert "tiles are there already, going on" in told.err
    assert call("verify", store).code == 0


def test_a_full_disk_leaves_no_half_export(embedded: Path, mount: Callable[..., Path], call: Any) -> None:
    place = mount("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    for name in ("x.h5ad", "x.zarr"):
        line = only_error(call("export", embedded, "--backbone", "testing", "-o", place / name))
        assert "full" in line or "No space left" in line
        assert not list(place.iterdir())


def test_a_limit_on_file_size_is_told_in_one_line(ingested: Path, copy_of: Any, spawn: Any) -> None:
    store = copy_of(ingested)
    before = open_store(store).slide("A1")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    argv = ("tile", store, "--slides", "A1", "--at", "spots", "--px", 224, "--codec", "lossless", "--shard-tiles", 2)
    line = only_error(spawn(*argv, preexec_fn=limit))
    assert "File too large" in line
    assert open_store(store).slide("A1") == before
    assert not list(store.rglob(".partial-*"))


def test_a_read_only_store_can_be_read_and_says_so_when_written_to(
    embedded: Path, mount: Callable[..., Path], call: Any, cohort: Any, tmp_path: Path
) -> None:
    place = mount("--bind", str(embedded))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    for argv in (
        ["tile", place, "--at", "spots", "--px", 32, "--name", "new"],
        ["embed", place, "--backbone", "testing", "--dtype", "float32", "--replace"],
        ["ingest", place, "--slide", "X1", "--image", cohort.slides[1].image],
        ["annotate", place, "--slide", "A1", "--set", "age=7"],
        ["fit", place, "--genes", "top-mean:3", "--save"],
        ["delete", place, "--slide", "A1"],
        ["init", place / "below"],
    ):
        assert "read-only" in only_error(call(*argv)), argv
    assert call("info", place).code == 0
    assert call("verify", place).code == 0
    assert call("gc", place).code == 0
    assert call("export", place, "--backbone", "testing", "-o", tmp_path / "x.h5ad").code == 0


def test_a_folder_without_permission_is_told_in_one_line(tmp_path: Path, call: Any) -> None:
    if not os.geteuid():
        pytest.skip("permission bits do not bind root")
    tmp_path.chmod(0o500)
    try:
        assert "permission denied" in only_error(call("init", tmp_path / "S"))
    finally:
        tmp_path.chmod(0o700)
