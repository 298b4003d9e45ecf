"""Block-diagonal matrices, and the elimination of the largest random term: why no n x n matrix is ever needed.

With b = Λ u, u ~ N(0, s_e I) and V = s_e (I + Z Λ Λ' Z'), everything the likelihood needs follows from the Cholesky
factor of the q x q matrix Λ'Z'Z Λ + I. Its largest term is block-diagonal (one number per level, a K x K block of
slopes, one block per slide) and is eliminated block by block; what is left is dense and as large as the other terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy import linalg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.heads.mixed.design import Floats

SMALL = 8
"""Blocks up to this edge multiply sparse matrices as sparse; larger ones would fill them anyway."""


FULL = 0.02
"""Share of non-zeros from which a dense product is the faster one."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockDiagonal:
    """Square blocks down the diagonal, equal ones stacked."""

    stacks: tuple[NDArray[np.float64], ...]
    """Each ``(blocks, k, k)``."""

    def __matmul__(self, other: Any) -> Any:
        """Return the product with a dense or sparse matrix ``(q, m)``, sparse only where that stays sparse."""
        if sp.issparse(other):
            if all(stack.shape[1] <= SMALL for stack in self.stacks):
                return self.sparse() @ other
            other = other.toarray()
        parts, start = [], 0
        for stack in self.stacks:
            blocks, k, _ = stack.shape
            rows = other[start : start + blocks * k].reshape(blocks, k, -1)
            product = stack * rows if k == 1 else stack @ rows
            parts.append(product.reshape(blocks * k, -1))
            start += blocks * k
        return np.concatenate(parts)

    @property
    def T(self) -> BlockDiagonal:
        """The transpose."""
        return BlockDiagonal(tuple(stack.transpose(0, 2, 1) for stack in self.stacks))

    def sparse(self) -> sp.csr_array:
        """Return it as CSR."""
        made = []
        for stack in self.stacks:
            blocks, k, _ = stack.shape
            places = (np.ascontiguousarray(stack), np.arange(blocks), np.arange(blocks + 1))
            made.append(sp.bsr_array(places, shape=(blocks * k, blocks * k)))
        return sp.csr_array(sp.block_diag(made, format="csr"))


def eliminate(factor: BlockDiagonal, gram: BlockDiagonal) -> tuple[BlockDiagonal, float]:
    """Return ``T = C⁻¹ Λ'`` and ``ln |C C'|``, where ``C C' = Λ' G Λ + I`` block by block."""
    made, logdet = [], 0.0
    for left, counts in zip(factor.stacks, gram.stacks, strict=True):
        k = left.shape[1]
        inner = left.transpose(0, 2, 1) @ counts @ left + np.eye(k)
        lower = np.linalg.cholesky(inner)
        logdet += 2 * float(np.log(np.diagonal(lower, axis1=1, axis2=2)).sum())
        if k == 1:
            made.append(left / lower)
        elif len(left) == 1:
            made.append(linalg.solve_triangular(lower[0], left[0].T, lower=True, check_finite=False)[None])
        else:
            made.append(np.linalg.solve(lower, left.transpose(0, 2, 1)))
    return BlockDiagonal(tuple(made)), logdet


@dataclass(frozen=True, slots=True, eq=False)
class Elimination:
    """``Λ'Z'ZΛ + I`` factored: the leading term first, the rest by its Schur complement."""

    lead: BlockDiagonal
    """``T = C⁻¹ Λ₁'``"""
    across: Any
    """``U = T Z₁'Z₂`` ``(q₁, q₂)``, sparse where it can be."""
    lower: Floats | None
    """``(q₂, q₂)`` Cholesky factor of the Schur complement; None for a single term."""
    left: Any
    """``Λ₂`` ``(q₂, q₂)`` sparse."""
    logdet: float

    @classmethod
    def of(cls, factors: Sequence[BlockDiagonal], gram: BlockDiagonal, between: Any, others: Any) -> Elimination:
        """Factor it.

        Parameters
        ----------
        factors
            Λ of each term, the leading one first.
        gram
            ``Z₁'Z₁`` of the leading term.
        between, others
            ``Z₁'Z₂`` and ``Z₂'Z₂``, sparse; ``Z₂`` are the other terms side by side. Not looked at for one term.
        """
        lead, logdet = eliminate(factors[0], gram)
        if len(factors) == 1:
            return cls(lead, None, None, None, logdet)
        across = lead @ between
        left = sp.csr_array(sp.block_diag([f.sparse() for f in factors[1:]], format="csr"))
        # dense @ dense, or sparse @ sparse: either way of the size of the other terms alone
        schur = dense(left.T @ (others - across.T @ across) @ left)
        schur.flat[:: len(schur) + 1] += 1
        lower = linalg.cholesky(schur, lower=True, check_finite=False, overwrite_a=True)
        return cls(lead, across, lower, left, logdet + 2 * float(np.log(np.diag(lower)).sum()))

    def halves(self, first: Any, second: Any) -> tuple[Floats, Floats | None]:
        """Return ``A^{-1/2} Λ' M`` of the two parts of a matrix M ``(q₁ + q₂, m)``."""
        top = dense(self.lead @ first)
        if self.lower is None:
            return top, None
        under = self.left.T @ (dense(second) - self.across.T @ top)
        return top, linalg.solve_triangular(self.lower, under, lower=True, check_finite=False)

    def effects(self, top: Floats, bottom: Floats | None) -> tuple[Floats, Floats | None]:
        """Return ``Λ A⁻¹ Λ' M`` of both parts from its `halves`."""
        if self.lower is None or bottom is None:
            return self.lead.T @ top, None
        second = self.left @ linalg.solve_triangular(self.lower, bottom, lower=True, trans="T", check_finite=False)
        return self.lead.T @ (top - self.across @ second), second


def as_fits(matrix: Any) -> Any:
    """Return a sparse matrix as it is where most of it is empty, else dense: full ones multiply faster so."""
    full = matrix.nnz > FULL * matrix.shape[0] * matrix.shape[1]
    return matrix.toarray() if full else sp.csr_array(matrix)


def dense(matrix: Any) -> Floats:
    """Return a sparse or dense matrix as a dense one."""
    found: Floats = matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
    return found
