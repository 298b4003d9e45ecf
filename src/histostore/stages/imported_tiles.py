"""Where imported tiles lie: what is known of their slide, and their places in level-0 pixels, checked against it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from histostore.errors import DataError, SlideError
from histostore.ids import check_name, check_slug
from histostore.io.mpp import TOLERANCE, resolve_mpp
from histostore.slides import open_slide
from histostore.specs import SpecBase, require
from histostore.stages.source import mpp_of, source_of
from histostore.tables import Points
from histostore.units import check_mpp, mpp_of_magnification

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.io.feature_table import TileFeatures
    from histostore.store.manifest import Manifest
    from histostore.store.store import Store

_WHOLE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSpec(SpecBase):
    """How features are called, and what their files do not say."""

    backbone: str
    tiles: str = "imported"
    """Name of the tile set (and of its points)."""
    px: float | None = None
    """Edge of a tile in level-0 pixels."""
    mpp: float | None = None
    """µm per level-0 pixel of the slide."""
    anchor: Literal["corner", "centre"] | None = None
    """What the coordinates are of."""
    allow_nan: bool = False
    """Take rows that are NaN in all columns, as unreadable tiles."""

    def __post_init__(self) -> None:
        check_slug(self.backbone, "backbone name")
        check_name(self.tiles, "tiles name")
        require(self.px is None or (math.isfinite(self.px) and self.px >= 1), f"px is {self.px}, not 1 or more")
        if self.mpp is not None:
            check_mpp(self.mpp)
        require(self.anchor in (None, "corner", "centre"), f"anchor is {self.anchor!r}, not corner or centre")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSlide:
    """What is known of the slide that the tiles are of."""

    mpp: float
    origin: str
    size_px: tuple[int, int] | None
    downsamples: tuple[float, ...] = (1.0,)
    told: float | None = None
    """The mpp that `ingest` must be told, where the image does not say it."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedTiles:
    """Where the tiles lie, in level-0 pixels."""

    xy0: NDArray[np.float64]
    edge0: float
    out_px: int

    @property
    def centre(self) -> NDArray[np.float64]:
        """``(n, 2)`` centres."""
        return self.xy0 + self.edge0 / 2


def known_slide(
    store: Store, known: Manifest | None, features: TileFeatures, spec: ImportSpec, image: Path | None
) -> KnownSlide:
    """Put together what the store, the image, the features' file and the caller say of a slide.

    Raises
    ------
    SlideError
        The mpp is unknown, or two of them contradict each other.
    """
    size, file_mpp, image_mpp = features.size_px, features.slide_mpp, None
    downsamples: tuple[float, ...] = (1.0,)
    if image is not None:
        with open_slide(image) as opened:
            size, downsamples, image_mpp = opened.size_px, opened.downsamples, opened.mpp
        if file_mpp is not None and image_mpp is not None and abs(image_mpp / file_mpp - 1) > TOLERANCE:
            words = f"the image says {image_mpp:.4g} µm per pixel, the features' file {file_mpp:.4g}"
            raise SlideError(f"{words}; they are not of one slide")
        file_mpp = image_mpp if image_mpp is not None else file_mpp
    elif known is not None and known.get("source", "image") is not None:
        source = source_of(store, known)
        size, downsamples = (int(source["width"]), int(source["height"])), tuple(source["downsamples"])
    if features.size_px is not None and size != features.size_px:
        text = f"the features are of a slide of {features.size_px} px, the image has {size}; they are not of one slide"
        raise SlideError(text)
    if known is not None:
        mpp, origin = mpp_of(store, known), "store"
        told = {"the mpp given": spec.mpp, "the features' file": features.slide_mpp, "the image": image_mpp}
        for what, other in told.items():
            if other is not None and abs(other / mpp - 1) > TOLERANCE:
                raise SlideError(f"slide '{known.owner}' has {mpp:.4g} µm per pixel, {what} says {other:.4g}")
    elif spec.mpp is None and file_mpp is None and features.magnification is not None:
        mpp, origin = check_mpp(mpp_of_magnification(features.magnification)), "magnification"
    else:
        mpp, origin, _ = resolve_mpp(given=spec.mpp, file=file_mpp, pitch=None)
    notes = []
    if features.magnification is not None and origin != "magnification":
        nominal = mpp_of_magnification(features.magnification)
        if not 2 / 3 < mpp / nominal < 3 / 2:
            said = f"{features.magnification:g}x, which is {nominal:g} µm per pixel by convention"
            notes.append(f"the file says {said}; the slide has {mpp:.4g}")
    told_mpp = None if origin == "magnification" or (origin == "file" and image_mpp is not None) else mpp
    return KnownSlide(
        mpp=mpp, origin=origin, size_px=size, downsamples=downsamples, told=told_mpp, notes=tuple(notes)
    )  # fmt: skip


