"""Highly variable genes of a cohort, as scanpy finds them in an AnnData, in one pass over its slides (or two)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from histostore.cohort.dispersions import dispersions, top
from histostore.cohort.gene_stats import Seen, about, add_left_out, add_slide, named, refuse_none, wanted_genes
from histostore.cohort.moments import Moments
from histostore.cohort.spans import cut, in_order
from histostore.cohort.standardised import rank_variances
from histostore.errors import NotFoundError, UsageError, near
from histostore.genes import Naming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.cohort.dispersions import Flavor
    from histostore.cohort.gene_stats import Values
    from histostore.cohort.spans import Span
    from histostore.cohort.standardised import Ranked
    from histostore.genes import JoinedGenes
    from histostore.view import View

    type Floats = NDArray[np.float64]

SEES: dict[str, Values] = {"seurat": "cp10k", "cell_ranger": "log1p-cp10k", "seurat_v3": "counts"}
"""What means and variances are taken of: scanpy takes seurat's log1p back before it begins."""

_COLUMNS = ("means", "dispersions", "dispersions_norm")


@dataclass(slots=True)
class _Tally:
    """Sums over batches, by gene."""

    place: dict[str, int] = field(default_factory=dict)
    symbols: list[str] = field(default_factory=list)
    sums: Floats = field(default_factory=lambda: np.zeros((3, 0)))
    n: Floats = field(default_factory=lambda: np.zeros((3, 0)))
    variable: Floats = field(default_factory=lambda: np.zeros(0))
    listed: Floats = field(default_factory=lambda: np.zeros(0))
    """Whole-transcriptome batches that list the gene; it is 0 in the others, of which there are `whole` in all."""
    whole: int = 0
    batches: int = 0

    def places(self, ids: Sequence[str], symbols: Sequence[str]) -> NDArray[np.int64]:
        """Return the places of some genes, known or new."""
        for gene, symbol in zip(ids, symbols, strict=True):
            if gene not in self.place:
                self.place[gene] = len(self.symbols)
                self.symbols.append(symbol)
        new = len(self.symbols) - len(self.variable)
        if new:
            self.sums, self.n = (np.hstack([v, np.zeros((3, new))]) for v in (self.sums, self.n))
            self.variable, self.listed = (np.append(v, np.zeros(new)) for v in (self.variable, self.listed))
        return np.array([self.place[gene] for gene in ids], dtype=np.int64)

    def add_batch(self, moments: Moments, rule: _Rule) -> None:
        """Add the dispersions of one batch; genes that it did not measure say nothing."""
        found, variable, known = rule.scores(moments, expressed_only=True)
        ids = [g for g, k in zip(moments.ids, known, strict=True) if k]
        symbols = [g for g, k in zip(moments.symbols, known, strict=True) if k]
        values = found[:, known]
        columns = self.places(ids, symbols)
        self.sums[:, columns] += np.nan_to_num(values)
        self.n[:, columns] += ~np.isnan(values)
        self.variable[columns] += variable[known]
        if moments.whole_rows:
            self.listed[columns] += 1
            self.whole += 1
        self.batches += 1

    def merge(self, other: _Tally) -> None:
        """Add what a later span found."""
        columns = self.places(list(other.place), other.symbols)
        self.sums[:, columns] += other.sums
        self.n[:, columns] += other.n
        self.variable[columns] += other.variable
        self.listed[columns] += other.listed
        self.whole += other.whole
        self.batches += other.batches

    def means(self) -> Floats:
        """Return ``(3, g)`` means over the batches that say something of a gene."""
        n = self.n + (self.whole - self.listed)
        out: Floats = np.divide(self.sums, n, out=np.full(n.shape, np.nan), where=n > 0)
        return out


@dataclass(frozen=True, slots=True)
class _Rule:
    """How variable genes are told from others."""

    flavor: Flavor
    n_top: int
    wanted: frozenset[str] | None

    def scores(self, moments: Moments, *, expressed_only: bool) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
        """Return means, dispersions and normalised ones ``(3, g)``, which genes are variable, which are measured."""
        known = moments.n > 0
        if self.wanted is not None:
            known &= np.array([gene in self.wanted for gene in moments.ids], dtype=bool)
        taken = known & (moments.seen > 0) if expressed_only else known
        out = np.full((3, len(known)), np.nan)
        out[:, known & ~taken] = 0.0  # scanpy: a gene that a batch does not express is of no mean and no dispersion
        variable = np.zeros(len(known), dtype=bool)
        if taken.any():
            out[:, taken] = dispersions(moments.mean[taken], moments.variance()[taken], self.flavor)
            variable[taken] = top(out[2, taken], self.n_top)
        return out, variable, known


