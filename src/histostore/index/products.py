"""The matrix product of exact search, on the CPU (numpy's BLAS) or on a CUDA device (torch): which scores pass a bar.

A score is larger for nearer rows: the cosine, the inner product, or ``<q, v> - |v|² / 2`` for L2. Scores are float32
and rounded as the device rounds; `histostore.index.topk` allows for that.
"""

from __future__ import annotations

import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histostore.errors import UsageError
from histostore.index.spec import check_device
from histostore.index.vectors import BLOCK_ROWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.index.spec import Device, Metric

SCAN_ALONE = 1 << 20
"""Below this many scores a second thread costs more than it saves."""

type Passing = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


class Products(Protocol):
    """Scores of one batch of queries against blocks of rows."""

    def passing(self, values: NDArray[np.float32], norms: NDArray[np.float32], bar: NDArray[np.float32]) -> Passing:
        """Return (query, position in the block, score) of all scores above the query's `bar`, in that order.

        A block has at most `BLOCK_ROWS` rows. Rows whose norm is NaN never pass.
        """
        ...


class NumpyProducts:
    """On the CPU, by the BLAS that numpy is built with and with the threads it is given."""

    def __init__(self, queries: NDArray[np.float32], metric: Metric) -> None:
        self.queries = queries
        self.metric = metric
        # made once and reused: fresh pages cost as much as the scan, pages never touched cost nothing
        self._scores = np.empty(len(queries) * BLOCK_ROWS, dtype=np.float32)
        self._flags = np.empty(len(queries) * (BLOCK_ROWS // 8 + 1), dtype=np.uint64)

    def passing(self, values: NDArray[np.float32], norms: NDArray[np.float32], bar: NDArray[np.float32]) -> Passing:
        """Return what passes, see `Products`."""
        n = len(values)
        room = self._scores[: len(self.queries) * n].reshape(len(self.queries), n)
        scores = np.matmul(self.queries, values.T, out=room)
        bad = np.isnan(norms)
        if self.metric == "cosine":
            scores *= 1 / norms
        elif self.metric == "l2":
            scores -= norms**2 / 2
        if bad.any():
            scores[:, bad] = -np.inf
        flat = self._above(scores, bar)
        query, position = np.divmod(flat, n)
        return query, position, scores.ravel()[flat]

    def _above(self, scores: NDArray[np.float32], bar: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the flat positions above the bar, looked through by as many threads as the product has cores."""
        n_queries = len(scores)
        threads = min(_cores(), n_queries) if scores.size >= SCAN_ALONE else 1
        if threads == 1:
            return self._scan(scores, bar, 0, n_queries)
        bounds = [n_queries * at // threads for at in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(lambda at: self._scan(scores, bar, bounds[at], bounds[at + 1]), range(threads))
            return np.concatenate(list(parts))

    def _scan(self, scores: NDArray[np.float32], bar: NDArray[np.float32], start: int, stop: int) -> NDArray[np.int64]:
        """Scan some queries' scores. Few pass, so eight at a time are looked at."""
        n = scores.shape[1]
        part = scores[start:stop]
        words = self._flags[start * (n // 8 + 1) :][: part.size // 8 + 1]
        words[-1] = 0
        flags = words.view(np.bool_)
        np.greater(part, bar[start:stop, None], out=flags[: part.size].reshape(part.shape))
        some = np.flatnonzero(words)
        word, bit = np.nonzero(flags.reshape(-1, 8)[some])
        flat: NDArray[np.int64] = some[word] * 8 + bit + start * n
        return flat


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class TorchProducts:
    """On a torch device, full float32 precision (no TF32)."""

    def __init__(self, queries: NDArray[np.float32], metric: Metric, device: str = "cuda") -> None:
        self._torch: Any = importlib.import_module("torch")
        self.device = device
        self.queries = self._torch.from_numpy(queries).to(device)
        self.metric = metric

    def passing(self, values: NDArray[np.float32], norms: NDArray[np.float32], bar: NDArray[np.float32]) -> Passing:
        """Return what passes, see `Products`."""
        from histostore.cuda_flags import repeatable_kernels

        torch = self._torch
        with repeatable_kernels(full_float32=True):
            scores = self.queries @ self._tensor(values).T
        length = self._tensor(norms)
        if self.metric == "cosine":
            scores *= 1 / length
        elif self.metric == "l2":
            scores -= length**2 / 2
        scores[:, torch.isnan(length)] = -torch.inf
        query, position = torch.nonzero(scores > self._tensor(bar)[:, None], as_tuple=True)
        return query.cpu().numpy(), position.cpu().numpy(), scores[query, position].cpu().numpy()

    def _tensor(self, values: NDArray[np.float32]) -> Any:
        return self._torch.from_numpy(np.require(values, requirements=["C", "W"])).to(self.device)


def products_on(device: Device, queries: NDArray[np.float32], metric: Metric) -> Products:
    """Return the products of a device; ``auto`` is CUDA where torch has it.

    Raises
    ------
    UsageError
        ``cuda`` without a CUDA device.
    """
    check_device(device)
    if device == "cpu":
        return NumpyProducts(queries, metric)
    has_cuda = _may_have_cuda(device) and bool(importlib.import_module("torch").cuda.is_available())
    if device == "cuda" and not has_cuda:
        raise UsageError("device is 'cuda' and torch sees no CUDA device; use 'cpu' or 'auto'")
    return TorchProducts(queries, metric) if has_cuda else NumpyProducts(queries, metric)


def _may_have_cuda(device: Device) -> bool:
    """Whether asking torch, which takes seconds to load, is worth it: for ``auto`` only where there is a driver."""
    drivers = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
    return device == "cuda" or "torch" in sys.modules or any(Path(d).exists() for d in drivers)
