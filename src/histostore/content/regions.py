"""Annotated polygons as a group: the GeoJSON as it came, read back as shapes."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import DataError
from histostore.io.geojson import Annotations, read_geojson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shapely import Polygon

    from histostore.store.groups import Group
    from histostore.store.manifest import Ref
    from histostore.store.store import Store

FILE = "regions.geojson"


def read_annotations(path: Path) -> Annotations:
    """Read a GeoJSON file that is to come in.

    Raises
    ------
    DataError
        As of `histostore.io.geojson.read_geojson`, or it holds no polygon.
    """
    annotations = read_geojson(path)
    if not len(annotations):
        why = "; ".join(annotations.notes) or "no features at all"
        raise DataError(f"{path} holds no polygon ({why}); draw regions as polygons")
    return annotations


def write_regions(store: Store, slide: str, name: str, path: Path, annotations: Annotations) -> Ref:
    """Seal a GeoJSON file, and what `read_annotations` read of it, as ``regions/<name>``; the caller commits it."""
    data = path.read_bytes()
    counts: dict[str, int] = {}
    for label in annotations.classes:
        counts[label] = counts.get(label, 0) + 1
    with store.begin(slide, "regions", name, spec={}, inputs={"content": hashlib.sha256(data).hexdigest()}) as writer:
        if writer.sealed is None:
            writer.put_file(FILE, data)
        return writer.seal(rows=len(annotations.classes), attrs={"classes": counts, "file": path.name})


def read_regions(group: Group) -> Annotations:
    """Return the polygons of a regions group, in level-0 pixels."""
    with tempfile.NamedTemporaryFile(suffix=".geojson") as file:
        file.write(group.bytes(FILE))
        file.flush()
        return read_geojson(Path(file.name))


def polygons_of(group: Group) -> Sequence[Polygon]:
    """Return the shapes alone."""
    return list(read_regions(group).polygons)