def place_tiles(features: TileFeatures, spec: ImportSpec, about: KnownSlide) -> PlacedTiles:
    """Return the tiles' corners in level-0 pixels, whatever the file has."""
    scale = 1.0 if features.unit == "px" else 1 / about.mpp
    told = features.edge * scale if features.edge is not None else None
    if told is not None and spec.px is not None and abs(told - spec.px) > 0.5:
        raise DataError(f"a tile's edge is {told:g} level-0 px by the file and {spec.px:g} by px; leave px out")
    edge0 = told if told is not None else spec.px
    if edge0 is None:
        raise DataError("the file does not say how large a tile is; give its edge in level-0 pixels with --px")
    if edge0 < 1:
        raise DataError(f"a tile of {edge0:g} level-0 px is none; is the mpp {about.mpp:g} right?")
    if features.anchor is not None and spec.anchor not in (None, features.anchor):
        raise DataError(f"the file's coordinates are of the tiles' {features.anchor}; leave anchor out")
    anchor = features.anchor or spec.anchor
    if anchor is None:
        raise DataError("the file does not say if x and y are a tile's corner or centre; give it with --anchor")
    xy0 = features.coords.astype(np.float64) * scale
    if anchor == "centre":
        xy0 = xy0 - edge0 / 2
    tiles = PlacedTiles(xy0=xy0, edge0=edge0, out_px=features.tile_px or max(1, round(edge0)))
    centre = tiles.centre
    off = (centre < 0).any(axis=1)
    if about.size_px is not None:
        off |= (centre >= np.asarray(about.size_px)).any(axis=1)
    if off.any():
        where = f"of {about.size_px[0]} x {about.size_px[1]} px" if about.size_px else "(at negative places)"
        first = ", ".join(f"{v:g}" for v in centre[int(np.flatnonzero(off)[0])])
        text = f"{int(off.sum())} of {len(centre)} tiles lie off the slide {where}, the first at ({first})"
        raise DataError(f"{text}; another slide, or another unit or mpp")
    return tiles


def points_of(tiles: PlacedTiles) -> Points:
    """Return the tiles' centres, called ``<x>x<y>`` after their corner in whole pixels; a second there ends in #2."""
    seen: dict[str, int] = {}
    ids = []
    for x, y in np.rint(tiles.xy0).astype(np.int64).tolist():
        name = f"{x}x{y}"
        seen[name] = seen.get(name, 0) + 1
        ids.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return Points(ids=tuple(ids), xy=tiles.centre, assay="imported")


def read_plan(tiles: PlacedTiles, about: KnownSlide) -> dict[str, Any]:
    """Return how own backbones read these tiles from the image: the coarsest level that is fine enough."""
    wanted = tiles.edge0 / tiles.out_px + _WHOLE
    level = max((i for i, d in enumerate(about.downsamples) if d <= wanted), default=0)
    down = about.downsamples[level]
    read_px = tiles.edge0 / down
    on_level = tiles.xy0 / down
    native = abs(read_px - tiles.out_px) < _WHOLE and bool((np.abs(on_level - np.rint(on_level)) < _WHOLE).all())
    return {
        "level": level,
        "read_px": float(tiles.out_px) if native else read_px,
        "out_px": tiles.out_px,
        "downsample": down,
        "resample": not native,
    }
