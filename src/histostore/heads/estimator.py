"""What all heads share: scikit-learn's parameter convention, and the checks of their input.

Nothing here imports scikit-learn, yet `sklearn.base.clone` and its searches take these classes as they are.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from histostore.errors import DataError, SpecMismatchError, UsageError, near

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Estimator:
    """Parameters are the constructor's arguments, kept unchanged; what is learned ends in an underscore."""

    sees: ClassVar[Literal["embeddings", "positions", "nothing"]] = "embeddings"
    """What its X is: the protocol feeds it so, and names its line in the table after it."""

    @property
    def tunes(self) -> bool:
        """Whether `fit` chooses something by groups left out, and so needs at least two."""
        return False

    @classmethod
    def param_names(cls) -> tuple[str, ...]:
        """Return the names of the constructor's arguments."""
        return tuple(name for name in inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments; `deep` is there for scikit-learn and changes nothing."""
        return {name: getattr(self, name) for name in self.param_names()}

    def set_params(self, **params: Any) -> Self:
        """Set constructor arguments by name; an unknown one is a `UsageError`."""
        names = self.param_names()
        for name, value in params.items():
            if name not in names:
                msg = f"{type(self).__name__} has no option '{name}'{near(name, names)}"
                raise UsageError(msg)
            setattr(self, name, value)
        return self

    def clone(self) -> Self:
        """Return an unfitted copy with the same parameters."""
        return type(self)(**self.get_params())

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.get_params().items())
        return f"{type(self).__name__}({inside})"

    def _check_fitted(self, attribute: str) -> None:
        if not hasattr(self, attribute):
            msg = f"this {type(self).__name__} is not fitted: call fit first"
            raise UsageError(msg)

    def _check_width(self, X: NDArray[Any], width: int) -> NDArray[Any]:
        X = as_rows(X, "X")
        if X.shape[1] != width:
            msg = f"X has {X.shape[1]} features and this {type(self).__name__} was fitted on {width}"
            raise SpecMismatchError(msg)
        return X


def as_rows(X: Any, what: str) -> NDArray[Any]:
    """Return a 2-D real array; anything else is a `UsageError`."""
    rows: NDArray[Any] = np.asarray(X)
    if rows.ndim != 2 or rows.dtype.kind not in "fiub":
        msg = f"{what} is {rows.ndim}-D of {rows.dtype}: give rows x columns of numbers"
        raise UsageError(msg)
    return rows


def check_pair(X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return training features ``(n, d)`` and targets ``(n, t)``: same rows, at least one, all finite.

    A one-dimensional `y` is one target.

    Raises
    ------
    UsageError
        Shapes that do not fit together, or no rows.
    DataError
        NaN or infinite values: a head never guesses what to do with them.
    """
    X = as_rows(X, "X")
    y = np.asarray(y)
    y = as_rows(y[:, None] if y.ndim == 1 else y, "y")
    if len(X) != len(y):
        msg = f"X has {len(X)} rows and y has {len(y)}"
        raise UsageError(msg)
    if not len(X):
        msg = "no rows to train on"
        raise UsageError(msg)
    for name, values in (("X", X), ("y", y)):
        if all_finite(values):
            continue
        bad = int((~finite_rows(values)).sum())
        if bad:
            msg = f"{bad} of {len(values)} rows of {name} hold NaN or infinite values: leave them out before fitting"
            raise DataError(msg)
    return X, y


def all_finite(X: NDArray[Any]) -> bool:
    """Say whether every value is surely finite: one pass, no temporary; False may also be a sum that overflowed."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(X.sum(dtype=np.result_type(X.dtype, np.float32))))


def finite_rows(X: NDArray[Any]) -> NDArray[np.bool_]:
    """Return ``(n,)`` True where every value of a row is finite."""
    mask: NDArray[np.bool_] = np.isfinite(X).all(axis=1)
    return mask
