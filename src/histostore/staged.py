"""Text files that are written beside their target and renamed: there whole, or not at all."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from histostore.errors import ConflictError, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def write_text(path: Path, parts: Iterable[str], *, overwrite: bool = False) -> Path:
    """Write UTF-8 text in one step.

    Parameters
    ----------
    parts
        The text, piece by piece; joined without anything between them.
    overwrite
        Replace a file that is there.

    Raises
    ------
    ConflictError
        The file is there and `overwrite` is false.
    UsageError
        There is no such folder.
    StorageError
        The disk refuses; what was there stays as it was.
    """
    if path.exists() and not overwrite:
        msg = f"{path} is there already; choose another name, or pass --overwrite"
        raise ConflictError(msg)
    if not path.absolute().parent.is_dir():
        msg = f"{path}: there is no folder {path.absolute().parent}; make it first"
        raise UsageError(msg)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with staged.open("x", encoding="utf-8", newline="") as file:
            file.writelines(parts)
        staged.replace(path)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        raise StorageError(msg) from error
    finally:
        staged.unlink(missing_ok=True)
    return path
