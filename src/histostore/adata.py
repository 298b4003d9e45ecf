"""A view as AnnData: what scanpy and squidpy find where they look for it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from histostore._version import __version__
from histostore.errors import DataError

if TYPE_CHECKING:
    from histostore.part import Part
    from histostore.view import View

_DEFAULT_SPOT_UM = 65.0
COUNT_TOTALS = ("n_counts", "n_genes")


def build_adata(view: View, *, images: bool, counts: bool, lazy: bool = False) -> ad.AnnData:
    """Return the rows of a view as one AnnData; see `View.to_adata`."""
    # totals of counts would have all counts read, which lazy is not to do
    obs = view.obs([c for c in view.columns() if c not in COUNT_TOTALS] if lazy else None)
    for name in ("slide", "library_id", "patient", "status"):
        if name in obs:
            obs[name] = pd.Categorical(obs[name])
    if "in_tissue" in obs:
        obs["in_tissue"] = obs["in_tissue"].astype(int) if not obs["in_tissue"].isna().any() else obs["in_tissue"]
    for column in obs.columns:
        if obs[column].dtype == object:
            obs[column] = obs[column].astype("string")
    matrix, var, unmeasured = None, None, {}
    normalised = counts and _normalised(view)
    if counts:
        genes = view.counts_dask() if lazy else view.counts()
        matrix, unmeasured = genes.matrix, genes.unmeasured
        var = pd.DataFrame({"gene_ids": list(genes.ids)}, index=pd.Index(genes.symbols, dtype=object))
    adata = ad.AnnData(X=matrix, obs=obs, var=var, shape=None if counts else (len(obs), 0))
    adata.obsm["spatial"] = np.column_stack([view.column("x"), view.column("y")]).astype(np.float64)
    for backbone in view.backbones:
        values = view.to_dask(backbone) if lazy else view.numpy(backbone)
        adata.obsm[f"X_{backbone}"] = values.astype(np.float32)
    adata.uns["spatial"] = {p.slide: _spatial(p, image=images) for p in view.parts}
    adata.uns["histostore"] = {
        "version": __version__,
        "left_out": {**view.report.counts, **_left_behind(view)},
        "unmeasured_genes": unmeasured,
        "normalised": normalised,
        "slides": {p.slide: _provenance(p) for p in view.parts},
    }
    return adata


def _left_behind(view: View) -> Counter[str]:
    """Count the slides on which a column is missing since what it is read from is of other tiles or points."""
    found = [(name, why) for p in view.parts for name, why in p.left_behind.items()]
    # these become keys of uns, and files have no slash in names
    named = [(name.replace("/", "_"), why) for name, why in found]
    return Counter(f"slides whose {why.ref.kind} of column '{name}' {why.what}" for name, why in named)


def _normalised(view: View) -> bool:
    """Say whether X holds values that were normalised before they came in; a mixture with counts is refused."""
    parts = [p for p in view.parts if len(p)]
    bad = [p.slide for p in parts if p.normalised]
    if bad and len(bad) < len(parts):
        good = next(p.slide for p in parts if not p.normalised)
        raise DataError(
            f"slide '{bad[0]}' has normalised values and slide '{good}' has counts: they are no one matrix; choose "
            "slides of one kind, or leave the counts out (--no-counts, counts=False)"
        )
    return bool(bad)


def _spatial(part: Part, *, image: bool) -> dict[str, Any]:
    ref = part.manifest.get("source", "image")  # a slide of imported features may have no image
    source = part.group(ref) if ref is not None else None
    mpp = float(part.meta["mpp"])
    spot_um = part.the_points.spot_um or _DEFAULT_SPOT_UM
    edge0 = float(part.group(part.tiles).attrs["edge0"]) if part.tiles is not None else spot_um / mpp
    diameter = spot_um / mpp if part.the_points.assay in ("visium", "st-v1") else edge0
    found: dict[str, Any] = {
        "images": {},
        "scalefactors": {
            "spot_diameter_fullres": diameter,
            "fiducial_diameter_fullres": diameter,
            "tile_edge_fullres": edge0,
        },
        "metadata": {"mpp": mpp, "mpp_origin": part.meta["mpp_origin"]},
    }
    if source is not None:
        thumbnail = source.array("thumbnail")
        scale = thumbnail.shape[1] / float(source.attrs["width"])
        found["scalefactors"]["tissue_hires_scalef"] = scale
        found["metadata"]["source_image_path"] = source.attrs["uri"]
        if image:
            found["images"]["hires"] = thumbnail.read()
    return found


def _provenance(part: Part) -> dict[str, Any]:
    refs = [r for r in (part.points, part.tiles, part.expression, *part.embeddings.values()) if r is not None]
    return {"manifest": part.manifest.number, "groups": {r.key.replace("/", "."): r.digest for r in refs}}