@dataclass(slots=True)
class _Found:
    """What one task found: batches that ended in it, and those that go on elsewhere."""

    seen: Seen = field(default_factory=Seen)
    tally: _Tally = field(default_factory=_Tally)
    open: dict[Any, Moments] = field(default_factory=dict)


def highly_variable_genes(
    view: View, *, n_top: int = 2000, flavor: Flavor | Literal["seurat_v3"] = "seurat", batch_key: str | None = None,
    client: Any = None, workers: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return the highly variable genes of a cohort that need not fit into memory.

    The same as ``sc.pp.highly_variable_genes(adata, n_top_genes=n_top, flavor=…, batch_key=…)`` on ``to_adata()`` after
    ``sc.pp.normalize_total(target_sum=1e4)`` and ``sc.pp.log1p``, up to rounding (1e-6 of the value where scanpy
    computes in float64). A row is normalised by all its counts. Order of sums, `client` and `workers` as in
    `histostore.pp.gene_stats`.

    Parameters
    ----------
    n_top
        How many genes; more where scores are equal at the end.
    flavor
        ``seurat`` or ``cell_ranger``; or ``seurat_v3``, of counts as they are, in two passes (needs scikit-misc).
    batch_key
        ``slide``, or a metadata column that has one value a slide, like ``patient``: genes are ranked within each
        batch, and chosen by in how many they are among the first `n_top`, then by mean normalised dispersion
        (``seurat_v3``: by median rank, then by in how many).

    Returns
    -------
    pandas.DataFrame
        By symbol, as ``to_adata().var``: ``gene_ids``, ``means``, ``dispersions``, ``dispersions_norm``,
        ``highly_variable``; with batches ``highly_variable_nbatches`` and ``highly_variable_intersection``.
        For ``seurat_v3`` ``means`` and ``variances`` of counts, ``variances_norm`` and ``highly_variable_rank`` instead
        of dispersions, and no intersection.
        ``attrs["histostore"]`` has the rows, the rows left out, and genes unmeasured by slide.

    Raises
    ------
    DataError
        No row has counts; a slide has values that are no counts; means too alike for the bins of ``cell_ranger`` or
        for the curve of ``seurat_v3``.
    AlignmentError
        Two slides name genes differently, as Ensembl ids and symbols.
    """
    if flavor not in SEES:
        raise UsageError(f"flavor is '{flavor}', not {', '.join(SEES)}")
    if n_top < 1:
        raise UsageError(f"n_top is {n_top}: ask for 1 gene or more")
    joined = wanted_genes(view)
    wanted = frozenset(joined.ids) if joined is not None else None
    keys = [_batch_of(view, part, batch_key) for part in view.parts] if batch_key is not None else None
    if flavor == "seurat_v3":
        ranked = rank_variances(view, keys, wanted, n_top, client=client, workers=workers)
        seen = ranked.seen
        refuse_none(seen.moments.rows, view)
        table, names = _by_rank(ranked, n_top, joined, batches=keys is not None)
    else:
        rule = _Rule(flavor, n_top, wanted)
        seen, tally = _over_batches(view, keys, rule, client, workers)
        refuse_none(seen.moments.rows, view)
        if keys is None:
            table, names = _one_batch(seen.moments, rule, joined)
        else:
            table, names = _many_batches(tally, rule, joined)
    table.attrs["histostore"] = about(view, seen, len(names.ids)) | {"flavor": flavor}
    return table


def _over_batches(
    view: View, keys: list[str] | None, rule: _Rule, client: Any, workers: int | None
) -> tuple[Seen, _Tally]:
    if keys is None:
        spans = cut(view)
        tasks = partial(_of_span, rule=rule, alone=True)
    else:
        # batches one after the other, in the order they are first met, so that few are open at a time
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        order = sorted(range(len(keys)), key=lambda i: first[keys[i]])
        sorted_view = replace(view, parts=tuple(view.parts[i] for i in order))
        spans = _with_ends(cut(sorted_view, keys=[keys[i] for i in order]))
        tasks = partial(_of_span, rule=rule, alone=False)
    last = {key: i for i, span in enumerate(spans) for key, _ in _pairs(span)}
    seen, tally, naming = Seen(), _Tally(), Naming(view.gene_join)
    going: dict[Any, Moments] = {}
    for number, found in enumerate(in_order(tasks, spans, client=client, workers=workers)):
        add_left_out(seen, found.seen, naming)
        if keys is None:
            seen.moments.merge(found.seen.moments)
            continue
        seen.moments.rows += found.seen.moments.rows
        for key, moments in found.open.items():
            going.setdefault(key, Moments()).merge(moments)
        tally.merge(found.tally)
        for key in [k for k in going if last[k] == number]:
            ended = going.pop(key)
            if ended.rows:
                tally.add_batch(ended, rule)
    return seen, tally


def _of_span(span: Span, *, rule: _Rule, alone: bool) -> _Found:
    found, values = _Found(), SEES[rule.flavor]
    if alone:
        for _, rows in span.open():
            add_slide(found.seen, found.seen.moments, rows, values, rule.wanted)
        return found
    ends: dict[Any, bool] = {}
    for (key, ended), rows in span.open():
        ends[key] = ended
        add_slide(found.seen, found.open.setdefault(key, Moments()), rows, values, rule.wanted)
    found.seen.moments.rows = sum(m.rows for m in found.open.values())
    for key, ended in ends.items():
        if ended:
            moments = found.open.pop(key)
            if moments.rows:
                found.tally.add_batch(moments, rule)
    return found


def _with_ends(spans: list[Span]) -> list[Span]:
    """Return spans whose keys also say whether all slides of the batch lie in this span."""
    spread: dict[Any, int] = {}
    for span in spans:
        for key in dict.fromkeys(span.keys):
            spread[key] = spread.get(key, 0) + 1
    return [replace(span, keys=tuple((key, spread[key] == 1) for key in span.keys)) for span in spans]


def _pairs(span: Span) -> list[tuple[Any, bool]]:
    return [key if isinstance(key, tuple) else (key, False) for key in span.keys]


def _batch_of(view: View, part: Any, key: str) -> str:
    if key == "slide":
        return str(part.slide)
    fields = part.meta["fields"]
    if key not in fields:
        known = ["slide", *dict.fromkeys(f for p in view.parts for f in p.meta["fields"])]
        raise NotFoundError(
            f"batch_key '{key}': slide '{part.slide}' has no such metadata{near(key, known)}; there are "
            f"{', '.join(known)}"
        )
    return str(fields[key])


def _one_batch(moments: Moments, rule: _Rule, joined: JoinedGenes | None) -> tuple[pd.DataFrame, JoinedGenes]:
    names = named(moments, joined)
    order = moments.extended(names.ids, names.symbols)
    scores, variable, _ = rule.scores(moments, expressed_only=False)
    columns = {name: scores[i, order] for i, name in enumerate(_COLUMNS)}
    table = {"gene_ids": list(names.ids), **columns, "highly_variable": variable[order]}
    return pd.DataFrame(table, index=pd.Index(names.symbols, dtype=object)), names


def _by_rank(
    ranked: Ranked, n_top: int, joined: JoinedGenes | None, *, batches: bool
) -> tuple[pd.DataFrame, JoinedGenes]:
    moments = ranked.moments
    names = named(moments, joined)
    order = ranked.places(names.ids, names.symbols)
    rank, found_in = (v[order] for v in ranked.ranks())
    best = np.lexsort((-found_in, np.nan_to_num(rank, nan=np.inf)))[:n_top]
    variable = np.zeros(len(order), dtype=bool)
    variable[best] = True
    table = {
        "gene_ids": list(names.ids), "means": np.where(moments.n > 0, moments.mean, np.nan)[order],
        "variances": moments.variance()[order], "variances_norm": ranked.mean()[order], "highly_variable_rank": rank,
        "highly_variable": variable & ~np.isnan(rank),
    } | ({"highly_variable_nbatches": found_in} if batches else {})  # fmt: skip
    return pd.DataFrame(table, index=pd.Index(names.symbols, dtype=object)), names


def _many_batches(tally: _Tally, rule: _Rule, joined: JoinedGenes | None) -> tuple[pd.DataFrame, JoinedGenes]:
    names = named(Moments(ids=list(tally.place), symbols=tally.symbols), joined)
    order = tally.places(names.ids, names.symbols)
    mean = tally.means()[:, order]
    batches = tally.variable[order].astype(np.int64)
    # ties in both stay in the order of the genes
    best = np.lexsort((-np.nan_to_num(mean[2], nan=-np.inf), -batches))
    variable = np.zeros(len(order), dtype=bool)
    variable[best[: rule.n_top]] = True
    columns = {name: mean[i] for i, name in enumerate(_COLUMNS)}
    table = {
        "gene_ids": list(names.ids), **columns, "highly_variable": variable, "highly_variable_nbatches": batches,
        "highly_variable_intersection": batches == tally.batches,
    }  # fmt: skip
    return pd.DataFrame(table, index=pd.Index(names.symbols, dtype=object)), names
