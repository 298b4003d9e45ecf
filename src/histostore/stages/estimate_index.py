"""What building an index would take: its kind, bytes, memory and time, from a short measured probe. Writes nothing.

What takes the time is read off this machine: reading rows here and there, and the product of some rows with the cells
that they would be held against (for ivf-pq its codebooks too, for hnsw a small graph). Those times are multiplied by
what the build does with them; low and high are the fastest and slowest part of the probe. Searching with ever more
effort until the recall is reached, and writing the files, is not in it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.index.ann import of_length_one
from histostore.index.build import (
    PQ_CODEWORDS,
    QUERIES,
    candidates,
    cells_for,
    estimated_bytes,
    new_index,
    pq_bytes,
    training_rows,
)
from histostore.index.encode import BLOCK_ROWS
from histostore.index.engine import faiss_module
from histostore.index.life import spec_of_appended
from histostore.index.spec import IndexSpec
from histostore.stages.estimate import NOTHING, Spread
from histostore.stages.index import plan_index

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from histostore.index.spec import Kind
    from histostore.index.vectors import Vectors
    from histostore.store.store import Store

PARTS = 5
PART_ROWS = 2048
"""A probe reads so many rows in each of `PARTS` places."""
PQ_ROWS = 64 * PQ_CODEWORDS
"""What a codebook learns from, in `PQ_TURNS` turns."""
PQ_TURNS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEstimate:
    """What building an index, or bringing it up to date, would take."""

    name: str
    done: str
    """What it would do: ``built``, ``updated`` or ``already there``."""
    kind: Kind | None
    """Of the new segment; None where there is none."""
    rows: int
    """Rows of it; unreadable tiles are among them."""
    removed: int
    """Slides whose rows would be deleted."""
    cells: int
    bytes: int
    """Of the files that would be added."""
    memory: int
    """Most bytes that building takes beside what the process holds."""
    seconds: Spread
    probed: int
    """Rows that were read for it."""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; the seconds are [low, middle, high]."""
        names = ("name", "done", "kind", "rows", "removed", "cells", "bytes", "memory", "probed", "note")
        return {name: getattr(self, name) for name in names} | {"seconds": self.seconds.to_json()}


def estimate_index(
    store: Store,
    *,
    backbone: str,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    spec: IndexSpec | None = None,
    name: str | None = None,
    rebuild: bool = False,
) -> IndexEstimate:
    """Say what `histostore.stages.index.index` would do and take, on this machine's processors.

    Bytes follow from the kind and the number of rows. Where ``auto`` may find its first choice wanting (too low a
    recall), the note names what it would build next: bytes and time are those of the first.

    Raises
    ------
    ConflictError
        The index is there with another spec, and `rebuild` is not asked for.
    """
    todo = plan_index(store, backbone=backbone, tiles=tiles, slides=slides, spec=spec, name=name, rebuild=rebuild)
    done = "already there" if todo.old is not None and todo.is_current else "built" if todo.old is None else "updated"
    if not todo.new:
        return IndexEstimate(
            name=todo.name, done=done, kind=None, rows=0, removed=len(todo.gone), cells=0, bytes=0, memory=0,
            seconds=NOTHING, probed=0,
        )  # fmt: skip
    chosen = todo.rows.of_slides(frozenset(todo.new))
    n, rows = len(chosen), chosen.lazy(backbone)
    asked = spec_of_appended(todo.old.snapshot, n) if todo.old is not None else spec or IndexSpec()
    (kind, *others), dim = candidates(n, rows.shape[1], asked), rows.shape[1]
    cells = min(asked.nlist or cells_for(n), n) if kind.startswith("ivf") else 0
    seconds, probed = _probe(rows, kind, cells, asked)
    size = 2 * n * dim if kind == "exact" else estimated_bytes(kind, n, dim, asked)
    return IndexEstimate(
        name=todo.name, done=done, kind=kind, rows=n, removed=len(todo.gone), cells=cells, bytes=size + 8 * n,
        memory=_memory(kind, n, dim, cells, asked), seconds=seconds, probed=probed,
        note=f"then {' and '.join(others)}, where recall {asked.recall:g} is not reached" if others else "",
    )  # fmt: skip


