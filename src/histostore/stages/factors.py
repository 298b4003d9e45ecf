"""Expression programs of an AnnData: a decoder's factors beside its spots, their loadings beside its genes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import ConflictError, UsageError
from histostore.genes import JoinedGenes, as_called
from histostore.head_specs import UNITS, PanelSpec
from histostore.heads.decoders import parse_decoder
from histostore.heads.panels import choose_genes, targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from histostore.head_specs import Unit
    from histostore.heads.decoders import Decoder

PROGRAM_GENES = 10


def factors(
    adata: AnnData,
    decoder: str | Decoder = "nmf:10",
    *,
    genes: str | Sequence[str] = "all:0.05",
    unit: Unit = "log1p-cp10k",
    key: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Decoder:
    """Factorise counts and put the result where scanpy looks for it.

    Parameters
    ----------
    adata
        With raw counts in ``X``; changed in place.
    decoder
        ``nmf:10``, ``pca:5``, ``autoencoder:256x64x10``; one that is fitted already only encodes (its targets must be
        `genes`, in order).
    genes
        A panel, as in `histostore.tl.fit`.
    unit
        Of the targets; ``counts`` and ``log-share`` too, but not ``log-share`` for NMF, which takes nothing negative.
    key
        Instead of the decoder's name (``nmf``) in the slots below.
    overwrite
        Replace slots that are there.

    Returns
    -------
    Decoder
        The fitted decoder. In `adata`: ``obsm["X_nmf"]`` ``(n, k)`` factors; ``varm["nmf"]`` ``(genes, k)`` loadings,
        NaN for genes that were not factorised (none for an autoencoder, which has no loadings); ``uns["nmf"]`` with
        the genes, the unit and, for NMF, the programs by name with their top genes.

    Raises
    ------
    ConflictError
        The slots are taken.
    """
    if unit not in UNITS:
        raise UsageError(f"unit is '{unit}', not {', '.join(UNITS)}")
    made = parse_decoder(decoder, seed=seed) if isinstance(decoder, str) else decoder
    name = key or made.name
    if not overwrite and (f"X_{name}" in adata.obsm or name in adata.varm or name in adata.uns):
        raise ConflictError(f"the AnnData has '{name}' already: give another key, or overwrite=True")
    panel = PanelSpec.parse(genes if isinstance(genes, str) else tuple(genes))
    if panel.genes is not None and "gene_ids" in adata.var:
        known = JoinedGenes(tuple(adata.var["gene_ids"]), tuple(adata.var_names))
        panel = replace(panel, genes=as_called(panel.genes, known))
    columns = choose_genes(panel, adata.X, list(adata.var_names))
    values = targets(adata.X, columns, unit)
    if not hasattr(made, "mean_"):
        made.fit(values)
    adata.obsm[f"X_{name}"] = made.encode(values)
    chosen = [str(adata.var_names[c]) for c in columns]
    about: dict[str, Any] = {"decoder": made.name, "genes": np.array(chosen, dtype=object), "unit": unit}
    loadings: NDArray[Any] | None = getattr(made, "components_", None)
    if loadings is not None:
        whole = np.full((adata.n_vars, len(loadings)), np.nan, dtype=np.float32)
        whole[columns] = loadings.T
        adata.varm[name] = whole
    programs = getattr(made, "programs", None)
    if programs is not None:
        found = programs(chosen, min(PROGRAM_GENES, len(chosen)))
        about["programs"] = {p.name.split(" ")[0]: ", ".join(p.genes) for p in found}
    adata.uns[name] = about
    return made
