"""Tiles with what was predicted of them, as QuPath imports objects (GeoJSON, level-0 pixels).

Each tile is a *detection*: QuPath keeps hundreds of thousands of them, colours them by class, and draws a measurement
map of any number they carry. Checked against QuPath 0.5's own reader (``PathObjectTypeAdapters``): ``id`` is a UUID,
``objectType`` says what is made, ``measurements`` maps names to numbers, ``classification`` has a name and a colour.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import UsageError
from histostore.staged import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

CIRCLE_POINTS = 32
DIGITS = 6
"""Of a measurement: what float32 holds."""

_SPACE = uuid.UUID("b7c0e6c4-41f6-5d55-9d0f-5f2c3c2a8f10")


def squares(xy0: NDArray[np.floating[Any]], edge0: float) -> NDArray[np.float64]:
    """Return the outlines ``(n, 4, 2)`` of tiles from their top-left corners ``(n, 2)``, all in level-0 pixels."""
    corner = np.asarray(xy0, dtype=np.float64).reshape(-1, 1, 2)
    return corner + edge0 * np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64)


def circles(centre: NDArray[np.floating[Any]], diameter0: float) -> NDArray[np.float64]:
    """Return the outlines ``(n, 32, 2)`` of spots from their centres ``(n, 2)``, all in level-0 pixels."""
    angle = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    return np.asarray(centre, dtype=np.float64).reshape(-1, 1, 2) + diameter0 / 2 * ring


def write_qupath(
    path: Path,
    outlines: NDArray[np.float64],
    *,
    ids: Sequence[str],
    values: NDArray[np.floating[Any]],
    names: Sequence[str],
    calls: Sequence[str | None] | None = None,
    colours: Mapping[str, tuple[int, int, int]] | None = None,
    key: str = "",
    overwrite: bool = False,
) -> Path:
    """Write one object per tile.

    Parameters
    ----------
    outlines
        ``(n, points, 2)``, (x, y) in level-0 pixels; see `squares` and `circles`.
    ids
        ``n`` names, shown in QuPath (barcodes, ids of a grid).
    values
        ``(n, t)`` numbers. One that is not finite is left out of its object, which stays: an unreadable tile is an
        object without measurements.
    names
        ``t`` names of measurements.
    calls
        ``n`` classes; None where there is none.
    colours
        Class to (red, green, blue), 0-255; QuPath chooses where there is none.
    key
        Tells the objects of one file from those of another: equal key and name give equal ids, so that an import can
        be recognised.

    Raises
    ------
    UsageError
        The parts are not of one length, or a name stands twice.
    """
    n = len(outlines)
    lengths = {"ids": len(ids), "values": len(values), "calls": n if calls is None else len(calls)}
    for what, length in lengths.items():
        if length != n:
            msg = f"{length} {what} for {n} outlines; give one each"
            raise UsageError(msg)
    if np.shape(values)[1:] != (len(names),) or len(set(names)) != len(names):
        msg = f"values of shape {np.shape(values)} with {len(set(names))} different names; give (n, names)"
        raise UsageError(msg)
    features = _features(outlines, ids, values, names, calls, colours or {}, key)
    return write_text(path, _collection(features), overwrite=overwrite)


def _collection(features: Iterator[dict[str, Any]]) -> Iterator[str]:
    yield '{"type":"FeatureCollection","features":['
    for i, feature in enumerate(features):
        yield ("\n" if i == 0 else ",\n") + json.dumps(feature, ensure_ascii=False, separators=(",", ":"))
    yield "\n]}\n"


def _features(
    outlines: NDArray[np.float64],
    ids: Sequence[str],
    values: NDArray[np.floating[Any]],
    names: Sequence[str],
    calls: Sequence[str | None] | None,
    colours: Mapping[str, tuple[int, int, int]],
    key: str,
) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(ids):
        ring = [[round(x, 2), round(y, 2)] for x, y in outlines[i].tolist()]
        properties: dict[str, Any] = {"objectType": "detection", "name": str(name)}
        call = calls[i] if calls is not None else None
        if call is not None:
            about: dict[str, Any] = {"name": str(call)}
            properties["classification"] = about | ({"color": list(colours[call])} if call in colours else {})
        row = zip(names, values[i].tolist(), strict=True)
        measured = {str(what): float(f"{v:.{DIGITS}g}") for what, v in row if np.isfinite(v)}
        properties |= {"measurements": measured} if measured else {}
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_SPACE, f"{key}\0{name}")),
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            "properties": properties,
        }
