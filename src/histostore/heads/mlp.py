"""A multilayer perceptron on embeddings, for values (squared error) and for counts (Poisson, negative binomial).

Counts are modelled as ``log μ = f(x) + log(library / reference)``: the library size is an offset in training and says
nothing about a new spot unless it is given, so a prediction without one is the expected count in a spot of the training
rows' median library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn

from histostore.errors import DataError, UsageError
from histostore.heads.convergence import say_not_converged
from histostore.heads.estimator import Estimator, check_finite, check_tables, finite_rows
from histostore.heads.net import READ_ROWS, Schedule, forward, load_weights, mlp, seeded, train_net, weights_of
from histostore.heads.rows import RowSource, blocks, whole
from histostore.heads.tuning import by_value, check_widths, column_moments, hold_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.heads.rows import Table

    type Floats = NDArray[np.float32]

LOSSES = ("mse", "poisson", "nb")


class MLP(Estimator):
    """Multilayer perceptron whose training is stopped on whole groups held out.

    Features are standardised inside the network's first step, the last layer starts at the training means. There is no
    batch normalisation: a row is predicted alike alone and among others. What is learned from an array does not depend
    on the order of its rows; from a row source it does, since minibatches are drawn from windows of neighbours
    (`histostore.heads.rows.block_order`).

    Parameters
    ----------
    hidden
        Widths of the hidden layers.
    loss
        ``mse``; ``poisson`` or ``nb`` (negative binomial with one dispersion per target) for raw counts.
    dropout
        After each hidden layer, in training only.
    max_epochs, batch, lr, weight_decay, patience
        See `histostore.heads.net.Schedule`.
    held
        Share of the rows, in whole groups, held out to stop by.
    seed
        Of weights, batches, dropout and of the groups held out.

    Attributes
    ----------
    history_ : dict
        Losses per epoch, and which epoch was kept.
    notes_ : tuple of str
        Says so where `max_epochs` came first.
    theta_ : numpy.ndarray
        ``(t,)`` inverse dispersions of ``nb``.
    reference_library_ : float
        Of the counts that are predicted without a library.
    """

    streams: ClassVar[bool] = True

    def __init__(
        self,
        hidden: Sequence[int] | int = (256, 64),
        *,
        loss: Literal["mse", "poisson", "nb"] = "mse",
        dropout: float = 0.0,
        max_epochs: int = 300,
        batch: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        patience: int = 20,
        held: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.loss = loss
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.held = held
        self.seed = seed

    @property
    def tunes(self) -> bool:
        """Training stops by groups held out."""
        return True

    @property
    def wants_library(self) -> bool:
        """Whether library sizes are an offset in training."""
        return self.loss != "mse"

    def fit(
        self,
        X: Table,
        y: Table,
        *,
        groups: NDArray[Any] | None = None,
        library: NDArray[Any] | None = None,
    ) -> Self:
        """Train.

        Parameters
        ----------
        X
            ``(n, d)`` features; may be memory-mapped and of half precision, or a row source: one window of it is in
            memory then, and one of `y`.
        y
            ``(n, t)`` targets; raw counts for ``poisson`` and ``nb``.
        groups
            ``(n,)``; whole groups are held out to stop by. With one group or none, single rows are.
        library
            ``(n,)`` library sizes above zero; for counts only. Without them all rows count alike.

        Raises
        ------
        DataError
            Targets that are no counts where counts are needed, or a loss that became infinite.
        """
        X, y = check_tables(X, y)
        check_finite(X, y)
        widths = self._widths()
        offset = self._offset(library, y)
        order = np.arange(len(X), dtype=np.int64) if isinstance(X, RowSource) else by_value(X, whole(y))
        labels = None if groups is None else np.asarray(groups)
        if labels is not None and labels.shape == (len(X),):
            labels = labels[order]
        rows, held = (order[part] for part in hold_out(len(X), labels, share=self.held, seed=self.seed))
        x_mean, x_std = column_moments(X, rows)
        x_std = np.where(x_std > 1e-6 * x_std.max(initial=0.0), x_std, 1.0)
        if self.loss == "mse":
            y_mean, y_std = column_moments(y, rows)
            scale = float(np.sqrt(np.mean(y_std**2))) or 1.0
        else:
            # the rate at the reference library; a target never seen starts at far less than one count in all rows
            seen = sum(y[rows[at]].sum(0, dtype=np.float64) for at, _ in blocks(rows))
            y_mean = np.log(np.maximum(seen, 0.01) / np.exp(offset[rows], dtype=float).sum())
            scale = 1.0
        schedule = Schedule(self.max_epochs, self.batch, self.lr, self.weight_decay, self.patience, self.seed)
        with seeded(self.seed):
            net = _Net((X.shape[1], *widths, y.shape[1]), self.dropout, with_theta=self.loss == "nb")
            net.place(x_mean, x_std, y_mean, scale)
            loss = {"mse": _mse, "poisson": _poisson, "nb": _nb}[self.loss]
            history = train_net(net, loss, (X, y, offset), rows, held, schedule)
        self.history_ = {"train": history.train, "validation": history.validation, "best_epoch": history.best_epoch}
        self.inner_score_ = float("nan")
        self.notes_: tuple[str, ...] = ()
        if not history.settled:
            self.notes_ = say_not_converged("the network", f"{self.max_epochs} epochs", "give more max_epochs")
        return self._learned(net, X.shape[1], y.shape[1])

    def predict(self, X: Table, *, library: NDArray[Any] | None = None) -> Floats:
        """Return ``(n, t)`` float32; a row with NaN gives NaN.

        For counts these are expected counts: at `library` ``(n,)`` where it is given, else at the training rows' median
        library. The library of a new spot is part of the answer, not of the image: leave it out to predict.
        """
        self._check_fitted("n_features_in_")
        X = self._check_width(X, self.n_features_in_)
        out = np.full((len(X), self.n_targets_), np.nan, np.float32)
        for rows, block in blocks(X, READ_ROWS):
            good = finite_rows(block)
            out[rows][good] = forward(self._net, block[good])
        if self.loss == "mse":
            if library is not None:
                msg = "library is for heads of counts and this one was trained on values"
                raise UsageError(msg)
            return out
        np.exp(out, out=out)
        if library is not None:
            sizes = _checked_library(library, len(X))
            out *= (sizes / self.reference_library_).astype(np.float32)[:, None]
        return out

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return weights, and JSON with the parameters and the losses."""
        self._check_fitted("n_features_in_")
        params = {**self.get_params(), "hidden": list(self._widths())}
        meta = {
            "params": params,
            "n_features": self.n_features_in_,
            "n_targets": self.n_targets_,
            "reference_library": self.reference_library_,
            "history": self.history_,
            "notes": list(self.notes_),
        }
        return weights_of(self._net), meta

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted head that `to_state` described."""
        params = dict(meta["params"])
        head = cls(tuple(params.pop("hidden")), **params)
        d, t = int(meta["n_features"]), int(meta["n_targets"])
        net = _Net((d, *head._widths(), t), head.dropout, with_theta=head.loss == "nb")
        load_weights(net, arrays)
        head.reference_library_ = float(meta["reference_library"])
        head.history_, head.notes_, head.inner_score_ = dict(meta["history"]), tuple(meta["notes"]), float("nan")
        return head._learned(net, d, t)

    def _widths(self) -> tuple[int, ...]:
        hidden = check_widths("hidden", self.hidden)
        if self.loss not in LOSSES:
            msg = f"loss is {self.loss!r}, not {', '.join(LOSSES)}"
            raise UsageError(msg)
        if not (0 <= self.dropout < 1 and 0 < self.held < 1):
            msg = f"dropout is {self.dropout} and held {self.held}: give shares below 1"
            raise UsageError(msg)
        return hidden

    def _offset(self, library: NDArray[Any] | None, y: Table) -> Floats:
        """Return ``(n,)`` log library over the reference; zeros where there is none."""
        self.reference_library_ = 1.0
        if self.loss == "mse":
            if library is not None:
                msg = "library is an offset of counts: give loss='poisson' or 'nb', or leave it out"
                raise UsageError(msg)
            return np.zeros(len(y), np.float32)
        if any((part < 0).any() or (part != np.round(part)).any() for _, part in blocks(y)):
            msg = f"loss '{self.loss}' needs raw counts, and targets hold negative or fractional values"
            raise DataError(msg)
        if library is None:
            return np.zeros(len(y), np.float32)
        sizes = _checked_library(library, len(y))
        self.reference_library_ = float(np.median(sizes))
        return np.log(sizes / self.reference_library_).astype(np.float32)

    def _learned(self, net: _Net, d: int, t: int) -> Self:
        self._net, self.n_features_in_, self.n_targets_ = net, d, t
        if net.log_theta is not None:
            self.theta_ = np.exp(net.log_theta.detach().numpy().astype(np.float64))
        return self


class _Net(nn.Module):
    """Standardises, applies the layers, and puts the result on the scale of the targets (their log, for counts)."""

    x_mean: torch.Tensor
    x_std: torch.Tensor
    y_mean: torch.Tensor
    y_scale: torch.Tensor

    def __init__(self, sizes: Sequence[int], dropout: float, *, with_theta: bool) -> None:
        super().__init__()
        self.layers = mlp(sizes, dropout=dropout)
        for name, size in (("x_mean", sizes[0]), ("x_std", sizes[0]), ("y_mean", sizes[-1]), ("y_scale", 1)):
            self.register_buffer(name, torch.zeros(size))
        self.log_theta = nn.Parameter(torch.zeros(sizes[-1])) if with_theta else None

    def place(self, x_mean: NDArray[Any], x_std: NDArray[Any], y_mean: NDArray[Any], y_scale: float) -> None:
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            for buffer, value in ((self.x_mean, x_mean), (self.x_std, x_std), (self.y_mean, y_mean)):
                buffer.copy_(torch.from_numpy(np.asarray(value, dtype=np.float32)))
            self.y_scale.fill_(y_scale)
            # the first prediction is the training mean
            last.weight.zero_()
            last.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers((x - self.x_mean) / self.x_std) * self.y_scale + self.y_mean
        return out


def _mse(net: _Net, x: torch.Tensor, y: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    # in units of the targets' spread, so that one learning rate serves all
    error: torch.Tensor = (net(x) - y.float()) / net.y_scale
    return error.square().mean()


def _poisson(net: _Net, x: torch.Tensor, y: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    log_mean: torch.Tensor = net(x) + offset[:, None]
    return (torch.exp(log_mean) - y.float() * log_mean).mean()


def _nb(net: _Net, x: torch.Tensor, y: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    assert net.log_theta is not None
    y, log_theta = y.float(), net.log_theta
    log_mean: torch.Tensor = net(x) + offset[:, None]
    theta = torch.exp(log_theta)
    log_sum = torch.logaddexp(log_mean, log_theta)
    ways = torch.lgamma(y + theta) - torch.lgamma(theta) - torch.lgamma(y + 1)
    likelihood: torch.Tensor = (ways + theta * (log_theta - log_sum) + y * (log_mean - log_sum)).mean()
    return -likelihood


def _checked_library(library: NDArray[Any], n: int) -> NDArray[np.float64]:
    sizes = np.asarray(library, dtype=np.float64)
    if sizes.shape != (n,):
        msg = f"library has shape {sizes.shape} for {n} rows"
        raise UsageError(msg)
    bad = int((~(np.isfinite(sizes) & (sizes > 0))).sum())
    if bad:
        msg = f"{bad} of {n} library sizes are not above zero: leave those rows out"
        raise DataError(msg)
    return sizes
