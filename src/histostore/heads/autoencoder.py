"""A non-linear decoder: factors are the bottleneck of a multilayer perceptron that reproduces the targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from histostore.errors import UsageError
from histostore.heads.convergence import say_not_converged
from histostore.heads.decoders import Decoder
from histostore.heads.lowrank import leading_svd
from histostore.heads.net import Schedule, forward, load_weights, mlp, seeded, train_net, weights_of
from histostore.heads.tuning import by_value, check_widths, hold_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.heads.net import History
    from histostore.heads.tuning import Rows

    type Floats = NDArray[np.float32]


class Autoencoder(Decoder):
    """Encoder ``g → sizes[0] → … → sizes[-1]`` and its mirror image, ReLU between, linear ends, squared error.

    Targets are centred by their training means and divided by one number. Rows never meet in the network, so any
    batch will do, also one of a single row.

    Parameters
    ----------
    sizes
        Widths down to the number of factors.
    linear
        A linear path beside the layers, started at the principal components of the training rows: the layers then
        learn what these miss, and start from nothing. Without it this is the plain network, which needs more data.
    noise
        Standard deviation of what is added to the factors in training, in units of their own: a regressor's factors
        are never exact, and a decoder that has only seen exact ones is at a loss with them.
    max_epochs, batch, lr, weight_decay, patience
        See `histostore.heads.net.Schedule`; the rows to stop by are whole groups where groups are given.
    seed
        Of weights, batches and noise.
    """

    name: ClassVar[str] = "autoencoder"
    needs_groups: ClassVar[bool] = True

    def __init__(
        self,
        sizes: Sequence[int] = (256, 64, 10),
        *,
        linear: bool = True,
        noise: float = 0.1,
        max_epochs: int = 200,
        batch: int = 64,
        lr: float = 3e-4,
        weight_decay: float = 1e-3,
        patience: int = 15,
        seed: int = 0,
    ) -> None:
        self.sizes = sizes
        self.linear = linear
        self.noise = noise
        self.max_epochs = max_epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.seed = seed

    def fit(self, Y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Learn from ``(n, g)`` targets; whole `groups` are held out to stop by."""
        Y = self._training(Y, self._sizes()[-1])
        order = by_value(Y)
        groups = None if groups is None else np.asarray(groups)
        if groups is not None and groups.shape == (len(Y),):
            groups = groups[order]
        ordered = Y[order]
        rows, held = hold_out(len(Y), groups, seed=self.seed)
        history, *_ = self._train(ordered, rows, held, self.max_epochs)
        # how long to train is now known: what is kept has seen all training rows
        _, net, mean, scale = self._train(ordered, np.arange(len(Y)), held[:0], history.best_epoch)
        self.history_ = {"train": history.train, "validation": history.validation, "best_epoch": history.best_epoch}
        self.notes_ = ()
        if not history.settled:
            self.notes_ = say_not_converged(
                "the autoencoder", f"{self.max_epochs} epochs", "give more max_epochs or a larger lr"
            )
        return self._learned(net, mean, scale)

    def encode(self, Y: NDArray[Any]) -> Floats:
        """Return ``(n, k)`` float32."""
        Y = self._targets(Y)
        return forward(self._net.encoder, (Y - self._offset) / np.float32(self.scale_))

    def decode(self, factors: NDArray[Any]) -> Floats:
        """Return ``(n, g)`` float32; a row with NaN gives NaN."""
        factors = self._factors(factors, self._sizes()[-1])
        out: Floats = forward(self._net.decoder, factors) * np.float32(self.scale_)
        out += self._offset
        return out

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return weights, means and scale, and JSON with the parameters and the losses."""
        self._check_fitted("mean_")
        params = {**self.get_params(), "sizes": list(self._sizes())}
        meta = {"params": params, "scale": self.scale_, "history": self.history_, "notes": list(self.notes_)}
        return {**weights_of(self._net), "mean": self.mean_}, meta

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted decoder that `to_state` described."""
        params = dict(meta["params"])
        decoder = cls(tuple(params.pop("sizes")), **params)
        net = decoder._network(len(arrays["mean"]))
        load_weights(net, arrays)
        decoder.history_, decoder.notes_ = dict(meta["history"]), tuple(meta["notes"])
        return decoder._learned(net, arrays["mean"], float(meta["scale"]))

    def _sizes(self) -> tuple[int, ...]:
        sizes = check_widths("sizes", self.sizes, least=1)
        if not 0 <= self.noise < 10:
            msg = f"noise is {self.noise}: give a share of the factors' spread, 0 or more"
            raise UsageError(msg)
        return sizes

    def _train(self, Y: Floats, rows: Rows, held: Rows, epochs: int) -> tuple[History, _Net, NDArray[Any], float]:
        mean = Y[rows].mean(0, dtype=np.float64)
        centred = Y - mean.astype(np.float32)
        scale = float(np.sqrt(np.mean(np.square(centred[rows], dtype=np.float64)))) or 1.0
        centred /= np.float32(scale)
        schedule = Schedule(epochs, self.batch, self.lr, self.weight_decay, self.patience, self.seed)
        with seeded(self.seed):
            net = self._network(Y.shape[1])
            if self.linear:
                net.start_at(centred[rows], self.seed)
            history = train_net(net, lambda net, y: ((net(y) - y) ** 2).mean(), (centred,), rows, held, schedule)
        return history, net, mean, scale

    def _network(self, targets: int) -> _Net:
        return _Net(targets, self._sizes(), noise=self.noise, linear=self.linear)

    def _learned(self, net: _Net, mean: NDArray[Any], scale: float) -> Self:
        self._net, self.mean_, self.scale_ = net, mean, scale
        self._offset = mean.astype(np.float32)
        return self


