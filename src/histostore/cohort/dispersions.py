"""Dispersions of genes, normalised among genes of like mean: the scores of scanpy's ``seurat`` and ``cell_ranger``.

Satija et al., Nature Biotechnology 33, 495 (2015); Zheng et al., Nature Communications 8, 14049 (2017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from histostore.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    type Flavor = Literal["seurat", "cell_ranger"]
    type Floats = NDArray[np.float64]

N_BINS = 20
_MAD = 0.6744897501960817
"""Third quartile of a standard normal distribution."""


def dispersions(mean: Floats, variance: Floats, flavor: Flavor) -> Floats:
    """Return means, dispersions and normalised dispersions ``(3, g)`` of some genes, as scanpy defines them."""
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    if flavor == "seurat":
        with np.errstate(divide="ignore"):
            dispersion = np.where(dispersion == 0, np.nan, dispersion)
        dispersion, mean = np.log(dispersion), np.log1p(mean)
    which = _bins(mean, flavor)
    average, spread = np.full(len(mean), np.nan), np.full(len(mean), np.nan)
    for number in np.unique(which[which >= 0]):
        here = which == number
        values = dispersion[here & ~np.isnan(dispersion)]
        if flavor == "cell_ranger":
            middle = np.median(values) if len(values) else np.nan
            average[here] = middle
            spread[here] = np.median(np.abs(values - middle)) / _MAD if len(values) else np.nan
        elif len(values) == 1:  # a gene that is alone in its bin gets 1
            average[here], spread[here] = 0.0, values[0]
        elif len(values):
            average[here], spread[here] = values.mean(), values.std(ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([mean, dispersion, (dispersion - average) / spread])


def _bins(mean: Floats, flavor: Flavor) -> NDArray[np.int64]:
    """Return the bin of mean expression of each gene ``(g,)``, -1 for none."""
    edges: Any = N_BINS
    if flavor == "cell_ranger":
        edges = np.r_[-np.inf, np.percentile(mean, np.arange(10, 105, 5)), np.inf]
        if len(np.unique(edges)) < len(edges):
            raise DataError(
                f"flavor cell_ranger bins genes by deciles of their mean and {len(mean)} genes have too many equal "
                "ones: choose fewer genes, or flavor='seurat'"
            )
    codes = np.asarray(pd.cut(mean, bins=edges, labels=False), dtype=np.float64)
    return np.where(np.isnan(codes), -1, codes).astype(np.int64)


def top(scores: Floats, n: int) -> NDArray[np.bool_]:
    """Return which scores ``(g,)`` are among the `n` highest, all that equal the last of them too; NaN is not."""
    there = np.sort(scores[~np.isnan(scores)])[::-1]
    if not len(there):
        return np.zeros(len(scores), dtype=bool)
    best: NDArray[np.bool_] = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf) >= there[min(n, len(there)) - 1]
    return best
