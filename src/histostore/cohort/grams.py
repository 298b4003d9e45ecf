"""Gram matrices of a cohort: what ridge and principal components are computed from, in one pass over the rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.blocks.embedding_blocks import layout
from histostore.cohort.gene_stats import refuse_normalised, wanted_genes
from histostore.cohort.spans import cut, in_order
from histostore.errors import DataError, UsageError
from histostore.heads.gram import BLOCK_ROWS, GramAccumulator
from histostore.heads.panels import targets
from histostore.heads.splits import merge_groups
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.blocks.gene_lists import GeneList
    from histostore.blocks.slide_rows import OpenRows
    from histostore.cohort.spans import Span
    from histostore.head_specs import Unit
    from histostore.heads.gram import Sums
    from histostore.view import View

    type Floats = NDArray[np.float64]

UNREADABLE = "rows of unreadable tiles"
WITHOUT = "rows without counts"
UNMEASURED = "rows of panels without all genes"
STREAMED = ("log1p-cp10k", "log1p", "counts")
"""Units that a row has by itself; a log-share needs the number of genes of the whole cohort."""


@dataclass(frozen=True, slots=True)
class Gram:
    """Sums over a cohort, ready for `histostore.heads.Ridge.fit_gram`."""

    sums: GramAccumulator
    """By inner fold."""
    genes: tuple[str, ...]
    """Ids of the targets, in order; none where only X'X was asked for."""
    symbols: tuple[str, ...]
    report: Report
    """Rows left out."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a task adds up."""

    genes: tuple[str, ...]
    unit: Unit
    x_origin: Floats
    y_origin: Floats
    dtype: str


@dataclass(slots=True)
class _Found:
    groups: dict[Any, Sums]
    left_out: dict[str, int] = field(default_factory=dict)


def gram(
    view: View, backbone: str | None = None, *, genes: Sequence[str] | None = None, unit: Unit = "log1p-cp10k",
    by: str | None = None, folds: int = 5, seed: int = 0, client: Any = None, workers: int | None = None,
) -> Gram:  # fmt: skip
    """Return X'X, X'Y and their like of embeddings and genes, by inner fold, without holding the rows.

    Ridge with its penalty chosen by leaving out each fold is then ``hs.heads.Ridge().fit_gram(found.sums)``. In
    float64, about the means of the first rows; sums are added in the order of the slides, so that they are the same to
    the last bit with any `workers` or `client` (on processors of one kind).

    Parameters
    ----------
    genes
        Symbols or ids of the targets, like those of `histostore.pp.highly_variable_genes`; None for X'X alone. A gene
        that a whole-transcriptome slide does not list counts as 0; rows of a targeted panel that lacks one are left
        out and counted.
    unit
        As in `histostore.tl.fit`; the library size is the sum of all counts of a row.
    by, folds, seed
        Whole values of this metadata column (by default ``patient`` where all slides have it, else ``slide``) are
        dealt to so many folds. Each holds a ``(d, d)`` matrix: 8 MiB at d = 1,024.

    Raises
    ------
    DataError
        No row has both an embedding and counts.
    NotFoundError
        A gene that no slide has.
    AlignmentError
        Two slides name genes differently, and one lacks some of `genes`.
    """
    backbone = view.embedding_name(backbone)
    if unit not in STREAMED:
        raise UsageError(f"unit is '{unit}', not {', '.join(STREAMED)}: log-share needs all genes of all slides")
    if not len(view):
        raise DataError("the view has no rows")
    ids, symbols = _chosen(view, genes)
    keys = _folds(view, by, folds, seed)
    width, dtype = layout(view.parts[0], backbone)
    spans = cut(view, backbone, keys=keys)
    asked = _Asked(ids, unit, np.zeros(width), np.zeros(max(1, len(ids))), dtype.name)
    asked = _about_the_first(spans, asked)
    sums, left_out = GramAccumulator(), dict[str, int]()
    sums.x_origin, sums.y_origin = asked.x_origin, asked.y_origin
    task, size = partial(_of_span, asked=asked), 8 * width * width * len(set(keys))
    for found in in_order(task, spans, client=client, workers=workers, partial_bytes=size):
        for key, part in found.groups.items():
            sums.groups[key] = sums.groups[key].plus(part) if key in sums.groups else part
        for reason, n in found.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + n
    if not sums.groups:
        raise DataError(f"none of the {len(view)} rows has both an embedding and counts ({left_out})")
    return Gram(sums, ids, symbols, view.report.merged(Report(left_out)))


