"""RENN: a network for what the image says, a random effect for where it came from.

    y = f(x) + b_group + e,   b ~ N(0, s2_b),   e ~ N(0, s2_e)

f is an MLP; the variances and the effects are those of the exact likelihood of all rows, at any batch size (see
`fit_network`). Rows of a known group are predicted with its effect (BLUP), rows of a new one with 0 and a wider
interval. The idea of a network inside a mixed model is that of Simchoni and Rosset, NeurIPS 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from scipy.stats import norm
from torch import nn

from histostore.errors import DataError, UsageError
from histostore.heads.estimator import Estimator, check_pair, finite_rows
from histostore.heads.mixed.design import check_method
from histostore.heads.mixed.effects import Effects, posterior_variance
from histostore.heads.mixed.fit_network import Plan, Problem, by_value, train
from histostore.heads.mixed.levels import UNSEEN, Levels
from histostore.heads.mixed.seed_losses import WHAT_THEY_ARE, SeedLoss
from histostore.heads.net import forward, load_weights, mlp, seeded, weights_of
from histostore.heads.penalty import SCALES, Scale, scale_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats, Method
    from histostore.heads.mixed.fit_network import Decay

Activation = Literal["relu", "silu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}

ARRAYS = ("x_mean", "x_scale", "y_mean", "y_scale", "varies", "s2_e", "s2_b", "noise", "blup", "sizes")


class RENN(Estimator):
    """Network with a random intercept per group.

    Parameters
    ----------
    hidden
        Widths of the hidden layers; none is a linear model.
    activation
        ``relu`` (the RENN study's), ``silu`` or ``tanh``, which learn smooth functions of few features from fewer rows.
    epochs
        At most; 0 leaves the intercept-only mixed model.
    batch_size
        Rows per step; changes the optimiser's noise and not what is estimated (but for the study's losses).
    lr, weight_decay
        Of AdamW.
    decay
        Of the learning rates: ``cosine`` to 0, ``halving`` every 16 epochs, ``none``.
    loss
        ``em`` is exact. ``nll``, ``cor_1``, ``cor_det``, ``no_re`` are the RENN study's, in batches of one group; see
        `histostore.heads.mixed.seed_losses.WHAT_THEY_ARE`.
    sigma_lr
        Learning rate of the log variances; of the study's losses only.
    method
        ``ml`` or ``reml``, of the variances.
    dropout
        Between layers, in training.
    validation
        Share of rows held out to stop by; 0 trains all epochs on all rows.
    patience
        Epochs without a better held-out error after which training stops; the best epoch is kept.
    scale
        Of the features, as in `histostore.heads.ridge.Ridge`.
    scale_target
        Divide targets by their standard deviation while training, so that `lr` means the same for all.
    seed
        Of weights, batches and held-out rows.

    Attributes
    ----------
    s2_e_, s2_b_ : numpy.ndarray
        ``(t,)`` variances within and between groups.
    noise_ : numpy.ndarray
        ``(t,)`` variance that intervals use for a single value: `s2_e_`, or what the held-out rows show where that
        is more (a network that fits its training rows closely leaves residuals that are too small).
    levels_ : Levels
        The groups; `blup_` ``(q, t)`` their effects and `blup_var_` their variances.
    history_ : dict
        ``loss`` (exact marginal likelihood per row), ``s2_e``, ``s2_b``, ``validation``, an entry per epoch, in units
        of the scaled targets; `best_epoch_` is the one kept.
    notes_ : tuple of str
        What must be said of this fit.
    """

    def __init__(
        self,
        hidden: Sequence[int] | int = (256, 64),
        *,
        activation: Activation = "relu",
        epochs: int = 60,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        decay: Decay = "cosine",
        loss: Literal["em"] | SeedLoss = "em",
        sigma_lr: float = 1.5e-3,
        method: Method = "ml",
        dropout: float = 0.0,
        validation: float = 0.1,
        patience: int = 10,
        scale: Scale = "global",
        scale_target: bool = True,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.decay = decay
        self.loss = loss
        self.sigma_lr = sigma_lr
        self.method = method
        self.dropout = dropout
        self.validation = validation
        self.patience = patience
        self.scale = scale
        self.scale_target = scale_target
        self.seed = seed

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Train.

        Parameters
        ----------
        X
            ``(n, d)`` finite features.
        y
            ``(n, t)`` or ``(n,)`` finite targets; each has variances and effects of its own.
        groups
            ``(n,)`` labels, compared as text. Only ``loss="no_re"`` does without.

        Raises
        ------
        UsageError
            No groups, or options that make no sense.
        DataError
            One group, groups of one row each, all targets constant, a loss that became NaN.
        """
        X, y = check_pair(X, y)
        plan = self._plan()
        levels, notes = self._levels(groups, len(X))
        # an order that depends on the values alone: batches then do not depend on the order given
        order = by_value(X, y)
        X, y, codes = X[order], y[order].astype(np.float64), levels.codes[order]
        self.n_features_in_, self.levels_, self.sizes_ = X.shape[1], levels, levels.sizes
        self._set_scales(X, y)
        if not self.varies_.all():
            notes = (*notes, f"{int((~self.varies_).sum())} of {y.shape[1]} targets are constant: predicted as such")
        problem = self._problem(X, y, codes, levels)
        with seeded(self.seed):
            self._net = self._network()
            effects, track = train(self._net, problem, plan)
        self.best_epoch_ = track.best_epoch
        shape = (len(track.loss), int(self.varies_.sum()))
        self.history_ = {
            "loss": np.array(track.loss),
            "s2_e": np.array(track.s2_e).reshape(shape),
            "s2_b": np.array(track.s2_b).reshape(shape),
            "validation": np.array(track.validation),
        }
        self._conclude(problem, effects)
        self.notes_ = (*notes, *self._said())
        return self

    def predict(self, X: NDArray[Any], groups: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32: network plus the effect of known groups; new groups, or none given, add 0."""
        self._check_fitted("blup_")
        X = self._check_width(X, self.n_features_in_)
        out = np.tile(self.y_mean_, (len(X), 1))
        good = finite_rows(X)
        if good.any():
            fixed = forward(self._net, self._scaled(X[good]))
            out[np.ix_(good, self.varies_)] += fixed * self.y_scale_[self.varies_]
        codes = self._codes(groups, len(X))
        known = codes != UNSEEN
        out[known] += self.blup_[codes[known]]
        out[~good] = np.nan
        return out.astype(np.float32)

    def predict_interval(
        self, X: NDArray[Any], groups: NDArray[Any] | None = None, *, level: float = 0.9
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the limits ``(n, t)`` between which a share `level` of new values should lie.

        Known groups: noise plus the variance of the group's effect given its rows. New groups: noise plus the whole
        variance between groups. What is not known of the network itself is not in it.
        """
        if not 0 < level < 1:
            msg = f"level is {level}: give a share between 0 and 1"
            raise UsageError(msg)
        middle = self.predict(X, groups)
        codes = self._codes(groups, len(middle))
        of_effect = np.where((codes == UNSEEN)[:, None], self.s2_b_, self.blup_var_[codes])
        half = norm.ppf(0.5 + level / 2) * np.sqrt(self.noise_ + of_effect)
        return (middle - half).astype(np.float32), (middle + half).astype(np.float32)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return weights, variances and effects, and JSON with parameters and group names."""
        self._check_fitted("blup_")
        arrays = {name: getattr(self, f"{name}_") for name in ARRAYS}
        arrays |= {f"history.{name}": values for name, values in self.history_.items()}
        return arrays | weights_of(self._net), {
            "params": {**self.get_params(), "hidden": list(self._widths())},
            "n_features": self.n_features_in_,
            "groups": list(self.levels_.names),
            "best_epoch": self.best_epoch_,
            "notes": list(self.notes_),
        }

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted estimator that `to_state` described."""
        head = cls(**{**meta["params"], "hidden": tuple(meta["params"]["hidden"])})
        for name in ARRAYS:
            setattr(head, f"{name}_", arrays[name])
        head.n_features_in_ = int(meta["n_features"])
        head.best_epoch_ = int(meta["best_epoch"])
        head.notes_ = tuple(meta["notes"])
        head.levels_ = Levels("groups", tuple(meta["groups"]), np.empty(0, np.int64), head.sizes_)
        head.history_ = {k.removeprefix("history."): v for k, v in arrays.items() if k.startswith("history.")}
        with seeded(0):
            head._net = head._network()
        load_weights(head._net, arrays)
        return head

    @property
    def blup_var_(self) -> Floats:
        """``(q, t)`` variances of the group effects given the data."""
        return posterior_variance(self.sizes_, self.s2_e_, self.s2_b_)

    def effects(self, target: int = 0) -> dict[str, float]:
        """Return the group effects of one target by label."""
        self._check_fitted("blup_")
        return dict(zip(self.levels_.names, self.blup_[:, target].tolist(), strict=True))

    def _plan(self) -> Plan:
        check_method(self.method)
        if self.scale not in SCALES:
            msg = f"scale is {self.scale!r}: give one of {', '.join(SCALES)}"
            raise UsageError(msg)
        if not (0 <= self.validation < 1 and 0 <= self.dropout < 1):
            msg = f"validation is {self.validation} and dropout {self.dropout}: give shares of 0 or more, below 1"
            raise UsageError(msg)
        if self.activation not in ACTIVATIONS:
            msg = f"activation is {self.activation!r}: give one of {', '.join(ACTIVATIONS)}"
            raise UsageError(msg)
        if any(w < 1 for w in self._widths()):
            msg = f"hidden is {self.hidden}: give widths of 1 or more"
            raise UsageError(msg)
        return Plan(
            loss=self.loss, method=self.method, epochs=self.epochs, batch_size=self.batch_size, lr=self.lr,
            sigma_lr=self.sigma_lr, weight_decay=self.weight_decay, decay=self.decay, patience=self.patience,
            seed=self.seed,
        )  # fmt: skip

    def _widths(self) -> tuple[int, ...]:
        return (self.hidden,) if isinstance(self.hidden, int) else tuple(self.hidden)

    def _levels(self, groups: NDArray[Any] | None, n: int) -> tuple[Levels, tuple[str, ...]]:
        said = () if self.loss == "em" else (f"trained with '{self.loss}': {WHAT_THEY_ARE[self.loss]}",)
        if groups is None:
            if self.loss != "no_re":
                msg = "RENN needs groups: give each row's centre, patient or slide (or loss='no_re' for none)"
                raise UsageError(msg)
            groups = np.zeros(n, np.int64)
        levels = Levels.of(groups)
        if len(levels.codes) != n:
            msg = f"X has {n} rows and groups {len(levels.codes)}"
            raise UsageError(msg)
        return levels, said if self.loss == "no_re" else (*said, *levels.check())

    def _set_scales(self, X: NDArray[Any], y: Floats) -> None:
        self.x_mean_ = X.mean(0, dtype=np.float64)
        self.x_scale_ = scale_of(X.var(0, dtype=np.float64), self.scale)
        spread = y.std(0)
        self.varies_ = spread > 1e-12 * np.maximum(np.abs(y).max(0), np.finfo(float).tiny)
        if not self.varies_.any():
            msg = f"all {y.shape[1]} targets are constant: there is nothing to learn"
            raise DataError(msg)
        self.y_mean_ = y.mean(0)
        self.y_scale_ = np.where(self.varies_ & self.scale_target, spread, 1.0)

    def _scaled(self, X: NDArray[Any]) -> NDArray[np.float32]:
        return ((X - self.x_mean_) / self.x_scale_).astype(np.float32)

    def _problem(self, X: NDArray[Any], y: Floats, codes: NDArray[np.int64], levels: Levels) -> Problem:
        drawn = np.random.default_rng([self.seed, 1]).permutation(len(X))
        held = np.sort(drawn[: int(self.validation * len(X))])
        target = ((y - self.y_mean_) / self.y_scale_)[:, self.varies_]
        return Problem(self._scaled(X), target, codes, levels, np.setdiff1d(np.arange(len(X)), held), held)

    def _network(self) -> nn.Sequential:
        layers = mlp([self.n_features_in_, *self._widths(), int(self.varies_.sum())], dropout=self.dropout)
        net = nn.Sequential(*(ACTIVATIONS[self.activation]() if isinstance(m, nn.ReLU) else m for m in layers))
        last: Any = net[-1]
        # no effect of the image until the data shows one: training starts from the intercept-only mixed model
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return net

    def _conclude(self, problem: Problem, effects: Effects) -> None:
        """Set variances and effects in the units of y, from the residuals of all rows."""
        every = np.arange(len(problem.y))
        levels = problem.part(every)
        residuals = problem.residuals(self._net, every)
        noise = np.zeros_like(effects.s2_e)
        if len(problem.held):
            error = residuals[problem.held] - effects.blup[problem.codes[problem.held]]
            unsure = posterior_variance(problem.part(problem.train).sizes, effects.s2_e, effects.s2_b)
            noise = (error**2 - unsure[problem.codes[problem.held]]).mean(0)
        if self.loss == "em":
            effects = Effects.best(residuals, levels, self.method)
            with torch.no_grad():
                last: Any = self._net[-1]
                last.bias += torch.from_numpy(effects.shift).to(last.bias.dtype)
        else:
            effects = Effects.given(residuals, levels, effects.s2_e, effects.s2_b)
        scale = self.y_scale_[self.varies_]
        self.s2_e_ = self._all(effects.s2_e * scale**2)
        self.s2_b_ = self._all(effects.s2_b * scale**2)
        self.noise_ = self._all(np.maximum(effects.s2_e, noise) * scale**2)
        self.blup_ = np.stack([self._all(row * scale) for row in effects.blup])

    def _all(self, varying: Floats) -> Floats:
        """Return ``(t,)`` values with 0 for constant targets."""
        out = np.zeros(len(self.varies_))
        out[self.varies_] = varying
        return out

    def _said(self) -> tuple[str, ...]:
        said = []
        zero = int((self.s2_b_[self.varies_] == 0).sum())
        if zero and self.loss != "no_re":
            said.append(f"the variance between groups is estimated as 0 for {zero} of {len(self.s2_b_)} targets")
        worse = int((self.noise_ > 1.5 * self.s2_e_)[self.varies_].sum())
        if worse:
            said.append(
                f"held-out errors are over 1.5 times the training residuals' variance for {worse} targets: the network "
                "fits its training rows too closely; intervals use the held-out errors"
            )
        if len(self.history_["s2_e"]) > 1:
            last, before = self.history_["s2_e"][-1], self.history_["s2_e"][-2]
            if (np.abs(last - before) > 0.02 * before).any() and not len(self.history_["validation"]):
                said.append(f"not settled after {self.epochs} epochs: the residual variance still changes by over 2 %")
        return tuple(said)

    def _codes(self, groups: NDArray[Any] | None, n: int) -> NDArray[np.int64]:
        if groups is None:
            return np.full(n, UNSEEN, np.int64)
        codes = self.levels_.find(groups)
        if len(codes) != n:
            msg = f"X has {n} rows and groups {len(codes)}"
            raise UsageError(msg)
        return codes
