"""A FAISS index over rows of embeddings: searched, saved, opened by memory map. `build` makes one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import CorruptionError, SpecMismatchError, StorageError
from histostore.index.engine import faiss_module, uses_gpu
from histostore.index.exact import ExactIndex
from histostore.index.filters import SMALL_SHARE, chosen_rows, effort_under, selector
from histostore.index.spec import check_k
from histostore.index.vectors import Picked, checked_queries, distances_of_pairs
from histostore.specs import SpecBase

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.index.spec import Device, Kind, Metric
    from histostore.index.vectors import Vectors

    type Found = tuple[NDArray[np.int64], NDArray[np.float32]]

GPU_MOST = 2048
"""FAISS's own limit on k and nprobe on a GPU; beyond it the CPU answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning(SpecBase):
    """What a search of an index needs to know beside its file."""

    kind: Kind
    metric: Metric
    dim: int
    effort: int
    """Cells visited (nprobe), or HNSW's ef."""
    refine: int = 1
    """Candidates per answer that are measured again on the embeddings."""


class AnnIndex:
    """An IVF or HNSW index over positions ``0 … n-1``; embeddings, where given, refine answers and serve filters."""

    def __init__(self, index: Any, tuning: Tuning, *, vectors: Vectors | None = None, device: Device = "auto") -> None:
        if int(index.d) != tuning.dim:
            raise SpecMismatchError(f"the index file is of width {index.d}, its record says {tuning.dim}")
        self.index = index
        self.tuning = tuning
        self.vectors = vectors
        self._faiss = faiss_module()
        self._on_gpu = self._to_gpu() if uses_gpu(device) and self.is_ivf else None

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def is_ivf(self) -> bool:
        """Whether it has cells."""
        return self.tuning.kind.startswith("ivf")

    @property
    def most_effort(self) -> int:
        """Where visiting more changes nothing: all cells, or all rows."""
        return int(self.index.nlist) if self.is_ivf else max(1, len(self))

    def with_effort(self, effort: int) -> AnnIndex:
        """Return the same index visiting more or fewer cells; shares everything."""
        other = AnnIndex.__new__(AnnIndex)
        other.__dict__.update(self.__dict__)
        other.tuning = replace(self.tuning, effort=effort)
        return other

    def search(
        self, queries: NDArray[np.floating], k: int, *, rows: NDArray[np.bool_] | NDArray[np.integer] | None = None
    ) -> Found:
        """Return the positions ``(q, k)`` nearest to each query and their distances, nearest first.

        Parameters
        ----------
        queries
            ``(q, d)``.
        rows
            A mask over positions or position numbers: nothing else is found. Never fewer than `k` come back where `k`
            pass: cells are added until there are enough.

        Returns
        -------
        Positions (-1 where the index has too few rows) and float32 distances as `search_blocks` defines them: of the
        embeddings where they refine the answer, else as the index holds them.
        """
        check_k(k)
        q = checked_queries(queries, self.tuning.metric, self.tuning.dim)
        some = None if rows is None else chosen_rows(rows, len(self))
        want = min(k, len(self) if some is None else len(some))
        if want == 0 or not len(q):
            return _padded(np.zeros((len(q), 0), np.int64), np.zeros((len(q), 0), np.float32), k)
        share = 1.0 if some is None else len(some) / len(self)
        if some is not None and share < SMALL_SHARE and self.vectors is not None:
            return self._exactly(q, k, some)
        refine = self.tuning.refine if self.vectors is not None else 1
        wide = min(want * refine, len(self) if some is None else len(some))
        position, held = self._until_enough(q, wide, want, some, share)
        distance = self._measured(q, position) if refine > 1 else held
        order = np.lexsort((position, distance), axis=1)[:, :want]
        return _padded(np.take_along_axis(position, order, 1), np.take_along_axis(distance, order, 1), k)

    def _exactly(self, q: NDArray[np.float32], k: int, some: NDArray[np.int64]) -> Found:
        assert self.vectors is not None
        position, distance = ExactIndex(Picked(self.vectors, some), metric=self.tuning.metric).search(q, k)
        return np.where(position < 0, -1, some[position]), distance

    def _until_enough(
        self, q: NDArray[np.float32], wide: int, want: int, some: NDArray[np.int64] | None, share: float
    ) -> Found:
        """Search, and search again with more effort those queries that found fewer than `want`."""
        effort = effort_under(self.tuning.effort, share, self.most_effort)
        position, distance = self._raw(q, wide, effort, some)
        while True:
            short = np.flatnonzero((position >= 0).sum(axis=1) < want)
            if not len(short):
                return position, distance
            if effort >= self.most_effort:
                if self.is_ivf:  # every cell was seen: the index holds no more
                    return position, distance
                position[short], distance[short] = self._flat(q[short], wide, some)
                return position, distance
            effort = min(self.most_effort, effort * 4)
            position[short], distance[short] = self._raw(q[short], wide, effort, some)

    def _raw(self, q: NDArray[np.float32], k: int, effort: int, some: NDArray[np.int64] | None) -> Found:
        faiss = self._faiss
        if some is None and self._on_gpu is not None and max(k, effort) <= GPU_MOST:
            self._on_gpu.nprobe = effort
            value, position = self._on_gpu.search(q, k)
            return position, self._distance(value, position)
        chosen = None if some is None else selector(some, len(self))
        if self.is_ivf:
            params = faiss.SearchParametersIVF(nprobe=effort, sel=chosen)
        else:
            params = faiss.SearchParametersHNSW(efSearch=max(effort, k), sel=chosen)
        value, position = self.index.search(q, k, params=params)
        return position, self._distance(value, position)

    def _flat(self, q: NDArray[np.float32], k: int, some: NDArray[np.int64] | None) -> Found:
        """Scan the rows a graph holds, where a filter cut the graph in pieces."""
        params = None if some is None else self._faiss.SearchParameters(sel=selector(some, len(self)))
        value, position = self._faiss.downcast_index(self.index.storage).search(q, k, params=params)
        return position, self._distance(value, position)

    def _distance(self, value: NDArray[np.float32], position: NDArray[np.int64]) -> NDArray[np.float32]:
        metric = self.tuning.metric
        if metric == "l2":
            distance = np.maximum(value, 0)
        else:
            distance = np.maximum(1 - value, 0) if metric == "cosine" else -value
        return np.where(position < 0, np.float32(np.inf), distance)

    def _measured(self, q: NDArray[np.float32], position: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the true distances of candidates ``(q, c)``, infinity where there is none."""
        assert self.vectors is not None
        out = np.full(position.shape, np.inf, dtype=np.float32)
        query, column = np.nonzero(position >= 0)
        rows, inverse = np.unique(position[query, column], return_inverse=True)
        values = np.asarray(self.vectors[rows], dtype=np.float32)
        for at in range(0, len(query), 4096):
            some = slice(at, at + 4096)
            pairs = distances_of_pairs(q[query[some]], values[inverse[some]], self.tuning.metric)
            out[query[some], column[some]] = pairs
        return out

    def _to_gpu(self) -> Any:
        self._resources = self._faiss.StandardGpuResources()  # must outlive the index on the GPU
        return self._faiss.index_cpu_to_gpu(self._resources, 0, self.index)

    def save(self, path: Path) -> None:
        """Write the index as one file; `files.write_faiss` does it whole and durably.

        Raises
        ------
        StorageError
            The disk refused; part of the file may be there.
        """
        try:
            self._faiss.write_index(self.index, str(path))
        except RuntimeError as error:
            raise StorageError(f"cannot write {path}: {_first_line(error)}") from error

    @classmethod
    def open(cls, path: Path, tuning: Tuning, *, vectors: Vectors | None = None, device: Device = "auto") -> AnnIndex:
        """Open a file by memory map. The file must have been checked: FAISS trusts what it reads.

        Raises
        ------
        CorruptionError
            FAISS cannot read it.
        """
        faiss = faiss_module()
        is_ivf = tuning.kind.startswith("ivf")
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if is_ivf else faiss.IO_FLAG_MMAP_IFC
        try:
            index = faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise CorruptionError(f"FAISS cannot read {path}: {_first_line(error)}; rebuild the index") from error
        if is_ivf:
            lists = faiss.downcast_InvertedLists(index.invlists)
            if hasattr(lists, "prefetch_nthread"):
                lists.prefetch_nthread = 0  # 32 threads started for every search cost more than they fetch
        return cls(index, tuning, vectors=vectors, device=device)


def of_length_one(values: NDArray[np.floating], metric: Metric) -> NDArray[np.float32]:
    """Return rows as FAISS shall hold them: float32, of length one where the metric is cosine."""
    rows = np.ascontiguousarray(values, dtype=np.float32)
    return rows / np.sqrt(np.vecdot(rows, rows))[:, None] if metric == "cosine" else rows


def _padded(position: NDArray[np.int64], distance: NDArray[np.float32], k: int) -> Found:
    missing = k - position.shape[1]
    if missing > 0:
        position = np.pad(position, ((0, 0), (0, missing)), constant_values=-1)
        distance = np.pad(distance, ((0, 0), (0, missing)), constant_values=np.inf)
    return position, distance


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
