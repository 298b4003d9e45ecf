"""How far two embeddings of the same rows agree: who is near whom, and how the clouds lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import AlignmentError, DataError
from histostore.index.build import sample_rows, without_self
from histostore.index.exact import ExactIndex
from histostore.index.vectors import Picked, row_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.index.spec import Metric
    from histostore.index.vectors import Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Two backbones beside each other on the same tiles."""

    overlap: float
    """Share of a row's `k` nearest under one that are among its `k` nearest under the other, mean over rows asked."""
    cka: float
    """Linear centred kernel alignment, 0 to 1; 1 is the same cloud but for rotation and scale."""
    k: int
    queries: int
    rows: int
    left_out: int
    """Rows that either embedding cannot place (not finite; zero under cosine)."""


def compare(
    a: Vectors,
    b: Vectors,
    *,
    k: int = 10,
    queries: int = 1000,
    metric: Metric = "cosine",
    seed: int = 0,
) -> Drift:
    """Compare two embeddings ``(n, d1)`` and ``(n, d2)`` of the same rows, in the same order.

    Raises
    ------
    AlignmentError
        They have different numbers of rows.
    DataError
        Fewer than two rows are usable in both.
    """
    if len(a) != len(b):
        raise AlignmentError(f"one embedding has {len(a)} rows and the other {len(b)}: compare the same tiles")
    norms = ExactIndex(a, metric=metric).norms + ExactIndex(b, metric=metric).norms
    rows = np.flatnonzero(np.isfinite(norms))
    if len(rows) < 2:
        raise DataError(f"{len(rows)} of {len(a)} rows are usable in both embeddings: nothing to compare")
    left, right = Picked(a, rows), Picked(b, rows)
    k = min(k, len(rows) - 1)
    asked = sample_rows(len(rows), min(queries, len(rows)), None, seed)
    near = [
        without_self(ExactIndex(v, metric=metric).search(np.asarray(v[asked], np.float32), k + 1)[0], asked)
        for v in (left, right)
    ]
    shared = (near[0][:, :, None] == near[1][:, None, :]).any(axis=2).mean()
    return Drift(
        overlap=float(shared),
        cka=linear_cka(left, right),
        k=k,
        queries=len(asked),
        rows=len(rows),
        left_out=len(a) - len(rows),
    )


def linear_cka(a: Vectors, b: Vectors) -> float:
    """Return the linear CKA of two embeddings of the same rows, all finite; read in blocks, in float64.

    Notes
    -----
    Source: Kornblith et al. 2019, "Similarity of neural network representations revisited", eq. 3 with linear kernels:
    ``|Yc' Xc|² / (|Xc' Xc| |Yc' Yc|)`` (Frobenius norms, c for centred).
    """
    n = len(a)
    mean_a, mean_b = _mean(a), _mean(b)
    aa = np.zeros((a.shape[1], a.shape[1]))
    bb = np.zeros((b.shape[1], b.shape[1]))
    ab = np.zeros((a.shape[1], b.shape[1]))
    for start in range(0, n, 4096):
        x = np.asarray(a[start : start + 4096], dtype=np.float64) - mean_a
        y = np.asarray(b[start : start + 4096], dtype=np.float64) - mean_b
        aa += x.T @ x
        bb += y.T @ y
        ab += x.T @ y
    scale = np.linalg.norm(aa) * np.linalg.norm(bb)
    if scale == 0:
        raise DataError("an embedding is constant over all rows: it has no alignment with another")
    return float(np.linalg.norm(ab) ** 2 / scale)


def _mean(values: Vectors) -> NDArray[np.float64]:
    total = np.zeros(values.shape[1])
    for _, block in row_blocks(values):
        total += block.sum(axis=0, dtype=np.float64)
    return total / len(values)
