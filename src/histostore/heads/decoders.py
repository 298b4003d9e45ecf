"""Few factors in the place of many genes: a head predicts the factors, the decoder gives the genes back.

A decoder is fitted on training targets only. ``encode`` never refits: new spots are expressed in the basis learned from
the training spots, so factors of both sides mean the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from histostore.errors import DataError, NotFoundError, SpecMismatchError, UsageError, near
from histostore.heads.estimator import Estimator, as_rows, finite_rows
from histostore.heads.lowrank import leading_svd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    type Floats = NDArray[np.float32]


class Decoder(Estimator, ABC):
    """Turns targets ``(n, g)`` into factors ``(n, k)`` and back."""

    name: ClassVar[str]
    needs_groups: ClassVar[bool] = False
    """Whether `fit` holds out whole groups of rows, and so wants to know them."""
    notes_: tuple[str, ...] = ()
    """What the fit has to say, as of an iteration that did not settle."""

    @abstractmethod
    def fit(self, Y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Learn from the targets ``(n, g)`` of training rows."""

    @abstractmethod
    def encode(self, Y: NDArray[Any]) -> Floats:
        """Return factors ``(n, k)`` float32 of any rows, in the basis of the training rows."""

    @abstractmethod
    def decode(self, factors: NDArray[Any]) -> Floats:
        """Return targets ``(n, g)`` float32 of factors; a row with NaN gives NaN."""

    @abstractmethod
    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and plain JSON."""

    @classmethod
    @abstractmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted decoder that `to_state` described."""

    def reconstruct(self, Y: NDArray[Any]) -> Floats:
        """Return ``decode(encode(Y))``: the ceiling of any head on these factors, as it has seen the answer."""
        return self.decode(self.encode(Y))

    @property
    def n_targets_in_(self) -> int:
        """``g``."""
        self._check_fitted("mean_")
        return len(self.mean_)

    mean_: NDArray[Any]
    """``(g,)`` means of the training targets."""

    def _training(self, Y: NDArray[Any], k: Any) -> Floats:
        Y = as_rows(Y, "Y").astype(np.float32, copy=False)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            msg = f"{type(self).__name__} of {k!r} factors: give 1 or more"
            raise UsageError(msg)
        if k > min(Y.shape):
            msg = f"{k} factors of {Y.shape[0]} rows and {Y.shape[1]} targets: give {min(Y.shape)} or fewer"
            raise UsageError(msg)
        self._refuse_holes(Y)
        return Y

    def _targets(self, Y: NDArray[Any]) -> Floats:
        """Check targets of new rows against what was fitted."""
        width = self.n_targets_in_
        Y = as_rows(Y, "Y").astype(np.float32, copy=False)
        if Y.shape[1] != width:
            msg = f"Y has {Y.shape[1]} targets and this {type(self).__name__} was fitted on {width}"
            raise SpecMismatchError(msg)
        self._refuse_holes(Y)
        return Y

    @staticmethod
    def _refuse_holes(Y: Floats) -> None:
        bad = int((~finite_rows(Y)).sum())
        if bad:
            msg = f"{bad} of {len(Y)} rows of targets hold NaN or infinite values: leave them out"
            raise DataError(msg)

    def _factors(self, factors: NDArray[Any], k: int) -> Floats:
        self._check_fitted("mean_")
        factors = as_rows(factors, "factors").astype(np.float32, copy=False)
        if factors.shape[1] != k:
            msg = f"{factors.shape[1]} factors for a {type(self).__name__} of {k}"
            raise SpecMismatchError(msg)
        return factors


class PCA(Decoder):
    """Principal components of the training targets, in units of the targets.

    Attributes
    ----------
    components_ : numpy.ndarray
        ``(k, g)`` orthonormal rows, most variance first; `mean_` ``(g,)``.
    explained_ : numpy.ndarray
        ``(k,)`` share of the total variance of the training targets.
    """

    name: ClassVar[str] = "pca"

    def __init__(self, k: int = 10, *, seed: int = 0) -> None:
        self.k = k
        self.seed = seed

    def fit(self, Y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Learn from ``(n, g)`` targets; `groups` is not used."""
        Y = self._training(Y, self.k)
        mean = Y.mean(0, dtype=np.float64)
        centred = Y - mean.astype(np.float32)
        _, s, v = leading_svd(centred, self.k, seed=self.seed)
        total = float(np.sum(np.square(centred, dtype=np.float64)))
        self.explained_ = s**2 / total if total else np.zeros(len(s))
        return self._learned(v, mean)

    def encode(self, Y: NDArray[Any]) -> Floats:
        """Return scores ``(n, k)`` float32."""
        return ((self._targets(Y) - self._offset) @ self._rows.T).astype(np.float32)

    def decode(self, factors: NDArray[Any]) -> Floats:
        """Return ``(n, g)`` float32."""
        out: Floats = self._factors(factors, len(self.components_)) @ self._rows
        out += self._offset
        return out

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return components, means and shares, and JSON with the parameters."""
        self._check_fitted("mean_")
        arrays = {"components": self.components_, "mean": self.mean_, "explained": self.explained_}
        return arrays, {"params": self.get_params()}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted decoder that `to_state` described."""
        decoder = cls(**meta["params"])
        decoder.explained_ = arrays["explained"]
        return decoder._learned(arrays["components"], arrays["mean"])

    def _learned(self, components: NDArray[Any], mean: NDArray[Any]) -> Self:
        self.components_, self.mean_ = np.ascontiguousarray(components), mean
        self._rows, self._offset = self.components_.astype(np.float32), mean.astype(np.float32)
        return self


_HOME = {
    "nmf": "histostore.heads.nmf:NMF",
    "pca": "histostore.heads.decoders:PCA",
    "autoencoder": "histostore.heads.autoencoder:Autoencoder",
}


def decoder_class(name: str) -> type[Decoder]:
    """Return the class of a decoder's name, or a `NotFoundError` with near names."""
    if name not in _HOME:
        msg = f"no decoder '{name}' (there are {', '.join(_HOME)}){near(name, _HOME)}"
        raise NotFoundError(msg)
    module, _, attribute = _HOME[name].partition(":")
    found: type[Decoder] = getattr(import_module(module), attribute)
    return found


def parse_decoder(text: str, *, seed: int = 0) -> Decoder:
    """Return the decoder of a text: ``nmf:10``, ``pca:5``, ``autoencoder:256x64x10`` (widths down to the factors)."""
    name, _, size = text.partition(":")
    found = decoder_class(name)
    if not size:
        return found(seed=seed)  # type: ignore[call-arg]
    widths = size.split("x")
    if not all(w.isdigit() and int(w) > 0 for w in widths) or (len(widths) > 1 and name != "autoencoder"):
        msg = f"decoder '{text}': give it as nmf:10, pca:5 or autoencoder:256x64x10"
        raise UsageError(msg)
    numbers = tuple(int(w) for w in widths)
    return found(numbers if name == "autoencoder" else numbers[0], seed=seed)  # type: ignore[call-arg]
