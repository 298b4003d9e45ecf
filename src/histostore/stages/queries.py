"""What is looked for: one tile, several, the tiles of a region, an image or a vector, as embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histostore.errors import DataError, NotFoundError, SpecMismatchError, UsageError, near
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.protocols import Backbone
    from histostore.store.store import Store
    from histostore.view import View

    type Region = tuple[float, float, float, float] | Sequence[tuple[float, float]] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """Embeddings to look for, and where they come from."""

    vectors: NDArray[np.float32]
    """``(q, d)``"""
    labels: tuple[str, ...]
    """``(q,)``"""
    together: bool = False
    """One answer for all of them (the tiles of a region) instead of one each."""
    single: tuple[View, NDArray[np.int64]] | None = None
    """The slide's whole view and the rows ``(q,)`` in it, for tiles of the store."""
    slide: str | None = None

    @property
    def label(self) -> str:
        """What was asked, for captions."""
        if self.together:
            return f"{len(self.labels)} tiles of {self.slide}"
        return self.labels[0] if len(self.labels) == 1 else f"{len(self.labels)} queries"

    def own(self, name: str) -> NDArray[Any]:
        """Return a column of the query's own tiles.

        Raises
        ------
        UsageError
            It is no tile of the store.
        """
        if self.single is None:
            raise UsageError(f"only tiles of the store have a '{name}': query by slide and spot, or by region")
        return self.single[0].column(name)[self.single[1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The forms a query comes in; exactly one of spot, region, image and vector."""

    slide: str | None = None
    spot: str | Sequence[str] | None = None
    region: Region | None = None
    image: NDArray[np.uint8] | None = None
    vector: NDArray[Any] | None = None
    embed_with: Backbone | None = field(default=None)

    def query(self, store: Store, backbone: str, tiles: str | None) -> Query:
        """Return the embeddings to look for.

        Raises
        ------
        NotFoundError
            The slide, spot or embeddings are not there; a region holds no tile.
        UsageError
            Not exactly one query; a region that crosses itself.
        DataError
            The query has no embedding (an unreadable tile, NaN).
        """
        if sum(v is not None for v in (self.spot, self.region, self.image, self.vector)) != 1:
            raise UsageError("give one query: slide and spot, slide and region, an image, or a vector")
        if self.spot is not None or self.region is not None:
            if self.slide is None:
                raise UsageError("a spot or region needs its slide: give slide too")
            found = self._of_store(store, backbone, tiles, self.slide)
        elif self.image is not None:
            if self.embed_with is None:
                raise UsageError("a query by image needs the backbone that embeds it (embed_with)")
            pixels = _checked_image(self.image)
            _same_backbone(store, backbone, tiles, self.embed_with)
            found = Query(self.embed_with.embed(pixels[None]).astype(np.float32), ("image",))
        else:
            vectors = np.atleast_2d(np.asarray(self.vector, dtype=np.float32))
            if vectors.ndim != 2 or not vectors.size:
                raise UsageError(f"vector has shape {vectors.shape}: give (d,) or (q, d)")
            found = Query(vectors, tuple(f"vector {i}" if len(vectors) > 1 else "vector" for i in range(len(vectors))))
        bad = int((~np.isfinite(found.vectors).all(axis=1)).sum())
        if bad:
            raise DataError(f"{bad} of {len(found.vectors)} queries have no embedding (unreadable tile, or NaN)")
        return found

    def _of_store(self, store: Store, backbone: str, tiles: str | None, slide: str) -> Query:
        single = view(store, backbone=backbone, tiles=tiles, slides=[slide])
        if self.region is not None:
            rows = _rows_in(single, self.region, slide)
        else:
            spots = [self.spot] if isinstance(self.spot, str) else list(self.spot or ())
            rows = np.array([_row_of(single, s) for s in spots], dtype=np.int64)
        vectors = single.numpy(backbone, rows).astype(np.float32)
        if self.region is not None:
            readable = np.isfinite(vectors).all(axis=1)
            rows, vectors = rows[readable], vectors[readable]
            if not len(rows):
                raise NotFoundError(f"all tiles in that region of slide '{slide}' are unreadable")
        ids = single.column("barcode")[rows]
        labels = tuple(f"{slide}:{i}" for i in ids)
        return Query(vectors, labels, together=self.region is not None, single=(single, rows), slide=slide)


def _row_of(single: View, spot: str) -> int:
    ids = single.column("barcode")
    found = np.flatnonzero(ids == spot)
    if not len(found):
        raise NotFoundError(f"no tile '{spot}' on slide '{single.slides[0]}'{near(spot, ids.tolist())}")
    return int(found[0])


def _rows_in(single: View, region: Region, slide: str) -> NDArray[np.int64]:
    """Return the tiles whose centre lies in a region, in level-0 pixels."""
    shape = _shape(region)
    if not shape.is_valid or shape.is_empty:
        raise UsageError(
            f"the region is no area ({shapely.is_valid_reason(shape)}): give a polygon that does not cross itself"
        )
    xy = np.column_stack([single.column("x"), single.column("y")])
    rows = np.flatnonzero(shapely.intersects_xy(shape, xy[:, 0], xy[:, 1])).astype(np.int64)
    if not len(rows):
        low, high = xy.min(0), xy.max(0)
        raise NotFoundError(
            f"no tile of slide '{slide}' has its centre in the region; tiles lie at x {low[0]:.0f}-{high[0]:.0f}, "
            f"y {low[1]:.0f}-{high[1]:.0f} (level-0 pixels)"
        )
    return rows


def _shape(region: Region) -> Any:
    try:
        if isinstance(region, dict):
            return shapely.geometry.shape(region.get("geometry", region))
        values = np.asarray(region, dtype=np.float64)
        if values.shape == (4,) and np.isfinite(values).all():
            x0, y0, x1, y1 = values
            if x1 > x0 and y1 > y0:
                return shapely.box(x0, y0, x1, y1)
        elif values.ndim == 2 and values.shape[1] == 2 and len(values) >= 3 and np.isfinite(values).all():
            return shapely.Polygon(values)
    except (TypeError, ValueError, AttributeError, shapely.errors.ShapelyError, KeyError) as error:
        raise UsageError(
            f"the region cannot be read ({error}): give (x0, y0, x1, y1), points, or a GeoJSON polygon"
        ) from None
    raise UsageError(f"region {region!r}: give (x0, y0, x1, y1) with x0 < x1 and y0 < y1, points, or a GeoJSON polygon")


def _same_backbone(store: Store, backbone: str, tiles: str | None, loaded: Backbone) -> None:
    for slide in store.slides():
        for ref in store.slide(slide).of_kind("embeddings"):
            of, _, short = ref.name.rpartition("/")
            if short == backbone and tiles in (None, of):
                digest = store.group(ref).attrs["backbone_digest"]
                if digest != loaded.spec.digest:
                    raise SpecMismatchError(
                        f"the image is embedded by {loaded.spec.digest[:8]} and embeddings '{ref.name}' of slide "
                        f"'{slide}' are of {digest[:8]}: load the backbone they were made with"
                    )
                return


def _checked_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UsageError(f"the image has shape {pixels.shape} of {pixels.dtype}: give (px, px, 3) uint8 RGB")
    if min(pixels.shape[:2]) < 16:
        raise UsageError(
            f"the image is {pixels.shape[1]} x {pixels.shape[0]} px: smaller than any tile; give a tile-sized crop"
        )
    if pixels.shape[0] != pixels.shape[1]:
        edge = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - edge) // 2, (pixels.shape[1] - edge) // 2
        pixels = pixels[top : top + edge, left : left + edge]
    return np.ascontiguousarray(pixels)
