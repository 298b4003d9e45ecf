"""HDF5 files of features: TRIDENT, CLAM and STAMP.

=========  =============  =====================================  ==========================================
tool       values         places (``coords``)                    edge of a tile
=========  =============  =====================================  ==========================================
TRIDENT    ``features``   top-left corner, level-0 px            attribute ``patch_size_level0`` of ``coords``
CLAM       ``features``   top-left corner, level-0 px            ``patch_size`` x ``downsample``, often absent
STAMP      ``feats``      top-left corner, µm (``unit`` is um)   ``tile_size_um``, in 2.0 ``tile_size``
=========  =============  =====================================  ==========================================
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from histostore.errors import DataError
from histostore.io.feature_table import TileFeatures, check_rows, plain, positive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.io.feature_table import Tool, Unit

DIGEST = "histostore_backbone_digest"
"""Attribute of a file that histostore wrote: what its features were computed with."""

MOST_PACKED = 1024
"""A file that claims more than so many times its size holds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where tiles lie, as a file says."""

    tool: Tool
    coords: NDArray[Any]
    unit: Unit
    edge: float | None
    tile_px: int | None
    magnification: float | None
    size_px: tuple[int, int] | None
    encoder: Mapping[str, Any]
    attrs: Mapping[str, Any]


def read_h5(path: Path) -> TileFeatures:
    """Read a file of TRIDENT, CLAM or STAMP; which of them, its names and attributes tell.

    Raises
    ------
    DataError
        It is cut short or no HDF5, has no features or coordinates, or they do not fit each other.
    """
    with _opened(path) as file:
        key = next((k for k in ("features", "feats") if k in file), None)
        if key is None:
            held = ", ".join(file) or "nothing"
            raise DataError(f"{path} has neither 'features' nor 'feats' (it has {held}); it is no file of features")
        kind = file.attrs.get("feat_type", "tile")
        if plain(kind) != "tile":
            raise DataError(f"{path} holds features of a {plain(kind)}, not of tiles; give the tiles' file")
        places = _places(file, path)
        about = dict(places.attrs) | {"features": _attrs(file[key])}
        features, coords, leading = check_rows(_values(file, key, path), places.coords, path)
    told = {k: about["features"][k] for k in ("encoder", DIGEST) if about["features"].get(k) is not None}
    return TileFeatures(
        tool=places.tool, container="h5", features=features, coords=coords, unit=places.unit, anchor="corner",
        edge=places.edge, tile_px=places.tile_px, magnification=places.magnification, size_px=places.size_px,
        leading_axis=leading, encoder={**places.encoder, **told}, attrs=about,
    )  # fmt: skip


def read_places(path: Path) -> Places:
    """Read the coordinates alone, of a file of patches or of features."""
    with _opened(path) as file:
        return _places(file, path)


def h5_bytes(table: TileFeatures) -> bytes:
    """Return the file that holds a table, in its tool's layout."""
    key = "feats" if table.tool == "stamp" else "features"
    out = BytesIO()
    with h5py.File(out, "w") as file:
        file[key] = table.features[None] if table.leading_axis else table.features
        file["coords"] = table.coords
        for place, node in (("file", file), ("features", file[key]), ("coords", file["coords"])):
            for name, value in table.attrs.get(place, {}).items():
                if value is not None:
                    node.attrs[name] = value
    return out.getvalue()


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a file of HDF5 whose every failure is one `DataError`."""
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the features' file or their folder")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{path} is no whole HDF5 file ({error}); copy it again") from None


def _values(file: h5py.File, name: str, path: Path) -> NDArray[Any]:
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu":
        raise DataError(f"{path}: '{name}' is no array of numbers; it is no file of features")
    if found.nbytes > MOST_PACKED * path.stat().st_size:
        raise DataError(f"{path}: '{name}' claims {found.nbytes:,} bytes, which its file cannot hold; copy it again")
    return np.asarray(found[()])


def _attrs(node: Any) -> dict[str, Any]:
    return {str(name): plain(value) for name, value in node.attrs.items()}


def _places(file: h5py.File, path: Path) -> Places:
    if "coords" not in file:
        raise DataError(f"{path} has no 'coords': features without places are not taken; extract them with coordinates")
    coords = _values(file, "coords", path)
    about, own = _attrs(file["coords"]), _attrs(file)
    attrs = {"file": own, "coords": about}
    if "feats" in file:
        return _stamp(coords, own, attrs, path)
    if "patch_size_level0" in about or "target_magnification" in about:
        return _trident(coords, about, attrs, path)
    return _clam(coords, about, attrs, path)


def _trident(coords: NDArray[Any], about: dict[str, Any], attrs: dict[str, Any], path: Path) -> Places:
    def number(name: str) -> float | None:
        return positive(about.get(name), name, path)

    edge, px = number("patch_size_level0"), number("patch_size")
    level0, target = number("level0_magnification"), number("target_magnification")
    if edge is None and px and level0 and target:
        edge = px * level0 / target
    width, height = number("level0_width"), number("level0_height")
    return Places(
        tool="trident", coords=coords, unit="px", edge=edge, tile_px=int(px) if px else None, magnification=level0,
        size_px=(int(width), int(height)) if width and height else None,
        encoder=_known(patch_size=px, target_magnification=target), attrs=attrs,
    )  # fmt: skip


def _clam(coords: NDArray[Any], about: dict[str, Any], attrs: dict[str, Any], path: Path) -> Places:
    px = positive(about.get("patch_size"), "patch_size", path)
    down = about.get("downsample", 1.0 if about.get("patch_level") == 0 else None)
    down = positive(down[0] if isinstance(down, list) and down else down, "downsample", path)
    return Places(
        tool="clam", coords=coords, unit="px", edge=px * down if px and down else None,
        tile_px=int(px) if px else None, magnification=None, size_px=None, encoder=_known(patch_size=px), attrs=attrs,
    )  # fmt: skip


def _stamp(coords: NDArray[Any], own: dict[str, Any], attrs: dict[str, Any], path: Path) -> Places:
    edge = positive(own.get("tile_size_um", own.get("tile_size")), "tile_size_um", path)
    if own.get("unit", "um") != "um" or ("unit" not in own and "tile_size_um" not in own):
        text = f"{path} does not say that its coords are in µm (unit is {own.get('unit')!r}, as before STAMP 2.0)"
        raise DataError(f"{text}; extract it again with a newer STAMP")
    px = positive(own.get("tile_size_px"), "tile_size_px", path)
    return Places(
        tool="stamp", coords=coords, unit="um", edge=edge, tile_px=int(px) if px else None, magnification=None,
        size_px=None, attrs=attrs,
        encoder=_known(extractor=own.get("extractor"), tile_size_um=edge, tile_size_px=px, **{DIGEST: own.get(DIGEST)}),
    )  # fmt: skip


def _known(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}
