"""Predict a few factors, decode all genes: a regressor and a decoder as one head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from histostore.heads.decoders import Decoder, decoder_class, parse_decoder
from histostore.heads.estimator import Estimator, check_pair, under
from histostore.heads.registry import head_class, make, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from histostore.protocols import Head


class Decoded(Estimator):
    """Fits a decoder on the training targets, a regressor on its factors, and decodes what the regressor predicts.

    Parameters
    ----------
    regressor
        A head's name, or an estimator (which is cloned, never fitted itself).
    decoder
        ``nmf:10``, ``pca:5``, ``autoencoder:256x64x10``, or a `Decoder` (cloned too). Texts can be kept in a store.
    options
        Pairs of option and value for a regressor given by name.
    seed
        Given to both where they are named and have one.

    Attributes
    ----------
    decoder_ : Decoder
        Fitted on training targets; ``decoder_.reconstruct(Y)`` is the ceiling of this head.
    regressor_ : Head
    """

    def __init__(
        self,
        regressor: Head | str = "ridge",
        decoder: Decoder | str = "nmf:10",
        *,
        options: Sequence[tuple[str, Any]] = (),
        seed: int = 0,
    ) -> None:
        self.regressor = regressor
        self.decoder = decoder
        self.options = options
        self.seed = seed

    @property
    def tunes(self) -> bool:
        """Whether regressor or decoder hold out groups."""
        return bool(getattr(self._new_regressor(), "tunes", True)) or self._new_decoder().needs_groups

    @property
    def alpha_(self) -> Any:
        """The regressor's penalty, where it has one."""
        return self.regressor_.alpha_  # type: ignore[attr-defined]

    @property
    def alphas(self) -> Any:
        """The penalties the regressor chose from, where it did."""
        return self._new_regressor().alphas  # type: ignore[attr-defined]

    @property
    def notes_(self) -> tuple[str, ...]:
        """What decoder and regressor have to say about their fits."""
        self._check_fitted("regressor_")
        return (*self.decoder_.notes_, *getattr(self.regressor_, "notes_", ()))

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Learn factors of the targets ``(n, g)``, then to predict them from features ``(n, d)``."""
        X, y = check_pair(X, y)
        self.decoder_ = self._new_decoder().fit(y, groups=groups)
        self.regressor_ = self._new_regressor().fit(X, self.decoder_.encode(y), groups=groups)
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, g)`` float32; a row with NaN gives NaN."""
        factors = self.predict_factors(X)
        return self.decoder_.decode(factors)

    def predict_factors(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, k)`` float32 factors as the regressor predicts them (for NMF also below zero)."""
        self._check_fitted("regressor_")
        return self.regressor_.predict(self._check_width(X, self.n_features_in_))

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return both states side by side."""
        self._check_fitted("regressor_")
        ours, decoder = self.decoder_.to_state()
        theirs, regressor = self.regressor_.to_state()
        arrays = {f"decoder.{k}": v for k, v in ours.items()} | {f"regressor.{k}": v for k, v in theirs.items()}
        meta = {
            "options": [list(pair) for pair in dict(self.options).items()],
            "seed": self.seed,
            "given": [v if isinstance(v, str) else None for v in (self.regressor, self.decoder)],
            "n_features": self.n_features_in_,
            "decoder": {"name": self.decoder_.name, "meta": decoder},
            "regressor": {"name": name_of(self.regressor_), "meta": regressor},
        }
        return arrays, meta

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted head that `to_state` described."""
        decoder = decoder_class(meta["decoder"]["name"]).from_state(under(arrays, "decoder."), meta["decoder"]["meta"])
        regressor = head_class(meta["regressor"]["name"]).from_state(
            under(arrays, "regressor."), meta["regressor"]["meta"]
        )
        named = meta["given"]
        options = tuple((k, v) for k, v in meta["options"])
        head = cls(named[0] or regressor, named[1] or decoder, options=options, seed=int(meta["seed"]))
        head.decoder_, head.regressor_ = decoder, regressor
        head.n_features_in_ = int(meta["n_features"])
        return head

    def _new_decoder(self) -> Decoder:
        if isinstance(self.decoder, str):
            return parse_decoder(self.decoder, seed=self.seed)
        return self.decoder.clone()

    def _new_regressor(self) -> Head:
        if isinstance(self.regressor, str):
            return make(self.regressor, _pairs(self.options), seed=self.seed)
        return type(self.regressor)(**self.regressor.get_params())


def _pairs(options: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return pairs as they were before JSON turned tuples into lists."""
    return [(str(k), tuple(v) if isinstance(v, list) else v) for k, v in options]
