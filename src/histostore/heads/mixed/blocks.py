"""Block-diagonal matrices, and the elimination of the largest random term: why no n x n matrix is ever needed.

With b ~ N(0, s_e D) and V = s_e (I + Z D Z'), D = Λ Λ', everything the likelihood needs follows from the Cholesky
factor of the q x q matrix Λ'Z'Z Λ + I. Its largest term is block-diagonal (one number per level, a K x K block of
slopes, one block per slide) and is eliminated block by block; what is left is dense and as large as the other terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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

    def sparse(self) -> sp.csr_array:
        """Return it as CSR."""
        made = []
        for stack in self.stacks:
            blocks, k, _ = stack.shape
            places = (np.ascontiguousarray(stack), np.arange(blocks), np.arange(blocks + 1))
            made.append(sp.bsr_array(places, shape=(blocks * k, blocks * k)))
        return sp.csr_array(sp.block_diag(made, format="csr"))


class Lead(Protocol):
    """``P = (D⁻¹ + Z'Z)⁻¹`` of one term: the posterior covariance of its effects, were it the only one."""

    @property
    def logdet(self) -> float:
        """Return ``ln |I + Λ'Z'ZΛ|``."""
        ...

    def __matmul__(self, other: Any) -> Any:
        """Return the product with a dense or sparse matrix ``(q, m)``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SmallBlocks:
    """The lead of a term of many small blocks ``(levels, K, K)``, each inverted."""

    posterior: BlockDiagonal
    logdet: float

    @classmethod
    def of(cls, left: Floats, gram: Floats) -> SmallBlocks:
        """Return it for Λ ``(K, K)`` of every level and ``Z'Z`` ``(levels, K, K)``."""
        k = len(left)
        lower = np.linalg.cholesky(left.T @ gram @ left + np.eye(k))
        half = left.T / lower if k == 1 else np.linalg.solve(lower, np.broadcast_to(left.T, lower.shape))
        logdet = 2 * float(np.log(np.diagonal(lower, axis1=1, axis2=2)).sum())
        return cls(BlockDiagonal((half.transpose(0, 2, 1) @ half,)), logdet)

    def __matmul__(self, other: Any) -> Any:
        """Return the product with a dense or sparse matrix ``(q, m)``."""
        return self.posterior @ other


@dataclass(frozen=True, slots=True, eq=False)
class LargeBlocks:
    """The lead of a term of few large blocks with a diagonal ``Z'Z``: one Cholesky factor of I + √N D √N each.

    D itself is never factored, so that kernels that are singular to rounding cost no digits.
    """

    priors: tuple[Floats, ...]
    """D of each block."""
    roots: tuple[Floats, ...]
    """``(k,)`` √N of each block: rows per column, 0 where there are none."""
    lowers: tuple[Floats, ...]
    logdet: float

    @classmethod
    def of(cls, priors: Sequence[Floats], counts: Sequence[Floats]) -> LargeBlocks:
        """Return it for D of each block and the diagonals of ``Z'Z``."""
        roots, lowers, logdet = [], [], 0.0
        for prior, count in zip(priors, counts, strict=True):
            root = np.sqrt(count)
            inner = root[:, None] * prior * root
            inner.flat[:: len(inner) + 1] += 1
            lower = linalg.cholesky(inner.T, lower=True, check_finite=False, overwrite_a=True)
            logdet += 2 * float(np.log(np.diag(lower)).sum())
            roots.append(root)
            lowers.append(lower)
        return cls(tuple(priors), tuple(roots), tuple(lowers), logdet)

    def __matmul__(self, other: Any) -> Floats:
        """Return the product with a dense or sparse matrix ``(q, m)``."""
        given, parts, start = dense(other), [], 0
        for prior, root, lower in zip(self.priors, self.roots, self.lowers, strict=True):
            before = prior @ given[start : start + len(root)]
            inner = linalg.cho_solve((lower, True), root[:, None] * before, check_finite=False)
            parts.append(before - prior @ (root[:, None] * inner))
            start += len(root)
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Elimination:
    """``Λ'Z'ZΛ + I`` factored: the leading term first, the rest by its Schur complement."""

    lead: Lead
    between: Any
    """``Z₁'Z₂`` ``(q₁, q₂)``, sparse where it can be."""
    lower: Floats | None
    """``(q₂, q₂)`` Cholesky factor of the Schur complement; None for a single term."""
    left: Any
    """``Λ₂`` ``(q₂, q₂)`` sparse."""
    logdet: float

    @classmethod
    def of(cls, lead: Lead, factors: Sequence[BlockDiagonal], between: Any, others: Any) -> Elimination:
        """Factor it.

        Parameters
        ----------
        lead
            The leading term.
        factors
            Λ of each other term.
        between, others
            ``Z₁'Z₂`` and ``Z₂'Z₂``, sparse; ``Z₂`` are the other terms side by side. Not looked at for one term.
        """
        if not factors:
            return cls(lead, None, None, None, lead.logdet)
        left = sp.csr_array(sp.block_diag([f.sparse() for f in factors], format="csr"))
        # dense @ dense, or sparse @ sparse: either way of the size of the other terms alone
        schur = dense(left.T @ (others - between.T @ (lead @ between)) @ left)
        schur.flat[:: len(schur) + 1] += 1
        # the transpose of what is symmetric is itself, in the order in which LAPACK needs no copy
        lower = linalg.cholesky(schur.T, lower=True, check_finite=False, overwrite_a=True)
        return cls(lead, between, lower, left, lead.logdet + 2 * float(np.log(np.diag(lower)).sum()))

    def reduce(self, first: Any, second: Any) -> tuple[Floats, Floats | None]:
        """Return ``P M₁`` and what is left of ``M₂``, of a matrix M ``(q₁ + q₂, m)`` in two parts.

        ``M' Λ A⁻¹ Λ' M`` is then ``M₁' top + bottom' bottom``.
        """
        top = dense(self.lead @ first)
        if self.lower is None:
            return top, None
        under = self.left.T @ (dense(second) - self.between.T @ top)
        return top, linalg.solve_triangular(self.lower, under, lower=True, check_finite=False)

    def effects(self, top: Floats, bottom: Floats | None) -> Floats:
        """Return ``Λ A⁻¹ Λ' M`` ``(q₁ + q₂, m)`` from what `reduce` returned."""
        if self.lower is None or bottom is None:
            return top
        second = self.left @ linalg.solve_triangular(self.lower, bottom, lower=True, trans="T", check_finite=False)
        return np.concatenate([top - dense(self.lead @ dense(self.between @ second)), second])


def as_fits(matrix: Any) -> Any:
    """Return a sparse matrix as it is where most of it is empty, else dense: full ones multiply faster so."""
    full = matrix.nnz > FULL * matrix.shape[0] * matrix.shape[1]
    return matrix.toarray() if full else sp.csr_array(matrix)


def dense(matrix: Any) -> Floats:
    """Return a sparse or dense matrix as a dense one."""
    found: Floats = matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
    return found
