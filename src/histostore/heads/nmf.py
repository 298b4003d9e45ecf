"""Non-negative programs of genes: ``Y ≈ W H`` with all three at least zero.

Fitted by hierarchical alternating least squares with several sweeps per matrix product (Cichocki and Phan, IEICE Trans.
E92-A, 708 (2009); Gillis and Glineur, Neural Computation 24, 1085 (2012)), started from the singular vectors
(Boutsidis and Gallopoulos, Pattern Recognition 41, 1350 (2008)). The products are the only expensive lines and run in
float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from scipy import linalg
from scipy.optimize import nnls

from histostore.errors import DataError, UsageError
from histostore.heads.convergence import say_not_converged
from histostore.heads.decoders import Decoder
from histostore.heads.lowrank import leading_svd
from histostore.heads.tuning import by_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    type Floats = NDArray[np.float32]

SWEEPS = 6
"""At most so many sweeps over the factors per matrix product: they cost k/n and k/g of it."""


@dataclass(frozen=True, slots=True)
class Program:
    """One factor, by the genes that mark it."""

    name: str
    """``NMF1 (ERBB2, GRB7, …)``"""
    genes: tuple[str, ...]
    """Best first."""
    loadings: tuple[float, ...]
    """How much one unit of the factor adds to each of these genes."""
    specificity: tuple[float, ...]
    """Share of the gene's loading, over all programs, that lies in this one."""