def _chosen(view: View, genes: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if genes is None:
        return (), ()
    if isinstance(genes, str) or not len(genes):
        raise UsageError("genes are a list of symbols or ids, like those of hs.pp.highly_variable_genes")
    found = wanted_genes(replace(view, gene_join=tuple(genes)))
    assert found is not None
    return found.ids, found.symbols


def _folds(view: View, by: str | None, folds: int, seed: int) -> list[int]:
    """Return the inner fold of each slide."""
    if folds < 1:
        raise UsageError(f"folds is {folds}: give 1 or more")
    fields = [{**p.meta["fields"], "slide": p.slide} for p in view.parts]
    asked = by or ("patient" if all("patient" in f for f in fields) else "slide")
    lacking = [str(f["slide"]) for f in fields if asked not in f]
    if lacking:
        raise UsageError(f"by is '{by}' and slide '{lacking[0]}' has no such metadata; by='slide' always goes")
    _, codes = np.unique([str(f[asked]) for f in fields], return_inverse=True)
    sizes = np.array([len(p) for p in view.parts])
    labels = merge_groups(np.repeat(codes, sizes), folds, seed=seed)
    ends = np.cumsum(sizes)
    return [int(labels[end - 1]) if n else 0 for end, n in zip(ends, sizes, strict=True)]


def _about_the_first(spans: Sequence[Span], asked: _Asked) -> _Asked:
    """Return what is asked about the means of the first rows: one origin for all tasks, so that sums add up."""
    for span in spans:
        for _, rows in span.open():
            for X, Y in _pairs(rows, asked, {}):
                first = slice(BLOCK_ROWS)
                x, y = (v[first].mean(0, dtype=np.float64) for v in (X, Y))
                return replace(asked, x_origin=x, y_origin=y)
    return asked


def _of_span(span: Span, *, asked: _Asked) -> _Found:
    sums, left_out = GramAccumulator(), dict[str, int]()
    sums.x_origin, sums.y_origin = asked.x_origin, asked.y_origin
    held: list[tuple[NDArray[Any], NDArray[Any], Any]] = []

    def flush() -> None:
        if held:
            folds = np.concatenate([np.full(len(x), key) for x, _, key in held])
            X, Y = (np.concatenate([one[i] for one in held]) for i in (0, 1))
            sums.add_folds(X, Y, folds)
            held.clear()

    for key, rows in span.open():
        for X, Y in _pairs(rows, asked, left_out):
            held.append((X, Y, key))
            if sum(len(x) for x, _, _ in held) >= BLOCK_ROWS:  # rows of small slides are multiplied together
                flush()
    flush()
    return _Found(dict(sums.groups), left_out)


def _pairs(
    rows: OpenRows, asked: _Asked, left_out: dict[str, int]
) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
    """Yield embeddings ``(b, d)`` and targets ``(b, t)`` of the rows of a slide that have both."""

    def count(reason: str, n: int) -> None:
        if n:
            left_out[reason] = left_out.get(reason, 0) + n

    columns = None
    if asked.genes:
        if rows.which.expression is None:
            return count(WITHOUT, len(rows))
        refuse_normalised(rows)
        columns = _columns(rows.genes, asked.genes)
        if not rows.whole_transcriptome and (columns < 0).any():
            return count(UNMEASURED, len(rows))
    for start, stop in rows.runs(BLOCK_ROWS, counts=columns is not None):
        X = rows.embedding(start, stop, np.dtype(asked.dtype))
        keep = np.isfinite(X).all(axis=1)
        count(UNREADABLE, int((~keep).sum()))
        if columns is None:
            Y = np.zeros((int(keep.sum()), 1), np.float32)
        else:
            numbers = rows.count_row[start:stop]
            count(WITHOUT, int((keep & (numbers < 0)).sum()))
            keep &= numbers >= 0
            Y = gene_targets(rows, numbers[keep], columns, asked.unit)
        if keep.any():
            yield X[keep], Y
    return None


def gene_targets(rows: OpenRows, numbers: NDArray[np.int64], columns: NDArray[np.int64], unit: Unit) -> Any:
    """Return ``(k, t)`` float32 targets of rows of a slide's counts; columns that are -1 count as 0."""
    matrix, there = rows.counts(numbers), columns >= 0
    out = np.zeros((len(numbers), len(columns)), np.float32)
    out[:, there] = targets(matrix, columns[there], unit)
    return out


def _columns(genes: GeneList, wanted: tuple[str, ...]) -> NDArray[np.int64]:
    place = genes.place
    return np.array([place.get(gene, -1) for gene in wanted], dtype=np.int64)
