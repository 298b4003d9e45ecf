"""How a file on a local disk becomes durable, and visible whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import CorruptionError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

type Buffer = bytes | bytearray | memoryview

PARTIAL = ".partial-"
"""Prefix of a file being written; never a key that anything names."""

_RENAME_NOREPLACE = 1
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each durable in the one it lies in."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_dir(folder.parent)


def write_beside(path: Path, parts: tuple[Buffer, ...], *, sync: bool = True) -> Path:
    """Write a temporary file beside its place, durable; its folder is too, unless `sync` is false. Return it."""
    if sync:
        make_folder(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{PARTIAL}{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            for part in parts:  # one call each: a single writev of all of them took half as long again
                view = memoryview(part).cast("B")
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def try_link(temporary: Path, path: Path) -> bool | None:
    """Name a file once more by a hard link: False where the name is taken, None where there are no links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            return None
        raise
    return True


def publish(temporary: Path, path: Path) -> bool:
    """Give a file its name if nobody has it, and return whether it was free.

    Raises
    ------
    StorageError
        The file system offers neither hard links nor ``renameat2(RENAME_NOREPLACE)``.
    """
    linked = try_link(temporary, path)
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


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable."""
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

_LOST = {errno.EIO, errno.ELOOP}
"""The medium has not what was written; whoever asks, and however often."""


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an OSError into a `StorageError` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {_advice(error)}") from error


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError of reading into one of ours: damage where the bytes are lost, else what to do.

    A file or folder that is not there, or is the other one, is a `FileNotFoundError`.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (NotADirectoryError, IsADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
    except OSError as error:
        if error.errno in _LOST:
            raise CorruptionError(f"cannot read {path}: {error.strerror}; run `histostore verify`") from error
        raise StorageError(f"cannot read {path}: {_advice(error)}") from error


def _advice(error: OSError) -> str:
    return _ADVICE.get(error.errno or 0, error.strerror or str(error))
