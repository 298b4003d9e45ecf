"""Which genes are predicted and in what unit: pure functions of a count matrix.

Genes are chosen on the rows given, so give training rows only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from histostore.errors import DataError, NotFoundError, UsageError, near

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.head_specs import PanelSpec, Unit

    type Csr = sp.csr_array

CP10K = 10_000.0

BLOCK_ROWS = 65_536
"""Rows of counts turned to float64 at a time where genes are chosen."""


def choose_genes(panel: PanelSpec, counts: Any, symbols: Sequence[str]) -> NDArray[np.int64]:
    """Return the columns of a panel's genes, best first.

    Parameters
    ----------
    panel
        The rule; see `histostore.specs.PanelSpec`.
    counts
        ``(n, g)`` sparse or dense raw counts of the training rows.
    symbols
        ``(g,)`` unique gene names.

    Returns
    -------
    numpy.ndarray
        ``(k,)`` int64 column indices. Equal scores are ordered by name, so the choice does not depend on the order of
        rows or columns. ``all`` and lists keep the order of the columns and of the list.

    Raises
    ------
    NotFoundError
        A listed gene is not there.
    UsageError
        More genes wanted than there are; repeated symbols; a share that no gene reaches.
    """
    matrix = as_counts(counts)
    names = np.asarray(symbols, dtype=str)
    if len(names) != matrix.shape[1]:
        msg = f"{len(names)} symbols for {matrix.shape[1]} columns of counts"
        raise UsageError(msg)
    if len(np.unique(names)) != len(names):
        msg = "gene symbols repeat: make them unique before choosing a panel"
        raise UsageError(msg)
    if panel.rule == "list":
        return _listed(panel.genes or (), names)
    if not matrix.shape[0]:
        msg = f"panel '{panel}' is chosen on training rows and there are none"
        raise UsageError(msg)
    if panel.rule == "all":
        share = np.bincount(matrix.indices, minlength=len(names)) / matrix.shape[0]
        chosen = np.flatnonzero(share > (panel.share or 0.0)).astype(np.int64)
        if not len(chosen):
            msg = f"panel '{panel}': no gene is seen in more than {panel.share:g} of {matrix.shape[0]} rows"
            raise UsageError(msg)
        return chosen
    k = panel.k or 0
    if not 0 < k <= len(names):
        msg = f"panel '{panel}' wants {k} genes and there are {len(names)}"
        raise UsageError(msg)
    if panel.rule == "hvg":
        # scanpy takes seconds to import and only this rule needs it
        from histostore.heads.hvg import dispersion

        scores = dispersion(matrix, panel.flavor or "seurat", k)
    else:
        mean, variance = moments(matrix, "log1p-cp10k")
        scores = variance if panel.rule == "top-variance" else mean
    # sums in another order differ in the last digits: rounding keeps equal genes equal
    return np.lexsort((names, -np.round(scores, 10)))[:k].astype(np.int64)


def targets(counts: Any, genes: NDArray[np.int64], kind: Unit) -> NDArray[np.float32]:
    """Return what a head is trained on.

    Parameters
    ----------
    counts
        ``(n, g)`` raw counts over ALL genes: the library size is the sum of a whole row.
    genes
        ``(t,)`` columns wanted.
    kind
        ``log1p-cp10k``, log(1 + counts per 10,000); ``log1p``, log(1 + counts); ``log-share``, log((1 + count) / (g +
        library)), the unit of ST-Net (He et al., Nature Biomedical Engineering 4, 827 (2020)); or ``counts``.

    Returns
    -------
    numpy.ndarray
        ``(n, t)`` float32. A row without any counts is that of zero counts, never NaN; `empty_rows` counts them.
    """
    matrix = as_counts(counts)
    chosen = (normalise(matrix, kind) if kind == "log1p" or kind == "log1p-cp10k" else matrix)[:, genes]
    dense: NDArray[np.float64] = chosen.toarray().astype(np.float64)
    if kind == "log-share":
        dense = np.log1p(dense) - np.log(matrix.shape[1] + library_size(matrix))[:, None]
    return dense.astype(np.float32)


def normalise(counts: Any, kind: Literal["log1p-cp10k", "log1p"]) -> Csr:
    """Return ``(n, g)`` float64 CSR of the same sparsity, each row by itself."""
    matrix = as_counts(counts)
    data = matrix.data.astype(np.float64)
    if kind == "log1p-cp10k":
        library = library_size(matrix)
        factor = np.divide(CP10K, library, out=np.zeros_like(library), where=library > 0)
        data *= np.repeat(factor, np.diff(matrix.indptr))
    return sp.csr_array((np.log1p(data), matrix.indices, matrix.indptr), shape=matrix.shape)


def library_size(counts: Any) -> NDArray[np.float64]:
    """Return ``(n,)`` float64 sums over all genes."""
    return np.asarray(as_counts(counts).sum(axis=1, dtype=np.float64)).ravel()


def empty_rows(counts: Any) -> int:
    """Return how many rows have no counts at all."""
    return int((library_size(counts) == 0).sum())


def moments(
    counts: Csr, kind: Literal["log1p-cp10k", "log1p"] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``(g,)`` means and (population) variances of the columns, zeros included; of a unit of `normalise`.

    Made of a block of rows at a time: a large matrix is not held in float64.
    """
    n, g = counts.shape

    def blocks() -> Iterator[Csr]:
        for begin in range(0, n, BLOCK_ROWS):
            part = counts[begin : begin + BLOCK_ROWS] if n > BLOCK_ROWS else counts
            yield part if kind is None else normalise(part, kind)

    total, squares, seen = np.zeros(g), np.zeros(g), np.zeros(g)
    for part in blocks():
        total += np.bincount(part.indices, weights=part.data, minlength=g)
        seen += np.bincount(part.indices, minlength=g)
    mean = total / n
    for part in blocks():
        # about the mean, not E[x²] − E[x]²: no digits are lost and nothing is below zero
        squares += np.bincount(part.indices, weights=(part.data - mean[part.indices]) ** 2, minlength=g)
    return mean, (squares + (n - seen) * mean**2) / n


def as_counts(counts: Any) -> Csr:
    """Return raw counts as CSR without stored zeros; negative or non-finite values are a `DataError`."""
    matrix = sp.csr_array(counts)
    if matrix.nnz:
        low = matrix.data.min()
        if not np.isfinite(matrix.data).all() or low < 0:
            msg = f"counts hold {'negative values' if low < 0 else 'NaN or infinite values'}: give raw counts"
            raise DataError(msg)
        if not matrix.data.all() or not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
            matrix.eliminate_zeros()
    return matrix


def _listed(genes: Sequence[str], names: NDArray[Any]) -> NDArray[np.int64]:
    column = {str(name): i for i, name in enumerate(names)}
    for gene in genes:
        if gene not in column:
            msg = f"no gene '{gene}' among {len(names)}{near(gene, column)}"
            raise NotFoundError(msg)
    if len(set(genes)) != len(genes):
        msg = "the list of genes names one twice"
        raise UsageError(msg)
    return np.array([column[gene] for gene in genes], dtype=np.int64)
