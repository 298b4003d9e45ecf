"""slide2vec's files: ``tile_embeddings/<id>.npz`` or ``.pt`` with a sidecar, and ``tiles/<id>.coordinates.npz``.

Coordinates are the top-left corners of tiles in level-0 pixels; the sidecar of the coordinates has the edge
(``tile_size_lv0``) and the slide's µm per pixel. A bare ``.pt`` tensor of another tool is read where a file of its
coordinates lies beside it.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError
from histostore.io.feature_h5 import DIGEST, read_places
from histostore.io.feature_table import TileFeatures, check_rows, plain, positive

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

FOLDER = "tile_embeddings"
_MOST_PACKED = 1100
"""Deflate reaches 1032; what claims more does not hold it."""


def read_slide2vec(path: Path) -> TileFeatures:
    """Read ``<id>.npz`` or ``<id>.pt`` and the coordinates of its tiles, joined by tile index where there is one.

    Raises
    ------
    DataError
        A pickle, a file that is cut short, features without coordinates, or numbers of tiles that differ.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the features' file or their folder")
    container = path.suffix[1:]
    arrays = _npz(path) if container == "npz" else {"features": _tensor(path)}
    if "features" not in arrays:
        raise DataError(
            f"{path} has no 'features' (it has {', '.join(arrays) or 'nothing'}); it is no file of features"
        )
    features = arrays["features"]
    beside = next((p for p in _coordinate_files(path) if p.is_file()), None)
    if beside is None:
        tried = ", ".join(str(p) for p in _coordinate_files(path)[:2])
        raise DataError(f"{path} has no coordinates beside it (no {tried}, …); features without places are not taken")
    if beside.suffix == ".h5":
        return _with_h5(path, beside, features)
    return _with_npz(path, beside, features, arrays.get("tile_index"))


def slide2vec_files(table: TileFeatures, slide: str) -> dict[str, bytes]:
    """Return the four files of one slide, by relative name."""
    about, places = dict(table.attrs.get("features", {})), dict(table.attrs.get("coords", {}))
    tiles = {
        "tile_index": np.arange(len(table), dtype=np.int32), "x": table.coords[:, 0], "y": table.coords[:, 1],
    }  # fmt: skip
    if table.tissue is not None:
        tiles["tissue_fractions"] = table.tissue
    if table.container == "pt":
        from histostore.io.feature_tensor import tensor_bytes

        packed = tensor_bytes(table.features)
    else:
        packed = _packed(features=table.features, tile_index=tiles["tile_index"])
    kind = "pt" if table.container == "pt" else "npz"
    return {
        f"{FOLDER}/{slide}.{kind}": packed,
        f"{FOLDER}/{slide}.meta.json": _json(about),
        f"tiles/{slide}.coordinates.npz": _packed(**tiles),
        f"tiles/{slide}.coordinates.meta.json": _json(places),
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _packed(**arrays: NDArray[Any]) -> bytes:
    out = BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _coordinate_files(path: Path) -> list[Path]:
    """Return where the coordinates of some features may lie: slide2vec's, CLAM's and TRIDENT's places."""
    slide, folder, above = path.stem, path.parent, path.parent.parent
    return [
        above / "tiles" / f"{slide}.coordinates.npz",
        folder / f"{slide}.coordinates.npz",
        folder / f"{slide}.h5",
        above / "h5_files" / f"{slide}.h5",
        above / "patches" / f"{slide}.h5",
        above / "patches" / f"{slide}_patches.h5",
    ]


def _with_npz(path: Path, beside: Path, features: NDArray[Any], index: NDArray[Any] | None) -> TileFeatures:
    tiles = _npz(beside)
    if not {"x", "y"} <= tiles.keys() or tiles["x"].ndim != 1 or tiles["x"].shape != tiles["y"].shape:
        raise DataError(f"{beside} has no x and y of equal length; features without places are not taken")
    coords = np.column_stack([tiles["x"], tiles["y"]])
    features, coords, leading = check_rows(features, coords, path)
    order = _order(index, tiles.get("tile_index"), len(features), path, beside)
    tissue = tiles.get("tissue_fractions")
    about = _sidecar(path.with_name(f"{path.stem}.meta.json"))
    places = _sidecar(beside.with_name(f"{path.stem}.coordinates.meta.json"))
    told, slide = places.get("tiling") or {}, places.get("slide") or {}
    edge = positive(told.get("tile_size_lv0", about.get("tile_size_lv0")), "tile_size_lv0", beside)
    px = positive(told.get("requested_tile_size_px"), "requested_tile_size_px", beside)
    size = slide.get("dimensions")
    wanted = {k: told.get(k) for k in ("requested_tile_size_px", "requested_spacing_um")}
    known = {k: v for k, v in about.items() if k.startswith("encoder") or k in ("compatibility", DIGEST)}
    return TileFeatures(
        tool="slide2vec", container="pt" if path.suffix == ".pt" else "npz", features=features, coords=coords[order],
        unit="px", anchor="corner", edge=edge, tile_px=int(px) if px else None,
        slide_mpp=positive(slide.get("base_spacing_um"), "base_spacing_um", beside),
        size_px=(int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else None,
        tissue=tissue[order].astype(np.float32) if tissue is not None and len(tissue) == len(order) else None,
        leading_axis=leading, attrs={"features": about, "coords": places},
        encoder={k: v for k, v in {**wanted, **known}.items() if v is not None},
    )  # fmt: skip


def _order(
    index: NDArray[Any] | None, of_tiles: NDArray[Any] | None, n: int, path: Path, beside: Path
) -> NDArray[np.int64]:
    """Return, for each row of the features, the row of its coordinates."""
    if index is None or of_tiles is None:
        return np.arange(n, dtype=np.int64)
    place = {int(t): row for row, t in enumerate(of_tiles.tolist())}
    wanted = [int(t) for t in np.asarray(index).ravel().tolist()]
    if len(place) != n or len(wanted) != n or set(wanted) != place.keys():
        raise DataError(f"{path} and {beside} do not have the same tile_index; they are not of one run")
    return np.array([place[t] for t in wanted], dtype=np.int64)


def _with_h5(path: Path, beside: Path, features: NDArray[Any]) -> TileFeatures:
    places = read_places(beside)
    features, coords, leading = check_rows(features, places.coords, path)
    return TileFeatures(
        tool=places.tool, container="h5", features=features, coords=coords, unit=places.unit, anchor="corner",
        edge=places.edge, tile_px=places.tile_px, magnification=places.magnification, size_px=places.size_px,
        leading_axis=leading, encoder=places.encoder, attrs=places.attrs,
    )  # fmt: skip


def _sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = plain(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); mend or remove it") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} is no JSON object; mend or remove it")
    return found


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > _MOST_PACKED * path.stat().st_size:
            raise DataError(f"{path} claims {claimed:,} bytes, which it cannot hold; copy it again")
        with np.load(path, allow_pickle=False) as found:
            return {name: np.asarray(found[name]) for name in found.files}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no whole npz file of plain arrays ({error}); copy it again") from None


def _tensor(path: Path) -> NDArray[Any]:
    from histostore.io.feature_tensor import read_tensor

    return read_tensor(path)
