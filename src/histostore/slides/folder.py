"""A folder of images in class-named subfolders (``glom/*.png``, ``other/*.jpg``) as one slide.

The images lie on a mosaic that is made as it is read: one cell per image, each image in the middle of its cell, glass
around it. A cell is twice as wide and as high as the largest image, so a tile about an image sees nothing of its
neighbours until it is three times as large as they are. The mosaic follows from names and sizes alone.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from PIL import Image, UnidentifiedImageError

from histostore.errors import SlideError, UsageError
from histostore.protocols import TileStatus
from histostore.slides.overview import overview
from histostore.slides.pixels import WHITE, check_level, corners
from histostore.slides.source import IMAGE_SUFFIXES, folder_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.protocols import Slide

SPACING = 2
"""Cells per image edge."""

KEPT_BYTES = 64 << 20
"""Decoded images kept for the next read: neighbours come together."""

MAX_EDGE = 1 << 13
"""Of one image in pixels: it is decoded whole."""


@dataclass(frozen=True, slots=True, eq=False)
class FolderImages:
    """What lies in a folder: the images that can be placed, in the order of their names, and what cannot."""

    names: tuple[str, ...]
    """``class/name.png``, relative to the folder, with ``/``."""
    classes: tuple[str | None, ...]
    """The first subfolder; None for an image that lies in the folder itself."""
    size_px: NDArray[np.int64]
    """``(n, 2)`` (width, height)."""
    unreadable: tuple[str, ...]
    """Images by their name whose header says otherwise."""
    others: int
    """Files that are no images by their name."""


class FolderSlide:
    """A mosaic of the images of a folder. One level; mpp is None: files of patches do not say."""

    def __init__(self, path: Path, open_image: Callable[[Path], Slide]) -> None:
        self.uri = str(path)
        self._path, self._open_image = path, open_image
        self.images = _look(path)
        sizes = self.images.size_px
        largest = sizes.max(axis=0)
        n = len(sizes)
        columns = math.ceil(math.sqrt(n * float(largest[1]) / float(largest[0])))
        row, column = np.divmod(np.arange(n), columns)
        self._cell = SPACING * largest
        # the first images touch the border: only between images is there glass
        self._grid = np.column_stack([column, row]).astype(np.int64)
        self._corner: NDArray[np.int64] = self._grid * self._cell + (largest - sizes) // 2
        self._columns, self._largest = columns, largest
        shape = (self._grid.max(axis=0)) * self._cell + largest
        self.size_px = (int(shape[0]), int(shape[1]))
        self.mpp: float | None = None
        self.downsamples: tuple[float, ...] = (1.0,)
        self._kept: dict[int, NDArray[np.uint8] | None] = {}
        self._closed = False
        self.reader = f"folder: {_readers(path, self.images.names, open_image)}"
        kinds = np.unique(sizes, axis=0)
        smallest = sizes.min(axis=0)
        self.properties: Mapping[str, str] = {
            "histostore.format": "folder of images",
            "histostore.mpp-origin": "none: a folder of images does not say",
            "histostore.images": str(n),
            "histostore.unreadable": str(len(self.images.unreadable)),
            "histostore.sizes": f"{len(kinds)}: {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]} px",
        }

    @property
    def centres(self) -> NDArray[np.float64]:
        """``(n, 2)`` centres (x, y) of the images: a tile of an image's size about it is that image."""
        return self._corner + self.images.size_px / 2

    def read(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read many square tiles at once; see `histostore.protocols.Slide.read`.

        PADDED is a tile of which some part lies in no image.
        """
        if self._closed:
            msg = f"{self.uri}: read after close"
            raise UsageError(msg)
        check_level(level, px, self.downsamples)
        at = corners(xy0)
        pixels = np.full((len(at), px, px, 3), WHITE, np.uint8)
        status = np.full(len(at), TileStatus.OK, np.uint8)
        for i, corner in enumerate(at):
            status[i] = self._paste(corner, px, pixels[i])
        return pixels, status

    def _paste(self, corner: NDArray[np.int64], px: int, tile: NDArray[np.uint8]) -> TileStatus:
        covered = 0
        for k in self._touched(corner, px):
            left, top = np.maximum(self._corner[k], corner)
            right, bottom = np.minimum(self._corner[k] + self.images.size_px[k], corner + px)
            if right <= left or bottom <= top:
                continue
            image = self._image(k)
            if image is None:
                tile[...] = 0
                return TileStatus.UNREADABLE
            (x, y), (u, v) = corner, self._corner[k]
            tile[top - y : bottom - y, left - x : right - x] = image[top - v : bottom - v, left - u : right - u]
            covered += int(right - left) * int(bottom - top)
        return TileStatus.OK if covered == px * px else TileStatus.PADDED

    def _touched(self, corner: NDArray[np.int64], px: int) -> list[int]:
        """Return the images whose cells a tile reaches into."""
        first = np.maximum(corner // self._cell, 0)
        last = np.minimum((corner + px - 1) // self._cell, self._grid.max(axis=0))
        found = (r * self._columns + c for r in range(first[1], last[1] + 1) for c in range(first[0], last[0] + 1))
        return [k for k in found if k < len(self._corner)]

    def _image(self, k: int) -> NDArray[np.uint8] | None:
        """Return one image whole, or None where it cannot be read."""
        if k not in self._kept:
            image = self._decoded(k)
            room = KEPT_BYTES // max(1, int(self._largest.prod()) * 3)
            while len(self._kept) > room:
                del self._kept[next(iter(self._kept))]
            self._kept[k] = image
        return self._kept[k]

    def _decoded(self, k: int) -> NDArray[np.uint8] | None:
        width, height = self.images.size_px[k].tolist()
        try:
            with self._open_image(self._path / self.images.names[k]) as image:
                if image.size_px != (width, height):
                    return None
                pixels, status = image.read(np.zeros((1, 2), np.int64), px=max(width, height))
        except SlideError:
            return None
        return None if status[0] == TileStatus.UNREADABLE else pixels[0, :height, :width]

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Return the whole mosaic with its longest edge at most `max_px`."""
        return overview(self.read, (self.size_px,), self.downsamples, max_px)

    def close(self) -> None:
        """Release the pixels."""
        self._closed = True
        self._kept.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _look(path: Path) -> FolderImages:
    """Find the images of a folder and their sizes; only headers are read.

    Raises
    ------
    SlideError
        There is none that can be read, or one of an edge that no patch has.
    """
    files, others = folder_files(path)
    names, sizes, unreadable = [], [], []
    for file in files:
        name = file.relative_to(path).as_posix()
        size = _size_of(file)
        if size is None:
            unreadable.append(name)
            continue
        names.append(name)
        sizes.append(size)
    if not names:
        what = f"none of its {len(files)} images can be read" if files else "it holds no images"
        msg = f"{path}: a folder, and {what} ({', '.join(IMAGE_SUFFIXES)} in class-named subfolders)"
        raise SlideError(msg)
    classes = tuple(name.partition("/")[0] if "/" in name else None for name in names)
    return FolderImages(tuple(names), classes, np.array(sizes, dtype=np.int64), tuple(unreadable), others)


def _size_of(file: Path) -> tuple[int, int] | None:
    """Return (width, height) as a header says, or None where there is no header that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=("JPEG", "PNG", "TIFF")) as image:
                width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        width = height = MAX_EDGE + 1
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        # what Pillow raises at damaged headers
        return None
    if max(width, height) > MAX_EDGE:
        msg = f"{file}: an edge of over {MAX_EDGE:,} px in a folder of patches; ingest it as a slide of its own"
        raise SlideError(msg)
    return width, height


def _readers(path: Path, names: tuple[str, ...], open_image: Callable[[Path], Slide]) -> str:
    """Return what decodes the images: the reader of the first sound one of each kind of file."""
    found: dict[str, str] = {}
    for name in names:
        suffix = name.rpartition(".")[2].lower()
        if suffix not in found:
            with contextlib.suppress(SlideError), open_image(path / name) as image:
                found[suffix] = image.reader
    return ", ".join(dict.fromkeys(found.values())) or "nothing in it can be decoded"
