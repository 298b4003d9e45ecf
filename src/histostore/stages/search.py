"""Which tiles look alike: over the cached embeddings of a cohort, exactly or by an index, among the rows that pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import NotFoundError, SpecMismatchError, UsageError
from histostore.index import results
from histostore.index.exact import search_blocks
from histostore.index.spec import check_k
from histostore.opening import check_alike
from histostore.part import bounds_of
from histostore.row_filter import slide_columns
from histostore.stages.hits import Hits, column_at, counts_at, hit_table
from histostore.stages.index import find_index, open_index, stale_slides
from histostore.stages.queries import Asked
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.index.spec import Metric
    from histostore.protocols import Backbone
    from histostore.stages.index import OpenIndex
    from histostore.stages.queries import Query, Region
    from histostore.store.store import Store
    from histostore.view import View

    type Mask = NDArray[np.bool_]
    type Found = tuple[NDArray[np.int64], NDArray[np.float32]]

BLOCK_ROWS = 16_384
POOL = 8
"""Candidates per answer that are looked at before caps, diversity or expression choose; doubled until enough pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How answers are chosen among the nearest."""

    at_most_per: str | None = None
    at_most: int = 1
    """At most so many answers that share a value of the column `at_most_per`."""
    diversity: float = 0.0
    """0 is the nearest alone; towards 1 answers differ more from each other (maximal marginal relevance)."""
    max_distance: float | None = None
    expressing: Mapping[str, float] | None = None
    """Genes wanted, and how much each counts (below 0 the fewer the better): candidates are ranked by nearness and by
    these counts together."""
    expression_weight: float = 0.5
    """Share of the expression in that rank."""

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1:
            raise UsageError(f"diversity is {self.diversity}, outside 0-1")
        if not 0 <= self.expression_weight <= 1:
            raise UsageError(f"expression_weight is {self.expression_weight}, outside 0-1")
        for gene, weight in (self.expressing or {}).items():
            if not math.isfinite(weight):
                raise UsageError(f"expressing: the weight of '{gene}' is {weight}, no number")
        if self.expressing and not any(self.expressing.values()):
            raise UsageError("expressing: all weights are 0, so that no gene counts; leave it out, or give others")
        if self.at_most < 1:
            raise UsageError(f"at_most is {self.at_most}: allow at least one")

    @property
    def needs_pool(self) -> bool:
        """Whether more than k candidates must be looked at."""
        return bool(self.at_most_per or self.diversity or self.expressing)


def search(
    store: Store,
    *,
    backbone: str | None = None,
    tiles: str | None = None,
    slide: str | None = None,
    spot: str | Sequence[str] | None = None,
    region: Region | None = None,
    vector: NDArray[Any] | None = None,
    image: NDArray[np.uint8] | None = None,
    embed_with: Backbone | None = None,
    k: int = 10,
    metric: Metric | None = None,
    where: str | None = None,
    slides: Sequence[str] | None = None,
    exclude_same: str | None = None,
    exclude_radius_um: float | None = None,
    at_most_per: str | None = None,
    at_most: int = 1,
    diversity: float = 0.0,
    max_distance: float | None = None,
    expressing: Mapping[str, float] | Sequence[str] | None = None,
    expression_weight: float = 0.5,
    index: str | bool | None = None,
    columns: Sequence[str] = (),
    rows: View | None = None,
) -> Hits:
    """Find the tiles whose embeddings are nearest to a query.

    Parameters
    ----------
    slide, spot
        Query by a tile of the store: its slide and its barcode, ``25x13`` or grid id; or by several. It is not its own
        answer.
    region
        Query by all tiles of `slide` whose centre lies in it, together: a candidate is as near as it is to the nearest
        of them. (x0, y0, x1, y1), polygon points or a GeoJSON polygon, in level-0 pixels.
    vector
        Query by an embedding ``(d,)``, or by several ``(q, d)``.
    image
        Query by a tile ``(px, px, 3)`` uint8 RGB, at the tiles' resolution; needs `embed_with`.
    metric
        ``cosine`` (default), ``l2`` (squared) or ``ip``; that of the index where one is used.
    where
        Only tiles that pass the filter, on columns and counts of genes (``"EPCAM > 2 and organ == 'breast'"``); k of
        them come back whenever k pass.
    exclude_same
        An obs column, like ``slide`` or ``patient``: tiles that share the query's value are left out.
    exclude_radius_um
        Leave out tiles of the query's slide whose centre is within this distance of its own.
    at_most_per, at_most
        A column, and how many answers may share a value of it.
    diversity
        Towards 1, answers differ more from each other.
    max_distance
        Only answers at most that far.
    expressing, expression_weight
        Looks like the query, expresses these genes: candidates (the nearest ones) are ranked by both. With weights,
        ``{"EPCAM": 2, "VIM": -1}``, log1p of a gene's counts is taken so many times; below 0 the fewer the better.
        Candidates without counts come last, and those whose values came in normalised where others have counts.
    index
        Name of an index; True for the one there is, False for exact search. By default an index is used where there is
        one of the metric. Slides it does not hold yet are searched exactly, and that is said.
    columns
        Obs columns or genes to add to the answer.
    rows
        A view of one backbone to search in, for many searches one after the other: it is not opened again. `backbone`
        and `slides` are its own then; its rows are all of its slides (choose by `where`).

    Raises
    ------
    NotFoundError
        The spot, slide or embeddings are not there.
    UsageError
        Not exactly one query was given, or options that make no sense.
    SpecMismatchError
        The query is of another width than the embeddings, or of tiles of another size or resolution; tiles of two
        slides are; the index is of another metric.
    """
    check_k(k)
    genes = expressing if expressing is None or isinstance(expressing, Mapping) else dict.fromkeys(expressing, 1.0)
    choice = Choice(at_most_per=at_most_per, at_most=at_most, diversity=diversity, max_distance=max_distance,
                    expressing=genes, expression_weight=expression_weight)  # fmt: skip
    if rows is None:
        rows = view(store, backbone=backbone or only_backbone(store, tiles), tiles=tiles, slides=slides)
    elif backbone is not None or slides is not None:
        raise UsageError("rows are of their own backbone and slides: give rows, or these")
    everything, name = rows, _one_backbone(rows)
    asked = Asked(slide=slide, spot=spot, region=region, image=image, vector=vector, embed_with=embed_with)
    query = asked.query(store, name, tiles)
    if query.single is not None:
        check_alike([*everything.parts[:1], *query.single[0].parts])
    width = everything.lazy(name).shape[1]
    if query.vectors.shape[1] != width:
        raise SpecMismatchError(f"the query has {query.vectors.shape[1]} features, embeddings '{name}' have {width}")
    masks = _allowed(everything, query, where, exclude_same, exclude_radius_um)
    opened = _index(store, everything, name, tiles, metric, index)
    finder = Finder(everything, name, metric or (opened.snapshot.spec.metric if opened else "cosine"), opened)
    tables, answers = [], []
    for number, mask in enumerate(masks):
        vectors = query.vectors if query.together else query.vectors[number : number + 1]
        found, distance = _chosen(finder, vectors, mask, k, choice)
        label = query.labels[number] if len(masks) > 1 else None
        tables.append(hit_table(everything, found, distance, columns, label))
        answers.append(found)
    return Hits.of(tables, np.concatenate(answers), everything, query, finder.metric, finder.notes)


def _one_backbone(rows: View) -> str:
    if len(rows.backbones) != 1 or any(p.rows is not None for p in rows.parts):
        raise UsageError("rows to search in are a whole view with one backbone: choose among them by where")
    return rows.backbones[0]


def only_backbone(store: Store, tiles: str | None = None) -> str:
    """Return the backbone that a store's embeddings are of, where there is one.

    Raises
    ------
    NotFoundError
        There are several, or none.
    """
    names: set[str] = set()
    for slide in store.slides():
        for ref in store.slide(slide).of_kind("embeddings"):
            of, _, short = ref.name.rpartition("/")
            if tiles is None or of == tiles:
                names.add(short)
    if len(names) != 1:
        have = f"there are {', '.join(sorted(names))}" if names else "there are none; run embed first"
        raise NotFoundError(f"which embeddings? {have}")
    return names.pop()


def _index(
    store: Store, everything: View, backbone: str, tiles: str | None, metric: Metric | None, wanted: str | bool | None
) -> OpenIndex | None:
    if wanted is False:
        return None
    name = find_index(store, backbone, tiles, wanted if isinstance(wanted, str) else None)
    if name is None:
        if wanted is True:
            raise NotFoundError(f"there is no index of '{backbone}'; run index")
        return None
    opened = open_index(store, name)
    (own,) = everything.backbones
    digest = everything.parts[0].group(everything.parts[0].embeddings[own]).attrs["backbone_digest"]
    if opened.group.attrs["backbone_digest"] != digest:
        raise SpecMismatchError(
            f"index '{name}' is of backbone {opened.group.attrs['backbone_digest'][:8]}, the embeddings '{own}' of "
            f"{digest[:8]}; bring it up to date: index"
        )
    if metric is not None and opened.snapshot.spec.metric != metric:
        if wanted is None:
            return None
        raise SpecMismatchError(f"index '{name}' is of metric '{opened.snapshot.spec.metric}', not '{metric}'")
    return opened


class Finder:
    """The nearest rows of a view, by an index as far as it goes, and exactly beyond it."""

    def __init__(self, rows: View, backbone: str, metric: Metric, opened: OpenIndex | None) -> None:
        self.rows, self.metric = rows, metric
        self.notes: tuple[str, ...] = ()
        self.reader = None
        self.ids = np.full(len(rows), -1, dtype=np.int64)
        self.values = rows.lazy(backbone)
        """Embeddings, opened slide by slide and once."""
        if opened is not None:
            stale = stale_slides(opened, rows)
            self.ids = opened.places.ids(rows)
            self.reader = opened.reader(rows)
            self._row = np.full(opened.places.next_id, -1, dtype=np.int64)
            self._row[self.ids[self.ids >= 0]] = np.flatnonzero(self.ids >= 0)
            if stale:
                some = ", ".join(stale[:5]) + (" …" if len(stale) > 5 else "")
                self.notes = (f"index '{opened.name}' is stale: {some} searched exactly; bring it up to date: index",)

    def nearest(self, vectors: NDArray[np.float32], k: int, allowed: Mask) -> Found:
        """Return the k nearest allowed rows of each vector ``(q, k)`` and their distances; -1 where there are fewer."""
        held = allowed & (self.ids >= 0)
        parts: list[Found] = []
        if self.reader is not None and held.any():
            only = np.zeros(len(self._row), dtype=bool)
            only[self.ids[held]] = True
            ids, distance = self.reader.search(vectors, k, only=only)
            parts.append((np.where(ids >= 0, self._row[ids], -1), distance))
        rest = np.flatnonzero(allowed & (self.ids < 0))
        if len(rest) or not parts:
            parts.append(search_blocks(vectors, self._blocks(rest), k, metric=self.metric))
        rows = np.concatenate([r for r, _ in parts], axis=1)
        distance = np.concatenate([d for _, d in parts], axis=1)
        order = np.lexsort((rows, distance), axis=1)[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(distance, order, axis=1)

    def _blocks(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        for start in range(0, len(rows), BLOCK_ROWS):
            some = rows[start : start + BLOCK_ROWS]
            yield some, self.values[some]


def _allowed(
    everything: View, query: Query, where: str | None, exclude_same: str | None, radius_um: float | None
) -> list[Mask]:
    """Return which rows may be an answer, for each query (once for queries that are answered together)."""
    common = np.ones(len(everything), dtype=bool) if where is None else everything.mask(where)
    values = None if exclude_same is None else query.own(exclude_same)
    if radius_um is not None:
        query.own("x_um")
    here, local = _rows_of(everything, query.slide)
    xy = _centres_um(everything, str(query.slide)) if radius_um is not None else None
    groups = [np.arange(len(query.labels))] if query.together else [np.array([i]) for i in range(len(query.labels))]
    out = []
    for group in groups:
        mask = common.copy()
        if exclude_same is not None and values is not None:
            mask &= ~_sharing(everything, exclude_same, values[group])
        if query.single is not None:
            single, rows = query.single
            mask[here[np.isin(local, rows[group])]] = False
            if radius_um is not None and xy is not None:
                own = np.column_stack([single.column("x_um"), single.column("y_um")])[rows[group]]
                for centre in own:
                    away = results.beyond_radius(
                        np.full(len(here), query.slide, dtype=object), xy, slide=str(query.slide),
                        centre_um=(float(centre[0]), float(centre[1])), radius_um=radius_um,
                    )  # fmt: skip
                    near = np.ones(len(here), dtype=bool)
                    near[away] = False
                    mask[here[near]] = False
        out.append(mask)
    return out


def _rows_of(everything: View, slide: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of one slide in the view, and their numbers on the slide."""
    bounds = bounds_of(everything.parts)
    mine = [at for at, part in enumerate(everything.parts) if part.slide == slide]
    here = [np.arange(bounds[at], bounds[at + 1]) for at in mine]
    if not here:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.concatenate(here), np.concatenate([rows - rows[0] if len(rows) else rows for rows in here])


