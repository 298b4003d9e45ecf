"""Means and variances of all genes of a cohort in one pass over its slides, in memory that does not grow with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histostore.blocks.slide_rows import SlideRows
from histostore.cohort.moments import Moments
from histostore.cohort.spans import cut, in_order
from histostore.errors import DataError, UsageError
from histostore.genes import Listed, Naming, join_genes
from histostore.heads.panels import CP10K, as_counts, library_size, normalise
from histostore.part import with_rows
from histostore.tables import Counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from histostore.blocks.gene_lists import GeneList
    from histostore.blocks.slide_rows import OpenRows
    from histostore.cohort.spans import Span
    from histostore.genes import JoinedGenes
    from histostore.view import View

    type Values = Literal["counts", "cp10k", "log1p", "log1p-cp10k"]

VALUES = ("counts", "cp10k", "log1p", "log1p-cp10k")
READ_ROWS = 16_384
"""Rows of counts that are held at a time."""


@dataclass(slots=True)
class Seen:
    """What one task found."""

    moments: Moments = field(default_factory=Moments)
    without: int = 0
    """Rows without counts."""
    unmeasured: dict[str, int] = field(default_factory=dict)
    """By slide of a targeted panel, genes of the result that it lists."""
    lists: list[Listed] = field(default_factory=list)
    """Different lists of genes with the first slide of each, where all genes are joined."""


def gene_stats(
    view: View, *, values: Values = "log1p-cp10k", client: Any = None, workers: int | None = None
) -> pd.DataFrame:
    """Return mean and variance of each gene over all rows that have counts.

    One pass, slide by slide; genes are joined by id. A gene that a slide does not list is 0 in its rows where the assay
    is of the whole transcriptome, and missing where it is a targeted panel. Sums are merged in the order of the slides
    (`histostore.cohort.spans`), so that the result is the same to the last bit with any `workers` or `client`.

    Parameters
    ----------
    values
        ``log1p-cp10k``, log(1 + counts per 10,000 of the row), as after ``sc.pp.normalize_total(target_sum=1e4)`` and
        ``sc.pp.log1p``; ``cp10k``; ``log1p``; or ``counts``.
    client
        A `distributed.Client` or `concurrent.futures.Executor` to run on.
    workers
        Threads, where there is no client; as many as processors by default.

    Returns
    -------
    pandas.DataFrame
        By symbol, as ``to_adata().var``: ``gene_ids``; ``means`` and ``variances`` (n - 1), float64; ``n_cells``, rows
        with a count; ``n_rows``, rows of the mean; ``n_missing``, rows of panels that did not measure it.
        ``attrs["histostore"]`` has the rows, the rows left out, and genes unmeasured by slide.

    Raises
    ------
    DataError
        No row has counts; a slide has normalised values, NaN or negative ones.
    AlignmentError
        Two slides name genes differently, as Ensembl ids and symbols.
    """
    if values not in VALUES:
        raise UsageError(f"values is '{values}', not {', '.join(VALUES)}")
    wanted = wanted_genes(view)
    spans = cut(view)
    whole, naming = Seen(), Naming(view.gene_join)
    of = frozenset(wanted.ids) if wanted is not None else None
    for found in in_order(partial(stats_of, values=values, of=of), spans, client=client, workers=workers):
        add(whole, found, naming)
    refuse_none(whole.moments.rows, view)
    moments, names = whole.moments, named(whole.moments, wanted)
    places = moments.extended(names.ids, names.symbols)
    variance = moments.variance()
    table = pd.DataFrame(
        {
            "gene_ids": list(names.ids),
            "means": np.where(moments.n > 0, moments.mean, np.nan)[places],
            "variances": variance[places],
            "n_cells": moments.seen[places],
            "n_rows": moments.n[places],
            "n_missing": moments.rows - moments.n[places],
        },
        index=pd.Index(names.symbols, dtype=object),
    )
    table.attrs["histostore"] = about(view, whole, len(names.ids)) | {"values": values}
    return table


def add(whole: Seen, found: Seen, naming: Naming) -> None:
    """Add what a later span found, if its slides name genes as those before do."""
    add_left_out(whole, found, naming)
    whole.moments.merge(found.moments)


def add_left_out(whole: Seen, found: Seen, naming: Naming) -> None:
    """Add what a later span found but for its moments, if its slides name genes as those before do."""
    for one in found.lists:
        naming.add(one)
    whole.without += found.without
    whole.unmeasured |= found.unmeasured


def about(view: View, found: Seen, genes: int) -> dict[str, Any]:
    """Return what was left out, as plain values."""
    lacking = {slide: genes - n for slide, n in found.unmeasured.items() if n < genes}
    left_out = {**view.report.counts, **({"rows without counts": found.without} if found.without else {})}
    return {"rows": found.moments.rows, "left_out": left_out, "unmeasured_genes": lacking}


def stats_of(span: Span, *, values: Values, of: frozenset[str] | None) -> Seen:
    """Go over the rows of a span once; `of` are the genes of the result, None for all."""
    found = Seen()
    for _, rows in span.open():
        add_slide(found, found.moments, rows, values, of)
    return found


def add_slide(found: Seen, moments: Moments, rows: OpenRows, values: Values, of: frozenset[str] | None) -> None:
    """Add the rows of one slide that have counts to the sums; `of` are the genes of the result, None for all."""
    if rows.which.expression is None:
        found.without += len(rows)
        return
    refuse_normalised(rows)
    whole = rows.whole_transcriptome
    if of is None:
        one = Listed(rows.which.slide, rows.genes.ids, whole)
        if not any(one.ids is known.ids and whole == known.whole_transcriptome for known in found.lists):
            found.lists.append(one)
    if not whole:
        listed = rows.genes.ids
        found.unmeasured[rows.which.slide] = len(listed) if of is None else sum(one in of for one in listed)
    for _, _, matrix, chosen in counted(rows, READ_ROWS):
        found.without += len(chosen) - int(chosen.sum())
        moments.add(in_unit(matrix, values), rows.genes, whole=whole)


def counted(rows: OpenRows, most: int) -> Iterator[tuple[int, int, sp.csr_array, Any]]:
    """Yield (start, stop, counts of the rows that have some, which ones those are) run by run."""
    for start, stop in rows.runs(most, counts=True):
        numbers = rows.count_row[start:stop]
        has = numbers >= 0
        yield start, stop, rows.counts(numbers[has]), has


def in_unit(matrix: sp.csr_array, values: Values) -> sp.csr_array:
    """Return counts as the values asked for, of the same sparsity."""
    if values == "counts":
        return as_counts(matrix)
    if values != "cp10k":
        return normalise(matrix, values)
    counts = as_counts(matrix)
    library = library_size(counts)
    factor = np.divide(CP10K, library, out=np.zeros_like(library), where=library > 0)
    data = counts.data * np.repeat(factor, np.diff(counts.indptr))
    return sp.csr_array((data, counts.indices, counts.indptr), shape=counts.shape)


def refuse_normalised(rows: OpenRows) -> None:
    """Refuse a slide whose values are not counts."""
    if rows.normalised:
        raise DataError(
            f"slide '{rows.which.slide}' has normalised values, not counts: leave it out, or ingest its raw counts"
        )


def refuse_none(n: int, view: View) -> None:
    """Refuse a cohort without any counts."""
    if not n:
        slides = ", ".join(view.slides[:3])
        raise DataError(f"none of the {len(view)} rows of {slides} has counts: only tiles at spots have them")


def wanted_genes(view: View) -> JoinedGenes | None:
    """Return the genes that the view was opened for, None where those are all that its rows have.

    Lists of genes are read for it; slides of which no row is left lend none.

    Raises
    ------
    AlignmentError
        Two slides name genes differently.
    """
    with_counts = [p for p in with_rows(view.parts) if p.expression is not None]
    if view.gene_join == "outer" and all(map(len, with_counts)):
        return None
    lists: dict[int, GeneList] = {}
    naming = Naming(view.gene_join)
    for part in with_counts:
        rows = SlideRows.of(part).open(part.store)
        lists[id(rows.genes)] = rows.genes
        if len(part):
            naming.add(Listed(part.slide, rows.genes.ids, rows.whole_transcriptome))
    return join_genes([_stub(one.ids, one.symbols) for one in lists.values()], view.gene_join)


def named(moments: Moments, wanted: JoinedGenes | None) -> JoinedGenes:
    """Return the genes of a result in order, with unique symbols."""
    return wanted if wanted is not None else join_genes([_stub(moments.ids, moments.symbols)], "outer")


def _stub(ids: Sequence[str], symbols: Sequence[str]) -> Counts:
    return Counts(ids=(), matrix=sp.csr_array((0, len(ids))), gene_ids=tuple(ids), symbols=tuple(symbols))
