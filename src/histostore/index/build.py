"""Building an index that is as good as asked: train, add, measure recall on held-out rows, and say what it took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError, UsageError
from histostore.index.ann import AnnIndex, Tuning, of_length_one
from histostore.index.encode import BLOCK_ROWS, add_codes, encode_here
from histostore.index.engine import faiss_module, uses_gpu
from histostore.index.exact import ExactIndex
from histostore.index.peak import PeakMemory
from histostore.index.vectors import Picked
from histostore.specs import SpecBase

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.index.encode import EncodeRows
    from histostore.index.spec import Device, IndexSpec, Kind
    from histostore.index.vectors import Vectors

EXACT_ROWS = 50_000
"""``auto``: up to here exact search answers in milliseconds, and nothing is lost."""

QUERIES, NEAREST = 256, 10
"""Recall is measured on this many held-out rows, as the share of their true nearest that is found."""

PQ_CODEWORDS = 256
"""Of each sub-quantizer: a code is a byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport(SpecBase):
    """What was built, how good it is and what it took."""

    kind: Kind
    rows: int
    left_out: int
    """Rows that cannot be found (not finite; zero under cosine)."""
    effort: int
    """Cells visited (nprobe) or HNSW's ef, tuned; 0 for exact."""
    cells: int
    refine: int
    recall: float
    """recall@10 against exact search on held-out rows, each row itself left out."""
    queries: int
    train_rows: int
    seconds: float
    peak_bytes: int | None
    """Most memory taken beyond what the process held before; None where the system does not tell."""
    index_bytes: int
    """Of the codes and ids; for exact the embeddings themselves, as float16."""
    why: str
    """Why this kind, and whether the recall asked for was reached."""


@dataclass(frozen=True, slots=True)
class Built:
    """An index over the usable rows, the rows' numbers, and the report."""

    index: AnnIndex | ExactIndex
    rows: NDArray[np.int64]
    """Position in the index to row of the array, ascending."""
    report: BuildReport


def build(
    values: Vectors,
    spec: IndexSpec,
    *,
    groups: NDArray[Any] | None = None,
    device: Device = "auto",
    encode: EncodeRows | None = None,
) -> Built:
    """Build an index over an array of embeddings.

    Parameters
    ----------
    values
        ``(n, d)`` float16 or float32; a memory map is read in blocks, never whole.
    groups
        ``(n,)`` slide of each row: the training sample is spread evenly over them.
    encode
        Who encodes the rows of an IVF index once it is trained, by their numbers in the array; this process by
        default. Graphs (hnsw) are built here: where a row goes depends on those before it.

    Raises
    ------
    DataError
        No row can be found.
    UsageError
        The spec does not fit the array.
    """
    begun = time.perf_counter()
    if len(values.shape) != 2:
        raise UsageError(f"embeddings are {len(values.shape)}-dimensional, not (n, d)")
    exact = ExactIndex(values, metric=spec.metric, device=device)
    rows = np.flatnonzero(np.isfinite(exact.norms))
    if not len(rows):
        raise DataError(f"none of {len(values)} rows can be searched: not finite, or zero under cosine")
    with PeakMemory() as peak:
        work = _Work(values, rows, exact, spec, groups, device, encode or encode_here(values))
        index, made = work.best()
    report = BuildReport(
        kind=made.kind,
        rows=len(rows),
        left_out=len(values) - len(rows),
        effort=made.effort,
        cells=made.cells,
        refine=made.refine,
        recall=made.recall,
        queries=made.queries,
        train_rows=made.train_rows,
        seconds=time.perf_counter() - begun,
        peak_bytes=peak.bytes,
        index_bytes=made.bytes,
        why=made.why,
    )
    return Built(index, rows, report)


@dataclass(frozen=True, slots=True)
class _Made:
    kind: Kind
    why: str
    bytes: int
    effort: int = 0
    cells: int = 0
    refine: int = 1
    recall: float = 1.0
    queries: int = 0
    train_rows: int = 0


