"""What all heads share: scikit-learn's parameter convention, and the checks of their input.

Nothing here imports scikit-learn, yet `sklearn.base.clone` and its searches take these classes as they are.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from histostore.errors import DataError, SpecMismatchError, UsageError, near
from histostore.heads.rows import RowSource, as_source, blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.heads.rows import Table


class Estimator:
    """Parameters are the constructor's arguments, kept unchanged; what is learned ends in an underscore."""

    sees: ClassVar[Literal["embeddings", "positions", "nothing"]] = "embeddings"
    """What its X is: the protocol feeds it so, and names its line in the table after it."""

    streams: ClassVar[bool] = False
    """Whether X and y may be row sources (`histostore.heads.rows`), which are never all in memory."""

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

    def _check_width(self, X: Any, width: int) -> NDArray[Any]:
        table = as_table(X, "X") if self.streams else as_rows(X, "X")
        if table.shape[1] != width:
            msg = f"X has {table.shape[1]} features and this {type(self).__name__} was fitted on {width}"
            raise SpecMismatchError(msg)
        # heads that stream ask for a slice of rows at a time, which arrays and sources both give
        return table  # type: ignore[return-value]


def as_rows(X: Any, what: str) -> NDArray[Any]:
    """Return a 2-D real array; anything else is a `UsageError`."""
    if isinstance(X, RowSource):
        msg = f"{what} is a {X!r} and this needs all of it in memory: give {what}[:], or take a head that streams"
        raise UsageError(msg)
    rows: NDArray[Any] = np.asarray(X)
    _check_table(rows, what)
    return rows


def as_table(X: Any, what: str) -> Table:
    """Return a 2-D real array, or the row source that X is (`histostore.heads.rows.as_source`)."""
    source = as_source(X)
    if source is None:
        return as_rows(X, what)
    _check_table(source, what)
    return source


def _check_table(X: Table, what: str) -> None:
    if len(X.shape) != 2 or X.dtype.kind not in "fiub":
        msg = f"{what} is {len(X.shape)}-D of {X.dtype}: give rows x columns of numbers"
        raise UsageError(msg)


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
    if not isinstance(y, RowSource):
        y = np.asarray(y)
        y = y[:, None] if y.ndim == 1 else y
    y = as_rows(y, "y")
    check_finite(X, y)
    return X, y


def check_tables(X: Any, y: Any) -> tuple[Table, Table]:
    """Return features and targets of a head that streams: same rows, at least one; values are not looked at.

    Raises
    ------
    UsageError
        Shapes that do not fit together, or no rows.
    """
    if as_source(y) is None:
        y = np.asarray(y)
        y = y[:, None] if y.ndim == 1 else y
    X, y = as_table(X, "X"), as_table(y, "y")
    check_lengths(X, y)
    return X, y


def check_finite(X: Table, y: Table) -> None:
    """Refuse NaN and infinite values, and tables of different length; sources are read through once."""
    check_lengths(X, y)
    for name, values in (("X", X), ("y", y)):
        parts = blocks(values) if isinstance(values, RowSource) else ((slice(None), values),)
        bad = sum(0 if all_finite(part) else int((~finite_rows(part)).sum()) for _, part in parts)
        if bad:
            msg = f"{bad} of {len(values)} rows of {name} hold NaN or infinite values: leave them out before fitting"
            raise DataError(msg)


def check_lengths(X: Table, y: Table) -> None:
    """Refuse tables of different length, and empty ones."""
    if len(X) != len(y):
        msg = f"X has {len(X)} rows and y has {len(y)}"
        raise UsageError(msg)
    if not len(X):
        msg = "no rows to train on"
        raise UsageError(msg)


def all_finite(X: NDArray[Any]) -> bool:
    """Say whether every value is surely finite: one pass, no temporary; False may also be a sum that overflowed."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(X.sum(dtype=np.result_type(X.dtype, np.float32))))


def finite_rows(X: Table) -> NDArray[np.bool_]:
    """Return ``(n,)`` True where every value of a row is finite."""
    if not isinstance(X, RowSource):
        mask: NDArray[np.bool_] = np.isfinite(X).all(axis=1)
        return mask
    parts = [np.ones(len(part), bool) if all_finite(part) else finite_rows(part) for _, part in blocks(X)]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of one part of a head's state, whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
