"""Principal components of a cohort's embeddings: exact from one Gram matrix, or batch by batch where they are wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import linalg

from histostore.blocks.embedding_blocks import embedding_blocks, layout
from histostore.cohort.grams import UNREADABLE, gram
from histostore.errors import DataError, SpecMismatchError, UsageError
from histostore.heads.blas import one_blas_thread
from histostore.heads.gram import BLOCK_ROWS
from histostore.heads.rows import blocks
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.heads.rows import Table
    from histostore.view import View

    type Floats = NDArray[np.float64]

GRAM_DIM = 4096
"""Features up to which the Gram matrix is made: 128 MiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Principal components. The entry of each that is largest in size is positive."""

    components: Floats
    """``(k, d)`` orthonormal rows."""
    mean: Floats
    """``(d,)``"""
    explained_variance: Floats
    """``(k,)``, of n - 1."""
    explained_variance_ratio: Floats
    n: int
    """Rows they are of."""
    exact: bool
    """False where they were updated batch by batch."""
    report: Report
    """Rows left out."""

    def transform(self, X: Table) -> NDArray[np.float32]:
        """Return scores ``(n, k)`` of embeddings ``(n, d)``, an array or `View.lazy`; NaN where a row has NaN."""
        if len(X.shape) != 2 or X.shape[1] != len(self.mean):
            raise SpecMismatchError(f"rows of {X.shape[1:]} features for components of {len(self.mean)}")
        out = np.empty((len(X), len(self.components)), np.float32)
        for rows, block in blocks(X, BLOCK_ROWS):
            out[rows] = (block.astype(np.float64) - self.mean) @ self.components.T
        return out


def pca(
    view: View, backbone: str | None = None, *, n_comps: int = 50, client: Any = None, workers: int | None = None
) -> Components:
    """Return the principal components of the embeddings of a cohort that need not fit into memory.

    Up to 4,096 features they are exact: eigenvectors of the covariance, summed up in float64 in one pass
    (`histostore.tl.gram`, whose order of sums, `client` and `workers` they have). Wider ones are updated batch by
    batch, in order and in this process (sklearn's IncrementalPCA: Ross et al., Int. J. Computer Vision 77, 125 (2008)):
    approximate where the spectrum falls slowly, and the same whatever else runs. Unreadable tiles are left out.

    Parameters
    ----------
    n_comps
        At most as many as features, and rows less one.
    """
    backbone = view.embedding_name(backbone)
    if not len(view):
        raise DataError("the view has no rows")
    width, _ = layout(view.parts[0], backbone)
    if not 1 <= n_comps <= width:
        raise UsageError(f"n_comps is {n_comps} of {width} features: give 1-{width}")
    if width > GRAM_DIM:
        return _by_batches(view, backbone, n_comps)
    found = gram(view, backbone, folds=1, client=client, workers=workers)
    total, origin = found.sums.total(), found.sums.x_origin
    assert origin is not None
    _refuse_few(total.n, n_comps)
    mean = total.x / total.n
    with one_blas_thread():
        xx, _, _ = total.about(mean, total.y / total.n)
        values, vectors = linalg.eigh(xx, subset_by_index=(width - n_comps, width - 1))
    variance = np.maximum(values[::-1], 0.0) / (total.n - 1)
    ratio = variance / (np.trace(xx) / (total.n - 1) or 1.0)
    return Components(_signed(vectors[:, ::-1].T), mean + origin, variance, ratio, total.n, True, found.report)


def _by_batches(view: View, backbone: str, k: int) -> Components:
    from sklearn.decomposition import IncrementalPCA

    left_out: dict[str, int] = {}
    model, n = IncrementalPCA(n_components=k), 0
    with one_blas_thread():
        for batch in _batches(view, backbone, max(5 * k, 256), left_out):
            n += len(batch)
            _refuse_few(n, k)
            model.partial_fit(batch)
    _refuse_few(n, k)
    return Components(
        _signed(model.components_), model.mean_, model.explained_variance_, model.explained_variance_ratio_, n, False,
        view.report.merged(Report(left_out)),
    )  # fmt: skip


def _batches(view: View, backbone: str, size: int, left_out: dict[str, int]) -> Iterator[NDArray[Any]]:
    """Yield readable rows in order, `size` at a time; the last ones together with those before them."""
    held: list[NDArray[Any]] = []
    n = 0
    for block in embedding_blocks(view.parts, backbone):
        values = block.read()
        readable = np.isfinite(values).all(axis=1)
        if not readable.all():
            left_out[UNREADABLE] = left_out.get(UNREADABLE, 0) + int((~readable).sum())
        held.append(values[readable])
        n += len(held[-1])
        if n >= 2 * size:
            rows, cuts = np.concatenate(held), (n // size - 1) * size
            for begin in range(0, cuts, size):
                yield rows[begin : begin + size].astype(np.float64)
            held, n = [rows[cuts:]], n - cuts
    if n:
        yield np.concatenate(held).astype(np.float64)


def _refuse_few(n: int, k: int) -> None:
    if n <= k:
        raise UsageError(f"{k} components of {n} readable rows: ask for at most {max(n - 1, 0)}")


def _signed(components: Floats) -> Floats:
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
    return np.ascontiguousarray(components * np.where(largest < 0, -1.0, 1.0))
