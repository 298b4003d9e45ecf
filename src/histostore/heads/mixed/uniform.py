"""A random term with K numbers per level and one K x K covariance: intercepts (K = 1) and slopes.

The covariance is s_e Λ Λ', whatever the parameters are: positive semi-definite by construction, never by clipping.
Parameters are the logarithms of Λ's diagonal, then what is below it, relative to the residual's standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import scipy.sparse as sp

from histostore.errors import UsageError
from histostore.heads.mixed.blocks import BlockDiagonal, SmallBlocks
from histostore.heads.mixed.levels import UNSEEN, Levels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats

LOG_LIMITS = (-9.0, 9.0)
"""Of ln(sd / residual sd); what ends at the lower one is reported as a variance of 0."""


@dataclass(slots=True, eq=False)
class Uniform:
    """The term on given rows."""

    levels: Levels
    columns: Floats
    """``(n, K)`` what the numbers of a row's level are multiplied by."""
    z: sp.csr_array = field(init=False)
    """``(n, q K)``"""

    def __post_init__(self) -> None:
        self.z = indicator(self.levels.codes, self.columns, len(self.levels))

    @property
    def k(self) -> int:
        """Numbers per level."""
        return int(self.columns.shape[1])

    @property
    def width(self) -> int:
        """Columns of Z."""
        return len(self.levels) * self.k

    @property
    def block(self) -> int:
        """Edge of the blocks of its covariance."""
        return self.k

    @property
    def parameters(self) -> int:
        """How many its covariance has."""
        return self.k * (self.k + 1) // 2

    def on(self, rows: NDArray[np.int64]) -> Self:
        """Return the term on some of the rows; levels without rows are kept."""
        return replace(self, levels=self.levels.on(rows), columns=self.columns[rows])

    def starts(self) -> list[list[float]]:
        """Return parameters to start a search from."""
        rms = np.sqrt((self.columns**2).mean(0))
        scale = np.log(np.where(rms > 0, rms, 1.0))
        return [[*(np.log(sd) - scale), *[0.0] * (self.k * (self.k - 1) // 2)] for sd in (0.3, 1.0)]

    def bounds(self) -> list[tuple[float, float]]:
        """Return the limits of each parameter."""
        return [LOG_LIMITS] * self.k + [(-1e4, 1e4)] * (self.k * (self.k - 1) // 2)

    def lower(self, theta: Floats) -> Floats:
        """Return the ``(K, K)`` Cholesky factor Λ of a level."""
        lower = np.diag(np.exp(np.asarray(theta[: self.k], np.float64)))
        lower[np.tril_indices(self.k, -1)] = theta[self.k :]
        return lower

    def factor(self, theta: Floats) -> BlockDiagonal:
        """Return Λ."""
        return self._every(self.lower(theta))

    def derivatives(self, theta: Floats) -> Iterator[BlockDiagonal]:
        """Yield the derivative of Λ Λ' by each parameter."""
        lower = self.lower(theta)
        rows, columns = np.tril_indices(self.k, -1)
        for i, j in [*((k, k) for k in range(self.k)), *zip(rows.tolist(), columns.tolist(), strict=True)]:
            change = np.zeros_like(lower)
            change[i, j] = lower[i, i] if i == j else 1.0
            half = change @ lower.T
            yield self._every(half + half.T)

    def eliminated(self, theta: Floats) -> SmallBlocks:
        """Return the term as the one that is eliminated first."""
        gram = np.empty((len(self.levels), self.k, self.k))
        for i in range(self.k):
            for j in range(self.k):
                both = self.columns[:, i] * self.columns[:, j]
                gram[:, i, j] = np.bincount(self.levels.codes, both, len(self.levels))
        return SmallBlocks.of(self.lower(theta), gram)

    def rows(self, new: Any, theta: Floats) -> tuple[sp.csr_array, Floats]:
        """Return Z ``(m, q K)`` of new rows, and the share of the prior variance that no level known explains."""
        if not hasattr(new, "covariates"):
            msg = f"{self.levels.name} has levels: give labels, not {type(new).__name__}"
            raise UsageError(msg)
        codes, columns = self.levels.find(new.labels), new.covariates()
        if columns.shape != (len(codes), self.k):
            msg = f"{self.levels.name}: {columns.shape} columns for {len(codes)} rows, {self.k} at fit"
            raise UsageError(msg)
        unseen = codes == UNSEEN
        prior = ((columns @ self.lower(theta)) ** 2).sum(1)
        known = np.where(unseen[:, None], 0.0, columns)
        return indicator(np.where(unseen, 0, codes), known, len(self.levels)), np.where(unseen, prior, 0.0)

    def describe(self, theta: Floats, s2_e: float) -> dict[str, Any]:
        """Return variance or covariance in the units of y."""
        lower = self.lower(theta)
        covariance = s2_e * lower @ lower.T
        return {"variance": float(covariance[0, 0])} if self.k == 1 else {"covariance": covariance}

    def spread(self, theta: Floats) -> float:
        """Return the prior variance of the term's part of y, mean over rows, in units of the residual variance."""
        return float(((self.columns @ self.lower(theta)) ** 2).sum(1).mean())

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and JSON that the term can be made of again."""
        names = {"name": self.levels.name, "levels": list(self.levels.names)}
        return {"codes": self.levels.codes, "columns": self.columns}, names

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the term that `to_state` described."""
        return cls(Levels.coded(meta["name"], tuple(meta["levels"]), arrays["codes"]), arrays["columns"])

    def _every(self, block: Floats) -> BlockDiagonal:
        return BlockDiagonal((np.broadcast_to(block, (len(self.levels), self.k, self.k)),))


def indicator(codes: NDArray[np.int64], columns: Floats, q: int) -> sp.csr_array:
    """Return Z ``(n, q K)``: row i holds its K numbers in the columns of its level."""
    n, k = columns.shape
    places = codes[:, None] * k + np.arange(k)
    return sp.csr_array((columns.ravel(), places.ravel(), np.arange(0, n * k + 1, k)), shape=(n, q * k))
