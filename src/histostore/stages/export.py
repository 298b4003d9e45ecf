"""A view as a file: h5ad or zarr, staged beside the target and renamed, never half written."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import ConflictError, UsageError

if TYPE_CHECKING:
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


def write_adata(adata: AnnData, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an AnnData to ``*.h5ad`` or ``*.zarr``, where `check_target` permits it."""
    path = check_target(path, overwrite=overwrite)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    try:
        if path.suffix == ".h5ad":
            adata.write_h5ad(staged, compression="gzip")
        else:
            adata.write_zarr(staged)
        if path.is_dir():
            shutil.rmtree(path)
        staged.replace(path)
    finally:
        if staged.is_dir():
            shutil.rmtree(staged)
        staged.unlink(missing_ok=True)
    return path
