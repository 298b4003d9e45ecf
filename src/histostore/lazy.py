"""A view as dask arrays and as a labelled Dataset, in blocks along the shards on disk.

A task is a function and a small value that says which rows: it opens the store where it runs. A graph of 10,000 slides
has as many tasks as there are blocks of 16 MiB, not one a slide.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import scipy.sparse as sp
import xarray as xr

from histostore.blocks.count_blocks import SPARSE_BYTES, count_blocks, read_counts_block
from histostore.blocks.embedding_blocks import embedding_blocks, read_block
from histostore.errors import DataError
from histostore.genes import Genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histostore.blocks.count_blocks import CountBlock, CountBlocks
    from histostore.blocks.embedding_blocks import EmbeddingBlock
    from histostore.genes import JoinedGenes
    from histostore.view import View

DENSE_BYTES = 32 << 20
"""Of one block of dense counts."""

UNITS = {"x": "level-0 px", "y": "level-0 px", "x_um": "um", "y_um": "um", "n_counts": "counts", "n_genes": "genes"}
"""Of coordinates: the attribute ``units``, as xarray's plots show it."""


def dask_embeddings(view: View, backbone: str) -> da.Array:
    """Return embeddings ``(n, d)`` in the type they are stored in; see `View.to_dask`."""
    blocks = embedding_blocks(view.parts, backbone)
    if not blocks:
        source = view.lazy(backbone)
        return da.zeros(source.shape, dtype=source.dtype)
    name = _name("embeddings", blocks)
    graph = {(name, i, 0): (read_block, block) for i, block in enumerate(blocks)}
    chunks = (tuple(map(len, blocks)), (blocks[0].dim,))
    return da.Array(graph, name, chunks=chunks, meta=np.empty((0, 0), dtype=blocks[0].dtype))


def dask_counts(view: View) -> Genes:
    """Return the counts of all rows, a dask array of CSR blocks in the place of the matrix; see `View.counts_dask`."""
    found = _blocks_of_counts(view, SPARSE_BYTES)
    meta = sp.csr_array((0, 0), dtype=found.dtype)
    return Genes(_array(found, read_counts_block, meta), found.genes.ids, found.genes.symbols, found.unmeasured)


def build_dataset(view: View, backbone: str | None, *, expression: bool, columns: Sequence[str] | None) -> xr.Dataset:
    """Return embeddings and counts as variables and obs as coordinates; nothing but obs is read yet."""
    coords: dict[str, Any] = {"obs": view.names()}
    for name in columns if columns is not None else view.columns():
        coords[name] = ("obs", view.column(name), {"units": UNITS[name]} if name in UNITS else {})
    values: dict[str, Any] = {}
    attrs: dict[str, Any] = {}
    if backbone is not None:
        about = {"long_name": f"{backbone} embedding", "missing": "NaN where the tile is unreadable"}
        values[backbone] = (("obs", "feature"), dask_embeddings(view, backbone), about)
        attrs["backbone"] = backbone
    if expression:
        found = _blocks_of_counts(view, DENSE_BYTES)
        about = {"units": "counts", "missing": "NaN where a targeted panel did not measure the gene"}
        meta = np.empty((0, 0), np.float32)
        values["expression"] = (("obs", "gene"), _array(found, read_dense_block, meta), about)
        coords["gene"] = np.array(found.genes.symbols, dtype=object)
        coords["gene_id"] = ("gene", np.array(found.genes.ids, dtype=object))
    return xr.Dataset(values, coords=coords, attrs=attrs)


def read_dense_block(block: CountBlock, genes: JoinedGenes) -> Any:
    """Return the rows of a block of counts as dense float32."""
    return block.read(genes).astype(np.float32).toarray()


def _blocks_of_counts(view: View, most: int) -> CountBlocks:
    if not len(view) or all(p.expression is None for p in view.parts):
        slides = ", ".join(view.slides[:3])
        raise DataError(f"these {len(view)} rows of {slides} have no counts: only tiles at spots have them")
    return count_blocks(view.parts, view.gene_join, most)


def _array(found: CountBlocks, read: Any, meta: Any) -> da.Array:
    """Return an array of one block a task; all of them take the genes from one task."""
    name = _name(f"{read.__name__}", found.blocks, *found.genes.ids)
    genes = f"genes-{name}"
    graph: dict[Any, Any] = {genes: (_same, found.genes)}
    graph |= {(name, i, 0): (read, block, genes) for i, block in enumerate(found.blocks)}
    chunks = (tuple(map(len, found.blocks)), (len(found.genes.ids),))
    return da.Array(graph, name, chunks=chunks, meta=meta)


def _same(genes: JoinedGenes) -> JoinedGenes:
    return genes


def _name(kind: str, blocks: Sequence[EmbeddingBlock] | Sequence[CountBlock], *more: str) -> str:
    """Return a name that is the same for the same rows of the same groups, so that dask takes equal arrays for one."""
    sha = hashlib.sha256(repr(more).encode())
    for block in blocks:
        sha.update(block.store.uuid.encode())
        for rows, start, stop in block.pieces:
            refs = (rows.points, rows.tiles, rows.embeddings, rows.expression)
            sha.update(repr((start, stop, [r and (r.sha256, r.attempt) for r in refs])).encode())
            if rows.rows is not None:
                sha.update(np.ascontiguousarray(rows.rows).data)
    return f"histostore-{kind}-{sha.hexdigest()[:32]}"
