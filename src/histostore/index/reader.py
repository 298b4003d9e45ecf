"""Reading one snapshot of an index: checked once, opened by memory map, searched segment by segment."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import SpecMismatchError, UsageError
from histostore.index.ann import AnnIndex
from histostore.index.exact import ExactIndex
from histostore.index.files import check_file, read_array
from histostore.index.spec import check_k
from histostore.index.vectors import Picked, checked_queries

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.index.files import Check
    from histostore.index.snapshot import Segment, Snapshot
    from histostore.index.spec import Device, Metric
    from histostore.index.vectors import Vectors


class IndexReader:
    """A snapshot, opened. It stays what it is, whatever is published after it.

    Parameters
    ----------
    embeddings
        The embeddings by row number (as ids count): with them candidates are measured again and small filters
        are answered exactly. ``ivf-pq`` needs them.
    check
        What every file is compared with before it is trusted, see `check_file`.

    Raises
    ------
    CorruptionError
        A file is gone or differs; it is named.
    SpecMismatchError
        `metric` is given and the index is of another.
    """

    def __init__(
        self,
        folder: Path,
        snapshot: Snapshot,
        *,
        embeddings: Vectors | None = None,
        metric: Metric | None = None,
        check: Check = "crc32c",
        device: Device = "auto",
    ) -> None:
        if metric is not None and metric != snapshot.spec.metric:
            raise SpecMismatchError(f"the index is of metric '{snapshot.spec.metric}', not '{metric}'; build another")
        if embeddings is not None and embeddings.shape[1] != snapshot.dim:
            raise SpecMismatchError(f"the embeddings have {embeddings.shape[1]} features, the index {snapshot.dim}")
        self.snapshot = snapshot
        several = len(snapshot.segments) > 1
        self._parts = [_Part(folder, s, snapshot, embeddings, check, device, several) for s in snapshot.segments]

    def __len__(self) -> int:
        return self.snapshot.live

    def search(
        self,
        queries: NDArray[np.floating],
        k: int,
        *,
        only: NDArray[np.bool_] | NDArray[np.integer] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the ids ``(q, k)`` nearest to each query and their distances, nearest first.

        Parameters
        ----------
        queries
            ``(q, d)``, finite; not zero for cosine.
        only
            Ids that may be found, or a mask by id (ids beyond its end may not). `k` come back where `k` pass.

        Returns
        -------
        ids
            ``(q, k)`` int64; -1 where there are too few rows.
        distance
            ``(q, k)`` float32: 1 - cosine, squared Euclidean distance, or minus the inner product.
        """
        check_k(k)
        q = checked_queries(queries, self.snapshot.spec.metric, self.snapshot.dim)
        found = [part.search(q, k, only) for part in self._parts]
        ids = np.concatenate([i for i, _ in found] or [np.full((len(q), k), -1, dtype=np.int64)], axis=1)
        distance = np.concatenate([d for _, d in found] or [np.full((len(q), k), np.inf, np.float32)], axis=1)
        order = np.lexsort((ids, distance), axis=1)[:, :k]
        return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distance, order, axis=1)


class _Part:
    """A segment, opened."""

    def __init__(
        self,
        folder: Path,
        segment: Segment,
        snapshot: Snapshot,
        embeddings: Vectors | None,
        check: Check,
        device: Device,
        several: bool,
    ) -> None:
        body = check_file(folder, segment.body, check)
        self.ids: NDArray[np.int64] = read_array(check_file(folder, segment.ids, check))
        self.live: NDArray[np.bool_] | None = None
        if segment.dead is not None:
            self.live = np.ones(segment.rows, dtype=bool)
            self.live[read_array(check_file(folder, segment.dead, check))] = False
        self.index: ExactIndex | AnnIndex
        if segment.tuning is None:
            self.index = ExactIndex(read_array(body), metric=snapshot.spec.metric, device=device)
            return
        if segment.tuning.kind == "ivf-pq" and embeddings is None:
            raise UsageError("an ivf-pq index is refined on the embeddings; open it with embeddings")
        tuning = segment.tuning
        if several and embeddings is not None:
            # rounded distances of one segment would be merged with true ones of another
            tuning = replace(tuning, refine=max(2, tuning.refine))
        own = None if embeddings is None else Picked(embeddings, self.ids)
        self.index = AnnIndex.open(body, tuning, vectors=own, device=device)

    def search(
        self, q: NDArray[np.float32], k: int, only: NDArray[np.bool_] | NDArray[np.integer] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        position, distance = self.index.search(q, k, rows=self._rows(only))
        return np.where(position < 0, -1, self.ids[position]), distance

    def _rows(self, only: NDArray[np.bool_] | NDArray[np.integer] | None) -> NDArray[np.bool_] | None:
        if only is None:
            return self.live
        only = np.asarray(only)
        if only.dtype == bool:
            inside = self.ids < len(only)
            passes = np.zeros(len(self.ids), dtype=bool)
            passes[inside] = only[self.ids[inside]]
        else:
            passes = np.isin(self.ids, only)
        if self.live is not None:
            passes &= self.live
        return None if passes.all() else passes
