"""Contact sheets, pixel for pixel: look-alikes of a tile that was asked about, and patches to be reviewed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from histostore.errors import DataError, UsageError
from histostore.pl.style import FAINT, INK, OKABE_ITO, check_lengths, finish, plain, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

DPI = 100
"""Any would do: everything is placed in pixels."""

MIN_CELL = 128
"""Smaller tiles are enlarged by a whole factor, so that their captions can be read."""

MAX_HITS = 1000
QUERY_COLOUR = OKABE_ITO[5]
CAPTION_LINES = 2


def gallery(
    query_tile: NDArray[np.uint8],
    hit_tiles: NDArray[np.uint8],
    captions: Sequence[str] | pd.DataFrame,
    *,
    query_caption: str = "query",
    columns: int | None = None,
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw a query tile and its nearest tiles, each pixel of a tile one pixel of the picture.

    Parameters
    ----------
    query_tile
        ``(h, w, 3)`` uint8 RGB; where larger than the hits it is reduced to their size.
    hit_tiles
        ``(k, px, px, 3)`` uint8 RGB, best first; 0 <= k <= 1000.
    captions
        One per hit, two lines at most; or a table with a row per hit and the columns ``slide``, ``barcode`` (or
        ``id``) and ``distance`` (or ``score``).
    columns
        Tiles in a row, the query counted; None makes the sheet about 4:3.

    Returns
    -------
    matplotlib.figure.Figure
        Save it at its own dpi (``dpi="figure"``), else the tiles are resampled.
    """
    hits = np.asarray(hit_tiles)
    _check_tiles(query_tile[None], "query tile")
    _check_tiles(hits, "hit tiles")
    if len(hits) > MAX_HITS:
        msg = f"{len(hits)} hits for one sheet, at most {MAX_HITS}; lower k"
        raise UsageError(msg)
    query_tile = _reduced(query_tile, hits)
    text = _captions(captions)
    check_lengths("captions", len(text), len(hits), "hits")
    sheet = _Sheet(len(hits) + 1, edge=_edge(query_tile, hits), columns=columns, titled=bool(title))
    return finish(sheet.figure([query_tile, *hits], [query_caption, *text], title, query=True), save)


def patches(
    tiles: NDArray[np.uint8],
    captions: Sequence[str] | pd.DataFrame,
    *,
    columns: int | None = None,
    title: str = "",
    save: Path | None = None,
) -> Figure:
    """Draw tiles in the order given, such as those a classifier is surest of, for a look by eye.

    Parameters
    ----------
    tiles
        ``(k, px, px, 3)`` uint8 RGB; 1 <= k <= 1000.
    captions
        As in `gallery`; a table's score is what a classifier says, its row the number to speak of a tile by.
    columns
        Tiles in a row; None makes the sheet about 4:3.

    Raises
    ------
    DataError
        No tiles, or no RGB tiles.
    UsageError
        More than 1000 tiles, or captions that do not go with them.
    """
    tiles = np.asarray(tiles)
    _check_tiles(tiles, "tiles")
    text = _captions(captions)
    if not 1 <= len(tiles) <= MAX_HITS:
        msg = f"{len(tiles)} tiles for one sheet, 1 to {MAX_HITS} fit; choose another k"
        raise UsageError(msg) if len(tiles) else DataError(msg)
    check_lengths("captions", len(text), len(tiles), "tiles")
    sheet = _Sheet(len(tiles), edge=_edge(tiles[0], tiles), columns=columns, titled=bool(title))
    return finish(sheet.figure(list(tiles), text, title), save)


def _check_tiles(tiles: NDArray[Any], what: str) -> None:
    if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8 or 0 in tiles.shape[1:]:
        msg = f"{what}: shape {tiles.shape[1:]} of {tiles.dtype}, expected (px, px, 3) uint8"
        raise DataError(msg)


