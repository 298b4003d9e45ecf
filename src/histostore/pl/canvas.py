"""What one slide of an AnnData offers to a picture: its rows, its image, and values joined to them by id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histostore.errors import AlignmentError, DataError, NotFoundError, UsageError, near

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

type Values = str | pd.Series[Any] | pd.DataFrame | ArrayLike
"""A name to look up, or values: by id (Series, DataFrame) or one per row (array)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """One slide, ready to be drawn on. All coordinates are (x, y) level-0 pixels."""

    slide: str
    rows: NDArray[np.intp]
    """``(n,)`` positions of the slide's spots in the AnnData."""
    xy: NDArray[np.float64]
    """``(n, 2)`` spot centres."""
    image: NDArray[Any] | None
    """``(h, w, 3)`` uint8 or float in 0-1; None where the AnnData holds none."""
    scale: float
    """Image pixels per level-0 pixel."""
    diameter: float
    """Spot diameter in level-0 pixels."""
    mpp: float | None
    """Microns per level-0 pixel, where known."""

    def extent(self) -> tuple[float, float, float, float]:
        """Return (left, right, bottom, top) of the image: pixel (0, 0) covers [0, 1) x [0, 1) of its own frame."""
        if self.image is None:
            msg = f"slide '{self.slide}' has no image"
            raise DataError(msg)
        height, width = self.image.shape[:2]
        return 0.0, width / self.scale, height / self.scale, 0.0


def canvas(adata: AnnData, slide: str | None, image_key: str | None = "hires") -> Canvas:
    """Return what is needed to draw one slide; `slide` None is the only one there is.

    Raises
    ------
    NotFoundError
        No such slide, or no image of that key.
    DataError
        Coordinates or scale factors are missing or not finite.
    """
    name, rows = _rows(adata, slide)
    if "spatial" not in adata.obsm:
        msg = "obsm has no 'spatial'; put the spot centres there, (x, y) in full-resolution pixels"
        raise DataError(msg)
    xy = np.asarray(adata.obsm["spatial"], dtype=np.float64)[rows, :2]
    if not np.isfinite(xy).all():
        msg = f"slide '{name}' has {int((~np.isfinite(xy)).any(axis=1).sum())} spots without finite coordinates"
        raise DataError(msg)
    about: Mapping[str, Any] = adata.uns.get("spatial", {}).get(name, {})
    factors: Mapping[str, Any] = about.get("scalefactors", {})
    image, scale = _image(name, about, image_key)
    return Canvas(
        slide=name,
        rows=rows,
        xy=xy,
        image=image,
        scale=scale,
        diameter=_positive(factors, "spot_diameter_fullres", name, default=_pitch(xy) / 2),
        mpp=_mpp(about),
    )


def _rows(adata: AnnData, slide: str | None) -> tuple[str, NDArray[np.intp]]:
    if "slide" in adata.obs:
        column = adata.obs["slide"].astype(str).to_numpy()
        known = list(dict.fromkeys(column))
    else:  # one section, as scanpy reads Visium
        known = list(adata.uns.get("spatial", {}))[:2] or ["slide"]
        column = np.full(adata.n_obs, known[0])
    if slide is None:
        if len(known) != 1:
            some = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
            msg = f"{len(known)} slides to choose from ({some}); name one"
            raise UsageError(msg)
        slide = known[0]
    rows = np.flatnonzero(column == slide)
    if not rows.size:
        msg = f"no spot of slide '{slide}' in obs['slide']{near(slide, known)}"
        raise NotFoundError(msg)
    return slide, rows


def _image(slide: str, about: Mapping[str, Any], key: str | None) -> tuple[NDArray[Any] | None, float]:
    images: Mapping[str, Any] = about.get("images", {})
    if key is None or not images:
        return None, 1.0
    if key not in images:
        msg = f"slide '{slide}' has no image '{key}', it has {', '.join(images)}"
        raise NotFoundError(msg)
    scale = _positive(about.get("scalefactors", {}), f"tissue_{key}_scalef", slide)
    image = np.asarray(images[key])
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        msg = f"image '{key}' of slide '{slide}' has shape {image.shape}, expected (height, width, 3)"
        raise DataError(msg)
    return image[..., :3], scale


