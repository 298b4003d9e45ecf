"""Leading singular vectors of tall, wide and large matrices; nothing here depends on the order of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import linalg

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT = 1024
"""Up to this many rows or columns the smaller Gram matrix is decomposed exactly."""


def leading_svd(
    Y: NDArray[Any], k: int, *, seed: int = 0, power: int = 6, exact: int | None = None
) -> tuple[NDArray[Any], ...]:
    """Return the `k` leading singular triplets ``u (n, k)``, ``s (k,)``, ``v (k, g)`` of ``Y (n, g)``, float64.

    Exact where one side is at most `exact` (`EXACT` unless given); else by random projection of the columns with
    `power` subspace iterations (Halko, Martinsson and Tropp, SIAM Review 53, 217 (2011)). The entry of each ``v`` row
    that is largest in size is positive, so signs are settled too.
    """
    if min(Y.shape) <= (EXACT if exact is None else exact):
        return _exact(Y, k)
    rng = np.random.default_rng(seed)
    width = min(k + 10, min(Y.shape))
    basis = linalg.qr(Y @ rng.standard_normal((Y.shape[1], width)).astype(Y.dtype), mode="economic")[0]
    for _ in range(power):
        back = linalg.qr(Y.T @ basis, mode="economic")[0]
        basis = linalg.qr(Y @ back, mode="economic")[0]
    u, s, v = linalg.svd((basis.T @ Y).astype(np.float64), full_matrices=False)
    return _signed(basis @ u[:, :k], s[:k], v[:k])


def _exact(Y: NDArray[Any], k: int) -> tuple[NDArray[Any], ...]:
    n, g = Y.shape
    wide = n <= g
    gram = (Y @ Y.T if wide else Y.T @ Y).astype(np.float64)
    last = len(gram) - 1
    values, vectors = linalg.eigh(gram, subset_by_index=(max(last - k + 1, 0), last), check_finite=False)
    values, near = values[::-1], vectors[:, ::-1]
    s = np.sqrt(np.maximum(values, 0.0))
    # a direction without any variance keeps a zero partner, not one made of rounding
    divisor = np.where(s > 1e-6 * s.max(initial=0.0), s, np.inf)
    if wide:
        return _signed(near, s, (near.T @ Y) / divisor[:, None])
    return _signed((Y @ near) / divisor, s, near.T)


def _signed(u: NDArray[Any], s: NDArray[Any], v: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    largest = np.take_along_axis(v, np.abs(v).argmax(1)[:, None], axis=1)
    sign = np.where(largest < 0, -1.0, 1.0)
    return u * sign.T, s, v * sign