def _memory(kind: Kind, n: int, dim: int, cells: int, spec: IndexSpec) -> int:
    """Return what is held at once: lengths of all rows, the index, and a block or the rows that it learns from."""
    block = min(n, BLOCK_ROWS) * dim * (2 + 4 + 4)
    if kind == "exact":
        return 4 * n + block
    learnt = training_rows(n, cells, spec) * dim * (2 + 4 + 4) if cells else 0
    return 4 * n + estimated_bytes(kind, n, dim, spec) + max(block, learnt)


def _probe(rows: Vectors, kind: Kind, cells: int, spec: IndexSpec) -> tuple[Spread, int]:
    """Return the seconds of a whole build, and the rows that were read to tell."""
    n, size = len(rows), min(PART_ROWS, len(rows))
    starts = list(dict.fromkeys(np.linspace(0, n - size, PARTS, dtype=int).tolist()))
    rows[0:size]  # opens files and warms what the first call does
    parts, reads = [], []
    for start in starts:
        seconds, part = _timed(lambda at=start: rows[at : at + size])  # type: ignore[misc]
        parts.append(part)
        reads.append(seconds / size)
    known = np.concatenate(parts).astype(np.float32)
    known = known[np.isfinite(known).all(axis=1) & known.any(axis=1)]
    if kind == "exact" or not len(known):
        return _spread(reads).times(2 * n), len(starts) * size  # their lengths are measured, then they are copied
    known = of_length_one(known, spec.metric)
    work = _graph(known, n, spec) if kind == "hnsw" else _cells(known, kind, n, cells, spec)
    learnt = training_rows(n, cells, spec) if cells else 0
    read = _spread(reads).times(3 * n + learnt)  # lengths, true neighbours, codes; and what it learns from
    both = Spread(low=read.low + work.low, middle=read.middle + work.middle, high=read.high + work.high)
    return both, len(starts) * size


def _cells(known: NDArray[np.float32], kind: Kind, n: int, cells: int, spec: IndexSpec) -> Spread:
    """Return the seconds that learning cells, and holding all rows against them and the queries, takes."""
    faiss = faiss_module()
    index = new_index(kind, known.shape[1], cells, spec)
    index.quantizer.add(known[np.arange(min(cells, len(known)))])
    against = index.quantizer.ntotal
    times = [_timed(lambda: index.quantizer.search(known[:PART_ROWS], 1))[0] for _ in range(PARTS + 1)][1:]
    one = _spread([t / min(len(known), PART_ROWS) / against for t in times])  # of one row and one cell
    learnt = training_rows(n, cells, spec)
    pairs = float(index.cp.niter) * learnt * cells + float(n) * (cells + QUERIES)
    more = 0.0
    if kind == "ivf-pq":
        few = known[:PART_ROWS]
        pq = faiss.ProductQuantizer(known.shape[1], pq_bytes(known.shape[1], spec), 8)
        pq.cp.niter, pq.cp.min_points_per_centroid = 1, 1
        if len(few) >= PQ_CODEWORDS:
            turn, _ = _timed(lambda: pq.train(few))
            code, _ = _timed(lambda: pq.compute_codes(few))
            more = turn * PQ_TURNS * min(PQ_ROWS, learnt) / len(few) + code * n / len(few)
    return one.times(pairs, more)


def _graph(known: NDArray[np.float32], n: int, spec: IndexSpec) -> Spread:
    """Return the seconds that a graph takes: a row's place costs as the logarithm of those before it."""
    few, times = known[:PART_ROWS], []
    for _ in range(PARTS):
        index = new_index("hnsw", known.shape[1], 0, spec)
        times.append(_timed(lambda index=index: index.add(few))[0] / len(few) / math.log2(len(few) + 1))  # type: ignore[misc]
    return _spread(times).times(n * math.log2(n + 1))


def _timed[T](work: Callable[[], T]) -> tuple[float, T]:
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def _spread(values: Sequence[float]) -> Spread:
    return Spread(low=min(values), middle=sum(values) / len(values), high=max(values))
