"""Rows that are read when asked for: the X, or y, of a head where it is never all in memory.

A row source has a shape and a dtype, and ``source[rows]`` gives those rows as an array. Heads that stream
(`Estimator.streams`) take one wherever they take an array, go over it block by block and keep sums or one window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    type Rows = NDArray[np.int64]
    type Table = NDArray[Any] | RowSource

STREAM_BYTES = 1 << 30
"""Embeddings that would take more than this as float32 are streamed: 1 GiB, 262,144 rows of 1,024. Frozen: minibatches
of a stream are cut otherwise than those of an array, so that moving it would change what is learned."""

READ_ROWS = 16_384
"""Rows of a source read at a time: 64 MiB of 1,024 float32."""

WINDOW_ROWS = 16_384
"""Rows of a stream among which minibatches are drawn; frozen like `STREAM_BYTES`."""


class RowSource(ABC):
    """A table ``(n, d)`` of numbers whose rows are read when asked for; numpy never takes it whole unasked."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    @abstractmethod
    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        """Return ``(k, d)`` rows, owned by the caller: a slice of step 1, or row numbers in any order."""

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.shape[0]} x {self.shape[1]} {self.dtype}"


class Mapped(RowSource):
    """Rows of an array that lies on disk (`numpy.memmap`)."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        n, d = self.values.shape
        return n, d

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.values.dtype

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        return np.array(self.values[rows])


class Picked(RowSource):
    """Some rows of a source, in the order given."""

    def __init__(self, source: RowSource, rows: Rows) -> None:
        self.source, self.rows = source, rows

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), self.source.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.source.dtype

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        return self.source[self.rows[rows]]


def as_source(X: Any) -> RowSource | None:
    """Return what is read by rows: a source, or a memory map too large to be held; None for anything else."""
    if isinstance(X, RowSource):
        return X
    if isinstance(X, np.memmap) and X.ndim == 2 and 4 * X.size > STREAM_BYTES:
        return Mapped(X)
    return None


def pick(X: Table, rows: NDArray[Any]) -> Table:
    """Return some rows ``(k,)``, by number or mask: an array of an array, of a source another source."""
    if not isinstance(X, RowSource):
        some: NDArray[Any] = X[rows]
        return some
    return Picked(X, np.flatnonzero(rows) if rows.dtype == np.bool_ else rows)


def whole(X: Table) -> NDArray[Any]:
    """Return all rows in memory."""
    return X[:] if isinstance(X, RowSource) else X


def blocks(X: Table, size: int = READ_ROWS) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield (which rows, the rows) in order."""
    for begin in range(0, len(X), size):
        rows = slice(begin, min(begin + size, len(X)))
        yield rows, X[rows]


def block_order(rows: Rows, seed: int, epoch: int, *, block: int = 512, window: int = WINDOW_ROWS) -> Rows:
    """Return an order of rows for one epoch that reads neighbours together, by `seed` and `epoch` alone.

    Runs of `block` rows are shuffled, and then the rows within each `window` of consecutive runs: so each minibatch is
    drawn from 32 places of the table, and each read is of 1 MiB where rows are of 2 KiB, as disks want it. Every row
    comes once.
    """
    rng = np.random.default_rng([seed, epoch])
    starts = rng.permutation(-(-len(rows) // block)) * block
    order = np.concatenate([rows[at : at + block] for at in starts]) if len(starts) else rows
    for begin in range(0, len(order), window):
        rng.shuffle(order[begin : begin + window])
    return order
