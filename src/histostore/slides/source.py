"""Which bytes a slide is: the files it consists of, their size and their sha256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from histostore.errors import SlideError

READ_BYTES = 1 << 20
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Of the files of a folder that is a slide; what is in them is found out when they are opened."""


def source_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files a slide consists of, the one that is opened first.

    An MRXS slide is a file and the folder of the same name; its files follow in the order of their names. A folder of
    images is its images. All other formats are one file.
    """
    path = Path(path)
    if path.is_dir() and (images := folder_files(path)[0]):
        return images
    if not path.is_file():
        msg = f"{path}: no such file"
        raise SlideError(msg)
    folder = path.with_suffix("")
    if path.suffix.lower() != ".mrxs" or not folder.is_dir():
        return (path,)
    inside = (p for p in folder.rglob("*") if p.is_file())
    return (path, *sorted(inside, key=lambda p: p.relative_to(folder).as_posix()))


def folder_files(path: Path) -> tuple[tuple[Path, ...], int]:
    """Return the images of a folder and of its subfolders in the order of their names, and how many files are none.

    Hidden files and folders (names that begin with a dot) are among the others.
    """
    files = sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.relative_to(path).as_posix())

    def is_image(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        return file.suffix.lower() in IMAGE_SUFFIXES and not hidden

    images = tuple(p for p in files if is_image(p))
    return images, len(files) - len(images)


def source_digest(path: str | Path) -> str:
    """Return the sha256 (64 hex characters) of a slide's bytes, read in pieces of 1 MiB.

    For one file it is what ``sha256sum`` prints. For several it is the sha256 of one line per file: name relative to
    the slide's folder, size, sha256, parted by tabs.

    Raises
    ------
    SlideError
        There is no such file, or it cannot be read.
    """
    path = Path(path)
    files = source_files(path)
    if len(files) == 1 and not path.is_dir():
        return _sha256(files[0])
    root = path if path.is_dir() else files[0].parent
    lines = [f"{p.relative_to(root).as_posix()}\t{p.stat().st_size}\t{_sha256(p)}\n" for p in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_bytes(path: str | Path) -> int:
    """Return the size of a slide in bytes, all its files together."""
    return sum(p.stat().st_size for p in source_files(path))


def source_changed_ns(path: str | Path) -> int:
    """Return when the newest of a slide's files was last written, in nanoseconds."""
    return max(p.stat().st_mtime_ns for p in source_files(path))


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
