"""What a head must beat: predictions that look at no image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from scipy.spatial import cKDTree

from histostore.errors import UsageError
from histostore.heads.estimator import Estimator, check_pair, finite_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class TrainingMean(Estimator):
    """Predicts each target's mean over the training rows, whatever the features are."""

    sees: ClassVar[Literal["embeddings", "positions", "nothing"]] = "nothing"

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Take the means of ``(n, t)`` targets; `groups` is not used."""
        X, y = check_pair(X, y)
        self.mean_ = y.mean(0, dtype=np.float64)
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: NDArray[Any]) -> NDArray[np.float32]:
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

    def __init__(self, k: int = 15) -> None:
        self.k = k

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Keep ``(n, 2)`` positions and their ``(n, t)`` targets; `groups` is not used."""
        X, y = check_pair(X, y)
        if self.k < 1:
            msg = f"k is {self.k}: give 1 or more neighbours"
            raise UsageError(msg)
        # in order of position, so that which of two equally near rows counts does not depend on the order given
        order = np.lexsort(X.T[::-1])
        return self._learned(X[order].astype(np.float64), y[order].astype(np.float32))

    def predict(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32; fewer than `k` training rows are all used; NaN positions give NaN."""
        self._check_fitted("x_")
        X = self._check_width(X, self.n_features_in_)
        out = np.full((len(X), self.y_.shape[1]), np.nan, np.float32)
        good = finite_rows(X)
        if good.any():
            _, nearest = self._tree.query(X[good].astype(np.float64), k=np.arange(1, min(self.k, len(self.x_)) + 1))
            out[good] = self.y_[nearest].mean(axis=1, dtype=np.float64)
        return out

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return positions and targets of the training rows, and JSON with the parameters."""
        self._check_fitted("x_")
        return {"x": self.x_, "y": self.y_}, {"params": self.get_params()}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted estimator that `to_state` described."""
        return cls(**meta["params"])._learned(arrays["x"], arrays["y"])

    def _learned(self, x: NDArray[np.float64], y: NDArray[np.float32]) -> Self:
        self.x_, self.y_ = x, y
        self.n_features_in_ = x.shape[1]
        self._tree = cKDTree(x)
        return self
