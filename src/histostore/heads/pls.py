"""Partial least squares: directions of the embeddings that covary most with the targets.

scikit-learn's NIPALS (Wold; Geladi and Kowalski, Analytica Chimica Acta 185, 1 (1986)) is inside. Components are
nested, so one fit per inner fold scores every number of them.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.cross_decomposition import PLSRegression
from sklearn.exceptions import ConvergenceWarning

from histostore.errors import UsageError
from histostore.heads.convergence import say_not_converged
from histostore.heads.estimator import Estimator, check_pair
from histostore.heads.tuning import check_choices, inner_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

COMPONENTS = (1, 2, 3, 5, 8, 12, 20)


class PLS(Estimator):
    """Partial least squares whose number of components is chosen by leaving groups out.

    Parameters
    ----------
    components
        Numbers to choose from; one needs no choosing. More than rows or features allow are left out of the choice.
    scale
        Divide each feature and each target by its standard deviation.
    max_iter, tol
        Of NIPALS, per component.
    inner, seed
        As of `histostore.heads.ridge.Ridge`.

    Attributes
    ----------
    n_components_ : int
    inner_scores_ : numpy.ndarray
        ``(len(components),)`` negated mean squared errors; empty where nothing was chosen.
    coef_ : numpy.ndarray
        ``(t, d)``; `x_mean_`, `y_mean_` beside it.
    """

    def __init__(
        self,
        components: Sequence[int] | int = COMPONENTS,
        *,
        scale: bool = False,
        max_iter: int = 500,
        tol: float = 1e-6,
        inner: int = 10,
        seed: int = 0,
    ) -> None:
        self.components = components
        self.scale = scale
        self.max_iter = max_iter
        self.tol = tol
        self.inner = inner
        self.seed = seed

    @property
    def tunes(self) -> bool:
        """Whether there is more than one number to choose from."""
        return len(check_choices("components", self.components)) > 1

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Choose the number of components and fit ``(n, d)`` features and ``(n, t)`` targets."""
        X, y = check_pair(X, y)
        X, y = X.astype(np.float64), y.astype(np.float64)
        choices = check_choices("components", self.components)
        if len(X) < 2:
            msg = f"{len(X)} training row: PLS needs two"
            raise UsageError(msg)
        self.notes_: tuple[str, ...] = ()
        scores = np.empty((0, 0))
        if len(choices) > 1:
            folds = inner_labels(len(X), groups, inner=self.inner, seed=self.seed)
            parts = [folds != f for f in np.unique(folds)]
            limit = min(min(int(p.sum()) - 1, X.shape[1]) for p in parts)
            choices = tuple(c for c in choices if c <= limit) or choices[:1]
            scores = np.array([self._scores(X, y, train, choices) for train in parts])
        mean = scores.mean(0) if scores.size else np.empty(0)
        best = int(np.argmax(mean)) if mean.size else 0
        self.n_components_ = choices[best]
        self.inner_scores_, self.inner_score_ = mean, float(mean[best]) if mean.size else float("nan")
        coefs, x_mean, y_mean = self._coefs(X, y, (self.n_components_,))
        return self._learned(coefs[0], x_mean, y_mean)

    def predict(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32; a row with NaN gives NaN."""
        self._check_fitted("coef_")
        X = self._check_width(X, self.n_features_in_).astype(np.float32, copy=False)
        out = (X - self.x_mean_.astype(np.float32)) @ self.coef_.T.astype(np.float32) + self.y_mean_
        return out.astype(np.float32)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return coefficients, means and inner scores, and JSON with the parameters."""
        self._check_fitted("coef_")
        arrays = {
            "coef": self.coef_,
            "x_mean": self.x_mean_,
            "y_mean": self.y_mean_,
            "inner_scores": self.inner_scores_,
        }
        params = {**self.get_params(), "components": list(check_choices("components", self.components))}
        inner = None if np.isnan(self.inner_score_) else self.inner_score_
        return arrays, {
            "params": params,
            "n_components": self.n_components_,
            "inner_score": inner,
            "notes": list(self.notes_),
        }

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted head that `to_state` described."""
        params = dict(meta["params"])
        head = cls(tuple(params.pop("components")), **params)
        head.n_components_, head.notes_ = int(meta["n_components"]), tuple(meta["notes"])
        head.inner_scores_ = arrays["inner_scores"]
        head.inner_score_ = float("nan") if meta["inner_score"] is None else float(meta["inner_score"])
        return head._learned(arrays["coef"], arrays["x_mean"], arrays["y_mean"])

    def _scores(self, X: Floats, y: Floats, train: NDArray[np.bool_], choices: tuple[int, ...]) -> Floats:
        coefs, x_mean, y_mean = self._coefs(X[train], y[train], choices)
        held = X[~train] - x_mean
        return np.array([-np.mean((held @ c.T + y_mean - y[~train]) ** 2) for c in coefs])

    def _coefs(self, X: Floats, y: Floats, choices: tuple[int, ...]) -> tuple[list[Floats], Floats, Floats]:
        """Return the coefficients ``(t, d)`` of each number of components, from one fit of the largest."""
        x_mean, y_mean = X.mean(0), y.mean(0)
        largest = min(max(choices), len(X) - 1, X.shape[1])
        if largest < max(choices):
            msg = f"{max(choices)} components of {len(X)} rows and {X.shape[1]} features: give {largest} or fewer"
            raise UsageError(msg)
        if not (y != y[0]).any() or not (X[0] != X).any():
            # nothing varies: NIPALS would divide by zero, and the mean is the answer
            return [np.zeros((y.shape[1], X.shape[1])) for _ in choices], x_mean, y_mean
        model = PLSRegression(largest, scale=self.scale, max_iter=self.max_iter, tol=self.tol)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.fit(X, y)
        if any(issubclass(w.category, ConvergenceWarning) for w in said) and not self.notes_:
            self.notes_ = say_not_converged("NIPALS", f"{self.max_iter} iterations", "give a larger max_iter or tol")
        # a target or feature that is constant has no standard deviation, and scikit-learn divides it by one
        x_std, y_std = model._x_std, model._y_std
        out = []
        for count in choices:
            weights = model.x_rotations_[:, :count] @ model.y_loadings_[:, :count].T
            out.append(((weights * y_std) / x_std[:, None]).T)
        return out, x_mean, y_mean

    def _learned(self, coef: Floats, x_mean: Floats, y_mean: Floats) -> Self:
        self.coef_, self.x_mean_, self.y_mean_ = np.ascontiguousarray(coef), x_mean, y_mean
        self.n_features_in_ = coef.shape[1]
        return self
