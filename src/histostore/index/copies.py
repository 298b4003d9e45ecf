"""Copies on this machine of the index files of a store that cannot be memory-mapped: bounded, shared by all processes.

A copy is one file of the name that its snapshot gives it, which is drawn at random and never used again, in a folder
for each store. Whoever uses copies holds a shared lock on each (it dies with the process); when there are too many
bytes, those that nobody holds are removed, least recently used first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
import time
import warnings
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import CorruptionError
from histostore.index.files import check_file
from histostore.store.disk import told
from histostore.store.read_cache import FOLDER, SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from histostore.index.files import FileRecord
    from histostore.store.files import Files
    from histostore.store.read_cache import ReadCache

FETCH_BYTES = 16 << 20
_NEW = ".new-"
_STALE_S = 3600.0
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(slots=True, weakref_slot=True, eq=False)
class Copies:
    """Files in a folder of this machine. They stay as long as this object does."""

    folder: Path
    _held: list[int] = field(default_factory=list)
    """Descriptors of locked files; the list is shared with the finalizer."""

    def __post_init__(self) -> None:
        weakref.finalize(self, _close, self._held)

    def hold(self, path: Path) -> bool:
        """Keep a file from being removed; return whether it was there."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        _lock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink == 0:  # removed between the two
            os.close(descriptor)
            return False
        os.utime(descriptor)
        self._held.append(descriptor)
        return True


def local_copies(
    files: Files, prefix: str, records: Iterable[FileRecord], listed: Mapping[str, Sequence[Any]], *, store: str,
    cache: ReadCache | None,
) -> Copies:  # fmt: skip
    """Return copies of files below a prefix, fetched where they are not there whole.

    Parameters
    ----------
    listed
        Bytes and sha256 of each name, as a sealed header has them.
    store
        The store's uuid: names a folder.
    cache
        Where blocks of the store are kept, which says where and how many bytes; None keeps copies no longer than they
        are used, in a folder of their own.

    Raises
    ------
    CorruptionError
        What was fetched is not what is listed.
    """
    folder = _folder(cache, store)
    copies = Copies(folder or Path(tempfile.mkdtemp(prefix="histostore-index-")))
    for record in records:
        path = copies.folder / record.name
        for _ in range(3):  # another process may remove it before it is held
            if copies.hold(path) and _is_whole(copies.folder, record):
                break
            size, sha256 = listed[record.name]
            _fetch(files, f"{prefix}/{record.name}", path, size, sha256)
        else:
            raise CorruptionError(f"{path} is gone or changed as soon as it is there; set {FOLDER} to another folder")
    if folder is not None and cache is not None:
        _evict(folder.parent, cache.max_bytes)
    elif folder is None:
        weakref.finalize(copies, _remove, copies.folder)
    return copies


def _folder(cache: ReadCache | None, store: str) -> Path | None:
    """Return the folder of a store's copies, this user's alone; None where nothing can be kept."""
    if cache is None:
        return None
    folder = cache.folder / "indexes" / store
    try:
        for path in (cache.folder, folder.parent, folder):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.stat().st_uid != os.getuid():
                raise PermissionError(0, "it is another user's", str(path))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "it cannot be written", str(folder))
    except OSError as error:
        said = f"{folder}: no copies of indexes are kept here ({error.strerror}). Set {FOLDER} or {SIZE}"
        warnings.warn(said, stacklevel=2)
        return None
    return folder


def _is_whole(folder: Path, record: FileRecord) -> bool:
    """Whether a copy is what it was; one that is not is dropped, to be fetched again."""
    try:
        check_file(folder, record)
    except CorruptionError:
        (folder / record.name).unlink(missing_ok=True)
        return False
    return True


def _fetch(files: Files, key: str, path: Path, size: int, sha256: str) -> None:
    """Write a file beside its place, piece by piece, and rename it once its sum is right."""
    new, sha = path.with_name(f"{_NEW}{secrets.token_hex(6)}"), hashlib.sha256()
    source, where = files.fresh(), f"{files.uri}/{key}"  # past the cache of blocks: it would hold the bytes twice
    try:
        with told(path), os.fdopen(_made(new), "wb") as file:
            for start in range(0, size, FETCH_BYTES):
                (data,) = source.read_ranges(key, [(start, min(FETCH_BYTES, size - start))])
                sha.update(data)
                file.write(data)
        if sha.hexdigest() != sha256:
            raise CorruptionError(f"{where} differs from what was committed; rebuild the index")
        with told(path):
            new.replace(path)
    except FileNotFoundError:
        raise CorruptionError(f"{where} is missing; rebuild the index") from None
    finally:
        new.unlink(missing_ok=True)


def _made(new: Path) -> int:
    """Return the descriptor of a new file."""
    try:
        return os.open(new, _MAKE, 0o600)
    except FileNotFoundError:  # another process took the folder for one of a store without copies
        new.parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(new, _MAKE, 0o600)


def _evict(root: Path, max_bytes: int) -> None:
    """Remove copies that nobody holds until there is room, the longest unused first, and folders that are empty."""
    found: list[tuple[float, int, Path]] = []
    for path in root.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            if not path.name.startswith(_NEW):
                found.append((stat.st_mtime, stat.st_size, path))
            elif time.time() - stat.st_mtime > _STALE_S:
                path.unlink()
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found, key=lambda f: f[0]):
        if total <= max_bytes:
            break
        if _remove_unheld(path):
            total -= size
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # there is something in it
            folder.rmdir()


def _remove_unheld(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    """Lock a file; where the file system has no locks, whoever has it open or mapped keeps it all the same."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _close(held: list[int]) -> None:
    while held:
        os.close(held.pop())


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
