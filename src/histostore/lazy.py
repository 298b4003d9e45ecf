"""A view as a labelled, dask-backed Dataset, chunked along the shards on disk."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.part import Part
    from histostore.store.arrays import ArrayReader
    from histostore.view import View


def build_dataset(view: View, backbone: str) -> xr.Dataset:
    """Return embeddings ``(obs, feature)`` and the obs columns as coordinates; nothing but obs is read yet."""
    blocks = [_lazy_rows(p, p.group(p.embeddings[backbone]).array("embedding")) for p in view.parts]
    values = da.concatenate(blocks, axis=0)
    coords: dict[str, Any] = {"obs": view.names()}
    for name in view.columns():
        coords[name] = ("obs", view.column(name))
    return xr.Dataset({backbone: (("obs", "feature"), values)}, coords=coords, attrs={"backbone": backbone})


def _lazy_rows(part: Part, reader: ArrayReader) -> da.Array:
    step, dim = reader.spec.shard_rows, reader.shape[1]
    rows, n = part.rows, len(part)

    def read(start: int, stop: int) -> NDArray[Any]:
        return reader.read(slice(start, stop) if rows is None else rows[start:stop])

    bounds = [*range(0, n, step), n]
    parts = [
        da.from_delayed(dask.delayed(read, pure=False)(a, b), shape=(b - a, dim), dtype=reader.dtype)
        for a, b in pairwise(bounds)
    ]
    return da.concatenate(parts, axis=0) if parts else da.zeros((0, dim), dtype=np.dtype(reader.dtype))
