"""The arithmetic of choosing a ridge penalty: one eigendecomposition per held-out group, then every penalty at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from scipy import linalg

from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.heads.gram import Floats, Sums

Scale = Literal["global", "features", "none"]
Select = Literal["mse", "pearson"]
SCALES: tuple[str, ...] = get_args(Scale)
SELECTS: tuple[str, ...] = get_args(Select)


def scale_of(variance: Floats, scaling: Scale) -> Floats:
    """Return ``(d,)`` divisors, 1 where there is nothing to divide by."""
    variance = np.maximum(variance, 0.0)
    if scaling == "none":
        return np.ones_like(variance)
    if scaling == "global":
        variance = np.full_like(variance, variance.mean())
    # below this a variance is what rounding leaves of a constant
    floor = 1e-20 * max(float(variance.max(initial=0.0)), np.finfo(np.float64).tiny)
    return np.where(variance > floor, np.sqrt(variance), 1.0)


def solve(gram: Floats, right: Floats, penalty: Floats | float) -> Floats:
    """Return (gram + diag(penalty))⁻¹ right by Cholesky; overwrites `gram`."""
    gram.flat[:: len(gram) + 1] += penalty
    try:
        # the transpose is the same symmetric matrix in the order LAPACK works in place on
        factor = linalg.cho_factor(gram.T, lower=True, overwrite_a=True, check_finite=False)
    except linalg.LinAlgError:
        msg = f"a penalty of {np.min(penalty):g} is too small for these collinear features: give a larger alpha"
        raise UsageError(msg) from None
    solution: Floats = linalg.cho_solve(factor, right, check_finite=False)
    return solution


def score_sums(total: Sums, held: Sums, alphas: Floats, scaling: Scale, select: Select) -> Floats:
    """Return ``(a,)`` scores of one held-out group, from sums alone."""
    train = total.minus(held)
    if train.n < 2:
        msg = "an inner fold leaves fewer than two rows to train on"
        raise UsageError(msg)
    mx, my = train.x / train.n, train.y / train.n
    xx, xy, _ = train.about(mx, my)
    scale = scale_of(np.diag(xx) / train.n, scaling)
    values, vectors = linalg.eigh(xx / scale / scale[:, None], check_finite=False, overwrite_a=True, driver="evd")
    target = vectors.T @ (xy / scale[:, None])
    held_xx, held_xy, held_yy = held.about(mx, my)
    held_xx = vectors.T @ (held_xx / scale / scale[:, None]) @ vectors
    held_xy = vectors.T @ (held_xy / scale[:, None])
    held_x = vectors.T @ ((held.x - held.n * mx) / scale)
    held_y = held.y - held.n * my
    scores = []
    for weights in _weights(values, target, alphas):
        sums = (
            held_x @ weights,
            np.einsum("ij,ij->j", weights, held_xx @ weights),
            np.einsum("ij,ij->j", weights, held_xy),
        )
        scores.append(_score(held.n, *sums, held_y, held_yy, select))
    return np.array(scores)


def score_rows(
    Z: Floats,
    Y: Floats,
    train: NDArray[np.bool_],
    shared: Floats | None,
    alphas: Floats,
    scaling: Scale,
    select: Select,
) -> Floats:
    """Return ``(a,)`` scores of one held-out group, from the kernel of the rows."""
    if train.sum() < 2:
        msg = "an inner fold leaves fewer than two rows to train on"
        raise UsageError(msg)
    mean, my = Z[train].mean(0), Y[train].mean(0)
    if shared is None:
        scaled = (Z - mean) / scale_of(Z[train].var(0), scaling)
        inside, across = scaled[train] @ scaled[train].T, scaled[~train] @ scaled[train].T
    else:
        inside, across = _centred(shared, train)
        if scaling == "global":
            # the trace of a centred kernel is n times the summed variance of the features
            divisor = scale_of(np.array([np.trace(inside) / len(inside) / Z.shape[1]]), scaling)[0] ** 2
            inside, across = inside / divisor, across / divisor
    values, vectors = linalg.eigh(inside, check_finite=False, overwrite_a=True, driver="evd")
    target, towards = vectors.T @ (Y[train] - my), across @ vectors
    held = Y[~train] - my
    scores = []
    for weights in _weights(values, target, alphas):
        guess = towards @ weights
        sums = (guess.sum(0), np.einsum("ij,ij->j", guess, guess), np.einsum("ij,ij->j", guess, held))
        scores.append(_score(len(held), *sums, held.sum(0), np.einsum("ij,ij->j", held, held), select))
    return np.array(scores)


def _centred(kernel: Floats, train: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return train x train and held x train kernels of rows centred on the training mean."""
    inside, across = kernel[np.ix_(train, train)], kernel[np.ix_(~train, train)]
    mean = inside.mean(0)
    grand = mean.mean()
    across = across - mean - across.mean(1, keepdims=True) + grand
    return inside - mean - mean[:, None] + grand, across


def _weights(values: Floats, target: Floats, alphas: Floats) -> Iterator[Floats]:
    # rounding leaves eigenvalues slightly below zero
    values = np.maximum(values, 0.0)[:, None]
    for alpha in alphas:
        yield target / (values + alpha)


def _score(n: int, p: Floats, pp: Floats, py: Floats, y: Floats, yy: Floats, select: Select) -> float:
    """Return the score of predictions from their sums, each ``(t,)``: Σp, Σp², Σpy, Σy, Σy²."""
    if select == "mse":
        return -float(np.mean(yy - 2 * py + pp)) / n
    spread_p, spread_y = pp - p**2 / n, yy - y**2 / n
    defined = (spread_p > 1e-12 * pp) & (spread_y > 1e-12 * yy)
    r = (py - p * y / n)[defined] / np.sqrt(spread_p[defined] * spread_y[defined])
    return float(r.mean()) if r.size else -1.0
