"""Scanpy's highly variable genes, as scores; the only module of heads that imports scanpy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import scanpy as sc
from anndata import AnnData

from histostore.heads.panels import moments, normalise
from histostore.heads.standardised_variance import clipped_sums, expected_spread, largest_counts, standardised

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray


def dispersion(
    counts: sp.csr_array, flavor: Literal["seurat", "cell_ranger", "seurat_v3"], k: int
) -> NDArray[np.float64]:
    """Return ``(g,)`` scores by which scanpy ranks genes; never NaN (a gene without one comes last).

    ``seurat`` and ``cell_ranger`` see log1p counts per 10,000 and rank by normalised dispersion; ``seurat_v3`` sees
    counts and ranks by standardised variance (it needs scikit-misc).
    """
    if flavor == "seurat_v3":
        return _standardised(counts)
    adata = AnnData(normalise(counts, "log1p-cp10k").astype(np.float64))
    adata.uns["log1p"] = {"base": None}
    with warnings.catch_warnings():
        # scanpy's own remarks on bins of one gene and on divisions in its bins change no ranking
        warnings.filterwarnings("ignore", module="scanpy")
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        table = sc.pp.highly_variable_genes(adata, n_top_genes=k, flavor=flavor, inplace=False)
    scores = table["dispersions_norm"].to_numpy(dtype=np.float64)
    return np.where(np.isfinite(scores), scores, -np.inf)


def _standardised(counts: sp.csr_array) -> NDArray[np.float64]:
    n, (mean, variance) = counts.shape[0], moments(counts)
    spread = expected_spread(mean, variance * n / max(n - 1, 1), f"{n} training rows")
    sums = clipped_sums(counts, np.arange(len(mean)), largest_counts(n, mean, spread))
    return standardised(n, mean, spread, sums)
