"""Embeddings as files of another tool: TRIDENT, CLAM, slide2vec, STAMP, or Parquet.

Features that were imported from a tool are written back for it as they came: values to the bit, coordinates and
attributes as they stood. For any other tool places are converted: to whole level-0 pixels of the corner (TRIDENT, CLAM,
slide2vec), to µm of the corner (STAMP), to level-0 pixels of the centre (Parquet).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import UsageError
from histostore.io.feature_files import check_tool, write_features
from histostore.io.feature_h5 import DIGEST
from histostore.io.feature_table import TileFeatures
from histostore.protocols import TileStatus
from histostore.stages.import_features import COORDS
from histostore.stages.result import StageResult
from histostore.tables import Report
from histostore.units import MPP_OF_20X
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.io.feature_table import Tool
    from histostore.part import Part
    from histostore.store.groups import Group
    from histostore.store.store import Store


def export_features(
    store: Store,
    slide: str,
    folder: str | Path,
    *,
    backbone: str,
    format: str,
    tiles: str | None = None,
    overwrite: bool = False,
) -> StageResult:
    """Write the embeddings of one slide to ``<folder>/<slide>.h5`` and its like.

    Parameters
    ----------
    format
        ``trident``, ``clam``, ``slide2vec``, ``stamp`` or ``parquet``.

    Returns
    -------
    StageResult
        Its report counts unreadable tiles (rows of NaN) and coordinates that had to be rounded; its notes name files.

    Raises
    ------
    UsageError
        There is no such format.
    ConflictError
        A file is there and `overwrite` is false.
    """
    tool = check_tool(format)
    cohort = view(store, backbone=backbone, tiles=tiles, slides=[slide])
    part = cohort.parts[0]
    ref = part.embeddings[cohort.backbones[0]]
    group = part.group(ref)
    record: Mapping[str, Any] | None = group.attrs.get("imported")
    values = group.read("embedding")
    if record is not None and record["tool"] == tool:
        table, rounded = _as_it_came(part, record, values), 0
    else:
        table, rounded = _converted(part, group, cohort.backbones[0], tool, values)
    files = write_features(table, folder, slide, overwrite=overwrite)
    unreadable = int((group.read("status") == TileStatus.UNREADABLE).sum())
    counts = {"unreadable tiles": unreadable, "coordinates rounded to whole pixels": rounded}
    report = Report({k: n for k, n in counts.items() if n}, tuple(str(file) for file in files))
    return StageResult(
        slide=slide, stage="export-features", refs=(ref,), done="written", rows=len(values), report=report
    )


def _as_it_came(part: Part, record: Mapping[str, Any], values: NDArray[Any]) -> TileFeatures:
    tiles = _tiles(part)
    geometry = tiles.read("geometry")
    return TileFeatures(
        tool=record["tool"], container=record["container"], features=values.astype(record["dtype"]),
        coords=tiles.read(COORDS), unit=record["unit"], anchor=record["anchor"], edge=record["edge"],
        tissue=geometry[:, 4].astype(np.float32) if record["tissue"] else None, leading_axis=record["leading_axis"],
        encoder=record["encoder"], attrs=record["attrs"],
    )  # fmt: skip


def _converted(
    part: Part, group: Group, backbone: str, tool: Tool, values: NDArray[Any]
) -> tuple[TileFeatures, int]:  # fmt: skip
    attrs, geometry = _tiles(part).attrs, _tiles(part).read("geometry")
    mpp, edge0 = float(part.meta["mpp"]), float(attrs["edge0"])
    tissue, rounded = geometry[:, 4].astype(np.float32), 0
    match tool:
        case "stamp":
            coords, unit, anchor = geometry[:, 2:4] * mpp, "um", "corner"
        case "parquet":
            coords, unit, anchor = geometry[:, :2], "px", "centre"
        case _:
            coords, unit, anchor = np.rint(geometry[:, 2:4]).astype(np.int64), "px", "corner"
            rounded = int((np.abs(coords - geometry[:, 2:4]) > 0).any(axis=1).sum())
    table = TileFeatures(
        tool=tool, container={"slide2vec": "npz", "parquet": "parquet"}.get(tool, "h5"),  # type: ignore[arg-type]
        features=values, coords=np.ascontiguousarray(coords), unit=unit, anchor=anchor,  # type: ignore[arg-type]
        edge=edge0 * mpp if unit == "um" else edge0, tissue=tissue if np.isfinite(tissue).all() else None,
        attrs=_attrs(part, group, backbone, tool),
    )  # fmt: skip
    return table, rounded


def _attrs(part: Part, group: Group, backbone: str, tool: Tool) -> dict[str, Any]:
    """Return what the tool's own files would say, as far as it is known; magnifications are nominal (20x is 0.5)."""
    slide, mpp = part.slide, float(part.meta["mpp"])
    tiles = _tiles(part).attrs
    edge0, out_px, tile_mpp = float(tiles["edge0"]), int(tiles["out_px"]), float(tiles["mpp"])
    size = _size(part)
    digest = {DIGEST: group.attrs["backbone_digest"]}
    match tool:
        case "trident":
            coords: dict[str, Any] = {
                "name": slide, "patch_size": out_px, "patch_size_level0": round(edge0),
                "level0_magnification": _nominal(mpp), "target_magnification": _nominal(tile_mpp),
            }  # fmt: skip
            if size is not None:
                coords |= {"level0_width": size[0], "level0_height": size[1]}
            return {"features": {"name": slide, "encoder": backbone, **digest}, "coords": coords}
        case "clam":
            coords = {"name": slide, "patch_size": round(edge0), "patch_level": 0, "downsample": [1.0, 1.0]}
            return {"features": {"encoder": backbone, **digest}, "coords": coords}
        case "stamp":
            about = {"extractor": backbone, "unit": "um", "tile_size_um": edge0 * mpp, "tile_size_px": out_px}
            return {"file": {**about, "feat_type": "tile", **digest}}
        case "slide2vec":
            about = {
                "sample_id": slide, "artifact_type": "tile_embeddings", "format": "npz", "num_tiles": len(part),
                "feature_dim": int(group.attrs["dim"]), "encoder_name": backbone,
            }  # fmt: skip
            places = {
                "provenance": {"sample_id": slide},
                "slide": {"base_spacing_um": mpp, "dimensions": list(size) if size is not None else None},
                "tiling": {
                    "tile_size_lv0": round(edge0), "requested_tile_size_px": out_px, "requested_spacing_um": tile_mpp,
                    "n_tiles": len(part),
                },
                "artifact": {"coordinate_space": "level0_px"},
            }  # fmt: skip
            return {"features": {**about, **digest}, "coords": places}
        case "parquet":
            about = {
                "unit": "px", "anchor": "centre", "edge": edge0, "tile_px": out_px, "slide_mpp": mpp,
                "encoder": {"encoder": backbone, **digest},
            }  # fmt: skip
            return {"file": about | ({"size_px": list(size)} if size is not None else {})}
    raise UsageError(f"no format '{tool}'")


def _tiles(part: Part) -> Group:
    if part.tiles is None:
        raise UsageError(f"slide '{part.slide}' has no tiles for these rows")
    return part.group(part.tiles)


def _size(part: Part) -> tuple[int, int] | None:
    ref = part.manifest.get("source", "image")
    if ref is None:
        return None
    about = part.group(ref).attrs
    return int(about["width"]), int(about["height"])


def _nominal(mpp: float) -> float:
    """Return the magnification that an mpp stands for by convention, rounded to a whole number from 2 up."""
    exact = MPP_OF_20X * 20 / mpp
    return float(round(exact)) if exact >= 2 else round(exact, 2)
