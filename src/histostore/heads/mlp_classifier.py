"""A multilayer perceptron for classes: cross-entropy with class weights, stopped on whole groups held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from histostore.heads.classifier import Classifier
from histostore.heads.convergence import say_not_converged
from histostore.heads.net import Schedule, forward, load_weights, mlp, seeded, train_net, weights_of
from histostore.heads.tuning import check_widths, column_moments, hold_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.heads.calibration import Criterion, Method


class MLPClassifier(Classifier):
    """Multilayer perceptron of classes.

    Parameters
    ----------
    hidden, dropout, max_epochs, batch, lr, weight_decay, patience, held
        As of `histostore.heads.mlp.MLP`.

    The others are those of `histostore.heads.classifier.Classifier`.
    """

    def __init__(
        self,
        hidden: Sequence[int] | int = (64,),
        *,
        classes: Sequence[str] | None = None,
        class_weight: Literal["balanced"] | Mapping[str, float] | None = None,
        calibration: Method = "temperature",
        threshold: float | Criterion = 0.5,
        dropout: float = 0.2,
        max_epochs: int = 300,
        batch: int = 64,
        lr: float = 3e-4,
        weight_decay: float = 0.1,
        patience: int = 20,
        held: float = 0.2,
        inner: int = 5,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.classes = classes
        self.class_weight = class_weight
        self.calibration = calibration
        self.threshold = threshold
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.held = held
        self.inner = inner
        self.seed = seed

    def _candidates(self) -> tuple[Any, ...]:
        return (list(check_widths("hidden", self.hidden)),)

    def _train(
        self,
        X: NDArray[Any],
        codes: NDArray[np.int64],
        weights: NDArray[np.float64],
        groups: NDArray[Any] | None,
        choice: Any,
    ) -> _Net:
        rows, held = hold_out(len(X), groups, share=self.held, seed=self.seed)
        mean, std = column_moments(X, rows)
        schedule = Schedule(self.max_epochs, self.batch, self.lr, self.weight_decay, self.patience, self.seed)
        with seeded(self.seed):
            net = _Net((X.shape[1], *choice, int(codes.max()) + 1), self.dropout)
            net.place(mean, np.where(std > 1e-6 * std.max(initial=0.0), std, 1.0))
            history = train_net(net, _cross_entropy, (X, codes, weights), rows, held, schedule)
        if not history.settled:
            self.notes_ += say_not_converged("the network", f"{self.max_epochs} epochs", "give more max_epochs")
        return net

    def _logits(self, model: _Net, X: NDArray[Any]) -> NDArray[np.float64]:
        return forward(model, X).astype(np.float64)

    def _model_arrays(self, model: _Net) -> dict[str, NDArray[Any]]:
        return weights_of(model)

    def _model_from(self, arrays: Mapping[str, NDArray[Any]]) -> _Net:
        net = _Net((self.n_features_in_, *self.chosen_, len(self._present)), self.dropout)
        load_weights(net, arrays)
        return net


class _Net(nn.Module):
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.layers = mlp(sizes, dropout=dropout)
        self.register_buffer("mean", torch.zeros(sizes[0]))
        self.register_buffer("std", torch.ones(sizes[0]))

    def place(self, mean: NDArray[Any], std: NDArray[Any]) -> None:
        self.mean.copy_(torch.from_numpy(mean.astype(np.float32)))
        self.std.copy_(torch.from_numpy(std.astype(np.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers((x - self.mean) / self.std)
        return out


def _cross_entropy(net: _Net, x: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (nn.functional.cross_entropy(net(x), codes, reduction="none") * weights).mean()