def _centres_um(everything: View, slide: str) -> NDArray[np.float64]:
    if slide not in everything.slides:
        return np.zeros((0, 2))
    own = everything.of_slides([slide])
    return np.column_stack([own.column("x_um"), own.column("y_um")])


def _sharing(everything: View, column: str, values: NDArray[Any]) -> Mask:
    """Return which rows have one of some values, as text, in a column: by slide where it is of slides as a whole."""
    wanted = np.unique(values.astype(str))
    of_slides = slide_columns(everything.parts, [column]) if any(p.has(column) for p in everything.parts) else None
    if of_slides is None:
        return np.isin(everything.column(column).astype(str), wanted)
    return np.repeat(np.isin(of_slides[column].astype(str), wanted), [len(p) for p in everything.parts])


def _chosen(finder: Finder, vectors: NDArray[np.float32], allowed: Mask, k: int, choice: Choice) -> Found:
    """Return k rows and their distances, best first."""
    there = int(allowed.sum())
    pool = min(there, k * POOL if choice.needs_pool else k)
    while True:
        rows, distance = _merged(*finder.nearest(vectors, max(1, pool), allowed))
        if choice.max_distance is not None:
            keep = results.within(distance, choice.max_distance)
            rows, distance = rows[keep], distance[keep]
        order = _ranked(finder, rows, distance, k, choice)
        # a cap may leave too few of the pool: look further until k are found, or all were looked at
        if len(order) >= k or pool >= there or not choice.at_most_per:
            order = order[:k]
            return rows[order], distance[order]
        pool = min(there, pool * 4)


