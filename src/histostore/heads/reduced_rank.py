"""Ridge regression whose predictions of all targets lie in a few directions, rank and penalty chosen together.

    min ‖Y − Z B‖² + α‖B‖²  over matrices B of rank r

is the ridge solution projected on the r leading right singular vectors of its (augmented) fit: Mukherjee and Zhu,
Statistical Analysis and Data Mining 4, 612 (2011). In the singular vectors of Z every α and every rank cost small
matrices only, however many targets there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy import linalg

from histostore.errors import UsageError
from histostore.heads.estimator import Estimator, check_pair
from histostore.heads.penalty import SCALES, Scale, scale_of
from histostore.heads.tuning import check_choices, inner_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

ALPHAS = tuple(float(a) for a in 10.0 ** np.arange(1, 6.25, 0.5))
RANKS = (1, 2, 3, 5, 8, 12, 20)


class ReducedRankRidge(Estimator):
    """Multi-target ridge of low rank.

    Parameters
    ----------
    ranks, alphas
        What to choose from, by mean squared error on groups left out; one of each needs no choosing.
    scale, inner, seed
        As of `histostore.heads.ridge.Ridge`.

    Attributes
    ----------
    rank_, alpha_, inner_score_
        What was chosen, and its negated mean squared error; NaN where nothing was chosen.
    inner_scores_ : numpy.ndarray
        ``(alphas, ranks)``.
    left_, right_ : numpy.ndarray
        ``(d, r)`` and ``(r, t)``: coefficients are their product.
    """

    def __init__(
        self,
        ranks: Sequence[int] | int = RANKS,
        alphas: Sequence[float] | float = ALPHAS,
        *,
        scale: Scale = "global",
        inner: int = 10,
        seed: int = 0,
    ) -> None:
        self.ranks = ranks
        self.alphas = alphas
        self.scale = scale
        self.inner = inner
        self.seed = seed

    @property
    def tunes(self) -> bool:
        """Whether there is more than one rank or penalty to choose from."""
        return len(check_choices("ranks", self.ranks)) * len(self._checked_alphas()) > 1

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Choose rank and penalty and fit ``(n, d)`` features and ``(n, t)`` targets."""
        X, y = check_pair(X, y)
        if len(X) < 2:
            msg = f"{len(X)} training row: reduced-rank ridge needs two"
            raise UsageError(msg)
        ranks = tuple(sorted({min(r, y.shape[1]) for r in check_choices("ranks", self.ranks)}))
        alphas, scores = self._checked_alphas(), np.empty((0, 0))
        X, y = X.astype(np.float64), y.astype(np.float64)
        if len(ranks) * len(alphas) > 1:
            folds = inner_labels(len(X), groups, inner=self.inner, seed=self.seed)
            parts = [_Side.of(X[folds != f], y[folds != f], self.scale) for f in np.unique(folds)]
            held = [(X[folds == f], y[folds == f]) for f in np.unique(folds)]
            scores = np.mean([p.scores(*h, alphas, ranks) for p, h in zip(parts, held, strict=True)], axis=0)
        # of equal scores the larger penalty and the lower rank
        flat = scores[::-1].argmax() if scores.size else 0
        a, r = divmod(int(flat), max(scores.shape[1], 1))
        self.alpha_ = float(alphas[len(alphas) - 1 - a] if scores.size else alphas[0])
        self.rank_ = ranks[r]
        self.inner_scores_ = scores
        self.inner_score_ = float(scores.max()) if scores.size else float("nan")
        whole = _Side.of(X, y, self.scale)
        left, right = whole.solution(self.alpha_, self.rank_)
        return self._learned(left, right, whole.x_mean, whole.y_mean)

    def predict(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32; a row with NaN gives NaN."""
        out: NDArray[np.float32] = self.predict_factors(X) @ self.right_.astype(np.float32)
        out += self.y_mean_.astype(np.float32)
        return out

    def predict_factors(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, r)`` float32 of the directions that all predictions lie in."""
        self._check_fitted("left_")
        X = self._check_width(X, self.n_features_in_).astype(np.float32, copy=False)
        out: NDArray[np.float32] = (X - self.x_mean_.astype(np.float32)) @ self.left_.astype(np.float32)
        return out

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return both factors of the coefficients, means and scores, and JSON with the parameters."""
        self._check_fitted("left_")
        arrays = {
            "left": self.left_,
            "right": self.right_,
            "x_mean": self.x_mean_,
            "y_mean": self.y_mean_,
            "inner_scores": self.inner_scores_,
        }
        params = {
            **self.get_params(),
            "ranks": list(check_choices("ranks", self.ranks)),
            "alphas": list(self._checked_alphas()),
        }
        return arrays, {"params": params, "alpha": self.alpha_, "rank": self.rank_}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted head that `to_state` described."""
        params = dict(meta["params"])
        head = cls(tuple(params.pop("ranks")), tuple(params.pop("alphas")), **params)
        head.alpha_, head.rank_ = float(meta["alpha"]), int(meta["rank"])
        head.inner_scores_ = np.asarray(arrays["inner_scores"])
        head.inner_score_ = float(head.inner_scores_.max()) if head.inner_scores_.size else float("nan")
        return head._learned(arrays["left"], arrays["right"], arrays["x_mean"], arrays["y_mean"])

    def _checked_alphas(self) -> Floats:
        alphas = np.atleast_1d(np.asarray(self.alphas, dtype=np.float64))
        if alphas.ndim != 1 or not len(alphas) or not np.isfinite(alphas).all() or (alphas <= 0).any():
            msg = f"alphas is {self.alphas!r}: give one or more positive numbers"
            raise UsageError(msg)
        if self.scale not in SCALES:
            msg = f"scale is {self.scale!r}: give {', '.join(SCALES)}"
            raise UsageError(msg)
        return np.unique(alphas)

    def _learned(self, left: Floats, right: Floats, x_mean: Floats, y_mean: Floats) -> Self:
        self.left_, self.right_ = np.ascontiguousarray(left), np.ascontiguousarray(right)
        self.x_mean_, self.y_mean_ = x_mean, y_mean
        self.n_features_in_ = len(left)
        return self


class _Side:
    """Training rows in the singular vectors of their features: ``Z = U diag(s) V'`` and ``U'Y (m, t)``."""

    def __init__(self, V: Floats, s: Floats, target: Floats, x_mean: Floats, y_mean: Floats) -> None:
        self.V, self.s, self.target, self.x_mean, self.y_mean = V, s, target, x_mean, y_mean
        self.inner = target @ target.T

    @classmethod
    def of(cls, X: Floats, y: Floats, scaling: Scale) -> _Side:
        x_mean, y_mean = X.mean(0), y.mean(0)
        Z = X - x_mean
        scale = scale_of(np.einsum("ij,ij->j", Z, Z) / len(Z), scaling)
        Z /= scale
        wide = len(Z) <= Z.shape[1]
        values, vectors = linalg.eigh(Z @ Z.T if wide else Z.T @ Z, check_finite=False, driver="evd")
        good = values > 1e-12 * max(float(values.max(initial=0.0)), np.finfo(np.float64).tiny)
        s, near = np.sqrt(values[good]), vectors[:, good]
        V = (Z.T @ near) / s if wide else near
        U = near if wide else (Z @ near) / s
        return cls(V / scale[:, None], s, U.T @ (y - y_mean), x_mean, y_mean)

    def directions(self, alpha: float, rank: int) -> tuple[Floats, Floats]:
        """Return what gives the leading directions ``P (t, r)`` as ``target' M``, and ``target P``; ``(m, r)`` each."""
        root = self.s / np.sqrt(self.s**2 + alpha)
        values, vectors = linalg.eigh(root[:, None] * self.inner * root, check_finite=False, driver="evd")
        values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
        size = np.sqrt(np.maximum(values, 0.0))
        divisor = np.where(size > 1e-9 * size.max(initial=0.0), size, np.inf)
        mix = root[:, None] * vectors / divisor
        return mix, self.inner @ mix

    def solution(self, alpha: float, rank: int) -> tuple[Floats, Floats]:
        """Return the two factors of the coefficients, ``(d, r)`` and ``(r, t)``."""
        mix, projected = self.directions(alpha, rank)
        shrink = self.s / (self.s**2 + alpha)
        return self.V @ (shrink[:, None] * projected), mix.T @ self.target

    def scores(self, X: Floats, y: Floats, alphas: Floats, ranks: tuple[int, ...]) -> Floats:
        """Return ``(alphas, ranks)`` negated mean squared errors on other rows."""
        towards, held = (X - self.x_mean) @ self.V, y - self.y_mean
        total, cross = float(np.einsum("ij,ij->", held, held)), held @ self.target.T
        out = np.empty((len(alphas), len(ranks)))
        for i, alpha in enumerate(alphas):
            mix, projected = self.directions(float(alpha), max(ranks))
            guess = (towards * (self.s / (self.s**2 + alpha))) @ projected
            # directions are orthonormal: each adds its own part to the error
            gain = 2 * np.einsum("ij,ij->j", guess, cross @ mix) - np.einsum("ij,ij->j", guess, guess)
            gain = np.cumsum(gain)
            out[i] = [gain[min(r, len(gain)) - 1] - total if len(gain) else -total for r in ranks]
        return out / y.size
