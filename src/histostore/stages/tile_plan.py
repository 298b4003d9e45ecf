"""Which tiles a slide has: planned from its image and mask, and written as groups that are not committed yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.content.regions import polygons_of
from histostore.content.tables import read_points, write_points
from histostore.stages.source import mpp_of, source_of
from histostore.tiles.mask import TissueMask, tissue_mask
from histostore.tiles.plan import TilePlan, plan_tiles
from histostore.tiles.stain import StainFit, fit_slide_stain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.protocols import Slide
    from histostore.specs import TileSpec
    from histostore.store.groups import Group
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store
    from histostore.tables import Report
    from histostore.units import ReadPlan

GEOMETRY = ("cx", "cy", "x0", "y0", "tissue")
IDS = ("tile_id_hi", "tile_id_lo", "point")


@dataclass(frozen=True, slots=True)
class TileInputs:
    """What a tile set is made from, by digest."""

    source: str
    mpp: float
    points: Ref | None
    regions: Ref | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        found: dict[str, Any] = {"source": self.source, "mpp": self.mpp}
        for key, ref in (("points", self.points), ("regions", self.regions)):
            if ref is not None:
                found[key] = ref.digest
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The tiles of one slide, in sealed groups. It can be pickled."""

    tiles: Ref
    points: Ref | None
    """Of a grid, which brings its own."""
    rows: int
    read: ReadPlan
    reader: str
    """Library that reads the slide, for the engine's record."""
    report: Report

    @property
    def refs(self) -> list[Ref]:
        """The groups to commit."""
        return [self.points, self.tiles] if self.points is not None else [self.tiles]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the tiles lie and how their pixels are changed: what reading them needs beside `Planned`."""

    xy0: NDArray[np.float64]
    """``(n, 2)`` top-left corners in level-0 pixels."""
    stain: StainFit | None


def tile_inputs(store: Store, manifest: Manifest, spec: TileSpec) -> TileInputs:
    """Return what the tiles of a slide would be made from."""
    source = source_of(store, manifest)["sha256"]
    points = manifest.find("points", spec.points) if spec.at != "grid" else None
    regions = manifest.find("regions", spec.regions) if spec.regions is not None else None
    return TileInputs(source, mpp_of(store, manifest), points, regions)


@dataclass(frozen=True, slots=True)
class Layout:
    """The tiles of a slide before anything is written."""

    plan: TilePlan
    mask: TissueMask
    stain: StainFit | None

    def tables(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of a tiles group."""
        plan = self.plan
        return {
            "geometry": np.column_stack([plan.centre, plan.xy0, plan.tissue.astype(np.float64)]),
            "ids": np.column_stack([plan.tile_id, plan.point.astype(np.uint64)]),
            "mask": self.mask.mask,
        }


def lay_out(store: Store, spec: TileSpec, inputs: TileInputs, image: Slide) -> Layout:
    """Find the tissue of a slide and plan its tiles.

    Raises
    ------
    DataError
        No tile is left; the counts say why.
    """
    mask = tissue_mask(image, spec.mask, mpp=inputs.mpp)
    plan = plan_tiles(
        spec,
        size_px=image.size_px,
        slide_mpp=inputs.mpp,
        downsamples=image.downsamples,
        source_digest=inputs.source,
        points=read_points(store.group(inputs.points)) if inputs.points is not None else None,
        mask=mask,
        regions=polygons_of(store.group(inputs.regions)) if inputs.regions is not None else None,
    )
    stain = fit_slide_stain(spec.stain, image, plan, white=mask.glass_rgb) if spec.stain is not None else None
    return Layout(plan, mask, stain)


def plan_slide(
    store: Store, manifest: Manifest, spec: TileSpec, name: str, inputs: TileInputs, image: Slide
) -> tuple[Planned, Placed]:
    """Plan the tiles of a slide and seal their groups, which are found again where they are there already.

    Errors as of `lay_out`.
    """
    made = lay_out(store, spec, inputs, image)
    plan = made.plan
    points_ref = write_points(store, manifest.owner, name, plan.points) if spec.at == "grid" else None
    tiles_ref = _write_tiles(store, manifest.owner, spec, name, inputs, made)
    planned = Planned(
        tiles=tiles_ref, points=points_ref, rows=len(plan), read=plan.read, reader=image.reader, report=plan.report
    )
    return planned, Placed(plan.xy0, made.stain)


def placed(tiles: Group) -> Placed:
    """Return what a tiles group says of where its tiles lie."""
    stain = StainFit.from_json(tiles.attrs["stain"]) if "stain" in tiles.attrs else None
    return Placed(tiles.read("geometry")[:, 2:4], stain)


def _write_tiles(store: Store, slide: str, spec: TileSpec, name: str, inputs: TileInputs, made: Layout) -> Ref:
    plan, read = made.plan, made.plan.read
    with store.begin(slide, "tiles", name, spec=spec.to_json(), inputs=inputs.to_json()) as writer:
        if writer.sealed is None:
            tables = made.tables()
            writer.put_array("geometry", tables["geometry"], dims=("tile", "measure"), attrs={"columns": GEOMETRY})
            writer.put_array("ids", tables["ids"], dims=("tile", "part"), attrs={"columns": IDS})
            writer.put_array("mask", tables["mask"], dims=("y", "x"))
        attrs = {
            "points": name if spec.at == "grid" else spec.points,
            "level": read.level,
            "read_px": read.read_px,
            "out_px": read.out_px,
            "downsample": read.downsample,
            "edge0": read.edge0,
            "resample": read.resample,
            "mpp": read.mpp,
            "left_out": dict(plan.report.counts),
            "notes": list(plan.report.notes),
            "mask_downsample": list(made.mask.downsample),
        }
        if made.stain is not None:
            attrs["stain"] = made.stain.to_json()
        return writer.seal(rows=len(plan), attrs=attrs)
