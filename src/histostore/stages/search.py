"""Which tiles look alike: exact search over the cached embeddings of a cohort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import NotFoundError, UsageError, near
from histostore.index.exact import search_blocks
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.index.exact import Metric
    from histostore.protocols import Backbone
    from histostore.store.store import Store
    from histostore.view import View

BLOCK_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Hits:
    """The answer to one query."""

    table: pd.DataFrame
    """One row per hit, nearest first, by obs name: rank, distance, slide, barcode, x_um, y_um and asked columns."""
    rows: NDArray[np.int64]
    """Rows of `view`."""
    view: View
    query: str
    single: tuple[View, int] | None = None
    """The query's own view and row, for a query by spot."""

    def query_tile(self) -> NDArray[np.uint8]:
        """Return the query's pixels ``(px, px, 3)``, for a query by spot."""
        if self.single is None:
            raise UsageError("only a query by slide and spot has a stored tile")
        tile: NDArray[np.uint8] = tiles_of(self.single[0], np.array([self.single[1]]))[0]
        return tile

    def tiles(self) -> NDArray[np.uint8]:
        """Return the hits' pixels ``(k, px, px, 3)`` uint8 RGB as stored."""
        return tiles_of(self.view, self.rows)


def search(
    store: Store,
    *,
    backbone: str | None = None,
    tiles: str | None = None,
    slide: str | None = None,
    spot: str | None = None,
    vector: NDArray[Any] | None = None,
    image: NDArray[np.uint8] | None = None,
    embed_with: Backbone | None = None,
    k: int = 10,
    metric: Metric = "cosine",
    where: str | None = None,
    slides: Sequence[str] | None = None,
    exclude_same: str | None = None,
    columns: Sequence[str] = (),
) -> Hits:
    """Find the tiles whose embeddings are nearest to a query.

    Parameters
    ----------
    slide, spot
        Query by a tile of the store: its slide and its barcode, ``25x13`` or grid id. It is not its own answer.
    vector
        Query by an embedding ``(d,)``.
    image
        Query by a tile ``(px, px, 3)`` uint8 RGB, at the tiles' resolution; needs `embed_with`.
    where
        Only tiles that pass the filter are searched; k of them come back whenever k pass.
    exclude_same
        An obs column, like ``slide`` or ``patient``: tiles that share the query's value are left out.
    columns
        Obs columns to add to the answer.

    Raises
    ------
    NotFoundError
        The spot, slide or embeddings are not there.
    UsageError
        Not exactly one query was given.
    """
    if sum(v is not None for v in (spot, vector, image)) != 1:
        raise UsageError("give one query: slide and spot, or an image, or a vector")
    name = backbone or only_backbone(store, tiles)
    everything = view(store, backbone=name, tiles=tiles, slides=slides)
    name = everything.backbones[0]
    origin: tuple[View, int] | None = None
    if spot is not None:
        if slide is None:
            raise UsageError("spot needs its slide: give slide too")
        single = view(store, backbone=name, tiles=tiles, slides=[slide])
        row = _row_of(single, spot)
        query = single.numpy(name, np.array([row]))[0]
        origin = (single, row)
        label = f"{slide}:{spot}"
    elif image is not None:
        if embed_with is None:
            raise UsageError("a query by image needs the backbone that embeds it (embed_with)")
        query, label = embed_with.embed(image[None])[0], "image"
    else:
        query, label = np.asarray(vector), "vector"
    chosen = everything.where(where) if where is not None else everything
    keep = np.ones(len(chosen), dtype=bool)
    if origin is not None:
        keep &= ~_is_own(chosen, origin)
    if exclude_same is not None:
        if origin is None:
            raise UsageError("exclude_same needs a query by slide and spot")
        single, row = origin
        value = single.column(exclude_same)[row]
        keep &= chosen.column(exclude_same) != value
    chosen = chosen.select(keep)
    found, distance = search_blocks(query[None].astype(np.float32), _blocks(chosen, name), k, metric=metric)
    hit = found[0] >= 0
    return Hits(_table(chosen, found[0][hit], distance[0][hit], columns), found[0][hit], chosen, label, origin)


def only_backbone(store: Store, tiles: str | None = None) -> str:
    """Return the backbone that a store's embeddings are of, where there is one.

    Raises
    ------
    NotFoundError
        There are several, or none.
    """
    names: set[str] = set()
    for slide in store.slides():
        for ref in store.slide(slide).of_kind("embeddings"):
            of, _, short = ref.name.rpartition("/")
            if tiles is None or of == tiles:
                names.add(short)
    if len(names) != 1:
        have = f"there are {', '.join(sorted(names))}" if names else "there are none; run embed first"
        raise NotFoundError(f"which embeddings? {have}")
    return names.pop()


def _row_of(single: View, spot: str) -> int:
    ids = single.column("barcode")
    found = np.flatnonzero(ids == spot)
    if not len(found):
        raise NotFoundError(f"no tile '{spot}' on slide '{single.slides[0]}'{near(spot, ids.tolist())}")
    return int(found[0])


def _is_own(chosen: View, origin: tuple[View, int]) -> NDArray[np.bool_]:
    (slide,), row = origin[0].slides, origin[1]
    masks = []
    for part in chosen.parts:
        rows = np.arange(len(part)) if part.rows is None else part.rows
        masks.append((rows == row) if part.slide == slide else np.zeros(len(part), dtype=bool))
    return np.concatenate(masks)


def _blocks(chosen: View, backbone: str) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    for start in range(0, len(chosen), BLOCK_ROWS):
        rows = np.arange(start, min(len(chosen), start + BLOCK_ROWS), dtype=np.int64)
        yield rows, chosen.numpy(backbone, rows)


def _table(
    chosen: View, rows: NDArray[np.int64], distance: NDArray[np.float32], columns: Sequence[str]
) -> pd.DataFrame:
    import pandas as pd

    def pick(name: str) -> NDArray[Any]:
        return chosen.column(name)[rows]

    shown = {
        "rank": np.arange(1, len(rows) + 1),
        "distance": distance,
        "slide": pick("slide"),
        "barcode": pick("barcode"),
        "x_um": pick("x_um"),
        "y_um": pick("y_um"),
    }
    shown.update({c: pick(c) for c in columns})
    return pd.DataFrame(shown, index=pd.Index(chosen.names()[rows], name="tile"))


def tiles_of(chosen: View, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the stored pixels of some rows of a view, in their order.

    Raises
    ------
    NotFoundError
        The tiles' pixels were not stored (codec ``slide``).
    """
    bounds = np.cumsum([0, *map(len, chosen.parts)])
    out: list[NDArray[np.uint8]] = []
    for row in rows.tolist():
        at = int(np.searchsorted(bounds, row, side="right")) - 1
        part = chosen.parts[at]
        local = row - bounds[at]
        stored = int(local if part.rows is None else part.rows[local])
        ref = part.manifest.find("pixels", part.tiles.name if part.tiles is not None else None)
        out.append(part.group(ref).array("pixels").read(np.array([stored]))[0])
    return np.stack(out) if out else np.zeros((0, 0, 0, 3), dtype=np.uint8)
