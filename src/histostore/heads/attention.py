"""Numbers of whole slides from their tiles, each tile with a learned weight.

Gated attention pooling: Ilse, Tomczak and Welling, ICML 2018. A row of X is a slide's tiles side by side, as
`histostore.head_specs.BagSpec` with ``pool="tiles"`` makes it; tiles that a slide lacks are NaN and weigh nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from histostore.errors import DataError, UsageError
from histostore.heads.convergence import say_not_converged
from histostore.heads.estimator import Estimator, as_rows, check_pair
from histostore.heads.net import Schedule, load_weights, seeded, train_net, weights_of
from histostore.heads.tuning import hold_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    type Floats = NDArray[np.float32]

READ_SLIDES = 64
"""Slides forwarded at a time."""


class AttentionPool(Estimator):
    """Attention over the tiles of a slide, and a linear layer on their weighted mean.

    Parameters
    ----------
    tiles
        Tiles in a row of X: those drawn per slide.
    hidden
        Width of the attention's hidden layer.
    dropout
        Of tile features, in training only.
    max_epochs, batch, lr, weight_decay, patience
        See `histostore.heads.net.Schedule`; a batch is of slides.
    held
        Share of the slides, in whole groups, held out to stop by.
    seed
        Of weights, batches, dropout and of the groups held out.

    Attributes
    ----------
    history_ : dict
        Losses per epoch, and which epoch was kept.
    notes_ : tuple of str
        Says so where `max_epochs` came first.
    """

    def __init__(
        self,
        tiles: int = 32,
        *,
        hidden: int = 64,
        dropout: float = 0.25,
        max_epochs: int = 300,
        batch: int = 16,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        patience: int = 20,
        held: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.tiles = tiles
        self.hidden = hidden
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.held = held
        self.seed = seed

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Learn from ``(slides, tiles * d)`` tiles, NaN where a slide has fewer, and ``(slides, t)`` targets.

        Raises
        ------
        DataError
            A slide without any tile, or a loss that became infinite.
        """
        bags = self._bags(X)
        _, y = check_pair(np.zeros((len(bags), 1)), y)
        there = np.isfinite(bags).all(axis=2)
        if not there.any(axis=1).all():
            empty = int((~there.any(axis=1)).sum())
            msg = f"{empty} of {len(bags)} slides have no readable tile: leave them out before fitting"
            raise DataError(msg)
        rows, held = hold_out(len(bags), groups, share=self.held, seed=self.seed)
        seen = bags[rows][there[rows]].astype(np.float64)
        spread = seen.std(0)
        schedule = Schedule(self.max_epochs, self.batch, self.lr, self.weight_decay, self.patience, self.seed)
        with seeded(self.seed):
            net = _Net(bags.shape[2], self.hidden, y.shape[1], self.dropout)
            net.place(seen.mean(0), np.where(spread > 1e-6 * spread.max(initial=0.0), spread, 1.0), y[rows])
            history = train_net(net, _mse, (bags, y), rows, held, schedule)
        self.history_ = {"train": history.train, "validation": history.validation, "best_epoch": history.best_epoch}
        self.notes_: tuple[str, ...] = ()
        if not history.settled:
            self.notes_ = say_not_converged("attention", f"{self.max_epochs} epochs", "give more max_epochs")
        return self._learned(net, bags.shape[2], y.shape[1])

    def predict(self, X: NDArray[Any]) -> Floats:
        """Return ``(slides, t)`` float32; a slide without any readable tile gives NaN."""
        return self._forward(X)[0]

    def attention(self, X: NDArray[Any]) -> Floats:
        """Return the weight of every tile ``(slides, tiles)`` float32, summing to one over a slide; 0 for NaN."""
        return self._forward(X)[1]

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return weights, and JSON with the parameters and the losses."""
        self._check_fitted("n_features_in_")
        meta = {
            "params": self.get_params(),
            "dim": self._dim,
            "n_targets": self.n_targets_,
            "history": self.history_,
            "notes": list(self.notes_),
        }
        return weights_of(self._net), meta

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted head that `to_state` described."""
        head = cls(**meta["params"])
        net = _Net(int(meta["dim"]), head.hidden, int(meta["n_targets"]), head.dropout)
        load_weights(net, arrays)
        head.history_, head.notes_ = dict(meta["history"]), tuple(meta["notes"])
        return head._learned(net, int(meta["dim"]), int(meta["n_targets"]))

    def _learned(self, net: _Net, dim: int, t: int) -> Self:
        self._net, self._dim, self.n_targets_, self.n_features_in_ = net, dim, t, dim * self.tiles
        return self

    def _bags(self, X: NDArray[Any]) -> Floats:
        X = as_rows(X, "X")
        if self.tiles < 1 or X.shape[1] % self.tiles:
            msg = f"X has {X.shape[1]} columns, no {self.tiles} tiles side by side: give as many as were drawn"
            raise UsageError(msg)
        return X.reshape(len(X), self.tiles, -1).astype(np.float32)

    def _forward(self, X: NDArray[Any]) -> tuple[Floats, Floats]:
        self._check_fitted("n_features_in_")
        bags = self._bags(self._check_width(X, self.n_features_in_))
        out = np.full((len(bags), self.n_targets_), np.nan, np.float32)
        weights = np.zeros(bags.shape[:2], np.float32)
        usable = np.flatnonzero(np.isfinite(bags).all(axis=2).any(axis=1))
        self._net.eval()
        with torch.inference_mode():
            for begin in range(0, len(usable), READ_SLIDES):
                some = usable[begin : begin + READ_SLIDES]
                value, attention = self._net.pooled(torch.from_numpy(bags[some]))
                out[some], weights[some] = value.numpy(), attention.numpy()
        return out, weights


class _Net(nn.Module):
    mean: torch.Tensor
    std: torch.Tensor
    y_mean: torch.Tensor
    y_scale: torch.Tensor

    def __init__(self, dim: int, hidden: int, targets: int, dropout: float) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.score, self.out = nn.Linear(hidden, 1), nn.Linear(dim, targets)
        self.dropout = nn.Dropout(dropout)
        for name, size in (("mean", dim), ("std", dim), ("y_mean", targets), ("y_scale", 1)):
            self.register_buffer(name, torch.zeros(size))

    def place(self, mean: NDArray[Any], std: NDArray[Any], y: NDArray[Any]) -> None:
        with torch.no_grad():
            for buffer, value in ((self.mean, mean), (self.std, std), (self.y_mean, y.mean(0, dtype=np.float64))):
                buffer.copy_(torch.from_numpy(np.asarray(value, dtype=np.float32)))
            self.y_scale.fill_(float(np.sqrt(np.mean(y.std(0, dtype=np.float64) ** 2))) or 1.0)
            # all tiles weigh the same and the first prediction is the training mean
            for layer in (self.score, self.out):
                layer.weight.zero_()
                layer.bias.zero_()

    def pooled(self, bags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        there = torch.isfinite(bags).all(dim=2)
        x = self.dropout(torch.where(there[:, :, None], (bags - self.mean) / self.std, 0.0))
        score = self.score(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))[:, :, 0]
        weights = torch.softmax(score.masked_fill(~there, -torch.inf), dim=1)
        value: torch.Tensor = self.out((weights[:, :, None] * x).sum(1)) * self.y_scale + self.y_mean
        return value, weights

    def forward(self, bags: torch.Tensor) -> torch.Tensor:
        return self.pooled(bags)[0]


def _mse(net: _Net, bags: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    error: torch.Tensor = (net(bags) - y.float()) / net.y_scale
    return error.square().mean()
