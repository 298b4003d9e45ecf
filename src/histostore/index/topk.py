"""The best k of each query over blocks that come one after another, exact although scores are rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.index.vectors import distances_of_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from histostore.index.products import Products
    from histostore.index.spec import Metric

SLACK = 4 * float(np.finfo(np.float32).eps)
"""Times sqrt(d), |q| and |v|: what two float32 sums of one product may differ by.

Source: Higham & Mary 2019, "A new approach to probabilistic rounding error analysis": sqrt(d) u instead of d u.
"""

SETTLE_PAIRS = 1024
"""Pairs measured at a time: few enough to stay in cache."""


class TopK:
    """A pool of candidates per query, pruned as the bar rises and settled at the end.

    The pool holds what may still be among the best k: scores within rounding of the k-th best. Settling measures the
    pairs one by one (`distances_of_pairs`), sorts by (distance, row) and keeps k. For that the candidates' embeddings
    are had from `take`, or kept from their blocks where rows cannot be read again.
    """

    def __init__(
        self,
        queries: NDArray[np.float32],
        k: int,
        metric: Metric,
        products: Products,
        take: Callable[[NDArray[np.int64]], NDArray[np.float32]] | None = None,
    ) -> None:
        self.queries = queries
        self.k = k
        self.metric: Metric = metric
        self.seen = 0
        self._products = products
        self._take = take
        self._limit = 4 * k + 256
        self._lengths = np.sqrt(np.vecdot(queries, queries)).astype(np.float64)
        self._longest = 0.0
        self._bar = np.full(len(queries), -np.inf, dtype=np.float32)
        self._query = np.zeros(0, dtype=np.int64)
        self._score = np.zeros(0, dtype=np.float32)
        self._row = np.zeros(0, dtype=np.int64)
        self._at = np.zeros(0, dtype=np.int64)  # position in the concatenation of `_kept`
        self._kept: list[NDArray[np.float32]] = []
        self._n_kept = 0

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float32], norms: NDArray[np.float32]) -> None:
        """Take in a block: row numbers ``(b,)``, embeddings ``(b, d)``, lengths ``(b,)`` (NaN: never found)."""
        if not len(rows):
            return
        self.seen += len(rows)
        longest = 1.0 if self.metric == "cosine" else float(np.nanmax(norms, initial=0))
        self._longest = max(self._longest, longest)
        query, position, score = self._thinned(rows, values, *self._products.passing(values, norms, self._bar))
        if not len(query):
            return
        n_old = len(self._query)
        self._query = np.concatenate([self._query, query])
        self._score = np.concatenate([self._score, score])
        self._row = np.concatenate([self._row, rows[position]])
        source = np.concatenate([np.full(n_old, -1), position])
        self._at = np.concatenate([self._at, np.zeros(len(query), dtype=np.int64)])
        keep = self._above_bar()
        source = source[keep]
        self._query, self._score, self._row = self._query[keep], self._score[keep], self._row[keep]
        self._at = self._at[keep]
        if self._take is None:
            is_new = source >= 0
            self._at[is_new] = self._n_kept + np.arange(is_new.sum())
            self._kept.append(values[source[is_new]])
            self._n_kept += int(is_new.sum())
        if len(self._query) and np.bincount(self._query).max() > self._limit:
            self._settle()

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ``(q, k)`` row numbers and distances, nearest first; -1 and infinity where there are too few."""
        distance = self._settle()
        rows = np.full((len(self.queries), self.k), -1, dtype=np.int64)
        out = np.full((len(self.queries), self.k), np.inf, dtype=np.float32)
        rank = _rank_in_group(self._query)
        rows[self._query, rank] = self._row
        out[self._query, rank] = distance
        return rows, out

    def _slack(self, query: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        length = self._lengths[query]
        scale = length * self._longest + (self._longest**2 / 2 if self.metric == "l2" else 0)
        slack: NDArray[np.float64] = 2 * SLACK * self.queries.shape[1] ** 0.5 * scale + np.finfo(np.float32).tiny
        return slack

    def _above_bar(self) -> NDArray[np.int64]:
        """Sort the pool by query and score, raise the bar to the k-th best, and return what stays, in that order."""
        order = np.argsort(_keys(self._query, self._score))
        query, score = self._query[order], self._score[order]
        kth = np.flatnonzero(_rank_in_group(query) == self.k - 1)
        low = np.full(len(self.queries), -np.inf)
        low[query[kth]] = score[kth] - self._slack(query[kth])
        # one step down: rounding the bar to float32 must not raise it
        self._bar = np.maximum(self._bar, np.nextafter(low.astype(np.float32), np.float32(-np.inf)))
        return order[score > self._bar[query]]

    def _thinned(
        self,
        rows: NDArray[np.int64],
        values: NDArray[np.float32],
        query: NDArray[np.int64],
        position: NDArray[np.int64],
        score: NDArray[np.float32],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Cut the crowd of a query that finds its own cluster, or its own duplicates, in one block."""
        counts = np.bincount(query, minlength=len(self.queries))
        crowded = np.flatnonzero(counts > self._limit)
        if not len(crowded):
            return query, position, score
        keep = np.ones(len(query), dtype=bool)
        stops = np.cumsum(counts)
        slack = self._slack(slice(None))
        for one in crowded:
            part = slice(stops[one] - counts[one], stops[one])
            kth = np.partition(score[part], counts[one] - self.k)[counts[one] - self.k]
            near = score[part] >= kth - slack[one]
            if near.sum() > self._limit:  # ties: measured now, for a pool of them has no bound
                some = np.flatnonzero(near)
                at = position[part][some]
                distance = distances_of_pairs(self.queries[one], values[at], self.metric)
                best = some[np.lexsort((rows[at], distance))[: self.k]]
                near = np.zeros(counts[one], dtype=bool)
                near[best] = True
            keep[part] = near
        return query[keep], position[keep], score[keep]

    def _settle(self) -> NDArray[np.float32]:
        """Measure the pool pair by pair, keep k a query, sorted; return their distances."""
        distance = np.empty(len(self._query), dtype=np.float32)
        for start in range(0, len(self._query), SETTLE_PAIRS):
            some = slice(start, start + SETTLE_PAIRS)
            queries = self.queries[self._query[some]]
            distance[some] = distances_of_pairs(queries, self._values(some), self.metric)
        order = np.lexsort((self._row, distance, self._query))
        order = order[_rank_in_group(self._query[order]) < self.k]
        if self._take is None:
            self._kept = [self._values(order)]
            self._n_kept = len(order)
        self._at = np.arange(len(order))
        self._query, self._score, self._row = self._query[order], self._score[order], self._row[order]
        return distance[order]

    def _values(self, some: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of a part of the pool."""
        if self._take is not None:
            return self._take(self._row[some])
        at = self._at[some]
        values = np.empty((len(at), self.queries.shape[1]), dtype=np.float32)
        start = 0
        for kept in self._kept:
            here = np.flatnonzero((at >= start) & (at < start + len(kept)))
            values[here] = kept[at[here] - start]
            start += len(kept)
        return values


def _keys(query: NDArray[np.int64], score: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return numbers that sort by query, then by falling score: one integer key sorts ten times as fast as two."""
    bits = score.view(np.uint32)
    falling = np.where(bits >> 31, bits, ~(bits | np.uint32(1 << 31)))  # IEEE order of floats as integers, turned round
    return (query.astype(np.uint64) << np.uint64(32)) | falling


def _rank_in_group(sorted_groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, 2 … within each run of equal values."""
    n = len(sorted_groups)
    first = np.ones(n, dtype=bool)
    first[1:] = sorted_groups[1:] != sorted_groups[:-1]
    starts = np.flatnonzero(first)
    return np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
