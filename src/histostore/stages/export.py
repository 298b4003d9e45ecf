"""A view as a file: h5ad or zarr, staged beside the target and renamed, never half written."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import ConflictError, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Buffer, Callable
    from io import FileIO

    from anndata import AnnData


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """Return `path` if an AnnData can be written there.

    Raises
    ------
    UsageError
        The name ends in neither ``.h5ad`` nor ``.zarr``, or there is no such folder.
    ConflictError
        The file is there and `overwrite` is false.
    """
    path = Path(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise UsageError(f"{path}: the name must end in .h5ad or .zarr")
    if path.exists() and not overwrite:
        raise ConflictError(f"{path} is there already; choose another name, or pass --overwrite")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.absolute().parent}; make it first")
    return path


def write_adata(
    adata: AnnData, path: str | Path, *, overwrite: bool = False, say: Callable[[str], None] | None = None
) -> Path:
    """Write an AnnData to ``*.h5ad`` or ``*.zarr``, where `check_target` permits it.

    AnnData's files have no ``/`` in names: an obs column ``HER2/neu`` is written as ``HER2_neu``, and `say` is told so.

    Raises
    ------
    UsageError
        There is a column of that other name too.
    """
    path = check_target(path, overwrite=overwrite)
    renamed = {c: c.replace("/", "_") for c in adata.obs.columns if "/" in c}
    if renamed:
        columns = [renamed.get(c, c) for c in adata.obs.columns]
        taken = next((c for c, new in renamed.items() if columns.count(new) > 1), None)
        if taken is not None:
            raise UsageError(
                f"{path}: files have no '/' in names, and column '{taken}' cannot be '{renamed[taken]}', "
                "which is there too; rename one"
            )
        adata = copy.copy(adata)  # the caller's keeps its names, and nothing large is copied
        adata.obs = adata.obs.set_axis(columns, axis=1)
        if say is not None:
            said = ", ".join(f"'{c}' is '{new}'" for c, new in renamed.items())
            say(f"files have no '/' in names: in {path.name} {said}")
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    try:
        if path.suffix == ".h5ad":
            _write_h5ad(adata, staged)
        else:
            adata.write_zarr(staged)
        if path.is_dir():
            shutil.rmtree(path)
        staged.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        ) from error
    finally:
        if staged.is_dir():
            shutil.rmtree(staged)
        staged.unlink(missing_ok=True)
    return path


def _write_h5ad(adata: AnnData, path: Path) -> None:
    """Write what ``adata.write_h5ad`` writes; a disk that refuses is one `OSError`."""
    import h5py
    from anndata.io import write_elem

    with path.open("w+b", buffering=0) as file:
        kept = _KeepsItsError(file)
        try:
            with h5py.File(kept, "w") as h5:
                write_elem(h5, "/", adata, dataset_kwargs={"compression": "gzip"})
        finally:
            if kept.error is not None:
                raise kept.error


class _KeepsItsError(RawIOBase):
    """A file for HDF5, which answers a failed write with tracebacks on stderr that no caller can catch."""

    def __init__(self, file: FileIO) -> None:
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view) and self.error is None:
            try:
                at += self._file.write(view[at:])
            except OSError as error:
                self.error = error
        return len(view)

    def readinto(self, buffer: Buffer) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)

    def flush(self) -> None:
        """Nothing is held back."""
