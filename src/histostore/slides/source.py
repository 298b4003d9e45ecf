"""Which bytes a slide is: the files it consists of, their size and their sha256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from histostore.errors import SlideError

READ_BYTES = 1 << 20


def source_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files a slide consists of, the one that is opened first.

    An MRXS slide is a file and the folder of the same name; its files follow in the order of their names. All other
    formats are one file.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"{path}: no such file"
        raise SlideError(msg)
    folder = path.with_suffix("")
    if path.suffix.lower() != ".mrxs" or not folder.is_dir():
        return (path,)
    inside = (p for p in folder.rglob("*") if p.is_file())
    return (path, *sorted(inside, key=lambda p: p.relative_to(folder).as_posix()))


def source_digest(path: str | Path) -> str:
    """Return the sha256 (64 hex characters) of a slide's bytes, read in pieces of 1 MiB.

    For one file it is what ``sha256sum`` prints. For several it is the sha256 of one line per file: name relative to
    the slide's folder, size, sha256, parted by tabs.

    Raises
    ------
    SlideError
        There is no such file, or it cannot be read.
    """
    files = source_files(path)
    if len(files) == 1:
        return _sha256(files[0])
    root = files[0].parent
    lines = [f"{p.relative_to(root).as_posix()}\t{p.stat().st_size}\t{_sha256(p)}\n" for p in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_bytes(path: str | Path) -> int:
    """Return the size of a slide in bytes, all its files together."""
    return sum(p.stat().st_size for p in source_files(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                digest.update(piece)
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise SlideError(msg) from error
    return digest.hexdigest()