class NMF(Decoder):
    """Non-negative matrix factorisation of the training targets.

    Rows of `components_` have unit length, so an error in a factor weighs as much as the error in genes that it
    makes; programs are ordered by how much of the training targets they carry.

    Parameters
    ----------
    k
        Programs.
    max_iter, tol
        Stops when one iteration lowers the squared error by less than `tol` of itself; at `max_iter` without that, it
        is said.
    seed
        Of the random projection that starts it on large matrices; no result on small ones depends on it.

    Attributes
    ----------
    components_ : numpy.ndarray
        ``(k, g)`` float32 loadings, at least zero.
    error_ : float
        ‖Y − W H‖ / ‖Y‖ on the training targets.
    n_iter_ : int
    """

    name: ClassVar[str] = "nmf"

    def __init__(self, k: int = 10, *, max_iter: int = 500, tol: float = 1e-5, seed: int = 0) -> None:
        self.k = k
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed

    def fit(self, Y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Learn programs from ``(n, g)`` targets of at least zero; `groups` is not used.

        Raises
        ------
        DataError
            Negative or missing targets.
        UsageError
            More programs than rows or targets; targets that are all zero.
        """
        if self.max_iter < 1 or not self.tol >= 0:
            msg = f"max_iter is {self.max_iter} and tol {self.tol}: give 1 or more iterations and a tol of 0 or more"
            raise UsageError(msg)
        Y = self._training(Y, self.k)
        _refuse_negative(Y)
        if not Y.any():
            msg = "all targets are zero: there is nothing to factorise"
            raise UsageError(msg)
        # in order of value: when to stop is a matter of digits, and must not depend on the order of the rows given
        Y = Y[by_value(Y)]
        W, H = start(Y, self.k, seed=self.seed)
        self.error_, self.n_iter_, settled = hals(Y, W, H, max_iter=self.max_iter, tol=self.tol)
        self.notes_ = ()
        if not settled:
            self.notes_ = say_not_converged("NMF", f"{self.max_iter} iterations", "give a larger max_iter or tol")
        length = np.sqrt(np.einsum("ij,ij->i", H, H))
        order = np.argsort(-(W.sum(1) * length), kind="stable")
        H, length = H[order], length[order]
        return self._learned(H / np.where(length > 0, length, 1.0)[:, None], Y.mean(0, dtype=np.float64))

    def encode(self, Y: NDArray[Any]) -> Floats:
        """Return ``(n, k)`` float32: each row's own non-negative least squares solution on the programs."""
        Y = self._targets(Y)
        _refuse_negative(Y)
        H = self.components_
        gram = (H @ H.T).astype(np.float64)
        # ‖y − H'w‖² is, but for a constant, ‖R w − R⁻ᵀ H y‖² with R'R = HH': k equations a row instead of g
        values, vectors = linalg.eigh(gram)
        root = np.sqrt(np.maximum(values, 0.0))
        inverse = np.divide(1.0, root, out=np.zeros_like(root), where=root > 1e-6 * root.max())
        left = root[:, None] * vectors.T
        right = (Y @ H.T).astype(np.float64) @ vectors * inverse
        out = np.zeros((len(Y), len(H)), np.float32)
        for row, b in enumerate(right):
            out[row] = nnls(left, b)[0]
        return out

    def decode(self, factors: NDArray[Any]) -> Floats:
        """Return ``(n, g)`` float32, at least zero; factors below zero, as a regressor may predict, count as 0."""
        out: Floats = np.maximum(self._factors(factors, len(self.components_)), np.float32(0)) @ self.components_
        return out

    def programs(self, genes: Sequence[str], n: int = 10) -> list[Program]:
        """Return each program by its `n` marking genes.

        Genes are ranked by what they load above their mean in the other programs, times their specificity: by loading
        alone every program would begin with the same abundant genes.

        Parameters
        ----------
        genes
            ``(g,)`` names of the targets.
        n
            Genes of each program.
        """
        self._check_fitted("mean_")
        if len(genes) != self.n_targets_in_:
            msg = f"{len(genes)} names for {self.n_targets_in_} targets"
            raise UsageError(msg)
        H = self.components_.astype(np.float64)
        total = H.sum(0)
        share = H / np.where(total > 0, total, 1.0)
        others = (total - H) / max(len(H) - 1, 1)
        score = (H - others) * share
        out = []
        for i, (loading, part) in enumerate(zip(H, share, strict=True)):
            top = np.argsort(-score[i], kind="stable")[:n]
            names = tuple(str(genes[j]) for j in top)
            loadings, shares = tuple(loading[top].tolist()), tuple(part[top].tolist())
            out.append(Program(f"NMF{i + 1} ({', '.join(names[:3])})", names, loadings, shares))
        return out

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return loadings and means, and JSON with the parameters."""
        self._check_fitted("mean_")
        meta = {"params": self.get_params(), "error": self.error_, "n_iter": self.n_iter_, "notes": list(self.notes_)}
        return {"components": self.components_, "mean": self.mean_}, meta

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted decoder that `to_state` described."""
        decoder = cls(**meta["params"])
        decoder.error_, decoder.n_iter_ = float(meta["error"]), int(meta["n_iter"])
        decoder.notes_ = tuple(meta["notes"])
        return decoder._learned(arrays["components"], arrays["mean"])

    def _learned(self, components: NDArray[Any], mean: NDArray[Any]) -> Self:
        self.components_, self.mean_ = np.ascontiguousarray(components), mean
        return self


def start(Y: Floats, k: int, *, seed: int = 0) -> tuple[Floats, Floats]:
    """Return ``W (k, n)`` (transposed) and ``H (k, g)`` from the larger-signed parts of the singular vectors."""
    u, s, v = leading_svd(Y, k, seed=seed, power=2, exact=256)
    W, H = np.zeros((k, len(Y)), np.float32), np.zeros((k, Y.shape[1]), np.float32)
    for j in range(len(s)):
        parts = [(np.maximum(sign * u[:, j], 0.0), np.maximum(sign * v[j], 0.0)) for sign in (1.0, -1.0)]
        sizes = [float(np.linalg.norm(a) * np.linalg.norm(b)) for a, b in parts]
        (a, b), size = max(zip(parts, sizes, strict=True), key=lambda both: both[1])
        if size > 0:
            root = np.sqrt(s[j] * size)
            W[j], H[j] = root * a / np.linalg.norm(a), root * b / np.linalg.norm(b)
    # zeros in the place of the other sign's part lead to worse optima than a little of everything
    small = np.float32(np.sqrt(max(float(Y.mean(dtype=np.float64)), 0.0) / k))
    W[W == 0] = small
    H[H == 0] = small
    return W, H


def hals(Y: Floats, W: Floats, H: Floats, *, max_iter: int, tol: float) -> tuple[float, int, bool]:
    """Improve ``W (k, n)`` and ``H (k, g)`` in place; return relative error, iterations, and whether it settled."""
    total = float(np.einsum("ij,ij->", Y, Y, dtype=np.float64))
    error = before = total
    for iteration in range(1, max_iter + 1):
        sweep(W, H @ Y.T, H @ H.T)
        towards, gram = W @ Y, W @ W.T
        sweep(H, towards, gram)
        cross = float(np.einsum("ij,ij->", towards, H, dtype=np.float64))
        error = max(total - 2 * cross + float(np.sum(gram * (H @ H.T), dtype=np.float64)), 0.0)
        if iteration > 1 and before - error <= tol * before:
            return float(np.sqrt(error / total)), iteration, True
        before = error
    return float(np.sqrt(error / total)), max_iter, False


def sweep(F: Floats, towards: Floats, gram: Floats) -> None:
    """Improve each row of ``F (k, m)`` in turn, the others fixed, until a sweep moves little or `SWEEPS` are done."""
    first = 0.0
    for sweep in range(SWEEPS):
        moved = 0.0
        for j in range(len(F)):
            if gram[j, j] <= 0:
                continue
            new = towards[j] - gram[j] @ F
            new /= gram[j, j]
            new += F[j]
            np.maximum(new, 0, out=new)
            change = new - F[j]
            moved += float(change @ change)
            F[j] = new
        first = first or moved
        if sweep and moved <= 0.01 * first:
            return


def _refuse_negative(Y: Floats) -> None:
    low = float(Y.min(initial=0.0))
    if low < 0:
        bad = int((Y < 0).any(axis=1).sum())
        msg = f"{bad} of {len(Y)} rows of targets are negative (least {low:g}): NMF needs counts or their log1p"
        raise DataError(msg)
