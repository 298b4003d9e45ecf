"""RENN: a network for what the image says, random effects for where it came from.

    y = f(x) + b_group + e,   b ~ N(0, s2_b),   e ~ N(0, s2_e)

f is an MLP; the variances and the effects are those of the exact likelihood of all rows, at any batch size (see
`fit_network`). Instead of one factor there may be several, crossed or nested, slopes and surfaces (see `terms`). Rows
of a known group are predicted with its effect (BLUP), rows of a new one with 0 and a wider interval. The idea of a
network inside a mixed model is that of Simchoni and Rosset, NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from scipy.stats import norm
from torch import nn

from histostore.errors import DataError, UsageError
from histostore.heads.estimator import Estimator, check_pair, finite_rows
from histostore.heads.mixed.design import check_method
from histostore.heads.mixed.effects import OneFactor, posterior_variance
from histostore.heads.mixed.fit_network import Plan, Problem, by_targets, shift_output, train
from histostore.heads.mixed.fitted import FittedFactor, FittedTerms
from histostore.heads.mixed.grouping import as_terms, grouping_of, ungrouped
from histostore.heads.mixed.seed_losses import WHAT_THEY_ARE, SeedLoss
from histostore.heads.net import forward, load_weights, mlp, seeded, weights_of
from histostore.heads.penalty import SCALES, Scale, scale_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats, Method
    from histostore.heads.mixed.fit_network import Decay
    from histostore.heads.mixed.grouping import Grouping
    from histostore.heads.mixed.levels import Levels

Activation = Literal["relu", "silu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}

ARRAYS = ("x_mean", "x_scale", "y_mean", "y_scale", "varies", "s2_e", "s2_b", "noise")


class RENN(Estimator):
    """Network with a random intercept per group, or several random terms.

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
        ``(t,)`` variances within and between groups. Of k random terms `s2_b_` is ``(t, k)``, the variance that each
        adds to a row on average; `components` has what it is made of.
    noise_ : numpy.ndarray
        ``(t,)`` variance that intervals use for a single value: `s2_e_`, or what the held-out rows show where that
        is more (a network that fits its training rows closely leaves residuals that are too small).
    random_ : FittedFactor or FittedTerms
        Groups and effects; of one factor also as `levels_`, `blup_` ``(q, t)`` and `blup_var_`.
    history_ : dict
        ``loss`` (exact marginal likelihood per row), ``s2_e``, ``s2_b``, ``validation``, an entry per epoch, in units
        of the scaled targets; `best_epoch_` is the one kept.
    notes_ : tuple of str
        What must be said of this fit.
    """

    random_: FittedFactor | FittedTerms

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

    @property
    def wants_groups(self) -> bool:
        """Whether `groups` are the levels of random effects, which other heads do not have."""
        return self.loss != "no_re"

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: Any = None) -> Self:
        """Train.

        Parameters
        ----------
        X
            ``(n, d)`` finite features.
        y
            ``(n, t)`` or ``(n,)`` finite targets; each has variances and effects of its own.
        groups
            ``(n,)`` labels, compared as text; ``(n, k)`` labels or a table of k factors, crossed or nested; or a
            mapping from names to labels and terms (`Intercept`, `Slopes`, `Spatial`). Only ``loss="no_re"`` does
            without.

        Raises
        ------
        UsageError
            No groups, or options that make no sense.
        DataError
            One group, groups of one row each, factors that cut the rows alike, all targets constant, a loss that
            became NaN.
        """
        X, y = check_pair(X, y)
        plan = self._plan()
        # an order that depends on the values alone: batches then do not depend on the order given
        order = by_targets(X, y)
        X, y = X[order], y[order].astype(np.float64)
        grouping, notes = self._grouping(groups, order)
        self.n_features_in_ = X.shape[1]
        self._set_scales(X, y)
        if not self.varies_.all():
            notes = (*notes, f"{int((~self.varies_).sum())} of {y.shape[1]} targets are constant: predicted as such")
        problem = self._problem(X, y, grouping)
        with seeded(self.seed):
            self._net = self._network()
            effects, track = train(self._net, problem, plan)
        self.best_epoch_ = track.best_epoch
        many = () if isinstance(grouping, OneFactor) else (len(grouping.names),)
        shape = (len(track.loss), int(self.varies_.sum()))
        self.history_ = {
            "loss": np.array(track.loss),
            "s2_e": np.array(track.s2_e).reshape(shape),
            "s2_b": np.array(track.s2_b).reshape(*shape, *many),
            "validation": np.array(track.validation),
        }
        self.notes_ = (*notes, *self._conclude(problem, effects), *self._said())
        return self

    def predict(self, X: NDArray[Any], groups: Any = None) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32: network plus the effects of known groups; new groups, or none given, add 0."""
        self._check_fitted("random_")
        X = self._check_width(X, self.n_features_in_)
        out = np.tile(self.y_mean_, (len(X), 1))
        good = finite_rows(X)
        if good.any():
            fixed = forward(self._net, self._scaled(X[good]))
            out[np.ix_(good, self.varies_)] += fixed * self.y_scale_[self.varies_]
        if groups is not None:
            out += self.random_.add(as_terms(groups, len(X)))
        out[~good] = np.nan
        return out.astype(np.float32)

    def predict_interval(
        self, X: NDArray[Any], groups: Any = None, *, level: float = 0.9
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the limits ``(n, t)`` between which a share `level` of new values should lie.

        Known groups: noise plus the variance of the groups' effects given their rows. New groups: noise plus the whole
        variance between groups. What is not known of the network itself is not in it.
        """
        if not 0 < level < 1:
            msg = f"level is {level}: give a share between 0 and 1"
            raise UsageError(msg)
        middle = self.predict(X, groups)
        of_effect = self.s2_b_.reshape(len(self.s2_b_), -1).sum(1)
        if groups is not None:
            of_effect = self.random_.variance(as_terms(groups, len(middle)))
        half = norm.ppf(0.5 + level / 2) * np.sqrt(self.noise_ + of_effect)
        return (middle - half).astype(np.float32), (middle + half).astype(np.float32)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return weights, variances and effects, and JSON with parameters and group names."""
        self._check_fitted("random_")
        inside, random = self.random_.to_state()
        arrays = inside | {name: getattr(self, f"{name}_") for name in ARRAYS}
        arrays |= {f"history.{name}": values for name, values in self.history_.items()}
        return {k: np.ascontiguousarray(v) for k, v in (arrays | weights_of(self._net)).items()}, {
            "params": {**self.get_params(), "hidden": list(self._widths())},
            "n_features": self.n_features_in_,
            **random,
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
        kind = FittedFactor if "groups" in meta else FittedTerms
        head.random_ = kind.from_state(arrays, meta)
        head.history_ = {k.removeprefix("history."): v for k, v in arrays.items() if k.startswith("history.")}
        with seeded(0):
            head._net = head._network()
        load_weights(head._net, arrays)
        return head

    @property
    def levels_(self) -> Levels:
        """The groups, of one factor."""
        return self._factor.levels

    @property
    def blup_(self) -> Floats:
        """``(q, t)`` effects of the groups, of one factor."""
        return self._factor.blup

    @property
    def blup_var_(self) -> Floats:
        """``(q, t)`` their variances given the data."""
        return posterior_variance(self._factor.sizes, self.s2_e_, self.s2_b_)

    @property
    def _factor(self) -> FittedFactor:
        self._check_fitted("random_")
        if not isinstance(self.random_, FittedFactor):
            msg = f"there are several terms ({', '.join(self.random_.names)}): ask effects or components"
            raise AttributeError(msg)
        return self.random_

    def effects(self, target: int = 0, name: str | None = None) -> dict[str, Any]:
        """Return the effects of one target by label; of several terms, of the one with this name."""
        self._check_fitted("random_")
        return self.random_.effects(target, name)

    def components(self, target: int = 0) -> dict[str, dict[str, Any]]:
        """Return of each term the ``variance``, the ``covariance`` of slopes, or ``variance`` and ``length``."""
        self._check_fitted("random_")
        return self.random_.describe(target)

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
        return Plan(**{field.name: getattr(self, field.name) for field in fields(Plan)})

    def _widths(self) -> tuple[int, ...]:
        return (self.hidden,) if isinstance(self.hidden, int) else tuple(self.hidden)

    def _grouping(self, groups: Any, order: NDArray[np.int64]) -> tuple[Grouping, tuple[str, ...]]:
        if groups is None:
            if self.loss != "no_re":
                msg = "RENN needs groups: give each row's centre, patient or slide (or loss='no_re' for none)"
                raise UsageError(msg)
            groups = np.zeros(len(order), np.int64)
        terms = {name: term.take(order) for name, term in as_terms(groups, len(order)).items()}
        said = () if self.loss == "em" else (f"trained with '{self.loss}': {WHAT_THEY_ARE[self.loss]}",)
        if self.loss == "no_re":
            # what is not estimated need not be estimable
            return ungrouped(terms), said
        grouping, notes = grouping_of(terms, self.seed)
        return grouping, (*said, *notes)

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

    def _problem(self, X: NDArray[Any], y: Floats, groups: Grouping) -> Problem:
        drawn = np.random.default_rng([self.seed, 1]).permutation(len(X))
        held = np.sort(drawn[: int(self.validation * len(X))])
        target = ((y - self.y_mean_) / self.y_scale_)[:, self.varies_]
        return Problem(self._scaled(X), target, groups, np.setdiff1d(np.arange(len(X)), held), held)

    def _network(self) -> nn.Sequential:
        layers = mlp([self.n_features_in_, *self._widths(), int(self.varies_.sum())], dropout=self.dropout)
        net = nn.Sequential(*(ACTIVATIONS[self.activation]() if isinstance(m, nn.ReLU) else m for m in layers))
        last: Any = net[-1]
        # no effect of the image until the data shows one: training starts from the intercept-only mixed model
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return net

    def _conclude(self, problem: Problem, effects: Any) -> tuple[str, ...]:
        """Set variances and effects in the units of y, from the residuals of all rows; return what must be said."""
        groups = problem.groups
        residuals = problem.residuals(self._net, np.arange(len(problem.y)))
        noise = np.zeros_like(effects.s2_e)
        if len(problem.held):
            error = residuals[problem.held] - groups.of(effects, problem.held)
            noise = (error**2 - groups.unsure(effects, problem.held)).mean(0)
        if self.loss == "em":
            effects = groups.best(residuals, self.method, effects, last=True)
            shift_output(self._net, effects.shift)
        elif isinstance(groups, OneFactor):
            effects = groups.given(residuals, effects.s2_e, effects.s2_b)
        scale = self.y_scale_[self.varies_]
        self.s2_e_ = self._all(effects.s2_e * scale**2)
        self.s2_b_ = self._all((effects.s2_b.T * scale**2).T)
        self.noise_ = self._all(np.maximum(effects.s2_e, noise) * scale**2)
        blup = self._all((effects.blup * scale).T).T
        if isinstance(groups, OneFactor):
            self.random_ = FittedFactor(groups.levels, self.s2_e_, self.s2_b_, blup, groups.levels.sizes)
            return ()
        theta = np.stack([s.theta for s in effects.settled])
        self.random_ = FittedTerms(groups.system, groups.names, theta, self.varies_, self.s2_e_, self.s2_b_, blup)
        return groups.said(effects)

    def _all(self, varying: Floats) -> Floats:
        """Return ``(t, …)`` values with 0 for constant targets."""
        out = np.zeros((len(self.varies_), *varying.shape[1:]))
        out[self.varies_] = varying
        return out

    def _said(self) -> tuple[str, ...]:
        said = []
        for k, between in enumerate(self.s2_b_[self.varies_].reshape(self.varies_.sum(), -1).T):
            zero = int((between == 0).sum())
            if zero and self.loss != "no_re":
                of = "groups" if isinstance(self.random_, FittedFactor) else self.random_.names[k]
                said.append(f"the variance between {of} is estimated as 0 for {zero} of {len(self.s2_b_)} targets")
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
