"""The graph of nearest neighbours within one set of rows, in the form that scanpy keeps in ``obsp``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import anndata as ad
import numpy as np
import scanpy as sc
from scipy import sparse

from histostore.errors import DataError, UsageError
from histostore.index.build import without_self
from histostore.index.exact import ExactIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.index.spec import Device, Metric
    from histostore.index.vectors import Vectors

QUERY_ROWS = 4096


class Searchable(Protocol):
    """An `ExactIndex`, or an `AnnIndex` over all rows."""

    def search(self, queries: NDArray[np.floating], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return positions and distances ``(q, k)``."""
        ...


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Who is near whom: row i's nearest others, nearest first."""

    indices: NDArray[np.int64]
    """``(n, n_neighbors - 1)``: scanpy counts the row itself as its first neighbour, and so does `n_neighbors`."""
    distances: NDArray[np.float32]
    """``(n, n_neighbors - 1)``: Euclidean (not squared) for l2, 1 - cosine for cosine."""
    n_neighbors: int
    metric: Metric

    def matrix(self) -> Any:
        """Return the distances as scanpy's ``obsp["distances"]``: CSR ``(n, n)``, zeros of duplicates stored."""
        n, k = self.indices.shape
        starts = np.arange(0, n * k + 1, k)
        values = self.distances.astype(np.float64).ravel()
        return sparse.csr_matrix((values, self.indices.ravel(), starts), shape=(n, n))

    def connectivities(self) -> Any:
        """Return UMAP's fuzzy graph as scanpy's ``obsp["connectivities"]``: CSR ``(n, n)`` float32, symmetric.

        Computed by scanpy itself, which is handed these neighbours instead of searching for its own.
        """
        holder = ad.AnnData(np.zeros((len(self.indices), 1), dtype=np.float32))
        known = _Known(self.matrix(), self.n_neighbors)
        sc.pp.neighbors(holder, transformer=known, use_rep="X")
        return holder.obsp["connectivities"]

    def uns(self) -> dict[str, Any]:
        """Return ``uns["neighbors"]``, which tells scanpy's tools where the graph is."""
        metric = "euclidean" if self.metric == "l2" else self.metric
        params = {"n_neighbors": self.n_neighbors, "method": "umap", "metric": metric, "random_state": 0}
        return {"connectivities_key": "connectivities", "distances_key": "distances", "params": params}


def neighbours(
    values: Vectors,
    *,
    n_neighbors: int = 15,
    metric: Metric = "cosine",
    index: Searchable | None = None,
    device: Device = "cpu",
) -> Neighbours:
    """Find every row's nearest others.

    Parameters
    ----------
    values
        ``(n, d)``, every row finite (and not zero under cosine).
    n_neighbors
        As in `scanpy.pp.neighbors`: the row itself is one of them.
    index
        An approximate index over the same rows and metric; exact search otherwise, which takes n² d products.

    Raises
    ------
    UsageError
        `n_neighbors` does not fit the rows, or the metric is no distance.
    DataError
        Rows cannot be placed; they are counted, for you to leave them out.
    """
    if metric == "ip":
        raise UsageError("metric 'ip' is no distance; neighbours need 'cosine' or 'l2'")
    if not 2 <= n_neighbors <= len(values):
        raise UsageError(f"n_neighbors is {n_neighbors}, outside 2-{len(values)} (the rows there are)")
    exact = ExactIndex(values, metric=metric, device=device)
    bad = int(np.isnan(exact.norms).sum())
    if bad:
        raise DataError(f"{bad} of {len(values)} rows cannot be placed (not finite, or zero); leave them out first")
    use: Searchable = exact if index is None else index
    found = []
    for start in range(0, len(values), QUERY_ROWS):
        own = np.arange(start, min(len(values), start + QUERY_ROWS))
        near, distance = use.search(np.asarray(values[own], dtype=np.float32), n_neighbors)
        place = without_self(near, own)
        is_kept = near != own[:, None]
        is_kept[is_kept.all(axis=1), -1] = False
        found.append((place, distance[is_kept].reshape(place.shape)))
    indices = np.concatenate([i for i, _ in found])
    distances = np.concatenate([d for _, d in found])
    if (indices < 0).any():
        raise DataError(f"the index found fewer than {n_neighbors} rows for some; was it built over these rows?")
    return Neighbours(indices, np.sqrt(distances) if metric == "l2" else distances, n_neighbors, metric)


class _Known:
    """What scanpy calls a transformer, with the answer known."""

    def __init__(self, distances: Any, n_neighbors: int) -> None:
        self.distances = distances
        self.n_neighbors = n_neighbors

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return what scanpy asks."""
        return {"n_neighbors": self.n_neighbors}

    def fit_transform(self, _: Any) -> Any:
        """Return the graph."""
        return self.distances
