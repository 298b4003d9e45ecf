"""Nearest neighbours among the training embeddings: their mean is the prediction, their spread says how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from histostore.errors import UsageError
from histostore.heads.estimator import Estimator, check_pair, finite_rows
from histostore.heads.tuning import by_value, check_choices, inner_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    type Floats = NDArray[np.float32]

BLOCK_ROWS = 1024
"""Queries compared with all training rows at a time."""
SPARE = 8
"""Candidates beyond k whose distance is computed again in float64, so that rounding does not choose neighbours."""


class KNN(Estimator):
    """Mean over the `k` most similar training rows.

    Parameters
    ----------
    k
        Numbers to choose from by groups left out; one needs no choosing. At most all training rows are used.
    metric
        ``cosine`` of centred embeddings, or ``euclidean``.
    inner, seed
        As of `histostore.heads.ridge.Ridge`.
    """

    def __init__(
        self,
        k: Sequence[int] | int = (5, 10, 20, 40, 80),
        *,
        metric: Literal["cosine", "euclidean"] = "cosine",
        inner: int = 10,
        seed: int = 0,
    ) -> None:
        self.k = k
        self.metric = metric
        self.inner = inner
        self.seed = seed

    @property
    def tunes(self) -> bool:
        """Whether there is more than one number to choose from."""
        return len(check_choices("k", self.k)) > 1

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Keep ``(n, d)`` embeddings and ``(n, t)`` targets, and choose k."""
        X, y = check_pair(X, y)
        if self.metric not in ("cosine", "euclidean"):
            msg = f"metric is {self.metric!r}, not cosine or euclidean"
            raise UsageError(msg)
        choices, scores = check_choices("k", self.k), np.empty(0)
        if len(choices) > 1:
            folds = inner_labels(len(X), groups, inner=self.inner, seed=self.seed)
            scores = np.mean([self._scores(X, y, folds == f, choices) for f in np.unique(folds)], axis=0)
        best = int(scores.argmax()) if scores.size else 0
        self.k_, self.inner_scores_ = choices[best], scores
        self.inner_score_ = float(scores[best]) if scores.size else float("nan")
        return self._keep(X, y)

    def predict(self, X: NDArray[Any]) -> Floats:
        """Return ``(n, t)`` float32; a row with NaN gives NaN."""
        return self.predict_with_spread(X)[0]

    def predict_with_spread(self, X: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the neighbours' targets, ``(n, t)`` float32 each."""
        self._check_fitted("x_")
        X = self._check_width(X, self.n_features_in_)
        mean = np.full((len(X), self.y_.shape[1]), np.nan, np.float32)
        spread = mean.copy()
        good = np.flatnonzero(finite_rows(X))
        for begin in range(0, len(good), BLOCK_ROWS):
            rows = good[begin : begin + BLOCK_ROWS]
            near = self._neighbours(X[rows], self.k_)
            total, squares = np.zeros((len(rows), self.y_.shape[1])), np.zeros((len(rows), self.y_.shape[1]))
            for rank in range(near.shape[1]):
                part = self._centred_y[near[:, rank]]
                total += part
                squares += part**2
            total /= near.shape[1]
            mean[rows] = total + self._y_mean
            spread[rows] = np.sqrt(np.maximum(squares / near.shape[1] - total**2, 0.0))
        return mean, spread

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return embeddings and targets of the training rows, and JSON with the parameters."""
        self._check_fitted("x_")
        params = {**self.get_params(), "k": list(check_choices("k", self.k))}
        inner = None if np.isnan(self.inner_score_) else self.inner_score_
        arrays: dict[str, NDArray[Any]] = {"x": self.x_, "y": self.y_, "inner_scores": self.inner_scores_}
        return arrays, {"params": params, "k": self.k_, "inner_score": inner}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted head that `to_state` described."""
        params = dict(meta["params"])
        head = cls(tuple(params.pop("k")), **params)
        head.k_, head.inner_scores_ = int(meta["k"]), arrays["inner_scores"]
        head.inner_score_ = float("nan") if meta["inner_score"] is None else float(meta["inner_score"])
        return head._learned(arrays["x"], arrays["y"])

    def _scores(
        self, X: NDArray[Any], y: NDArray[Any], held: NDArray[np.bool_], choices: tuple[int, ...]
    ) -> NDArray[np.float64]:
        part = type(self)(max(choices), metric=self.metric)
        part.k_ = max(choices)
        part._keep(X[~held], y[~held])
        errors, truth, rows = np.zeros(len(choices)), y[held], X[held]
        for begin in range(0, len(rows), BLOCK_ROWS):
            near = part._neighbours(rows[begin : begin + BLOCK_ROWS], max(choices))
            for i, k in enumerate(choices):
                guess = part.y_[near[:, :k]].mean(1, dtype=np.float64)
                errors[i] += float(np.sum((guess - truth[begin : begin + BLOCK_ROWS]) ** 2))
        return -errors / truth.size

    def _keep(self, X: NDArray[Any], y: NDArray[Any]) -> Self:
        order = by_value(X, y)
        return self._learned(X[order].astype(np.float32), y[order].astype(np.float32))

    def _learned(self, x: Floats, y: Floats) -> Self:
        self.x_, self.y_ = x, y
        self.n_features_in_ = x.shape[1]
        self._mean = x.mean(0, dtype=np.float64)
        self._y_mean = y.mean(0, dtype=np.float64)
        self._centred_y = y - self._y_mean
        self._x = self._placed(x)
        self._square = np.einsum("ij,ij->i", self._x, self._x)
        return self

    def _placed(self, X: NDArray[Any]) -> Floats:
        """Return rows among which euclidean distance orders as the metric does."""
        placed = X - self._mean
        if self.metric == "cosine":
            length = np.sqrt(np.einsum("ij,ij->i", placed, placed))[:, None]
            placed = placed / np.where(length > 0, length, 1.0)
        return placed.astype(np.float32)

    def _neighbours(self, X: NDArray[Any], k: int) -> NDArray[np.int64]:
        """Return ``(n, min(k, training rows))`` indices, nearest first; equal distances in the order kept."""
        rows = self._placed(X)
        k = min(k, len(self._x))
        wide = min(k + SPARE, len(self._x))
        rough = self._square - 2 * (rows @ self._x.T)
        some = np.sort(np.argpartition(rough, wide - 1, axis=1)[:, :wide], axis=1)
        out = np.empty((len(rows), k), np.int64)
        for i, candidates in enumerate(some):
            apart = self._x[candidates].astype(np.float64) - rows[i]
            out[i] = candidates[np.argsort(np.einsum("ij,ij->i", apart, apart), kind="stable")[:k]]
        return out
