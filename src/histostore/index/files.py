"""Files of an index: written whole and durable, recorded with size and sums, refused when a byte differs."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import google_crc32c
import numpy as np

from histostore.errors import CorruptionError, StorageError
from histostore.index.vectors import row_blocks
from histostore.specs import SpecBase
from histostore.store.files import PARTIAL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.index.ann import AnnIndex
    from histostore.index.vectors import Vectors

type Check = Literal["crc32c", "sha256", "size"]

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord(SpecBase):
    """One file of a snapshot: what it must be."""

    name: str
    size: int
    sha256: str
    """Its identity, for manifests, copies and `verify`."""
    crc32c: int
    """Finds damage five times as fast as sha256: what opening compares."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lend a path to write to; what lies there becomes `path` in one step, durably, or leaves no trace.

    Raises
    ------
    StorageError
        The disk refused.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _fsync(partial)
            partial.replace(path)
            _fsync(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def write_rows(folder: Path, name: str, values: Vectors) -> FileRecord:
    """Write embeddings as ``.npy`` of their own type, block by block."""
    header = {"descr": np.dtype(values.dtype).str, "fortran_order": False, "shape": values.shape}
    with whole_file(folder / name) as partial, partial.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, block in row_blocks(values):
            file.write(np.ascontiguousarray(block, dtype=values.dtype).data)
    return record_of(folder / name)


def write_faiss(folder: Path, name: str, index: AnnIndex) -> FileRecord:
    """Write a FAISS index."""
    with whole_file(folder / name) as partial:
        index.save(partial)
    return record_of(folder / name)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def record_of(path: Path) -> FileRecord:
    """Read a file and return its record."""
    sha, crc, size = hashlib.sha256(), 0, 0
    for part in _parts(path):
        sha.update(part)
        crc = google_crc32c.extend(crc, part)
        size += len(part)
    return FileRecord(name=path.name, size=size, sha256=sha.hexdigest(), crc32c=crc)


def check_file(folder: Path, record: FileRecord, how: Check = "crc32c") -> Path:
    """Return a recorded file's path once it is what it was.

    Parameters
    ----------
    how
        ``crc32c`` finds damage; ``sha256`` also a file made to look the same; ``size`` looks at the length alone.

    Raises
    ------
    CorruptionError
        The file is gone, or differs. It names the file; an index is derived data and can be built again.
    """
    path = folder / record.name
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise CorruptionError(f"index file {record.name} is gone from {folder}; rebuild the index") from None
    if size != record.size:
        raise CorruptionError(f"index file {path} has {size} bytes, not {record.size}; rebuild the index")
    if how == "sha256":
        same = record_of(path).sha256 == record.sha256
    elif how == "crc32c":
        crc = 0
        for part in _parts(path):
            crc = google_crc32c.extend(crc, part)
        same = crc == record.crc32c
    else:
        same = True
    if not same:
        raise CorruptionError(f"index file {path} differs from what was built ({how}); rebuild the index")
    return path


def read_array(path: Path) -> NDArray[Any]:
    """Return a checked ``.npy`` file, memory-mapped."""
    values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while part := file.read(READ_BYTES):
            yield part
