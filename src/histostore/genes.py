"""Counts of several slides as one matrix: genes joined by id, absent and unmeasured told apart."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from histostore.errors import AlignmentError, NotFoundError, UsageError, near

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Set

    from numpy.typing import NDArray

    from histostore.tables import Counts


MIN_SHARED = 0.5
"""Share of the smaller list of genes from which two slides are taken to name genes alike."""
FEW_GENES = 20
"""Lists of at most so many genes say nothing about how genes are named."""
KEPT = 64
"""Lists that are known to be alike and are not compared again; more are not held, for slides may be thousands."""
SHOWN = 4
"""Ids of genes that an error names."""


@dataclass(frozen=True, slots=True)
class Genes:
    """Counts over a cohort."""

    matrix: sp.csr_array
    """``(n, g)``; integers, or floats with explicit NaN where a targeted panel did not measure a gene: float64 where
    other slides have integers, else float32."""
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


class Naming:
    """Whether slides that are met one by one name genes alike: each is compared with the first.

    A gene that the one lists under another name would be zeros on the other. Two targeted panels may differ, since what
    one lacks is NaN and not 0.
    """

    def __init__(self, how: str | tuple[str, ...]) -> None:
        self._how = how
        self._first: Listed | None = None
        self._known: frozenset[str] = frozenset()
        self._alike: deque[Sequence[str]] = deque(maxlen=KEPT)

    def add(self, one: Listed) -> None:
        """Compare a slide with the first; a list that is the same object as one of the last is known to be alike.

        Raises
        ------
        AlignmentError
            They share less than `MIN_SHARED` of the smaller one's genes, and genes are wanted that one of them lacks.
        """
        if self._how == "inner" or len(one.ids) <= FEW_GENES or any(one.ids is ids for ids in self._alike):
            return
        first = self._first
        if first is None:
            self._first, self._known = one, frozenset(one.ids)
            self._alike.append(one.ids)
            return
        if not (one.whole_transcriptome or first.whole_transcriptome):
            return
        shared = sum(map(self._known.__contains__, one.ids))  # ids of a slide are unique
        share = shared / min(len(one.ids), len(self._known))
        if share < MIN_SHARED:
            own = set(one.ids)
            # names of a list may be symbols, which slides of other ids may share
            if self._how == "outer" or not all(g in own and g in self._known for g in self._how):
                raise AlignmentError(
                    f"slides '{first.slide}' and '{one.slide}' share {share:.0%} of their genes (like "
                    f"{_alone(first.ids, own)} and {_alone(one.ids, self._known)}): name genes alike and ingest one "
                    "again, choose slides, or keep the shared genes (genes='inner')"
                )
        self._alike.append(one.ids)


class GeneNames:
    """What genes can be called: by an id, by a symbol that no other gene has, or as ``symbol-id``."""

    def __init__(self, ids: Iterable[str], symbols: Iterable[str]) -> None:
        self.ids = tuple(ids)
        self.symbols = tuple(symbols)
        self._of_id = {gene: at for at, gene in enumerate(self.ids)}
        self._of_symbol: dict[str, tuple[int, ...]] = {}
        for at, symbol in enumerate(self.symbols):
            self._of_symbol[symbol] = (*self._of_symbol.get(symbol, ()), at)

    def __contains__(self, name: str) -> bool:
        """Whether a gene is called so, or several are."""
        return bool(self._places(name))

    def place(self, name: str) -> int:
        """Return the number of the gene of that name.

        Raises
        ------
        NotFoundError
            No gene is called so; near symbols are suggested.
        UsageError
            Several genes have this symbol; their ids are named.
        """
        found = self._places(name)
        if not found:
            raise NotFoundError(f"no gene '{name}' on these slides{near(name, self._of_symbol)}")
        if len(found) > 1:
            some = ", ".join(self.ids[at] for at in found[:SHOWN]) + (" …" if len(found) > SHOWN else "")
            raise UsageError(
                f"'{name}' is the symbol of {len(found)} genes: give an id ({some}), or '{name}-{self.ids[found[0]]}'"
            )
        return found[0]

    def unique(self, places: Iterable[int]) -> tuple[str, ...]:
        """Return symbols of some genes; one that other genes have too has its id appended."""
        alone = {symbol for symbol, found in self._of_symbol.items() if len(found) == 1}
        chosen = [(self.symbols[at], self.ids[at]) for at in places]
        return tuple(symbol if symbol in alone else f"{symbol}-{gene}" for symbol, gene in chosen)

    def _places(self, name: str) -> tuple[int, ...]:
        if (at := self._of_id.get(name)) is not None:
            return (at,)
        if name in self._of_symbol:
            return self._of_symbol[name]
        # both symbols and ids may have hyphens
        cuts = [i for i, letter in enumerate(name) if letter == "-"]
        both = [(self._of_id.get(name[i + 1 :]), name[:i]) for i in cuts]
        return tuple(at for at, symbol in both if at is not None and self.symbols[at] == symbol)


def as_called(wanted: Iterable[str], genes: Genes | JoinedGenes) -> tuple[str, ...]:
    """Return genes by their unique symbols, whatever they are called by; a name that is not known stays as it is.

    Raises
    ------
    UsageError
        A symbol is of several genes; their ids are named.
    """
    plain = [symbol.removesuffix(f"-{gene}") for gene, symbol in zip(genes.ids, genes.symbols, strict=True)]
    often = Counter(plain)
    symbols = (p if often[p] > 1 else symbol for p, symbol in zip(plain, genes.symbols, strict=True))
    known = GeneNames(genes.ids, symbols)
    return tuple(genes.symbols[known.place(name)] if name in known else name for name in wanted)


def check_naming(slides: Iterable[Listed], how: str | tuple[str, ...]) -> None:
    """Refuse to join slides that name genes differently, as `Naming` finds them."""
    naming = Naming(how)
    for one in slides:
        naming.add(one)


def _alone(ids: Sequence[str], others: Set[str]) -> str:
    return next(g for g in ids if g not in others)


def join_genes(counts: Sequence[Counts], how: str | tuple[str, ...]) -> JoinedGenes:
    """Return the genes of several slides, in the order they are first met.

    Parameters
    ----------
    how
        ``outer``, ``inner``, or the genes wanted, as `GeneNames` has them.

    Raises
    ------
    NotFoundError
        A wanted gene is on no slide; near names are suggested.
    UsageError
        A symbol that is wanted is of several genes; their ids are named.
    """
    symbol_of: dict[str, str] = {}
    for one in counts:
        symbol_of.update((g, s) for g, s in zip(one.gene_ids, one.symbols, strict=True) if g not in symbol_of)
    if how == "inner":
        common = set.intersection(*(set(c.gene_ids) for c in counts)) if counts else set()
        symbol_of = {g: s for g, s in symbol_of.items() if g in common}
    names = GeneNames(symbol_of, symbol_of.values())
    places = range(len(names.ids)) if isinstance(how, str) else dict.fromkeys(map(names.place, how))
    return JoinedGenes(tuple(names.ids[at] for at in places), names.unique(places))


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
