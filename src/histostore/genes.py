"""Counts of several slides as one matrix: genes joined by id, absent and unmeasured told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from histostore.errors import AlignmentError, NotFoundError, near

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from histostore.tables import Counts


MIN_SHARED = 0.5
"""Share of the smaller list of genes from which two slides are taken to name genes alike."""
FEW_GENES = 20
"""Lists of at most so many genes say nothing about how genes are named."""


@dataclass(frozen=True, slots=True)
class Genes:
    """Counts over a cohort."""

    matrix: sp.csr_array
    """``(n, g)``; integers, or float32 with explicit NaN where a targeted panel did not measure a gene."""
    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    """Unique: a repeated symbol has its id appended."""
    unmeasured: dict[str, int]
    """By slide, how many of the genes its assay did not measure."""


@dataclass(frozen=True, slots=True)
class JoinedGenes:
    """Genes of several slides, unique."""

    ids: tuple[str, ...]
    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """The genes that one slide's counts list."""

    slide: str
    ids: Sequence[str]
    whole_transcriptome: bool


def check_naming(slides: Iterable[Listed], how: str | tuple[str, ...]) -> None:
    """Refuse to join slides that name genes differently: each gene of the one would be zeros on the other.

    Every slide is compared with the first; two targeted panels may differ, since what one lacks is NaN and not 0.

    Raises
    ------
    AlignmentError
        Two slides share less than `MIN_SHARED` of the smaller one's genes, and genes are wanted that one of them lacks.
    """
    if how == "inner":
        return
    lists = [one for one in slides if len(one.ids) > FEW_GENES]
    if not lists:
        return
    first, known, seen = lists[0], set(lists[0].ids), {id(lists[0].ids)}
    for one in lists[1:]:
        if id(one.ids) in seen or not (one.whole_transcriptome or first.whole_transcriptome):
            continue
        seen.add(id(one.ids))
        own = set(one.ids)
        share = len(own & known) / min(len(own), len(known))
        # names of a list may be symbols, which slides of other ids may share
        if share >= MIN_SHARED or (how != "outer" and all(g in own and g in known for g in how)):
            continue
        raise AlignmentError(
            f"slides '{first.slide}' and '{one.slide}' share {share:.0%} of their genes (like "
            f"{_alone(first.ids, own)} and {_alone(one.ids, known)}): name genes alike and ingest one again, choose "
            "slides, or keep the shared genes (genes='inner')"
        )


def _alone(ids: Sequence[str], others: set[str]) -> str:
    return next(g for g in ids if g not in others)


def join_genes(counts: Sequence[Counts], how: str | tuple[str, ...]) -> JoinedGenes:
    """Return the genes of several slides, in the order they are first met.

    Parameters
    ----------
    how
        ``outer``, ``inner``, or the symbols or ids wanted.

    Raises
    ------
    NotFoundError
        A wanted gene is on no slide; near names are suggested.
    """
    symbol_of: dict[str, str] = {}
    for one in counts:
        symbol_of.update((g, s) for g, s in zip(one.gene_ids, one.symbols, strict=True) if g not in symbol_of)
    if how == "inner":
        common = set.intersection(*(set(c.gene_ids) for c in counts)) if counts else set()
        symbol_of = {g: s for g, s in symbol_of.items() if g in common}
    elif how != "outer":
        by_symbol: dict[str, str] = {}
        for gene, symbol in symbol_of.items():
            by_symbol.setdefault(symbol, gene)
        chosen = {}
        for wanted in how:
            gene = wanted if wanted in symbol_of else by_symbol.get(wanted, "")
            if not gene:
                raise NotFoundError(f"no gene '{wanted}' on these slides{near(wanted, by_symbol)}")
            chosen[gene] = symbol_of[gene]
        symbol_of = chosen
    seen: dict[str, int] = {}
    for symbol in symbol_of.values():
        seen[symbol] = seen.get(symbol, 0) + 1
    unique = tuple(s if seen[s] == 1 else f"{s}-{g}" for g, s in symbol_of.items())
    return JoinedGenes(tuple(symbol_of), unique)


def stack_counts(genes: JoinedGenes, parts: Sequence[tuple[str, Counts, NDArray[np.int64]]]) -> Genes:
    """Return the chosen rows of several slides as one matrix over the joined genes.

    Parameters
    ----------
    parts
        (slide, counts, rows of them) for each slide, in order.
    """
    place = {g: i for i, g in enumerate(genes.ids)}
    blocks: list[Any] = []
    unmeasured: dict[str, int] = {}
    for slide, counts, rows in parts:
        target = np.array([place.get(g, -1) for g in counts.gene_ids], dtype=np.int64)
        matrix = counts.matrix[rows]
        if (target < 0).any():
            keep = np.flatnonzero(target >= 0)
            matrix, target = matrix[:, keep], target[keep]
        block = sp.csr_array((matrix.data, target[matrix.indices], matrix.indptr), shape=(len(rows), len(genes.ids)))
        if not counts.whole_transcriptome:
            lacking = np.setdiff1d(np.arange(len(genes.ids)), target)
            if len(lacking):
                unmeasured[slide] = len(lacking)
                block = _with_nan(block, lacking)
        block.sort_indices()
        blocks.append(block)
    stacked = sp.vstack(blocks, format="csr") if blocks else sp.csr_array((0, len(genes.ids)), dtype=np.int32)
    return Genes(sp.csr_array(stacked), genes.ids, genes.symbols, unmeasured)


def _with_nan(block: sp.csr_array, columns: NDArray[np.int64]) -> sp.csr_array:
    n = block.shape[0]
    holes = sp.csr_array(
        (
            np.full(n * len(columns), np.nan, dtype=np.float32),
            np.tile(columns, n),
            np.arange(0, n * len(columns) + 1, len(columns)),
        ),
        shape=block.shape,
    )
    return sp.csr_array(block.astype(np.float32) + holes)
