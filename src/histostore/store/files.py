"""Bytes by key: the few operations a store needs of a disk, each atomic and durable.

Keys are relative paths with ``/``. `LocalFiles` is the only implementation for now; an object store offers the same
operations (put-if-absent for `put_new`, no lock), which is why nothing above this module touches a path.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import secrets
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, Self

from histostore.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

type Buffer = bytes | bytearray | memoryview

PARTIAL = ".partial-"
"""Prefix of a file being written; never a key that anything names."""

_RENAME_NOREPLACE = 1
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class Lock(Protocol):
    """Held until `release` or the end of the process, however it ends."""

    def release(self) -> None:
        """Give it up."""
        ...


class Files(Protocol):
    """What a store needs of its medium."""

    uri: str

    def put(self, key: str, *parts: Buffer, sync: bool = True) -> None:
        """Write a file whole, replacing what was there; visible at once and entirely.

        Its bytes are durable on return; its name is too, unless `sync` is false: then `sync_tree` makes it so.
        """
        ...

    def sync_tree(self, prefix: str) -> None:
        """Make the names of all files below a folder durable."""
        ...

    def put_new(self, key: str, data: Buffer) -> bool:
        """Write a file only if there is none; return whether it was written. Exactly one of many callers wins."""
        ...

    def get(self, key: str) -> bytes:
        """Return a file's bytes, or raise `FileNotFoundError`."""
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`; fewer where the file ends."""
        ...

    def map(self, key: str) -> memoryview:
        """Return the whole file as read-only memory; mapped where the medium can."""
        ...

    def size(self, key: str) -> int | None:
        """Return a file's size, None where there is no such file."""
        ...

    def children(self, prefix: str) -> list[str]:
        """Return the names directly below a folder, sorted; folders end with ``/``. Empty where there is none."""
        ...

    def walk(self, prefix: str, *, recurse: bool = True) -> Iterator[tuple[str, int, float]]:
        """Yield (key, bytes, mtime) of every file below a folder, leftovers of killed writers too.

        An empty prefix is the store itself.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a file; none there is fine."""
        ...

    def delete_tree(self, prefix: str) -> None:
        """Remove everything below a folder, and it."""
        ...

    def lock(self, key: str) -> Lock | None:
        """Take a lock that dies with the process; None when another process holds it."""
        ...

    def locked(self, key: str) -> bool:
        """Whether someone holds a lock; looks, and makes no file."""
        ...


class LocalFiles:
    """A folder on a local file system.

    `put` writes a temporary file beside the target, fsyncs it, renames it and fsyncs the folder (`sync_tree` does the
    last for many files at once, which is what makes a group of small arrays cheap). `put_new` uses a hard
    link, or ``renameat2(RENAME_NOREPLACE)`` where links are not to be had: plain rename loses commits.
    """

    def __init__(self, root: str | Path, *, make: bool = False) -> None:
        self.root = Path(root).absolute()
        self.uri = str(self.root)
        if make:
            with _told(self.root):
                _make_folder(self.root)

    def _path(self, key: str) -> Path:
        parts = PurePosixPath(key).parts
        if not parts or key.startswith("/") or any(p in ("..", ".") for p in parts) or "\0" in key:
            raise UsageError(f"invalid key {key!r} in {self.root}: keys stay inside the store")
        return self.root.joinpath(*parts)

    def put(self, key: str, *parts: Buffer, sync: bool = True) -> None:
        """Write a file whole, replacing what was there."""
        path = self._path(key)
        with _told(path):
            temporary = _write_beside(path, parts, sync=sync)
            try:
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            if sync:
                _fsync_dir(path.parent)

    def sync_tree(self, prefix: str) -> None:
        """Make the names of all files below a folder durable."""
        path = self._path(prefix)
        with _told(path):
            for folder, _, _ in path.walk():
                _fsync_dir(folder)

    def put_new(self, key: str, data: Buffer) -> bool:
        """Write a file only if there is none."""
        path = self._path(key)
        with _told(path):
            if path.exists():
                return False
            temporary = _write_beside(path, (data,))
            try:
                won = _publish(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            if won:
                _fsync_dir(path.parent)
            return won

    def get(self, key: str) -> bytes:
        """Return a file's bytes."""
        return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`."""
        fd = os.open(self._path(key), os.O_RDONLY)
        try:
            return os.pread(fd, length, start)
        finally:
            os.close(fd)

    def map(self, key: str) -> memoryview:
        """Return the whole file, memory-mapped."""
        with self._path(key).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def size(self, key: str) -> int | None:
        """Return a file's size, None where there is no such file."""
        try:
            return self._path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def children(self, prefix: str) -> list[str]:
        """Return the names directly below a folder, sorted."""
        try:
            with os.scandir(self._path(prefix)) as found:
                return sorted(e.name + ("/" if e.is_dir() else "") for e in found if not e.name.startswith(PARTIAL))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, prefix: str, *, recurse: bool = True) -> Iterator[tuple[str, int, float]]:
        """Yield (key, bytes, mtime) of every file below a folder."""
        for folder, folders, names in (self._path(prefix) if prefix else self.root).walk():
            folders[:] = sorted(folders) if recurse else []
            for name in sorted(names):
                path = folder / name
                try:
                    stat = path.lstat()
                except FileNotFoundError:
                    continue  # a writer beside us renamed it meanwhile
                yield path.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime

    def delete(self, key: str) -> None:
        """Remove a file; none there is fine."""
        path = self._path(key)
        with _told(path):
            path.unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        """Remove everything below a folder, and it; a folder into which another process just wrote stays."""
        path = self._path(prefix)
        with _told(path):
            for folder, _, names in path.walk(top_down=False):
                for name in names:
                    (folder / name).unlink(missing_ok=True)
                try:
                    folder.rmdir()
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                        raise

    def lock(self, key: str) -> Lock | None:
        """Take an flock on a file of that name; it dies with the process."""
        path = self._path(key)
        with _told(path):
            _make_folder(path.parent)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return _FileLock(fd)

    def locked(self, key: str) -> bool:
        """Whether someone holds a lock."""
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def probe_publish(self) -> str:
        """Return how `put_new` works here (``link`` or ``renameat2``), tried with real files.

        Raises
        ------
        StorageError
            The file system offers neither; it is named.
        """
        key = f"{PARTIAL}probe-{secrets.token_hex(4)}"
        path = self._path(key)
        with _told(path):
            temporary = _write_beside(path, (b"probe",))
            try:
                how = "link" if _try_link(temporary, path) is not None else "renameat2"
                if how == "renameat2":
                    _publish(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        return how


class _FileLock:
    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, each durable in the one it lies in."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        _fsync_dir(folder.parent)


def _write_beside(path: Path, parts: tuple[Buffer, ...], *, sync: bool = True) -> Path:
    if sync:
        _make_folder(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{PARTIAL}{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _try_link(temporary: Path, path: Path) -> bool | None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            return None
        raise
    return True


def _publish(temporary: Path, path: Path) -> bool:
    linked = _try_link(temporary, path)
    if linked is not None:
        return linked
    libc = ctypes.CDLL(None, use_errno=True)
    here = -100  # AT_FDCWD
    failed = libc.renameat2(here, os.fsencode(temporary), here, os.fsencode(path), _RENAME_NOREPLACE)
    if not failed:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    raise StorageError(
        f"{path.parent}: this file system ({_filesystem_of(path.parent)}) offers neither hard links nor "
        "renameat2(RENAME_NOREPLACE), so commits could be lost; put the store on another one",
    )


def _filesystem_of(path: Path) -> str:
    best, kind = "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, found, *_ = line.split(" ")
            if str(path).startswith(mount) and len(mount) >= len(best):
                best, kind = mount, found
    return kind


def _fsync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again (finished shards are kept)",
    errno.EDQUOT: "the quota is used up; free some space and run the same command again (finished shards are kept)",
    errno.EROFS: "the file system is read-only; choose another place or remount it",
    errno.EACCES: "permission denied; check the owner of the store's folder",
    errno.EPERM: "permission denied; check the owner of the store's folder",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
}


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn an OSError into a `StorageError` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError:
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"cannot write {path}: {advice}") from error
