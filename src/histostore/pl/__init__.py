"""Pictures: plain values in (AnnData, tables, arrays), a `matplotlib.figure.Figure` out.

Nothing here touches pyplot, so no display is needed and a figure is freed with its last reference. Every function
takes ``save``, a path whose suffix chooses the format.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histostore.pl.embedding import pca_map
    from histostore.pl.genes import fold_table, gene_scores, scatter
    from histostore.pl.hits import gallery
    from histostore.pl.sections import spatial, truth_and_prediction
    from histostore.pl.tissue import mask_overlay, plan_overlay

__all__ = [
    "fold_table",
    "gallery",
    "gene_scores",
    "mask_overlay",
    "pca_map",
    "plan_overlay",
    "scatter",
    "spatial",
    "truth_and_prediction",
]

_HOME = {
    "fold_table": "genes",
    "gallery": "hits",
    "gene_scores": "genes",
    "mask_overlay": "tissue",
    "pca_map": "embedding",
    "plan_overlay": "tissue",
    "scatter": "genes",
    "spatial": "sections",
    "truth_and_prediction": "sections",
}


def __getattr__(name: str) -> Any:
    # matplotlib takes 0.3 s to import: only who draws pays
    if name not in _HOME:
        msg = f"module '{__name__}' has no attribute '{name}'"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