def _merged(rows: NDArray[np.int64], distance: NDArray[np.float32]) -> Found:
    """Return the candidates of all vectors, each once with its least distance, nearest first."""
    flat, away = rows.ravel(), distance.ravel()
    order = np.lexsort((flat, away))
    flat, away = flat[order], away[order]
    first = np.sort(np.unique(flat, return_index=True)[1])
    first = first[flat[first] >= 0]
    return flat[first], away[first]


def _ranked(
    finder: Finder, rows: NDArray[np.int64], distance: NDArray[np.float32], k: int, choice: Choice
) -> NDArray[np.int64]:
    order = np.arange(len(rows))
    if choice.expressing:
        order = _by_expression(finder.rows, rows, choice)
    if choice.at_most_per:
        order = order[
            results.capped(column_at(finder.rows, choice.at_most_per, rows[order]).astype(str), choice.at_most)
        ]
    if choice.diversity and len(order):
        values = finder.values[rows[order]].astype(np.float32)
        picked = results.diverse(distance[order], values, k, weight=1 - choice.diversity, metric=finder.metric)
        order = order[picked]
    return order


def _by_expression(everything: View, rows: NDArray[np.int64], choice: Choice) -> NDArray[np.int64]:
    """Return candidates by nearness and expression: a weighted mean of both ranks; without counts they come last."""
    assert choice.expressing is not None
    score = np.zeros(len(rows))
    # values of one kind compare, whichever it is
    mixed_kinds = len({part.normalised for part in everything.parts if part.expression is not None}) > 1
    for gene, weight in choice.expressing.items():
        counts = (counts_at if mixed_kinds else column_at)(everything, gene, rows)
        score += weight * np.log1p(counts.astype(np.float64))
    known = ~np.isnan(score)
    rank = np.full(len(rows), 1.0)
    rank[known] = np.argsort(np.argsort(-score[known], kind="stable"), kind="stable") / max(1, int(known.sum()) - 1)
    near = np.arange(len(rows)) / max(1, len(rows) - 1)
    mixed = (1 - choice.expression_weight) * near + choice.expression_weight * rank
    return np.lexsort((mixed, ~known))
