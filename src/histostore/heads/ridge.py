"""Ridge regression on embeddings, many targets at once, the penalty chosen by whole groups held out.

    W = argmin ‖Y − 1b' − Z W‖² + α‖W‖²,   Z = (X − mean) / scale

Hoerl and Kennard, Technometrics 12, 55 (1970). Means, scale and α come from training rows only. Each inner fold costs
one eigendecomposition, after which every α is a product of small matrices: of the Gram matrix ``(d, d)`` where there
are more rows than features (from sums, see `gram`), else of the kernel ``(n, n)``. Both give what refitting would give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from histostore.errors import DataError, UsageError
from histostore.heads.estimator import Estimator, check_finite, check_tables
from histostore.heads.gram import BLOCK_ROWS, GramAccumulator
from histostore.heads.penalty import SCALES, SELECTS, Scale, Select, scale_of, score_rows, score_sums, solve
from histostore.heads.rows import blocks, whole
from histostore.heads.splits import merge_groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.heads.gram import Floats
    from histostore.heads.rows import Table

ALPHAS = tuple(float(a) for a in 10.0 ** np.arange(-1, 6.25, 0.5))
"""0.1 to 1e6 in half decades: embeddings are wide and counts are noisy, so good penalties are large."""


class Ridge(Estimator):
    """Multi-target ridge whose penalty is chosen by leaving groups out.

    Parameters
    ----------
    alphas
        Penalties to choose from; one needs no choosing.
    scale
        ``global`` divides all features by one number (the root mean variance), so that alphas mean the same for every
        backbone; ``features`` divides each by its own standard deviation (which blows up the nearly constant features
        of ReLU networks); ``none``.
    select
        What the held-out groups are scored by: ``mse``, or the mean over targets of ``pearson`` within the group.
    inner
        At most this many inner folds; more groups are merged into as many balanced ones.
    seed
        Of that merging, and of the folds of rows where no groups are given.

    Attributes
    ----------
    alpha_ : float
        The penalty chosen.
    inner_scores_ : numpy.ndarray
        ``(a,)`` mean over inner folds, higher is better (mse is negated); empty where nothing was chosen.
    inner_score_ : float
        That of `alpha_`; NaN where nothing was chosen.
    coef_ : numpy.ndarray
        ``(t, d)`` float64, in units of the raw features; `intercept_` ``(t,)``.
    n_features_in_ : int
    """

    streams: ClassVar[bool] = True
    from_sums: ClassVar[bool] = True
    """Whether `fit_gram` fits from sums by `folds`, so that the folds of a split can share them."""

    def __init__(
        self,
        alphas: Sequence[float] | float = ALPHAS,
        *,
        scale: Scale = "global",
        select: Select = "mse",
        inner: int = 10,
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.scale = scale
        self.select = select
        self.inner = inner
        self.seed = seed

    @property
    def tunes(self) -> bool:
        """Whether there is more than one penalty to choose from."""
        return len(self._checked_alphas()) > 1

    def fit(self, X: Table, y: Table, *, groups: NDArray[Any] | None = None) -> Self:
        """Choose the penalty and fit.

        Parameters
        ----------
        X
            ``(n, d)`` finite features of any float width; an array, or a row source that is read once, in order.
        y
            ``(n, t)`` or ``(n,)`` finite targets.
        groups
            ``(n,)`` labels; rows of one group are never on both sides of an inner fold. Without them single rows are
            dealt to the folds, which is too hopeful where neighbouring rows are alike.
        """
        X, y = check_tables(X, y)
        folds = self.folds(len(X), groups)
        if len(X) <= X.shape[1]:
            X, y = whole(X), whole(y)
            check_finite(X, y)
            return self._fit_kernel(X, y, folds, self._checked_alphas())
        sums = GramAccumulator()
        try:
            for rows, block in blocks(X):
                sums.add_folds(block, y[rows], folds[rows])
        except DataError:
            check_finite(X, y)  # says how many rows of all there are, not of one block
            raise
        return self.fit_gram(sums)

    def folds(self, n: int, groups: NDArray[Any] | None) -> NDArray[np.int64]:
        """Return the inner fold of each of `n` rows: those by which `fit` chooses; all the same where it does not."""
        if not self.tunes:
            return np.zeros(n, np.int64)
        if groups is None:
            folds = np.arange(n) % min(self.inner, 5, n)
            np.random.default_rng(self.seed).shuffle(folds)
        else:
            groups = np.asarray(groups)
            if groups.shape != (n,):
                msg = f"groups has shape {groups.shape} for {n} rows"
                raise UsageError(msg)
            folds = merge_groups(groups, self.inner, seed=self.seed)
        self._check_folds(len(np.unique(folds)))
        return folds

    def fit_gram(self, sums: GramAccumulator) -> Self:
        """Fit from sums: the penalty by leaving out each of the accumulator's groups in turn."""
        alphas = self._checked_alphas()
        total = sums.total()
        if total.n < 2:
            msg = f"{total.n} training row: ridge needs two"
            raise UsageError(msg)
        scores = np.empty((0, 0))
        if len(alphas) > 1:
            self._check_folds(len(sums.groups))
            scores = np.array(
                [score_sums(total, part, alphas, self.scale, self.select) for part in sums.groups.values()]
            )
        alpha = self._choose(alphas, scores)
        mx, my = total.x / total.n, total.y / total.n
        xx, xy, _ = total.about(mx, my)
        scale = scale_of(np.diag(xx) / total.n, self.scale)
        # in raw units: scaling features by s and penalising by α is penalising the raw ones by α s²
        weights = solve(xx, xy, alpha * scale**2)
        assert sums.x_origin is not None
        assert sums.y_origin is not None
        return self._learned(weights, mx + sums.x_origin, my + sums.y_origin)

    def predict(self, X: Table) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32; a row with NaN gives NaN."""
        self._check_fitted("coef_")
        X = self._check_width(X, self.n_features_in_)
        out = np.empty((len(X), len(self.coef_)), np.float32)
        weights, means = self.coef_.T.astype(np.float32), self.x_mean_.astype(np.float32)
        for rows, block in blocks(X, BLOCK_ROWS):
            out[rows] = (block.astype(np.float32) - means) @ weights
        out += self.y_mean_.astype(np.float32)
        return out

    @property
    def intercept_(self) -> Floats:
        """``(t,)`` prediction at zero."""
        self._check_fitted("coef_")
        return self.y_mean_ - self.coef_ @ self.x_mean_

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return what was learned: float64 arrays, and JSON with the parameters."""
        self._check_fitted("coef_")
        arrays = {
            "coef": self.coef_,
            "x_mean": self.x_mean_,
            "y_mean": self.y_mean_,
            "inner_scores": self.inner_scores_,
        }
        params = {**self.get_params(), "alphas": list(self._checked_alphas())}
        return arrays, {"params": params, "alpha": self.alpha_}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted ridge that `to_state` described."""
        params = dict(meta["params"])
        head = cls(tuple(params.pop("alphas")), **params)
        head.alpha_ = float(meta["alpha"])
        head._set_scores(head._checked_alphas(), np.asarray(arrays["inner_scores"]))
        return head._learned(arrays["coef"].T, arrays["x_mean"], arrays["y_mean"])

    # -- how ------------------------------------------------------------------------------------------------------

    def _fit_kernel(self, X: NDArray[Any], y: NDArray[Any], folds: NDArray[np.int64], alphas: Floats) -> Self:
        if len(X) < 2:
            msg = f"{len(X)} training row: ridge needs two"
            raise UsageError(msg)
        mx, my = X.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
        Z, Y = X - mx, y - my
        variance = np.einsum("ij,ij->j", Z, Z) / len(Z)
        scale = scale_of(variance, self.scale)
        scores = np.empty((0, 0))
        shared = Z @ Z.T if self.scale != "features" else None
        if len(alphas) > 1:
            scores = np.array(
                [score_rows(Z, Y, folds != f, shared, alphas, self.scale, self.select) for f in np.unique(folds)],
            )
        alpha = self._choose(alphas, scores)
        if shared is not None:
            return self._learned(Z.T @ solve(shared, Y, alpha * scale[0] ** 2), mx, my)
        Z /= scale
        return self._learned(Z.T @ solve(Z @ Z.T, Y, alpha) / scale[:, None], mx, my)

    def _check_folds(self, n: int) -> None:
        if n < 2:
            msg = "choosing a penalty needs two groups of training rows and there is one: give one alpha"
            raise UsageError(msg)

    def _checked_alphas(self) -> Floats:
        alphas = np.atleast_1d(np.asarray(self.alphas, dtype=np.float64))
        if alphas.ndim != 1 or not len(alphas) or not np.isfinite(alphas).all() or (alphas <= 0).any():
            msg = f"alphas is {self.alphas!r}: give one or more positive numbers"
            raise UsageError(msg)
        for name, value, known in (
            ("scale", self.scale, SCALES),
            ("select", self.select, SELECTS),
        ):
            if value not in known:
                msg = f"{name} is {value!r}: give {', '.join(known)}"
                raise UsageError(msg)
        if self.inner < 2:
            msg = f"inner is {self.inner}: give 2 folds or more"
            raise UsageError(msg)
        return np.unique(alphas)

    def _choose(self, alphas: Floats, scores: Floats) -> float:
        """Keep the mean score of each alpha; of equal scores the larger penalty wins."""
        mean = scores.mean(0) if scores.size else np.empty(0)
        best = len(alphas) - 1 - int(np.argmax(mean[::-1])) if mean.size else 0
        self.alpha_ = float(alphas[best])
        self._set_scores(alphas, mean)
        return self.alpha_

    def _set_scores(self, alphas: Floats, mean: Floats) -> None:
        self.inner_scores_ = mean
        self.inner_score_ = float(mean[np.searchsorted(alphas, self.alpha_)]) if mean.size else float("nan")

    def _learned(self, weights: Floats, x_mean: Floats, y_mean: Floats) -> Self:
        self.coef_ = np.ascontiguousarray(weights.T)
        self.x_mean_ = x_mean
        self.y_mean_ = y_mean
        self.n_features_in_ = len(weights)
        return self
