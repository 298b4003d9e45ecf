"""Which tiles a slide has: from a spec, the slide's geometry and its points to rows. Reads no pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import AlignmentError, DataError, UsageError
from histostore.tables import Points, Report
from histostore.tiles.identity import sample_keys, tile_ids
from histostore.tiles.regions import in_regions
from histostore.units import ReadPlan, plan_read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from shapely import Geometry

    from histostore.specs import TileSpec
    from histostore.tiles.mask import TissueMask

LEFT_OUT = ("off image", "off tissue", "sticks out", "not in regions", "below min tissue", "beyond max_tiles")
"""Why a tile is not there, in the order in which it is asked; each tile is counted once, under the first that holds."""

MAX_GRID = 5_000_000
"""Cells of a grid before anything is left out; more is a mistake in a unit."""

_OUT_PX = (8, 8192)
_TOUCH = 1e-6
"""Level-0 pixels by which a computed edge may pass the border and still lie on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridFrame:
    """A regular lattice of tiles: cell (0, 0) starts at level-0 pixel (0, 0)."""

    cols: int
    rows: int
    stride0: float
    """Step between neighbours in level-0 pixels."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TilePlan:
    """The tiles of one slide, in row order."""

    read: ReadPlan
    """Which level, how many of its pixels, and what they become."""
    points: Points
    """What the tiles are centred on: the given points, all of them; of a grid the cells that are kept."""
    point: NDArray[np.int64]
    """``(n,)`` row of `points` that each tile is centred on, ascending."""
    centre: NDArray[np.float64]
    """``(n, 2)`` centres, (x, y), in level-0 pixels."""
    xy0: NDArray[np.float64]
    """``(n, 2)`` top-left corners in level-0 pixels; whole numbers where tiles are not resampled."""
    tissue: NDArray[np.float32]
    """``(n,)`` share of tissue; NaN where there was no mask."""
    tile_id: NDArray[np.uint64]
    """``(n, 2)`` fingerprints, see `tile_ids`."""
    grid: GridFrame | None
    """The lattice of a grid; None for spots and points."""
    report: Report
    """Counts: ``candidates``, ``tiles`` and each of `LEFT_OUT` (zeros too)."""

    def __len__(self) -> int:
        return len(self.point)


def plan_tiles(
    spec: TileSpec,
    *,
    size_px: tuple[int, int],
    slide_mpp: float,
    downsamples: Sequence[float],
    source_digest: str,
    points: Points | None = None,
    mask: TissueMask | None = None,
    regions: Sequence[Geometry] | None = None,
) -> TilePlan:
    """Lay out the tiles of one slide.

    Parameters
    ----------
    spec
        What is wanted.
    size_px
        (width, height) of level 0.
    slide_mpp
        Microns per pixel of level 0.
    downsamples
        Level-0 pixels per pixel of each level.
    source_digest
        Of the slide's bytes; part of every tile id.
    points
        Needed unless the spec is a grid.
    mask
        Needed where the spec has a `min_tissue`; gives `TilePlan.tissue`.
    regions
        Polygons in level-0 pixels: tiles with their centre in none of them are left out.

    Returns
    -------
    TilePlan
        Rows in the order of `points`; a grid runs row by row from the top left. A grid without overlap covers every
        pixel exactly once (``edge="pad"``), or every pixel up to the last whole tile (``edge="drop"``). Ids of grid
        points are ``{col}x{row}`` and do not depend on what is left out.

    Raises
    ------
    SpecMismatchError
        The slide is coarser than wanted.
    UsageError
        Points, a mask or regions that the spec needs are not given, or its tile is not of 8-8192 px here.
    AlignmentError
        Points repeat an id.
    DataError
        A coordinate is not finite, or no tile is left.
    """
    _check_given(spec, points, mask, regions)
    read = _read_plan(spec, slide_mpp, downsamples)
    if spec.at == "grid" or points is None:
        places = _grid_places(spec, read, size_px)
    else:
        places = _point_places(spec, read, size_px, points)
    centre, xy0, sieve = places.centre, places.xy0, places.sieve

    if regions is not None:
        sieve.keep("not in regions", in_regions(centre[sieve.rows], regions))
    tissue = np.full(len(centre), np.nan, dtype=np.float32)
    if mask is not None:
        tissue[sieve.rows] = mask.fraction(xy0[sieve.rows], read.edge0)
        sieve.keep("below min tissue", tissue[sieve.rows] >= np.float32(spec.min_tissue))
    if spec.max_tiles is not None and len(sieve.rows) > spec.max_tiles:
        sieve.keep("beyond max_tiles", _sampled(places.ids(sieve.rows), spec.max_tiles, spec.seed))

    rows = sieve.rows
    report = _report(sieve, read, places.grid)
    return TilePlan(
        read=read,
        points=places.grid_points(rows) if places.points is None else places.points,
        point=np.arange(len(rows)) if places.points is None else rows,
        centre=centre[rows],
        xy0=xy0[rows],
        tissue=tissue[rows],
        tile_id=tile_ids(source_digest, centre[rows], read.edge0, read.mpp),
        grid=places.grid,
        report=report,
    )


def corners(centre: NDArray[np.float64], read: ReadPlan) -> NDArray[np.float64]:
    """Return the top-left corners, ``(n, 2)`` in level-0 pixels, of tiles with the given centres.

    Tiles that are not resampled begin on a whole pixel of their level: at level 0 at ``floor(c - edge / 2 + 0.5)``,
    so a centre is off by half a pixel at most. Resampled tiles lie exactly where they are wanted.
    """
    if read.resample:
        return centre - read.edge0 / 2
    return _on_whole_px(np.floor(centre / read.downsample - read.read_px / 2 + 0.5), read)


def _on_whole_px(level_xy: NDArray[np.float64], read: ReadPlan) -> NDArray[np.float64]:
    # readers take level-0 corners; a downsample of 4.0003 would make them fractional
    return np.floor(level_xy * read.downsample + 0.5)


class _Sieve:
    """The rows that are still in, and what took the others out."""

    def __init__(self, n: int) -> None:
        self.rows: NDArray[np.int64] = np.arange(n)
        self.candidates = n
        self.left_out = dict.fromkeys(LEFT_OUT, 0)

    def keep(self, otherwise: str, keep: NDArray[np.bool_]) -> None:
        self.left_out[otherwise] += int((~keep).sum())
        self.rows = self.rows[keep]

    def never_made(self, why: str, n: int) -> None:
        self.left_out[why] += n
        self.candidates += n


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Where tiles could be, before what the spec leaves out."""

    centre: NDArray[np.float64]
    xy0: NDArray[np.float64]
    sieve: _Sieve
    points: Points | None = None
    grid: GridFrame | None = None

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        if self.points is not None:
            return [self.points.ids[i] for i in rows]
        row, col = self._cells(rows)
        return [f"{c}x{r}" for c, r in zip(col.tolist(), row.tolist(), strict=True)]

    def grid_points(self, rows: NDArray[np.int64]) -> Points:
        row, col = self._cells(rows)
        return Points(
            ids=tuple(self.ids(rows)),
            xy=self.centre[rows],
            array_row=row.astype(np.int32),
            array_col=col.astype(np.int32),
            assay="grid",
        )

    def _cells(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        row, col = np.divmod(rows, self.grid.cols if self.grid is not None else 1)
        return row, col


def _point_places(spec: TileSpec, read: ReadPlan, size_px: tuple[int, int], points: Points) -> _Places:
    centre = np.asarray(points.xy, dtype=np.float64)
    if centre.shape != (len(points), 2) or not np.isfinite(centre).all():
        bad = "" if centre.shape != (len(points), 2) else f", first at '{points.ids[_first_bad(centre)]}'"
        msg = f"{len(points)} points need {len(points)} finite (x, y) pairs, got {centre.shape}{bad}; mend the table"
        raise DataError(msg)
    if len(set(points.ids)) != len(points):
        msg = f"{len(points) - len(set(points.ids))} of {len(points)} points repeat an id; make ids unique"
        raise AlignmentError(msg)
    xy0 = corners(centre, read)
    sieve = _Sieve(len(points))
    sieve.keep("off image", ((centre >= 0) & (centre < size_px)).all(axis=1))
    if spec.at == "spots" and spec.in_tissue and points.in_tissue is not None:
        sieve.keep("off tissue", points.in_tissue[sieve.rows].astype(np.bool_))
    if spec.edge == "drop":
        lies_inside = (xy0 >= -_TOUCH) & (xy0 + read.edge0 <= np.asarray(size_px) + _TOUCH)
        sieve.keep("sticks out", lies_inside.all(axis=1)[sieve.rows])
    return _Places(centre, xy0, sieve, points=points)


def _first_bad(centre: NDArray[np.float64]) -> int:
    return int(np.flatnonzero(~np.isfinite(centre).all(axis=1))[0])


def _grid_places(spec: TileSpec, read: ReadPlan, size_px: tuple[int, int]) -> _Places:
    step = read.read_px * (1 - spec.overlap)
    if not read.resample:
        step = max(1, round(step))
    stride0 = step * read.downsample
    cover = [max(1, math.ceil((n - read.edge0 - _TOUCH) / stride0) + 1) for n in size_px]
    whole = [max(0, math.floor((n - read.edge0 + _TOUCH) / stride0) + 1) for n in size_px]
    cols, rows = cover if spec.edge == "pad" else whole
    if cols * rows > MAX_GRID:
        msg = f"a grid of {cols} x {rows} tiles of {read.edge0:g} px is over {MAX_GRID:,}; take larger tiles"
        raise UsageError(msg)
    row, col = np.divmod(np.arange(cols * rows), max(cols, 1))
    level_xy = np.stack([col, row], axis=1) * step
    xy0 = level_xy * read.downsample if read.resample else _on_whole_px(level_xy, read)
    sieve = _Sieve(len(xy0))
    sieve.never_made("sticks out", cover[0] * cover[1] - cols * rows)
    return _Places(xy0 + read.edge0 / 2, xy0, sieve, grid=GridFrame(cols=cols, rows=rows, stride0=stride0))


def _sampled(ids: Sequence[str], n: int, seed: int) -> NDArray[np.bool_]:
    chosen = np.zeros(len(ids), dtype=np.bool_)
    chosen[np.argsort(sample_keys(ids, seed), kind="stable")[:n]] = True
    return chosen


def _read_plan(spec: TileSpec, slide_mpp: float, downsamples: Sequence[float]) -> ReadPlan:
    out_px = spec.out_px(slide_mpp)
    if not _OUT_PX[0] <= out_px <= _OUT_PX[1]:
        at = spec.mpp if spec.mpp is not None else slide_mpp
        limits = f"{_OUT_PX[0]}-{_OUT_PX[1]}"
        msg = f"a tile of {spec.um:g} µm is {out_px} px at {at:g} mpp, outside {limits}; change um or mpp"
        raise UsageError(msg)
    return plan_read(slide_mpp, downsamples, out_px=out_px, mpp=spec.mpp, allow_upsample=spec.allow_upsample)


def _check_given(
    spec: TileSpec, points: Points | None, mask: TissueMask | None, regions: Sequence[Geometry] | None
) -> None:
    if spec.at != "grid" and points is None:
        msg = f"the spec wants a tile at each of the points '{spec.points}' and none were given; pass points="
        raise UsageError(msg)
    if spec.min_tissue > 0 and mask is None:
        msg = f"min_tissue is {spec.min_tissue:g} and no tissue mask was given; pass mask= or take min_tissue=0"
        raise UsageError(msg)
    if spec.regions is not None and regions is None:
        msg = f"the spec keeps tiles in the regions '{spec.regions}' and none were given; pass regions="
        raise UsageError(msg)


def _report(sieve: _Sieve, read: ReadPlan, grid: GridFrame | None) -> Report:
    if not len(sieve.rows):
        why = ", ".join(f"{n} {reason}" for reason, n in sieve.left_out.items() if n) or "there were no points"
        msg = f"no tile is left of {sieve.candidates}: {why}; look at the mask and the points over the slide"
        raise DataError(msg)
    how = "resampled" if read.resample else "native"
    notes = [f"{read.out_px} px at {read.mpp:g} µm per px, {how} from level {read.level}"]
    if grid is not None:
        notes.append(f"grid of {grid.cols} x {grid.rows} from (0, 0), step {grid.stride0:g} level-0 px")
    counts = {"candidates": sieve.candidates, "tiles": len(sieve.rows), **sieve.left_out}
    return Report(counts, tuple(notes))
