"""``hs.tl``: embed, fit, predict, factorise, search."""

from __future__ import annotations

from histostore.stages.factors import factors
from histostore.tl.embedding import embed, finetune
from histostore.tl.lookalikes import drift, index, neighbors, search
from histostore.tl.lookalikes import read_image as read_image  # for the command line; no name of `__all__`
from histostore.tl.sums import gram, nmf, pca
from histostore.tl.training import fit, pool, predict, review

__all__ = [
    "drift", "embed", "factors", "finetune", "fit", "gram", "index", "neighbors", "nmf", "pca", "pool", "predict",
    "review", "search",
]  # fmt: skip
