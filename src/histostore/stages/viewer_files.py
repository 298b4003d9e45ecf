"""Predictions of one slide as files that viewers import: objects for QuPath, groups of spots for Loupe Browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.errors import NotFoundError, UsageError, near
from histostore.io.loupe import binned, write_loupe
from histostore.io.qupath import circles, squares, write_qupath

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from histostore.part import Part
    from histostore.stages.predict import Prediction

COLOURS = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167),
    (86, 180, 233), (213, 94, 0), (240, 228, 66), (0, 0, 0),
)  # fmt: skip
"""Okabe and Ito (2008), as in pictures; a class keeps its colour over slides. Of more than eight they repeat."""

SPOT_ASSAYS = ("visium", "st-v1")


def write_geojson(
    found: Prediction, head: str, path: Path, *, names: Sequence[str] | None = None, overwrite: bool = False
) -> Path:
    """Write the predictions of one slide for QuPath: a circle per spot of an array, else a square per tile.

    Parameters
    ----------
    found
        As `histostore.stages.predict.read_prediction` gives it.
    head
        Its name, part of the objects' ids.
    names
        Which of the predicted values; None is all of them.
    """
    part = _one_slide(found, path)
    at = _columns(found, names)
    calls = found.calls().tolist() if found.threshold is not None else None
    classes = found.names if calls is not None else ()
    return write_qupath(
        path,
        outlines(part),
        ids=part.column("barcode").tolist(),
        values=found.values[:, at],
        names=[found.names[k] for k in at],
        calls=calls,
        colours={name: COLOURS[k % len(COLOURS)] for k, name in enumerate(classes)},
        key=f"{part.slide}\0{part.tiles.name if part.tiles is not None else ''}\0{head}",
        overwrite=overwrite,
    )


def write_loupe_csv(
    found: Prediction, head: str, path: Path, *, names: Sequence[str] | None = None, overwrite: bool = False
) -> Path:
    """Write the predictions of one slide for Loupe Browser: the called class, or chosen genes in bins of equal count.

    Spots without a prediction (unreadable tiles) are left out of the file.

    Raises
    ------
    UsageError
        A head of numbers, and `names` does not say which of them.
    """
    part = _one_slide(found, path)
    groups: dict[str, Sequence[str | None]] = {}
    if found.threshold is not None:
        groups[head] = found.calls().tolist()
    elif not names:
        msg = f"head '{head}' predicts {len(found.names)} numbers and Loupe takes groups: choose genes with --genes"
        raise UsageError(msg)
    else:
        for k in _columns(found, names):
            groups[f"{head} {found.names[k]}"] = binned(found.values[:, k])
    return write_loupe(path, part.column("barcode").tolist(), groups, overwrite=overwrite)


def outlines(part: Part) -> NDArray[np.float64]:
    """Return what the rows of a slide look like ``(n, points, 2)``: circles of the assay's spots, or the tiles."""
    points, chosen = part.the_points, slice(None) if part.rows is None else part.rows
    if part.tiles is None or (points.assay in SPOT_ASSAYS and points.spot_um is not None):
        return circles(part.xy[chosen], float(points.spot_um or 0) / float(part.meta["mpp"]))
    tiles = part.group(part.tiles)
    return squares(tiles.read("geometry")[chosen, 2:4], float(tiles.attrs["edge0"]))


def _one_slide(found: Prediction, path: Path) -> Part:
    if found.per_slide:
        msg = f"{path}: this head predicts whole slides, there are no tiles to draw; write a .csv"
        raise UsageError(msg)
    return found.view.parts[0]


def _columns(found: Prediction, names: Sequence[str] | None) -> list[int]:
    for name in names or ():
        if name not in found.names:
            msg = f"the head does not predict '{name}'{near(name, found.names)}"
            raise NotFoundError(msg)
    return [found.names.index(n) for n in names] if names else list(range(len(found.names)))
