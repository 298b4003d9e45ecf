"""Feature files of other tools: found by slide, read, and written back in one step.

What each layout holds stands in `histostore.io.feature_h5` (TRIDENT, CLAM, STAMP), `feature_slide2vec` (also bare
``.pt`` tensors) and `feature_parquet`.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from histostore.errors import ConflictError, DataError, NotFoundError, StorageError, UsageError, near
from histostore.io.feature_h5 import h5_bytes, read_h5
from histostore.io.feature_parquet import parquet_bytes, parquet_slides, read_parquet
from histostore.io.feature_slide2vec import FOLDER, read_slide2vec, slide2vec_files
from histostore.io.feature_table import Tool

if TYPE_CHECKING:
    from histostore.io.feature_table import TileFeatures

TOOLS: tuple[str, ...] = get_args(Tool.__value__)
SUFFIXES = (".h5", ".hdf5", ".npz", ".pt", ".parquet")


def find_features(place: str | Path, slide: str | None = None) -> list[tuple[str, Path]]:
    """Return (slide, file) for every slide that has features: a slide is called what its file is called.

    Parameters
    ----------
    place
        A file, or a folder of them (of slide2vec, the one above ``tile_embeddings``).
    slide
        Only this one. A single file may then have any name.

    Raises
    ------
    NotFoundError
        There is no such place, or nothing of that slide in it.
    DataError
        The folder has no feature files, or two of one slide.
    """
    place = Path(place)
    if not place.exists():
        raise NotFoundError(f"there is no {place}; give a file of features or a folder of them")
    if place.is_dir() and (place / FOLDER).is_dir():
        place = place / FOLDER
    one = place.is_file()
    files = [place] if one else sorted(p for p in place.iterdir() if p.suffix in SUFFIXES and p.is_file())
    found: dict[str, Path] = {}
    for file in files:
        if file.name.endswith(".coordinates.npz"):
            continue
        for name in _slides_of(file) or [slide if one and slide is not None else file.stem]:
            if name in found:
                raise DataError(f"{found[name]} and {file} are both of slide '{name}'; give the one that counts")
            found[name] = file
    if not found:
        raise DataError(f"{place} has no feature files ({', '.join(SUFFIXES)})")
    if slide is not None and slide not in found:
        raise NotFoundError(f"{place} has no features of slide '{slide}'{near(slide, found)}")
    return [(name, file) for name, file in found.items() if slide in (None, name)]


def read_features(path: str | Path, slide: str | None = None) -> TileFeatures:
    """Read the features of one slide.

    Parameters
    ----------
    slide
        Which one, of a Parquet file that has several.

    Raises
    ------
    DataError
        One line that names the file: it is damaged, of no known layout, without coordinates, or does not fit itself.
    """
    path = Path(path)
    match path.suffix:
        case ".h5" | ".hdf5":
            return read_h5(path)
        case ".npz" | ".pt":
            return read_slide2vec(path)
        case ".parquet":
            return read_parquet(path, slide)
    raise DataError(f"{path}: features are read from {', '.join(SUFFIXES)}")


def write_features(table: TileFeatures, folder: str | Path, slide: str, *, overwrite: bool = False) -> list[Path]:
    """Write the features of one slide in the layout of `table.tool`; every file is there whole, or not at all.

    Raises
    ------
    ConflictError
        A file is there and `overwrite` is false; nothing is written.
    StorageError
        The disk refuses.
    """
    folder = Path(folder)
    match table.tool:
        case "slide2vec":
            made = slide2vec_files(table, slide)
        case "parquet":
            made = {f"{slide}.parquet": parquet_bytes(table, slide)}
        case _:
            made = {f"{slide}.h5": h5_bytes(table)}
    there = next((folder / name for name in made if (folder / name).exists()), None)
    if there is not None and not overwrite:
        raise ConflictError(f"{there} is there already; choose another folder, or pass overwrite")
    return [_write(folder / name, data) for name, data in made.items()]


def check_tool(name: str) -> Tool:
    """Return `name` if features are written that way, else raise `UsageError`."""
    for tool in get_args(Tool.__value__):
        if name == tool:
            return tool  # type: ignore[no-any-return]
    raise UsageError(f"no format '{name}'{near(name, TOOLS)}; there are {', '.join(TOOLS)}")


def _slides_of(file: Path) -> list[str] | None:
    return parquet_slides(file) if file.suffix == ".parquet" else None


def _write(path: Path, data: bytes) -> Path:
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(data)
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        said = error.strerror or error
        raise StorageError(f"cannot write {path}: {said}; free some space or choose another place") from error
    return path
