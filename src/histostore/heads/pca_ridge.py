"""The regression of the HEST benchmark: standardised features, 256 principal components, ridge with a fixed penalty.

Jaume et al., NeurIPS 2024 (HEST-1k): α = 100 / (components x genes). Here the intercept is the training mean, which
changes no correlation; without it the error of a prediction would mean nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy import linalg

from histostore.errors import UsageError
from histostore.heads.estimator import Estimator, check_pair
from histostore.heads.gram import BLOCK_ROWS, GramAccumulator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

STRENGTH = 100.0


class PCARidge(Estimator):
    """Ridge on principal components, nothing chosen.

    Parameters
    ----------
    components
        At most as many as features and training rows less one.

    Attributes
    ----------
    alpha_ : float
        100 / (components x targets).
    coef_ : numpy.ndarray
        ``(t, d)`` in units of the raw features.
    explained_ : float
        Share of the standardised features' variance that the components keep.
    """

    def __init__(self, components: int = 256) -> None:
        self.components = components

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Learn from ``(n, d)`` features and ``(n, t)`` targets; `groups` say nothing here.

        Raises
        ------
        UsageError
            Fewer than one component, or a single training row.
        """
        X, y = check_pair(X, y)
        if self.components < 1 or len(X) < 2:
            msg = f"{self.components} components of {len(X)} training rows: give 1 or more, and two rows"
            raise UsageError(msg)
        sums = GramAccumulator()
        sums.add(X, y)
        total = sums.total()
        assert sums.x_origin is not None
        assert sums.y_origin is not None
        mx, my = total.x / total.n, total.y / total.n
        xx, xy, _ = total.about(mx, my)
        std = np.sqrt(np.maximum(np.diag(xx), 0.0) / total.n)
        std = np.where(std > 1e-6 * std.max(initial=0.0), std, 1.0)
        k = min(self.components, X.shape[1], len(X) - 1)
        first = X.shape[1] - k
        values, vectors = linalg.eigh(xx / np.outer(std, std), subset_by_index=(first, X.shape[1] - 1))
        self.alpha_ = STRENGTH / (k * y.shape[1])
        weights = vectors @ ((vectors.T @ (xy / std[:, None])) / (np.maximum(values, 0.0) + self.alpha_)[:, None])
        self.coef_ = (weights / std[:, None]).T
        # of features that are all constant there is nothing to keep
        self.explained_ = float(np.maximum(values, 0.0).sum() / (np.trace(xx / np.outer(std, std)) or 1.0))
        return self._learned(mx + sums.x_origin, my + sums.y_origin)

    def predict(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32; a row with NaN gives NaN."""
        self._check_fitted("coef_")
        X = self._check_width(X, self.n_features_in_)
        out = np.empty((len(X), len(self.coef_)), np.float32)
        for begin in range(0, len(X), BLOCK_ROWS):
            block = X[begin : begin + BLOCK_ROWS] - self.x_mean_
            out[begin : begin + BLOCK_ROWS] = block @ self.coef_.T + self.y_mean_
        return out

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return what was learned as arrays and plain JSON."""
        self._check_fitted("coef_")
        arrays = {"coef": self.coef_, "x_mean": self.x_mean_, "y_mean": self.y_mean_}
        return arrays, {"components": self.components, "alpha": self.alpha_, "explained": self.explained_}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted head that `to_state` described."""
        head = cls(int(meta["components"]))
        head.alpha_, head.explained_, head.coef_ = float(meta["alpha"]), float(meta["explained"]), arrays["coef"]
        return head._learned(arrays["x_mean"], arrays["y_mean"])

    def _learned(self, x_mean: NDArray[Any], y_mean: NDArray[Any]) -> Self:
        self.x_mean_, self.y_mean_ = x_mean, y_mean
        self.n_features_in_ = len(x_mean)
        return self
