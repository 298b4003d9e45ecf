"""Scanpy's highly variable genes, as scores; the only module of heads that imports scanpy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import scanpy as sc
from anndata import AnnData

from histostore.errors import MissingDependencyError
from histostore.heads.panels import normalise

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray


def dispersion(
    counts: sp.csr_array, flavor: Literal["seurat", "cell_ranger", "seurat_v3"], k: int
) -> NDArray[np.float64]:
    """Return ``(g,)`` scores by which scanpy ranks genes; never NaN (a gene without one comes last).

    ``seurat`` and ``cell_ranger`` see log1p counts per 10,000 and rank by normalised dispersion; ``seurat_v3`` sees
    counts and ranks by normalised variance (it needs scikit-misc).
    """
    values = counts if flavor == "seurat_v3" else normalise(counts, "log1p-cp10k")
    adata = AnnData(values.astype(np.float64))
    adata.uns["log1p"] = {"base": None}
    with warnings.catch_warnings():
        # scanpy's own remarks on bins of one gene and on divisions in its bins change no ranking
        warnings.filterwarnings("ignore", module="scanpy")
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            table = sc.pp.highly_variable_genes(adata, n_top_genes=k, flavor=flavor, inplace=False)
        except ImportError:
            msg = "hvg:…:seurat_v3 needs scikit-misc: pip install scikit-misc, or use hvg:K:seurat"
            raise MissingDependencyError(msg) from None
    column = "variances_norm" if flavor == "seurat_v3" else "dispersions_norm"
    scores = table[column].to_numpy(dtype=np.float64)
    return np.where(np.isfinite(scores), scores, -np.inf)
