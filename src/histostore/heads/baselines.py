"""What a head must beat: predictions that look at no image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from scipy.spatial import cKDTree

from histostore.errors import UsageError
from histostore.heads.estimator import Estimator, as_rows, check_finite, check_tables, finite_rows
from histostore.heads.rows import RowSource, blocks, pick, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.heads.rows import Table

NEAREST_ROWS = 4096
"""Rows whose neighbours' targets are gathered at a time."""


class TrainingMean(Estimator):
    """Predicts each target's mean over the training rows, whatever the features are."""

    sees: ClassVar[Literal["embeddings", "positions", "nothing"]] = "nothing"

    streams: ClassVar[bool] = True

    def fit(self, X: Table, y: Table, *, groups: NDArray[Any] | None = None) -> Self:
        """Take the means of ``(n, t)`` targets; `groups` is not used."""
        X, y = check_tables(X, y)
        check_finite(X, y)
        total = np.zeros(y.shape[1])
        for _, block in blocks(y):
            total += block.sum(0, dtype=np.float64)
        self.mean_ = total / len(y)
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: Table) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32; a row with NaN gives NaN, as of every head."""
        self._check_fitted("mean_")
        X = self._check_width(X, self.n_features_in_)
        out = np.full((len(X), len(self.mean_)), np.nan, np.float32)
        out[finite_rows(X)] = self.mean_
        return out

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the means, and JSON with the parameters."""
        self._check_fitted("mean_")
        return {"mean": self.mean_}, {"params": self.get_params(), "n_features": self.n_features_in_}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted estimator that `to_state` described."""
        head = cls(**meta["params"])
        head.mean_ = arrays["mean"]
        head.n_features_in_ = int(meta["n_features"])
        return head


class PositionKNN(Estimator):
    """Predicts the mean of the `k` training rows that lie nearest; its X are positions, not embeddings.

    Positions of several slides must be in one frame: `histostore.heads.features.section_positions` centres each slide
    on its own rows. Among replicate sections of one block this predicts well, which says that a split between such
    sections proves little about images.
    """

    sees: ClassVar[Literal["embeddings", "positions", "nothing"]] = "positions"

    streams: ClassVar[bool] = True
    """Its X are small; of targets that are a row source, only those of the nearest rows are read."""

    def __init__(self, k: int = 15) -> None:
        self.k = k

    def fit(self, X: NDArray[Any], y: Table, *, groups: NDArray[Any] | None = None) -> Self:
        """Keep ``(n, 2)`` positions and their ``(n, t)`` targets; `groups` is not used."""
        X, (_, y) = as_rows(X, "X"), check_tables(X, y)
        check_finite(X, y)
        if self.k < 1:
            msg = f"k is {self.k}: give 1 or more neighbours"
            raise UsageError(msg)
        # in order of position, so that which of two equally near rows counts does not depend on the order given
        order = np.lexsort(X.T[::-1])
        targets = pick(y, order)
        kept = targets if isinstance(targets, RowSource) else targets.astype(np.float32)
        return self._learned(X[order].astype(np.float64), kept)

    def predict(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32; fewer than `k` training rows are all used; NaN positions give NaN."""
        self._check_fitted("x_")
        X = self._check_width(X, self.n_features_in_)
        out = np.full((len(X), self.y_.shape[1]), np.nan, np.float32)
        good = finite_rows(X)
        if good.any():
            _, nearest = self._tree.query(X[good].astype(np.float64), k=np.arange(1, min(self.k, len(self.x_)) + 1))
            out[good] = np.concatenate([self._means(part) for _, part in blocks(nearest, NEAREST_ROWS)])
        return out

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return positions and targets of the training rows, and JSON with the parameters."""
        self._check_fitted("x_")
        return {"x": self.x_, "y": whole(self.y_)}, {"params": self.get_params()}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted estimator that `to_state` described."""
        return cls(**meta["params"])._learned(arrays["x"], arrays["y"])

    def _means(self, nearest: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ``(b, t)`` means over the rows ``(b, k)``."""
        needed, at = np.unique(nearest, return_inverse=True)
        means: NDArray[np.float64] = self.y_[needed][at.reshape(nearest.shape)].mean(axis=1, dtype=np.float64)
        return means

    def _learned(self, x: NDArray[np.float64], y: Table) -> Self:
        self.x_, self.y_ = x, y
        self.n_features_in_ = x.shape[1]
        self._tree = cKDTree(x)
        return self