class _Work:
    """One build: the rows, the held-out queries and their true neighbours, shared by the kinds that are tried."""

    def __init__(
        self,
        values: Vectors,
        rows: NDArray[np.int64],
        exact: ExactIndex,
        spec: IndexSpec,
        groups: NDArray[Any] | None,
        device: Device,
        encode: EncodeRows,
    ) -> None:
        self.values, self.rows, self.exact, self.spec, self.device = values, rows, exact, spec, device
        self.encode = encode
        self.groups = None if groups is None else np.asarray(groups)[rows]
        self.vectors: Vectors = values if len(rows) == len(values) else Picked(values, rows)
        self.held = sample_rows(len(rows), min(QUERIES, len(rows)), None, spec.seed + 1)
        self._truth: NDArray[np.int64] | None = None

    def best(self) -> tuple[AnnIndex | ExactIndex, _Made]:
        """Build the kind asked for, or for ``auto`` the first that fits and is good enough."""
        spec, n, room = self.spec, len(self.rows), self.spec.max_bytes
        kinds = candidates(n, self.values.shape[1], spec)
        if kinds == ("exact",):
            asked = spec.kind == "exact"
            return self._exact("asked for" if asked else f"{n} rows are searched exactly in milliseconds")
        if spec.kind != "auto":
            return self._ann(spec.kind, "asked for")
        told = "" if room is None else f" of those that fit in {room} bytes"
        for kind in kinds:
            index, made = self._ann(kind, f"chosen for {n} rows{told}")
            if made.recall >= spec.recall and made.effort <= max(1, made.cells // 4):
                return index, made
        if room is not None:
            return index, made
        return self._exact(f"no approximate index reached recall {spec.recall:g} faster than exact search")

    def _exact(self, why: str) -> tuple[ExactIndex, _Made]:
        index = ExactIndex(self.vectors, metric=self.spec.metric, device=self.device)
        return index, _Made("exact", why, 2 * len(self.rows) * self.values.shape[1])

    def _ann(self, kind: Kind, why: str) -> tuple[AnnIndex, _Made]:
        spec, n, dim = self.spec, len(self.rows), int(self.values.shape[1])
        cells = min(spec.nlist or cells_for(n), n)
        refine = spec.refine or (16 if kind == "ivf-pq" else 1)
        raw = new_index(kind, dim, cells, spec)
        trained = 0
        if kind == "hnsw":
            for start in range(0, n, BLOCK_ROWS):
                raw.add(of_length_one(self.vectors[start : start + BLOCK_ROWS], spec.metric))
        else:
            trained = self._train(raw, cells)
            for codes in self.encode(raw, spec.metric, self.rows):
                add_codes(raw, codes)
        tuning = Tuning(kind=kind, metric=spec.metric, dim=dim, effort=1, refine=refine)
        index, recall = self._tuned(AnnIndex(raw, tuning, vectors=self.vectors, device=self.device))
        if recall < spec.recall:
            why = f"{why}; recall {recall:.3f} is below the {spec.recall:g} asked for at full effort"
        size = estimated_bytes(kind, n, dim, spec)
        made = _Made(
            kind, why, size, index.tuning.effort, cells if index.is_ivf else 0, refine, recall, len(self.held), trained
        )
        return index, made

    def _train(self, raw: Any, cells: int) -> int:
        faiss = faiss_module()
        n = len(self.rows)
        if n < PQ_CODEWORDS and isinstance(raw, faiss.IndexIVFPQ):
            raise DataError(f"ivf-pq learns {PQ_CODEWORDS} codewords, and there are {n} rows: use exact or ivf-sq8")
        size = training_rows(n, cells, self.spec)
        sample = sample_rows(n, size, self.groups, self.spec.seed, but=self.held if n > 4 * len(self.held) else None)
        ivf = faiss.extract_index_ivf(raw)
        ivf.cp.seed = self.spec.seed + 1234
        ivf.cp.spherical = self.spec.metric == "cosine"
        ivf.cp.min_points_per_centroid = 1  # few rows are no fault here, and FAISS would print
        ivf.cp.max_points_per_centroid = max(64, -(-len(sample) // cells))
        if isinstance(ivf, faiss.IndexIVFPQ):
            ivf.pq.cp.max_points_per_centroid = 64  # 256 take 4x as long for a recall that refinement gives
        if uses_gpu(self.device):
            flat = faiss.IndexFlat(raw.d, raw.metric_type)
            ivf.clustering_index = faiss.index_cpu_to_all_gpus(flat)
        raw.train(of_length_one(self.vectors[sample], self.spec.metric))
        return len(sample)

    def _tuned(self, index: AnnIndex) -> tuple[AnnIndex, float]:
        """Raise the effort by doubling until the recall is reached, then halve back towards the least that does."""
        low, high = 0, 1 if index.is_ivf else 16
        recall = self._recall(index.with_effort(high))
        while recall < self.spec.recall and high < index.most_effort:
            low, high = high, min(high * 2, index.most_effort)
            recall = self._recall(index.with_effort(high))
        while high - low > max(1, high // 8) and recall >= self.spec.recall and index.is_ivf:
            middle = (low + high) // 2
            got = self._recall(index.with_effort(middle))
            if got >= self.spec.recall:
                high, recall = middle, got
            else:
                low = middle
        return index.with_effort(high), recall

    def _recall(self, index: AnnIndex) -> float:
        k = min(NEAREST, len(self.rows) - 1)
        if k == 0:
            return 1.0
        queries = np.asarray(self.vectors[self.held], dtype=np.float32)
        if self._truth is None:
            exact = self.exact.search(queries, k + 1)[0]
            self._truth = without_self(np.searchsorted(self.rows, exact), self.held)
        found = without_self(index.search(queries, k + 1)[0], self.held)
        return recall_of(found, self._truth)


def candidates(n: int, dim: int, spec: IndexSpec) -> tuple[Kind, ...]:
    """Return the kinds that are tried on n rows, in this order, until one is good enough."""
    if spec.kind != "auto":
        return (spec.kind,)
    if n <= EXACT_ROWS:
        return ("exact",)
    wanted: tuple[Kind, ...] = ("ivf-sq8", "ivf-flat")
    room = spec.max_bytes
    return tuple(k for k in wanted if room is None or estimated_bytes(k, n, dim, spec) <= room) or ("ivf-pq",)


def training_rows(n: int, cells: int, spec: IndexSpec) -> int:
    """Return how many rows the quantizers learn from."""
    return min(n, spec.train_rows or max(64 * cells, 32_768))


def new_index(kind: Kind, dim: int, cells: int, spec: IndexSpec) -> Any:
    """Return an empty, untrained FAISS index."""
    faiss = faiss_module()
    metric = faiss.METRIC_L2 if spec.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, spec.hnsw_m, metric)
        index.hnsw.efConstruction = spec.ef_construction
        return index
    code = {"ivf-flat": "Flat", "ivf-sq8": "SQ8", "ivf-pq": f"PQ{pq_bytes(dim, spec)}"}[kind]
    made = faiss.index_factory(dim, f"IVF{cells},{code}", metric)
    if kind == "ivf-pq":
        made.do_polysemous_training = False  # on by default, never used here, and a minute of annealing
    return made


def pq_bytes(dim: int, spec: IndexSpec) -> int:
    """Return the bytes per row of ivf-pq: the largest divisor of the width up to an eighth of it, unless given."""
    if spec.pq_bytes is not None:
        if dim % spec.pq_bytes:
            raise UsageError(f"pq_bytes is {spec.pq_bytes}, which does not divide the width {dim}")
        return spec.pq_bytes
    return max(m for m in range(1, max(1, dim // 8) + 1) if dim % m == 0)


def cells_for(n: int) -> int:
    """Return how many cells suit n rows: about 2 sqrt(n), with 39 rows to learn each from, as FAISS wants."""
    return int(max(1, min(2 * n**0.5, n / 39)))


def estimated_bytes(kind: Kind, n: int, dim: int, spec: IndexSpec) -> int:
    """Return what an index takes in memory: codes, ids, centroids or links."""
    if kind == "hnsw":
        return n * (4 * dim + 8 * spec.hnsw_m + 16)
    code = {"ivf-flat": 4 * dim, "ivf-sq8": dim, "ivf-pq": pq_bytes(dim, spec)}[kind]
    return n * (code + 8) + 4 * dim * (spec.nlist or cells_for(n))


def sample_rows(
    n: int, size: int, groups: NDArray[Any] | None, seed: int, *, but: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return `size` of n rows by seed, sorted; with `groups` as evenly over them as their sizes allow."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    if but is not None:
        order = order[~np.isin(order, but)]
    if groups is not None:
        # round by round: the first row of every group, then the second, …
        group = np.unique(groups, return_inverse=True)[1][order]
        by_group = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[by_group], np.arange(group.max() + 1))
        turn = np.empty(len(order), dtype=np.int64)
        turn[by_group] = np.arange(len(order)) - starts[group[by_group]]
        order = order[np.argsort(turn, kind="stable")]
    return np.sort(order[:size]).astype(np.int64)


def without_self(found: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``(q, k)`` of ``(q, k + 1)`` answers with each query's own row left out (the last where it is absent)."""
    is_own = found == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    others: NDArray[np.int64] = found[~is_own].reshape(len(found), -1)
    return others


def recall_of(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Return the share of the true neighbours ``(q, k)`` that are among those found."""
    hit = (found[:, :, None] == truth[:, None, :]).any(axis=1) & (truth >= 0)
    return float(hit.sum() / max(1, (truth >= 0).sum()))