def _reduced(query: NDArray[np.uint8], hits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the query no larger than a hit: a crop of any size may have been asked with."""
    limit, longest = max(hits.shape[1:3]), max(query.shape[:2])
    if not len(hits) or longest <= limit:
        return query
    height, width = (max(1, round(px * limit / longest)) for px in query.shape[:2])
    return np.asarray(Image.fromarray(query).resize((width, height), Image.Resampling.BOX))


def _edge(query: NDArray[np.uint8], hits: NDArray[np.uint8]) -> int:
    """Return the edge of a cell in pixels: that of the largest tile, enlarged by a whole factor where small."""
    longest = (max(query.shape[:2]), max(hits.shape[1:3]))
    return max(int(px) * _factor(int(px)) for px in longest)


def _factor(px: int) -> int:
    return max(1, math.ceil(MIN_CELL / px))


def _captions(captions: Sequence[str] | pd.DataFrame) -> list[str]:
    if not isinstance(captions, pd.DataFrame):
        return [str(c) for c in captions]
    measure = next((c for c in ("distance", "score") if c in captions.columns), None)
    which = next((c for c in ("barcode", "id") if c in captions.columns), None)
    if measure is None or which is None or "slide" not in captions.columns:
        have = ", ".join(map(str, captions.columns))
        msg = f"captions have the columns {have}; need slide, barcode (or id) and distance (or score)"
        raise UsageError(msg)
    rows = zip(captions["slide"], captions[which], captions[measure], strict=True)
    return [f"{i}  {value:.3g}  {slide}\n{name}" for i, (slide, name, value) in enumerate(rows, start=1)]


class _Sheet:
    """Places of tiles in whole pixels (x, y), counted from the top-left corner of the picture."""

    def __init__(self, count: int, *, edge: int, columns: int | None, titled: bool) -> None:
        self.columns = min(math.ceil(math.sqrt(count * 4 / 3)) if columns is None else columns, count)
        if self.columns < 1:
            msg = f"{columns} columns; give one or more"
            raise UsageError(msg)
        self.edge = edge
        self.gap = max(8, edge // 20)
        # captions grow with the tile so that they survive shrinking
        self.font = max(8.5, edge * 0.055)
        self.line = math.ceil(self.font * DPI / 72 * 1.3)
        self.step = (edge + self.gap, edge + CAPTION_LINES * self.line + self.gap)
        self.head = self.gap + (2 * self.line if titled else 0)
        self.width = self.gap + self.columns * self.step[0]
        self.height = self.head + math.ceil(count / self.columns) * self.step[1]

    def figure(
        self, tiles: Sequence[NDArray[np.uint8]], captions: Sequence[str], title: str, *, query: bool = False
    ) -> Figure:
        """Return the whole sheet; `query` marks the first tile."""
        # one image as large as the picture, so no tile is ever resampled
        picture = np.full((self.height, self.width, 3), 255, dtype=np.uint8)
        figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        for place, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
            asked = query and place == 0
            self.paste(picture, place, tile, query=asked)
            self.write(figure, place, caption, query=asked)
        ax = figure.add_axes((0, 0, 1, 1), zorder=-1)
        ax.imshow(picture, interpolation="nearest", aspect="auto")
        ax.set_axis_off()
        if title:
            self.write_title(figure, title)
        return figure

    def corner(self, place: int) -> tuple[int, int]:
        """Return (left, top) of a tile."""
        row, column = divmod(place, self.columns)
        return self.gap + column * self.step[0], self.head + row * self.step[1]

    def paste(self, picture: NDArray[np.uint8], place: int, tile: NDArray[np.uint8], *, query: bool) -> None:
        """Put a tile, in its frame, into the picture."""
        left, top = self.corner(place)
        factor = _factor(max(tile.shape[:2]))
        large = tile.repeat(factor, axis=0).repeat(factor, axis=1)
        height, width = large.shape[:2]
        frame = 3 if query else 1
        colour = np.array(to_rgb(QUERY_COLOUR if query else FAINT)) * 255
        picture[top - frame : top + height + frame, left - frame : left + width + frame] = colour.round()
        picture[top : top + height, left : left + width] = large

    def write(self, figure: Figure, place: int, caption: str, *, query: bool) -> None:
        """Write a caption below its tile."""
        left, top = self.corner(place)
        lines = [shorten(line, self._fits(self.edge)) for line in str(caption).splitlines()[:CAPTION_LINES]]
        style = {"color": QUERY_COLOUR, "weight": "bold"} if query else {"color": INK}
        self._text(figure, left, top + self.edge + 5, "\n".join(lines), fontsize=self.font, **style)

    def write_title(self, figure: Figure, title: str) -> None:
        """Write the heading of the sheet."""
        text = shorten(title, int(self._fits(self.width - 2 * self.gap) / 1.4))
        self._text(figure, self.gap, self.gap, text, fontsize=self.font * 1.25, weight="bold", color=INK)

    def _text(self, figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / self.width, 1 - y / self.height, plain(text), ha="left", va="top", **style)

    def _fits(self, width: int) -> int:
        """Return how many characters of caption go into a width in pixels."""
        return max(8, int(width / (self.font * DPI / 72 * 0.6)))
