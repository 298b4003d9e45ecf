"""Copies of index files: fetched once, bounded, private, never removed under a reader, never believed blindly."""

from __future__ import annotations

import gc
import hashlib
import os
import stat
from typing import TYPE_CHECKING

import pytest

from histostore.errors import CorruptionError
from histostore.index.copies import Copies, local_copies
from histostore.index.files import FileRecord, record_of
from histostore.store.files import LocalFiles
from histostore.store.read_cache import ReadCache

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 10_000


class Far(LocalFiles):
    """A folder that counts what is read of it."""

    reads = 0

    def read_ranges(self, key, ranges):
        self.reads += 1
        return super().read_ranges(key, ranges)


@pytest.fixture
def far(tmp_path: Path) -> Far:
    (tmp_path / "far" / "group").mkdir(parents=True)
    for n in range(6):
        (tmp_path / "far" / "group" / f"{n}.npy").write_bytes(bytes([n]) * SIZE)
    return Far(tmp_path / "far")


def records(far: Far, *numbers: int) -> list[FileRecord]:
    return [record_of(far.root / "group" / f"{n}.npy") for n in numbers]


def fetch(far: Far, cache: ReadCache | None, *numbers: int) -> Copies:
    wanted = records(far, *numbers)
    listed = {r.name: [r.size, r.sha256] for r in wanted}
    return local_copies(far, "group", wanted, listed, store="ab12", cache=cache)


def there(cache: ReadCache) -> set[str]:
    return {p.stem for p in (cache.folder / "indexes").rglob("*.npy")}


def age(cache: ReadCache) -> None:
    for path in (cache.folder / "indexes").rglob("*.npy"):
        os.utime(path, (0, path.stat().st_mtime - 100))


def test_a_file_is_fetched_once_and_is_this_users_alone(far: Far, tmp_path: Path) -> None:
    cache = ReadCache(tmp_path / "cache", 1 << 20)
    copies = fetch(far, cache, 0, 1)
    assert copies.folder == tmp_path / "cache" / "indexes" / "ab12"
    assert [(copies.folder / f"{n}.npy").read_bytes() for n in (0, 1)] == [bytes(SIZE), b"\1" * SIZE]
    assert far.reads == 2
    fetch(far, cache, 0, 1)
    assert far.reads == 2
    modes = {p.is_dir(): stat.S_IMODE(p.stat().st_mode) for p in (cache.folder, *cache.folder.rglob("*"))}
    assert modes == {True: 0o700, False: 0o600}
    assert {p.stem for p in copies.folder.iterdir()} == {"0", "1"}


def test_the_bound_holds_and_what_was_used_last_stays(far: Far, tmp_path: Path) -> None:
    cache = ReadCache(tmp_path / "cache", 3 * SIZE)
    for n in range(5):
        fetch(far, cache, n)
        age(cache)
        fetch(far, cache, 0)
    assert there(cache) == {"0", "3", "4"}


def test_what_somebody_uses_is_not_removed_though_there_are_too_many_bytes(far: Far, tmp_path: Path) -> None:
    cache = ReadCache(tmp_path / "cache", 2 * SIZE)
    used = fetch(far, cache, 0, 1, 2)
    age(cache)
    fetch(far, cache, 3)
    assert {"0", "1", "2"} <= there(cache)
    assert (used.folder / "0.npy").read_bytes() == bytes(SIZE)
    del used
    gc.collect()
    fetch(far, cache, 4)
    assert there(cache) == {"3", "4"}


def test_a_store_that_has_no_copies_left_has_no_folder_either(far: Far, tmp_path: Path) -> None:
    cache = ReadCache(tmp_path / "cache", SIZE)

    def of(store: str, number: int) -> Copies:
        (wanted,) = records(far, number)
        listed = {wanted.name: [wanted.size, wanted.sha256]}
        return local_copies(far, "group", [wanted], listed, store=store, cache=cache)

    held = of("one", 0)
    age(cache)
    del held
    gc.collect()
    two = of("two", 1)
    assert [p.name for p in (tmp_path / "cache" / "indexes").iterdir()] == ["two"]
    again = of("one", 0)
    assert (again.folder / "0.npy").read_bytes() == bytes(SIZE)
    assert (two.folder / "1.npy").read_bytes() == b"\1" * SIZE
    assert {p.name for p in (tmp_path / "cache" / "indexes").iterdir()} == {"one", "two"}  # both are in use


def test_a_folder_that_is_removed_while_a_copy_is_fetched_is_made_again(far: Far, tmp_path: Path) -> None:
    cache = ReadCache(tmp_path / "cache", 1 << 20)

    class Late(Far):
        def fresh(self):
            (tmp_path / "cache" / "indexes" / "ab12").rmdir()
            return self

    copies = fetch(Late(far.root), cache, 0)
    assert (copies.folder / "0.npy").read_bytes() == bytes(SIZE)


def test_a_damaged_copy_is_fetched_again_and_a_damaged_source_is_refused(far: Far, tmp_path: Path) -> None:
    cache = ReadCache(tmp_path / "cache", 1 << 20)
    path = fetch(far, cache, 0).folder / "0.npy"
    path.write_bytes(b"x" + bytes(SIZE - 1))
    fetch(far, cache, 0)
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(bytes(SIZE)).digest()
    wanted = records(far, 5)
    listed = {wanted[0].name: [SIZE, "0" * 64]}
    with pytest.raises(CorruptionError, match="differs from what was committed"):
        local_copies(far, "group", wanted, listed, store="ab12", cache=cache)
    (far.root / "group" / "5.npy").unlink()
    with pytest.raises(CorruptionError, match="is missing"):
        local_copies(far, "group", wanted, {wanted[0].name: [SIZE, wanted[0].sha256]}, store="ab12", cache=cache)
    assert there(cache) == {"0"}
    assert [p.name for p in path.parent.iterdir()] == ["0.npy"]


def test_without_a_cache_copies_last_as_long_as_they_are_used(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copies = fetch(far, None, 0, 1)
    folder = copies.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {p.stem for p in folder.iterdir()} == {"0", "1"}
    del copies
    gc.collect()
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_said_and_done_without(far: Far, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="no copies of indexes are kept here"):
        copies = fetch(far, ReadCache(tmp_path / "cache", 1 << 20), 0)
    assert (copies.folder / "0.npy").read_bytes() == bytes(SIZE)
