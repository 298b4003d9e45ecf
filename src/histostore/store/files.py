"""Bytes by key: the few operations a store needs of a disk, each atomic and durable.

Keys are relative paths with ``/``. `LocalFiles` is a folder; `histostore.store.objects.ObjectFiles` offers the same
operations on a bucket, which is why nothing above this module touches a path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, Self

from histostore.errors import UsageError
from histostore.store.disk import (
    PARTIAL,
    Buffer,
    fsync_dir,
    make_folder,
    publish,
    readable,
    told,
    try_link,
    write_beside,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["PARTIAL", "Buffer", "Files", "LocalFiles", "Lock", "check_key"]


class Lock(Protocol):
    """Held until `release` or the end of the process, however it ends."""

    def release(self) -> None:
        """Give it up."""
        ...


class Files(Protocol):
    """What a store needs of its medium."""

    uri: str
    in_place: bool
    """Whether the attempt of a writer that died is gone on with where it lies, because its lock says that it died.

    Elsewhere nobody writes into another's attempt: its finished shards are copied.
    """

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

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        """Return the bytes at each (offset, length), in that order; fewer where the file ends.

        Many ranges of one file cost less than as many calls. Raises `FileNotFoundError` where there is no such file.
        """
        ...

    def map(self, key: str) -> memoryview | None:
        """Return the whole file as read-only memory; None where the medium cannot map: then use `read_ranges`."""
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

    def copy(self, source: str, target: str) -> bool:
        """Copy a file; return whether there was one."""
        ...

    def now(self) -> float:
        """Return the time by the clock that mtimes are told by, in seconds since 1970."""
        ...

    def pin(self, prefix: str, listed: Mapping[str, Sequence[Any]]) -> None:
        """Say that these files will never change, so that they may be kept close by.

        `listed` is what a sealed header lists: names below `prefix`, and for each its bytes and sha256.
        """
        ...

    def fresh(self) -> Files:
        """Return the same files, read from the medium itself and not from anything kept close by."""
        ...


class LocalFiles:
    """A folder on a local file system.

    `put` writes a temporary file beside the target, fsyncs it, renames it and fsyncs the folder (`sync_tree` does the
    last for many files at once, which is what makes a group of small arrays cheap). `put_new` uses a hard
    link, or ``renameat2(RENAME_NOREPLACE)`` where links are not to be had: plain rename loses commits.
    """

    in_place = True

    def __init__(self, root: str | Path, *, make: bool = False) -> None:
        self.root = Path(root).absolute()
        self.uri = str(self.root)
        if make:
            with told(self.root):
                make_folder(self.root)

    def _path(self, key: str) -> Path:
        check_key(key, self.uri)
        return self.root.joinpath(*PurePosixPath(key).parts)

    def put(self, key: str, *parts: Buffer, sync: bool = True) -> None:
        """Write a file whole, replacing what was there."""
        path = self._path(key)
        with told(path):
            temporary = write_beside(path, parts, sync=sync)
            try:
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            if sync:
                fsync_dir(path.parent)

    def sync_tree(self, prefix: str) -> None:
        """Make the names of all files below a folder durable."""
        path = self._path(prefix)
        with told(path):
            for folder, _, _ in path.walk():
                fsync_dir(folder)

    def put_new(self, key: str, data: Buffer) -> bool:
        """Write a file only if there is none."""
        path = self._path(key)
        with told(path):
            if path.exists():
                return False
            temporary = write_beside(path, (data,))
            try:
                won = publish(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            if won:
                fsync_dir(path.parent)
            return won

    def get(self, key: str) -> bytes:
        """Return a file's bytes."""
        path = self._path(key)
        with readable(path):
            return path.read_bytes()

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        """Return the bytes at each (offset, length), in that order."""
        path = self._path(key)
        with readable(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return [os.pread(fd, length, start) for start, length in ranges]
            finally:
                os.close(fd)

    def map(self, key: str) -> memoryview:
        """Return the whole file, memory-mapped."""
        path = self._path(key)
        with readable(path), path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def size(self, key: str) -> int | None:
        """Return a file's size, None where there is no such file."""
        path = self._path(key)
        try:
            with readable(path):
                return path.stat().st_size
        except FileNotFoundError:
            return None

    def children(self, prefix: str) -> list[str]:
        """Return the names directly below a folder, sorted."""
        path = self._path(prefix)
        try:
            with readable(path), os.scandir(path) as found:
                return sorted(e.name + ("/" if e.is_dir() else "") for e in found if not e.name.startswith(PARTIAL))
        except FileNotFoundError:
            return []

    def walk(self, prefix: str, *, recurse: bool = True) -> Iterator[tuple[str, int, float]]:
        """Yield (key, bytes, mtime) of every file below a folder."""
        for folder, folders, names in (self._path(prefix) if prefix else self.root).walk(on_error=_cannot_list):
            folders[:] = sorted(folders) if recurse else []
            for name in sorted(names):
                path = folder / name
                try:
                    with readable(path):
                        stat = path.lstat()
                except FileNotFoundError:
                    continue  # a writer beside us renamed it meanwhile
                yield path.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime

    def delete(self, key: str) -> None:
        """Remove a file; none there is fine."""
        path = self._path(key)
        with told(path):
            path.unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        """Remove everything below a folder, and it; a folder into which another process just wrote stays."""
        path = self._path(prefix)
        with told(path):
            for folder, _, names in path.walk(top_down=False, on_error=_cannot_list):
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
        with told(path):
            make_folder(path.parent)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return _FileLock(fd)

    def locked(self, key: str) -> bool:
        """Whether someone holds a lock."""
        path = self._path(key)
        try:
            with readable(path):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def copy(self, source: str, target: str) -> bool:
        """Give a file a second name, or copy it where that cannot be: files here are replaced, never changed."""
        path = self._path(target)
        with contextlib.suppress(OSError):
            make_folder(path.parent)
            os.link(self._path(source), path)
            return True
        try:
            data = self.map(source)
        except FileNotFoundError:
            return False
        self.put(target, data)
        return True

    def now(self) -> float:
        """Return this machine's time."""
        return time.time()

    def pin(self, prefix: str, listed: Mapping[str, Sequence[Any]]) -> None:
        """Do nothing: the files are here."""

    def fresh(self) -> Files:
        """Return these files."""
        return self

    def probe_publish(self) -> str:
        """Return how `put_new` works here (``link`` or ``renameat2``), tried with real files.

        Raises
        ------
        StorageError
            The file system offers neither; it is named.
        """
        key = f"{PARTIAL}probe-{secrets.token_hex(4)}"
        path = self._path(key)
        with told(path):
            temporary = write_beside(path, (b"probe",))
            try:
                how = "link" if try_link(temporary, path) is not None else "renameat2"
                if how == "renameat2":
                    publish(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        return how


def _cannot_list(error: OSError) -> None:
    """Say so, for a folder that is passed over looks like an empty one; one that went away meanwhile is none."""
    with contextlib.suppress(FileNotFoundError), readable(Path(error.filename)):
        raise error


def check_key(key: str, where: str) -> None:
    """Refuse a key that does not stay inside the store.

    Raises
    ------
    UsageError
        It does not.
    """
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or any(p in ("..", ".") for p in parts) or "\0" in key:
        raise UsageError(f"invalid key {key!r} in {where}: keys stay inside the store")


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