class _Net(nn.Module):
    def __init__(self, targets: int, sizes: Sequence[int], *, noise: float, linear: bool) -> None:
        super().__init__()
        down, up = mlp((targets, *sizes)), mlp((*sizes[::-1], targets))
        self.encoder: nn.Module = _Beside(down, targets, sizes[-1]) if linear else down
        self.decoder: nn.Module = _Beside(up, sizes[-1], targets) if linear else up
        self.noise = noise

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        factors = self.encoder(y)
        if self.training and self.noise:
            # relative to each factor's own size in the batch; a constant in the gradient, or factors would grow
            size = factors.detach().square().mean(0).sqrt()
            factors = factors + self.noise * size * torch.randn_like(factors)
        out: torch.Tensor = self.decoder(factors)
        return out

    def start_at(self, centred: Floats, seed: int) -> None:
        """Set the linear paths to principal components, in units of their common size, and the layers to nothing."""
        assert isinstance(self.encoder, _Beside)
        assert isinstance(self.decoder, _Beside)
        k = self.encoder.path.out_features
        _, s, v = leading_svd(centred, min(k, len(centred)), seed=seed)
        size = float(np.sqrt(np.mean(s**2) / len(centred))) or 1.0
        rows = np.zeros((k, centred.shape[1]), np.float32)
        rows[: len(v)] = v
        with torch.no_grad():
            self.encoder.path.weight.copy_(torch.from_numpy(rows / np.float32(size)))
            self.decoder.path.weight.copy_(torch.from_numpy(rows.T * np.float32(size)))
            for layers in (self.encoder.layers, self.decoder.layers):
                last = layers[-1]
                assert isinstance(last, nn.Linear)
                last.weight.zero_()
                last.bias.zero_()


class _Beside(nn.Module):
    """Layers and a linear path, added."""

    def __init__(self, layers: nn.Sequential, wide: int, out: int) -> None:
        super().__init__()
        self.layers = layers
        self.path = nn.Linear(wide, out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x) + self.path(x)
        return out
