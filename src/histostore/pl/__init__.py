"""Pictures: plain values in (AnnData, tables, arrays), a `matplotlib.figure.Figure` out.

Nothing here touches pyplot, so no display is needed and a figure is freed with its last reference. Every function
takes ``save``, a path whose suffix chooses the format.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histostore.pl.embedding import pca_map
    from histostore.pl.genes import gene_scores
    from histostore.pl.heatmap import gene_heatmap
    from histostore.pl.hits import gallery, patches
    from histostore.pl.matrix import confusion_matrix, fold_table
    from histostore.pl.predictions import distributions, residuals, scatter
    from histostore.pl.ranking import roc_pr
    from histostore.pl.reliability import calibration
    from histostore.pl.sections import spatial, truth_and_prediction
    from histostore.pl.sweep import sweep_boxes, sweep_curves, sweep_means
    from histostore.pl.tissue import mask_overlay, plan_overlay, tile_map
    from histostore.pl.training import loss_curves, variance_curves

__all__ = [
    "calibration",
    "confusion_matrix",
    "distributions",
    "fold_table",
    "gallery",
    "gene_heatmap",
    "gene_scores",
    "loss_curves",
    "mask_overlay",
    "patches",
    "pca_map",
    "plan_overlay",
    "residuals",
    "roc_pr",
    "scatter",
    "spatial",
    "sweep_boxes",
    "sweep_curves",
    "sweep_means",
    "tile_map",
    "truth_and_prediction",
    "variance_curves",
]

_HOME = {
    "calibration": "reliability",
    "confusion_matrix": "matrix",
    "distributions": "predictions",
    "fold_table": "matrix",
    "gallery": "hits",
    "gene_heatmap": "heatmap",
    "gene_scores": "genes",
    "loss_curves": "training",
    "mask_overlay": "tissue",
    "patches": "hits",
    "pca_map": "embedding",
    "plan_overlay": "tissue",
    "residuals": "predictions",
    "roc_pr": "ranking",
    "scatter": "predictions",
    "spatial": "sections",
    "sweep_boxes": "sweep",
    "sweep_curves": "sweep",
    "sweep_means": "sweep",
    "tile_map": "tissue",
    "truth_and_prediction": "sections",
    "variance_curves": "training",
}


def __getattr__(name: str) -> Any:
    # matplotlib takes 0.3 s to import: only who draws pays
    if name not in _HOME:
        msg = f"module '{__name__}' has no attribute '{name}'"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
