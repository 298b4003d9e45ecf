"""Means and variances of genes that slides do not all share, merged pairwise.

Chan, Golub and LeVeque, American Statistician 37, 242 (1983): sums of squares about each part's own mean, so that no
digits are lost however many parts there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from histostore.blocks.gene_lists import GeneList

    type Floats = NDArray[np.float64]
    type Ints = NDArray[np.int64]


@dataclass(slots=True)
class Moments:
    """Of each gene met so far: rows that could have shown it, mean, sum of squares about it, rows that showed it.

    A gene that a slide does not list counts as 0 in its rows where the assay is of the whole transcriptome, and is
    missing in them where it is a targeted panel.
    """

    ids: list[str] = field(default_factory=list)
    symbols: list[str] = field(default_factory=list)
    n: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    mean: Floats = field(default_factory=lambda: np.zeros(0))
    squares: Floats = field(default_factory=lambda: np.zeros(0))
    seen: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    listed: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of slides that list the gene."""
    rows: int = 0
    whole_rows: int = 0
    """Of `rows`, those of whole-transcriptome assays."""
    _place: dict[str, int] = field(default_factory=dict)
    _columns: dict[int, tuple[GeneList, Ints]] = field(default_factory=dict)

    def add(self, matrix: sp.csr_array, genes: GeneList, *, whole: bool) -> None:
        """Add rows ``(k, g)`` without stored NaN over the genes of one slide."""
        k, g = matrix.shape
        if not k:
            return
        columns = self._columns_of(genes)
        data = matrix.data.astype(np.float64, copy=False)
        total = np.bincount(matrix.indices, weights=data, minlength=g)
        seen = np.bincount(matrix.indices, weights=data != 0, minlength=g).astype(np.int64)
        mean = total / k
        # about the mean, and the zeros that are not stored apart
        stored = np.bincount(matrix.indices, minlength=g)
        apart = np.bincount(matrix.indices, weights=(data - mean[matrix.indices]) ** 2, minlength=g)
        squares = apart + (k - stored) * mean**2
        if len(columns) == len(self.ids) and columns[0] == 0 and bool((np.diff(columns) == 1).all()):
            self._merge(np.full(g, k), mean, squares, seen, np.full(g, k))
        else:
            size = len(self.ids)
            wide = [_spread(size, columns, v) for v in (mean, squares)]
            n = _spread(size, columns, np.full(g, k), k if whole else 0)
            listed = _spread(size, columns, np.full(g, k))
            self._merge(n, wide[0], wide[1], _spread(size, columns, seen), listed)
        self.rows += k
        self.whole_rows += k if whole else 0

    def merge(self, other: Moments) -> None:
        """Add what was summed up elsewhere; its genes follow those that are known."""
        columns = self.extended(other.ids, other.symbols)
        size = len(self.ids)
        n = _spread(size, columns, other.n, other.whole_rows)
        mean, squares = (_spread(size, columns, v) for v in (other.mean, other.squares))
        self._merge(n, mean, squares, _spread(size, columns, other.seen), _spread(size, columns, other.listed))
        self.rows += other.rows
        self.whole_rows += other.whole_rows

    def extended(self, ids: Sequence[str], symbols: Sequence[str]) -> Ints:
        """Return the places of some genes; new ones are put at the end, as zeros in all whole transcriptomes so far."""
        before = len(self.ids)
        for gene, symbol in zip(ids, symbols, strict=True):
            if gene not in self._place:
                self._place[gene] = len(self.ids)
                self.ids.append(gene)
                self.symbols.append(symbol)
        new = len(self.ids) - before
        if new:
            self.n = np.append(self.n, np.full(new, self.whole_rows))
            self.mean, self.squares = (np.append(v, np.zeros(new)) for v in (self.mean, self.squares))
            self.seen, self.listed = (np.append(v, np.zeros(new, np.int64)) for v in (self.seen, self.listed))
        return np.array([self._place[gene] for gene in ids], dtype=np.int64)

    def variance(self, ddof: int = 1) -> Floats:
        """Return ``(g,)`` variances, NaN where fewer than ``ddof + 1`` rows could show the gene."""
        enough = self.n > ddof
        out: Floats = np.divide(self.squares, self.n - ddof, out=np.full(len(self.n), np.nan), where=enough)
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is only kept to be fast."""
        names = ("ids", "symbols", "n", "mean", "squares", "seen", "listed", "rows", "whole_rows")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._place = {gene: i for i, gene in enumerate(self.ids)}
        self._columns = {}

    def _merge(self, n: Ints, mean: Floats, squares: Floats, seen: Ints, listed: Ints) -> None:
        total = self.n + n
        share = np.divide(n, total, out=np.zeros(len(total)), where=total > 0)
        apart = mean - self.mean
        self.squares += squares + apart**2 * (self.n * share)
        self.mean += apart * share
        self.n = total
        self.seen += seen
        self.listed += listed

    def _columns_of(self, genes: GeneList) -> Ints:
        found = self._columns.get(id(genes))
        if found is None or found[0] is not genes:
            found = genes, self.extended(genes.ids, genes.symbols)
            self._columns[id(genes)] = found
        return found[1]


def _spread(size: int, columns: Ints, values: Any, other: int = 0) -> Any:
    out = np.full(size, other, dtype=values.dtype)
    out[columns] = values
    return out