def _positive(factors: Mapping[str, Any], key: str, slide: str, default: float | None = None) -> float:
    value = factors.get(key, default)
    if value is None or not np.isfinite(value) or value <= 0:
        msg = f"uns['spatial']['{slide}']['scalefactors'] needs a positive '{key}', got {value}"
        raise DataError(msg)
    return float(value)


def _pitch(xy: NDArray[np.float64]) -> float:
    """Return the median distance of nearest neighbours; 1 where there is one spot."""
    if len(xy) < 2:
        return 1.0
    sample = xy[:: max(1, len(xy) // 500)]
    distances = np.linalg.norm(sample[:, None] - xy[None], axis=2)
    distances[distances == 0] = np.inf
    nearest = distances.min(axis=1)
    return float(np.median(nearest[np.isfinite(nearest)])) if np.isfinite(nearest).any() else 1.0


def _mpp(about: Mapping[str, Any]) -> float | None:
    for place in (about.get("metadata", {}), about.get("scalefactors", {})):
        for key in ("mpp", "microns_per_pixel"):
            value = place.get(key)
            if value is not None and np.isfinite(float(value)) and float(value) > 0:
                return float(value)
    return None


def gene_values(adata: AnnData, rows: NDArray[np.intp], gene: str, layer: str | None = None) -> NDArray[np.float64]:
    """Return one gene of `X` or of a layer, or of a table in obsm whose columns are genes."""
    if layer is not None and layer in adata.obsm:
        return table_values(adata, rows, adata.obsm[layer], gene, f"obsm['{layer}']")
    if layer is not None and layer not in adata.layers:
        msg = f"no layer or obsm table '{layer}'{near(layer, [*adata.layers, *adata.obsm])}"
        raise NotFoundError(msg)
    if gene not in adata.var_names:
        msg = f"no gene '{gene}'{near(gene, adata.var_names)}"
        raise NotFoundError(msg)
    where = np.flatnonzero(adata.var_names == gene)
    if len(where) > 1:
        msg = f"gene '{gene}' names {len(where)} columns; call var_names_make_unique()"
        raise UsageError(msg)
    matrix: Any = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = "this AnnData has no X; name a layer"
        raise NotFoundError(msg)
    column = matrix[rows][:, where]
    dense = column.toarray() if sp.issparse(column) else np.asarray(column)
    return np.asarray(dense, dtype=np.float64).ravel()


def table_values(adata: AnnData, rows: NDArray[np.intp], table: object, column: str, what: str) -> NDArray[np.float64]:
    """Return one column of a table of the spots, joined by obs name."""
    if not isinstance(table, pd.DataFrame):
        msg = f"{what} has no column names; make it a DataFrame with one column per gene"
        raise UsageError(msg)
    if column not in table.columns:
        msg = f"no gene '{column}' in {what}{near(column, map(str, table.columns))}"
        raise NotFoundError(msg)
    return np.asarray(given_values(adata, rows, table[column], what), dtype=np.float64)


def given_values(adata: AnnData, rows: NDArray[np.intp], values: Any, what: str = "the values") -> NDArray[Any]:
    """Return values for the slide's rows: a Series is joined by obs name, an array must have one per row.

    Raises
    ------
    AlignmentError
        Spots without a value (a value that is NaN is fine), repeated ids, or an array of another length.
    """
    if isinstance(values, pd.Series):
        ids = adata.obs_names[rows]
        if not values.index.is_unique:
            msg = f"{what} repeats {int(values.index.duplicated().sum())} ids; give each spot once"
            raise AlignmentError(msg)
        absent = ids.difference(values.index)
        if len(absent):
            msg = f"{what} lacks {len(absent)} of {len(ids)} spots (first: {absent[0]}); index it by obs_names"
            raise AlignmentError(msg)
        return plain_array(values.loc[ids])
    array = np.asarray(values)
    if array.ndim != 1 or len(array) not in (len(rows), adata.n_obs):
        msg = f"{what} has shape {array.shape}; give {len(rows)} (the slide) or {adata.n_obs} (all rows) numbers"
        raise AlignmentError(msg)
    return array if len(array) == len(rows) else array[rows]


def plain_array(column: pd.Series[Any]) -> NDArray[Any]:
    """Return numbers as float64 with NaN for missing, everything else (also bool) as objects."""
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return column.to_numpy(dtype=np.float64 if numeric else object, na_value=np.nan)
