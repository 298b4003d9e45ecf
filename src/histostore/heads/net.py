"""Training small networks on cached arrays: minibatches gathered row by row, early stopping on rows held out.

The arrays may be memory-mapped and of half precision; only one batch is ever widened. Networks here have no batch
normalisation, so no prediction depends on its batch-mates.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from histostore.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    type Rows = NDArray[np.int64]
    type Loss = Callable[..., torch.Tensor]

WORTH_WAITING = 1e-3
"""Share of all that was gained so far: a smaller gain is kept and does not make training go on."""

READ_ROWS = 4096
"""Rows forwarded at a time where nothing is learned."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a network is trained."""

    max_epochs: int = 200
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-3
    patience: int = 15
    """Epochs without a validation loss worth waiting for after which training stops; the best epoch is kept."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_epochs", "batch", "patience"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}: give 1 or more"
                raise UsageError(msg)
        if not (self.lr > 0 and self.weight_decay >= 0):
            msg = f"lr is {self.lr} and weight_decay {self.weight_decay}: give a positive lr, weight_decay of 0 or more"
            raise UsageError(msg)


@dataclass(slots=True)
class History:
    """Losses per epoch (means over rows), and which epoch was kept."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    """From 1."""
    settled: bool = False
    """Whether `patience` ended it, and not `max_epochs`."""


def mlp(sizes: Sequence[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Return linear layers of these widths with ReLU (and dropout) between them, none after the last."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        if i:
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers)


def train_net(
    net: nn.Module,
    loss: Loss,
    arrays: Sequence[NDArray[Any]],
    rows: Rows,
    held: Rows,
    schedule: Schedule,
) -> History:
    """Train `net` in place on `rows`, keep the weights of the epoch that is best on `held`.

    Parameters
    ----------
    loss
        ``loss(net, *batches)``: the mean loss over the rows of a batch; each of `arrays` gives one batch, float32 (or
        int64 where it is of integers).
    rows, held
        Disjoint indices into the arrays. Without any `held`, all epochs are run and the last is kept.

    Raises
    ------
    DataError
        The loss became NaN or infinite: a smaller learning rate is needed.
    """
    history, best, kept = History(), np.inf, copy.deepcopy(net.state_dict())
    begun = anchor = _mean_loss(net, loss, arrays, held) if len(held) else np.inf
    since = 0
    optimiser = torch.optim.AdamW(net.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    rng = np.random.default_rng(schedule.seed)
    for epoch in range(1, schedule.max_epochs + 1):
        net.train()
        total = 0.0
        order = rng.permutation(rows)
        for begin in range(0, len(order), schedule.batch):
            some = order[begin : begin + schedule.batch]
            optimiser.zero_grad(set_to_none=True)
            value = loss(net, *_batch(arrays, some))
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(value.detach()) * len(some)
        history.train.append(total / len(order))
        if not len(held):
            if not np.isfinite(history.train[-1]):
                raise _diverged(history.train[-1], epoch)
            continue
        history.validation.append(_mean_loss(net, loss, arrays, held))
        if not np.isfinite(history.validation[-1]):
            raise _diverged(history.validation[-1], epoch)
        if history.validation[-1] < best:
            best, history.best_epoch = history.validation[-1], epoch
            kept = copy.deepcopy(net.state_dict())
        if anchor - best > WORTH_WAITING * (begun - best):
            anchor, since = best, epoch
        if epoch - since >= schedule.patience:
            history.settled = True
            break
    if len(held):
        net.load_state_dict(kept)
    net.eval()
    return history


def forward(net: nn.Module, X: NDArray[Any]) -> NDArray[np.float32]:
    """Return the output for ``(n, d)`` rows, float32, in evaluation mode."""
    net.eval()
    parts = []
    with torch.inference_mode():
        for begin in range(0, max(len(X), 1), READ_ROWS):
            parts.append(net(torch.from_numpy(np.array(X[begin : begin + READ_ROWS], dtype=np.float32))).numpy())
    out: NDArray[np.float32] = np.concatenate(parts)
    return out


def weights_of(net: nn.Module, prefix: str = "net.") -> dict[str, NDArray[Any]]:
    """Return a network's weights as arrays."""
    return {f"{prefix}{k}": v.detach().numpy().copy() for k, v in net.state_dict().items()}


def load_weights(net: nn.Module, arrays: Mapping[str, NDArray[Any]], prefix: str = "net.") -> None:
    """Set a network's weights from what `weights_of` returned."""
    state = {k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(prefix)}
    net.load_state_dict(state)
    net.eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch draw from `seed` inside, and afterwards as if nothing had happened."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _diverged(loss: float, epoch: int) -> DataError:
    return DataError(f"the loss became {loss} in epoch {epoch}: give a smaller lr")


def _mean_loss(net: nn.Module, loss: Loss, arrays: Sequence[NDArray[Any]], rows: Rows) -> float:
    net.eval()
    total = 0.0
    with torch.inference_mode():
        for begin in range(0, len(rows), READ_ROWS):
            some = rows[begin : begin + READ_ROWS]
            total += float(loss(net, *_batch(arrays, some))) * len(some)
    return total / len(rows)


def _batch(arrays: Sequence[NDArray[Any]], rows: Rows) -> list[torch.Tensor]:
    out = []
    for array in arrays:
        part = array[rows]
        out.append(torch.from_numpy(part.astype(np.int64 if part.dtype.kind in "iu" else np.float32)))
    return out
