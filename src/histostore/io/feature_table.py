"""Features of one slide's tiles as another tool left them: values, places, and what the file says of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from histostore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

type Tool = Literal["trident", "clam", "slide2vec", "stamp", "parquet"]
type Unit = Literal["px", "um"]
type Anchor = Literal["corner", "centre"]

FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TileFeatures:
    """What one feature file (and the file of coordinates beside it) holds. What it does not say is None."""

    tool: Tool
    container: Literal["h5", "npz", "pt", "parquet"]
    features: NDArray[Any]
    """``(n, d)`` float16, float32 or float64, as in the file."""
    coords: NDArray[Any]
    """``(n, 2)`` places of the tiles, (x, y), as in the file: of the `anchor`, in `unit`."""
    unit: Unit
    """Level-0 pixels, or µm from the slide's top left."""
    anchor: Anchor | None
    """The tile's top-left corner or its centre."""
    edge: float | None
    """Edge of a tile in `unit`."""
    tile_px: int | None = None
    """Edge of a tile in pixels, as it was cut for the encoder."""
    slide_mpp: float | None = None
    magnification: float | None = None
    """Nominal objective power of level 0."""
    size_px: tuple[int, int] | None = None
    """(width, height) of level 0."""
    tissue: NDArray[np.float32] | None = None
    """``(n,)`` share of tissue."""
    leading_axis: bool = False
    """The file has features of ``(1, n, d)``."""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    """What tells one encoder's features from another's, the same on all slides of a cohort."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """All attributes of the file, by where they stand; plain JSON."""

    def __len__(self) -> int:
        return len(self.features)


def check_rows(features: NDArray[Any], coords: NDArray[Any], where: Path) -> tuple[NDArray[Any], NDArray[Any], bool]:
    """Return features ``(n, d)``, coordinates ``(n, 2)`` and whether the features had a leading axis of 1.

    Raises
    ------
    DataError
        Another shape or type, lengths that differ, no rows, or a coordinate that is not finite.
    """
    leading = features.ndim == 3 and features.shape[0] == 1
    if leading:
        features = features[0]
    if coords.ndim == 3 and coords.shape[0] == 1:
        coords = coords[0]
    if features.ndim != 2 or 0 in features.shape:
        what = "one vector, of a slide and not of tiles" if features.ndim == 1 else f"of shape {features.shape}"
        raise DataError(f"{where}: features are {what}; give (tiles, dimensions)")
    if features.dtype.name not in FLOATS:
        raise DataError(f"{where}: features are {features.dtype}, not {', '.join(FLOATS)}; save them as float32")
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iuf":
        raise DataError(f"{where}: coords are {coords.dtype} of shape {coords.shape}; give (tiles, 2) numbers")
    if len(features) != len(coords):
        text = f"{where} has {len(features)} features and {len(coords)} coords; they must be of the same tiles"
        raise DataError(text)
    wrong = np.flatnonzero(~np.isfinite(coords.astype(np.float64)).all(axis=1))
    if len(wrong):
        raise DataError(f"{where}: {len(wrong)} coords are not finite, first in row {wrong[0]}; mend the file")
    return _native(features), _native(coords), leading


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def positive(value: Any, what: str, where: Path) -> float | None:
    """Return a number of the file, None where it says none (absent, or TRIDENT's -1).

    Raises
    ------
    DataError
        It is there, and no positive number.
    """
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number == -1:
        return None
    if not math.isfinite(number) or number <= 0:
        raise DataError(f"{where}: {what} is {value!r}, no positive number; mend the file")
    return number


def plain(value: Any) -> Any:
    """Return an attribute as plain JSON: numbers, text, lists of them; text for anything else."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    match value:
        case bytes():
            return value.decode("utf-8", "replace")
        case list() | tuple():
            return [plain(v) for v in value]
        case dict():
            return {str(k): plain(v) for k, v in value.items()}
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
    return str(value)
