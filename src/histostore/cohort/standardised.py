"""Genes of a cohort ranked by standardised variance, scanpy's ``seurat_v3``, batch by batch.

Where counts are cut depends on a curve through all genes, so rows are gone over twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.cohort.gene_stats import READ_ROWS, Seen, add, counted, in_unit, stats_of
from histostore.cohort.spans import cut, in_order
from histostore.genes import Naming
from histostore.heads.standardised_variance import clipped_sums, expected_spread, largest_counts, standardised

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from histostore.cohort.moments import Moments
    from histostore.cohort.spans import Span
    from histostore.part import Part
    from histostore.view import View

    type Floats = NDArray[np.float64]
    type Ints = NDArray[np.int64]


@dataclass(slots=True)
class Ranked:
    """What batches say of genes; `moments` names the genes and has their places."""

    seen: Seen = field(default_factory=Seen)
    total: Floats = field(default_factory=lambda: np.zeros(0))
    """Of standardised variances."""
    n: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Batches that this is the sum of."""
    listed: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Of the `whole` batches with whole transcriptomes, those that list the gene; it is 0 in the others."""
    whole: int = 0
    best: list[Ints] = field(default_factory=list)
    """Of each batch, the places of its first genes in order."""

    @property
    def moments(self) -> Moments:
        """Means and variances of counts over all rows."""
        return self.seen.moments

    def places(self, ids: Sequence[str], symbols: Sequence[str]) -> Ints:
        """Return the places of some genes; new ones are put at the end, as of no batch so far."""
        places = self.moments.extended(ids, symbols)
        new = len(self.moments.ids) - len(self.n)
        self.total = np.append(self.total, np.zeros(new))
        self.n, self.listed = (np.append(v, np.zeros(new, np.int64)) for v in (self.n, self.listed))
        return places

    def add(self, moments: Moments, values: Floats, n_top: int) -> None:
        """Add the standardised variances of one batch, NaN for genes that it did not measure."""
        places = self.places(moments.ids, moments.symbols)
        if moments.whole_rows:
            self.whole += 1
            self.listed[places] += 1
        known = ~np.isnan(values)
        self.total[places[known]] += values[known]
        self.n[places[known]] += 1
        self.best.append(places[known][np.argsort(-values[known], kind="stable")[:n_top]])

    def mean(self) -> Floats:
        """Return ``(g,)`` mean standardised variances over the batches that could show the gene."""
        n = self.n + (self.whole - self.listed)
        out: Floats = np.divide(self.total, n, out=np.full(len(n), np.nan), where=n > 0)
        return out

    def ranks(self) -> tuple[Floats, Ints]:
        """Return each gene's median rank over the batches where it is among the first, and how many those are."""
        places = np.concatenate(self.best)
        rank = pd.Series(np.concatenate([np.arange(len(one)) for one in self.best]))
        median = rank.groupby(places).median()
        return median.reindex(range(len(self.n))).to_numpy(dtype=np.float64), np.bincount(places, minlength=len(self.n))


def rank_variances(
    view: View, keys: Sequence[str] | None, wanted: frozenset[str] | None, n_top: int, *, client: Any,
    workers: int | None,
) -> Ranked:  # fmt: skip
    """Rank the genes of a cohort by standardised variance, batch by batch.

    Parameters
    ----------
    keys
        The batch of each part of the view; None is one batch of all.
    wanted
        Genes of the result, None for all.

    Raises
    ------
    DataError
        The genes of a batch vary too alike for a curve; see also `histostore.cohort.gene_stats.gene_stats`.
    """
    naming, ranked, how = Naming(view.gene_join), Ranked(), {"client": client, "workers": workers}
    if keys is None:
        spans = cut(view)
        for found in in_order(partial(stats_of, values="counts", of=wanted), spans, **how):
            add(ranked.seen, found, naming)
        if ranked.moments.rows:
            curve = _Curve.through(ranked.moments, wanted, "all rows")
            ranked.add(
                ranked.moments, curve.standardised(in_order(partial(_clipped, curve=curve), spans, **how)), n_top
            )
        return ranked
    for found, values in in_order(partial(_of_batch, wanted=wanted), _batches(view, keys), **how):
        add(ranked.seen, found, naming)
        if found.moments.rows:
            ranked.add(found.moments, values, n_top)
    return ranked


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """How genes vary over a batch, and by their means are expected to."""

    moments: Moments
    spread: Floats
    """``(g,)``; NaN for genes that are not asked for, or that fewer than two rows could show."""

    @classmethod
    def through(cls, moments: Moments, wanted: frozenset[str] | None, batch: str) -> _Curve:
        """Fit the curve to the genes that are asked for."""
        variance = moments.variance()
        if wanted is not None:
            variance[[gene not in wanted for gene in moments.ids]] = np.nan
        return cls(moments, expected_spread(moments.mean, variance, batch))

    def standardised(self, parts: Iterable[Floats]) -> Floats:
        """Return ``(g,)`` standardised variances from what `_clipped` found of the batch, part by part."""
        sums = sum(parts, start=np.zeros((2, len(self.spread))))
        return standardised(self.moments.n, self.moments.mean, self.spread, sums)


def _batches(view: View, keys: Sequence[str]) -> list[Span]:
    """Return one span a batch: one task goes over its rows, twice."""
    found = []
    parts_of: dict[str, list[Part]] = {}
    for key, part in zip(keys, view.parts, strict=True):
        parts_of.setdefault(key, []).append(part)
    for key, parts in parts_of.items():
        spans = cut(replace(view, parts=tuple(parts)))
        slides = tuple(slide for span in spans for slide in span.slides)
        if slides:
            found.append(replace(spans[0], slides=slides, keys=(key,) * len(slides)))
    return found


def _of_batch(span: Span, *, wanted: frozenset[str] | None) -> tuple[Seen, Floats]:
    found = stats_of(span, values="counts", of=wanted)
    if not found.moments.rows:
        return found, np.zeros(0)
    curve = _Curve.through(found.moments, wanted, f"batch '{span.keys[0]}'")
    return found, curve.standardised([_clipped(span, curve=curve)])


def _clipped(span: Span, *, curve: _Curve) -> Floats:
    moments = curve.moments
    most = largest_counts(moments.n, moments.mean, curve.spread)
    place = {gene: i for i, gene in enumerate(moments.ids)}
    sums = np.zeros((2, len(most)))
    for _, rows in span.open():
        if rows.which.expression is not None:
            # only a slide of which no row has counts lists genes without a place
            columns = np.array([place.get(gene, -1) for gene in rows.genes.ids], dtype=np.int64)
            for _, _, matrix, _ in counted(rows, READ_ROWS):
                sums += clipped_sums(in_unit(matrix, "counts"), columns, most)
    return sums
