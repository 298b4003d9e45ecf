"""Training a network beside random effects: exactly, in batches of any composition, or as the RENN study did.

The gradient of the exact marginal likelihood by f(x_i) is -(y_i - f(x_i) - b_j) / s_e with b_j the sum of the row's
BLUPs, so a batch needs nothing of its groups but b_j: mean squares on y - b_j are unbiased whatever rows are in the
batch. Between epochs b and the variances are set to their best for the residuals of all rows (EM; the evidence bound
of the Gaussian q(b) splits over rows and has the optimum of the full likelihood): a closed form for one factor, see
`effects`; a step of Newton's for several terms, see `several`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from histostore.errors import DataError, UsageError
from histostore.heads.mixed.effects import Effects, OneFactor
from histostore.heads.mixed.seed_losses import LOSSES
from histostore.heads.mixed.several import Joint
from histostore.heads.net import forward

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats, Method
    from histostore.heads.mixed.effects import Rows
    from histostore.heads.mixed.grouping import Grouping

type Found = Effects | Joint

Decay = Literal["cosine", "halving", "none"]
DECAYS = ("cosine", "halving", "none")

HALVING_EPOCHS = 16
"""The RENN study's: learning rates are halved every 16 epochs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the network is trained."""

    loss: str
    method: Method
    epochs: int
    batch_size: int
    lr: float
    sigma_lr: float
    weight_decay: float
    decay: Decay
    patience: int
    seed: int

    def __post_init__(self) -> None:
        if self.loss != "em" and self.loss not in LOSSES:
            msg = f"loss is {self.loss!r}: give em (exact) or one of {', '.join(LOSSES)}"
            raise UsageError(msg)
        if self.decay not in DECAYS:
            msg = f"decay is {self.decay!r}: give one of {', '.join(DECAYS)}"
            raise UsageError(msg)
        if self.epochs < 0 or self.batch_size < 1 or self.patience < 1:
            msg = f"epochs {self.epochs}, batch_size {self.batch_size}, patience {self.patience}: 0, 1 and 1 at least"
            raise UsageError(msg)
        if min(self.lr, self.sigma_lr, self.weight_decay) < 0:
            msg = f"lr {self.lr}, sigma_lr {self.sigma_lr}, weight_decay {self.weight_decay}: none may be negative"
            raise UsageError(msg)

    def rate(self, progress: float, epoch: int) -> float:
        """Return the factor of the learning rates, `progress` being the share of all steps done."""
        if self.decay == "halving":
            return 0.5 ** (epoch // HALVING_EPOCHS)
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.decay == "cosine" else 1.0


@dataclass(slots=True, eq=False)
class Track:
    """One entry per epoch."""

    loss: list[float]
    """Exact marginal negative log-likelihood per training row, in units of the scaled targets."""
    s2_e: list[Floats]
    s2_b: list[Floats]
    validation: list[float]
    """Mean squared error on rows held out (effects included, of the training rows), scaled targets."""
    best_epoch: int = 0
    """From 1; 0 is the start."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Scaled features and targets in an order that depends on their values alone."""

    X: NDArray[np.float32]
    y: Floats
    """``(n, t)``"""
    groups: Grouping
    """Of all rows."""
    train: Rows
    held: Rows

    def residuals(self, net: nn.Module, rows: Rows) -> Floats:
        """Return ``(m, t)`` targets less the network's output."""
        return self.y[rows] - forward(net, self.X[rows])


def by_targets(X: NDArray[Any], y: Floats) -> Rows:
    """Return an order of rows that depends on their values alone: by eight targets, then by eight features.

    Frozen: the order decides the minibatches, and so every bit of a trained network. `heads.tuning.by_value` sorts by
    features first and in float32, as other heads were always trained.
    """
    keys = [y[:, k] for k in range(min(8, y.shape[1]))] + [X[:, k] for k in range(min(8, X.shape[1]))]
    return np.lexsort(keys[::-1]).astype(np.int64)


def train(net: nn.Sequential, problem: Problem, plan: Plan) -> tuple[Found, Track]:
    """Train `net` in place; return the effects at its end, of the training rows, and what happened on the way."""
    run = _Exact(net, problem, plan) if plan.loss == "em" else _Seed(net, problem, plan)
    track = Track([], [], [], [])
    best, kept = np.inf, run.state()
    rng = np.random.default_rng(plan.seed)
    for epoch in range(plan.epochs):
        run.epoch(epoch, rng)
        track.loss.append(run.loss())
        if not np.isfinite(track.loss[-1]):
            msg = f"the loss became {track.loss[-1]} in epoch {epoch + 1}: give a smaller lr"
            raise DataError(msg)
        track.s2_e.append(run.effects.s2_e)
        track.s2_b.append(run.effects.s2_b)
        if not len(problem.held):
            track.best_epoch = epoch + 1
            continue
        track.validation.append(_held_out(net, problem, run.effects))
        if track.validation[-1] < best:
            best, track.best_epoch, kept = track.validation[-1], epoch + 1, run.state()
        elif epoch + 1 - track.best_epoch >= plan.patience:
            break
    if len(problem.held) and plan.epochs:
        run.restore(kept)
    net.eval()
    return run.effects, track


def shift_output(net: nn.Sequential, shift: Floats) -> None:
    """Add the best constant given the effects: small steps would take for ever where groups are large."""
    with torch.no_grad():
        last: Any = net[-1]
        last.bias += torch.from_numpy(shift).to(last.bias.dtype)


def _held_out(net: nn.Module, problem: Problem, effects: Any) -> float:
    error = problem.residuals(net, problem.held) - problem.groups.of(effects, problem.held)
    return float((error**2).mean())


class _Run:
    """What both ways of training share."""

    def __init__(self, net: nn.Sequential, problem: Problem, plan: Plan) -> None:
        self.net, self.problem, self.plan = net, problem, plan
        self.groups = problem.groups.part(problem.train)
        self.x = torch.from_numpy(problem.X)
        self.effects: Found

    def state(self) -> Any:
        return copy.deepcopy(self.net.state_dict()), self.effects

    def restore(self, kept: Any) -> None:
        weights, self.effects = kept
        self.net.load_state_dict(weights)

    def loss(self) -> float:
        return self.effects.loss

    def epoch(self, epoch: int, rng: np.random.Generator) -> None:
        raise NotImplementedError

    def paced(self, optimiser: torch.optim.Optimizer, batches: list[Rows], epoch: int) -> Iterator[torch.Tensor]:
        """Yield batches with the learning rates of each set."""
        self.net.train()
        base = [group.setdefault("base", group["lr"]) for group in optimiser.param_groups]
        for i, rows in enumerate(batches):
            factor = self.plan.rate((epoch + i / len(batches)) / self.plan.epochs, epoch)
            for group, lr in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = lr * factor
            optimiser.zero_grad(set_to_none=True)
            yield torch.from_numpy(rows)
            optimiser.step()


class _Exact(_Run):
    """Mean squares on y - b_j; b and the variances brought up to date after every epoch."""

    def __init__(self, net: nn.Sequential, problem: Problem, plan: Plan) -> None:
        super().__init__(net, problem, plan)
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
        self._update(None)

    def _update(self, before: Any) -> None:
        residuals = self.problem.residuals(self.net, self.problem.train)
        found: Any = self.groups.best(residuals, self.plan.method, before)
        self.effects = found
        shift_output(self.net, found.shift)
        rows = self.problem.train
        self.target = np.zeros_like(self.problem.y)
        self.target[rows] = self.problem.y[rows] - self.problem.groups.of(found, rows)

    def epoch(self, epoch: int, rng: np.random.Generator) -> None:
        order = rng.permutation(self.problem.train)
        size = self.plan.batch_size
        target = torch.from_numpy(self.target.astype(np.float32))
        weight = torch.from_numpy((0.5 / self.effects.s2_e).astype(np.float32))
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        for rows in self.paced(self.optimiser, batches, epoch):
            # divided by a whole batch's size: rows of a short last batch must not weigh more than others
            squares = (self.net(self.x[rows]) - target[rows]) ** 2 * weight
            (squares.sum() / (size * squares.shape[1])).backward()
        self._update(self.effects)


class _Seed(_Run):
    """Batches of a single group; logarithms of the variances are trained beside the network, from 0."""

    def __init__(self, net: nn.Sequential, problem: Problem, plan: Plan) -> None:
        super().__init__(net, problem, plan)
        if not (isinstance(self.groups, OneFactor) and isinstance(problem.groups, OneFactor)):
            msg = f"loss '{plan.loss}' is of one factor: give loss='em' for several random terms"
            raise UsageError(msg)
        self.factor = self.groups
        self.codes = problem.groups.levels.codes
        self.log = torch.zeros((2, problem.y.shape[1]), requires_grad=True)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": list(net.parameters()), "lr": plan.lr, "weight_decay": plan.weight_decay},
                {"params": [self.log], "lr": plan.sigma_lr, "weight_decay": 0.0},
            ]
        )
        self._update()

    def _update(self) -> None:
        s2_e, s2_b = np.exp(self.log.detach().numpy().astype(np.float64))
        if self.plan.loss == "no_re":
            s2_b = np.zeros_like(s2_b)
        self.effects = self.factor.given(self.problem.residuals(self.net, self.problem.train), s2_e, s2_b)

    def epoch(self, epoch: int, rng: np.random.Generator) -> None:
        target = torch.from_numpy(self.problem.y.astype(np.float32))
        batches = self._batches(rng)
        for rows in self.paced(self.optimiser, batches, epoch):
            s2_e, s2_b = torch.exp(self.log)
            n = int(self.factor.levels.sizes[self.codes[int(rows[0])]])
            value = LOSSES[self.plan.loss](target[rows] - self.net(self.x[rows]), n, s2_e, s2_b)
            value.sum().backward()  # type: ignore[no-untyped-call]
        self._update()

    def _batches(self, rng: np.random.Generator) -> list[Rows]:
        order = rng.permutation(self.problem.train)
        order = order[np.argsort(self.codes[order], kind="stable")]
        size, batches = self.plan.batch_size, []
        for group in np.split(order, np.cumsum(self.factor.levels.sizes[:-1]).astype(int)):
            batches += [group[i : i + size] for i in range(0, len(group), size)]
        return [batches[i] for i in rng.permutation(len(batches))]
