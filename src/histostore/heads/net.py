"""Training small networks on cached arrays: minibatches gathered row by row, early stopping on rows held out.

The arrays may be memory-mapped and of half precision; only one batch is ever widened. Where one is a row source, rows
are shuffled so that neighbours are read together (`histostore.heads.rows.block_order`). Networks here have no batch
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
from histostore.heads.rows import WINDOW_ROWS, RowSource, block_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.heads.rows import Table

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
    arrays: Sequence[Table],
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
    arrays
        Of the same rows. Without a row source among them, each epoch is a permutation of `rows`.
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
    rng, streamed = np.random.default_rng(schedule.seed), any(isinstance(a, RowSource) for a in arrays)
    for epoch in range(1, schedule.max_epochs + 1):
        net.train()
        total = 0.0
        order = block_order(rows, schedule.seed, epoch) if streamed else rng.permutation(rows)
        for batch in _batches(arrays, order, schedule.batch, streamed=streamed):
            optimiser.zero_grad(set_to_none=True)
            value = loss(net, *batch)
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(value.detach()) * len(batch[0])
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


def _mean_loss(net: nn.Module, loss: Loss, arrays: Sequence[Table], rows: Rows) -> float:
    net.eval()
    total = 0.0
    with torch.inference_mode():
        for batch in _batches(arrays, rows, READ_ROWS, streamed=False):
            total += float(loss(net, *batch)) * len(batch[0])
    return total / len(rows)


def _batches(arrays: Sequence[Table], order: Rows, size: int, *, streamed: bool) -> Iterator[list[torch.Tensor]]:
    """Yield the rows of an order, `size` at a time; of a stream, many batches are read at once and in order."""
    span = max(size, WINDOW_ROWS // size * size) if streamed else size
    for begin in range(0, len(order), span):
        some = order[begin : begin + span]
        if not streamed:
            yield [_tensor(array[some]) for array in arrays]
            continue
        ascending = np.argsort(some)
        place = np.empty_like(ascending)
        place[ascending] = np.arange(len(some))
        read = [array[some[ascending]] for array in arrays]
        for at in range(0, len(some), size):
            yield [_tensor(part[place[at : at + size]]) for part in read]


def _tensor(part: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(part.astype(np.int64 if part.dtype.kind in "iu" else np.float32))
