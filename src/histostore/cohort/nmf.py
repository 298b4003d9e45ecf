"""Non-negative programs of a cohort's genes, learned minibatch by minibatch.

Mairal et al., J. Machine Learning Research 11, 19 (2010): of each minibatch only W'W and W'Y are kept, and loadings are
improved on their running sums. Within a minibatch, and for the loadings, by the sweeps of `histostore.heads.nmf`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.blocks.slide_rows import SlideRows
from histostore.cohort.gene_stats import refuse_normalised, wanted_genes
from histostore.cohort.grams import STREAMED, UNMEASURED, WITHOUT, gene_targets
from histostore.errors import DataError, UsageError
from histostore.heads.blas import one_blas_thread
from histostore.heads.nmf import NMF, hals, start, sweep
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.head_specs import Unit
    from histostore.view import View

    type Floats = NDArray[np.float32]

START_ROWS = 8192
"""Rows, drawn over all slides, that the first loadings are fitted to."""
BATCH_ROWS = 4096
FORGET = 0.7
"""How much of what was summed up is left a pass later: loadings move on, and old sums were made with old ones."""
_ROUNDS = 8
"""Times that the factors of a minibatch are swept; by then rows change in the fourth digit."""


@dataclass(frozen=True, slots=True, eq=False)
class Programs:
    """What was learned, and of which genes."""

    decoder: NMF
    """Fitted: `encode`, `decode`, `programs`; `histostore.tl.factors` takes it for an AnnData."""
    genes: tuple[str, ...]
    """Ids, in the order of the loadings."""
    symbols: tuple[str, ...]
    report: Report
    """Rows left out."""


def nmf(
    view: View, k: int = 10, *, genes: Sequence[str], unit: Unit = "log1p-cp10k", passes: int = 2, seed: int = 0
) -> Programs:
    """Return `k` non-negative programs of some genes over a cohort that need not fit into memory.

    Loadings start from an NMF of 8,192 rows drawn over all slides, and are improved by minibatches of 4,096 rows:
    slides in an order drawn by `seed` and pass, rows of a slide in theirs. One step needs the one before, so this runs
    in one process, on one thread, and is the same to the last bit by seed. ``decoder.error_`` is that of the last pass,
    each minibatch by the loadings it was met with.

    Parameters
    ----------
    genes
        Symbols or ids, like those of `histostore.pp.highly_variable_genes`. Rows of targeted panels that lack one are
        left out and counted.
    unit
        ``log1p-cp10k``, ``log1p`` or ``counts``.
    passes
        Times that all rows are gone over.

    Raises
    ------
    DataError
        No row has counts of all genes, or all are zero.
    AlignmentError
        Two slides name genes differently, and one lacks some of `genes`.
    """
    if unit not in STREAMED:
        raise UsageError(f"unit is '{unit}', not {', '.join(STREAMED)}: none of them negative, each row by itself")
    if isinstance(genes, str) or not 1 <= k <= len(genes) or passes < 1:
        raise UsageError(f"{k} programs of {len(genes)} genes in {passes} passes: give a list of genes, k up to that")
    wanted = wanted_genes(replace(view, gene_join=tuple(genes)))
    assert wanted is not None
    left_out: dict[str, int] = {}
    with one_blas_thread():
        learner = _Learner.begin(_some(view, wanted.ids, unit, seed), k, seed, max(1, len(view)))
        for number in range(passes):
            learner.new_pass()
            rng = np.random.default_rng([seed, 1, number])
            some = left_out if not number else {}
            for batch in _batches(_rows(view, rng.permutation(len(view.parts)), wanted.ids, unit, some)):
                learner.learn(batch)
    decoder = learner.decoder(NMF(k, seed=seed))
    return Programs(decoder, wanted.ids, wanted.symbols, view.report.merged(Report(left_out)))


@dataclass(slots=True)
class _Learner:
    H: Floats
    """``(k, g)``"""
    gram: Floats
    """``(k, k)`` running W'W"""
    towards: Floats
    """``(k, g)`` running W'Y"""
    n_all: int
    carried: NDArray[np.float64]
    """``(k,)`` how much of the targets each program has carried in this pass."""
    sum: NDArray[np.float64]
    """``(g,)`` of the targets met in this pass, `n` of them."""
    n: int = 0
    steps: int = 0
    squares: float = 0.0
    missed: float = 0.0

    @classmethod
    def begin(cls, Y: Floats, k: int, seed: int, n_all: int) -> _Learner:
        """Return loadings fitted to some rows."""
        if len(Y) < k or not Y.any():
            raise DataError(f"{len(Y)} rows drawn have counts of all genes and not all are zero: {k} programs need {k}")
        W, H = start(Y, k, seed=seed)
        hals(Y, W, H, max_iter=200, tol=1e-4)
        return cls(H, W @ W.T, W @ Y, n_all, np.zeros(k), np.zeros(Y.shape[1]))

    def new_pass(self) -> None:
        """Forget what was counted, not what was learned."""
        self.carried, self.sum, self.n = np.zeros_like(self.carried), np.zeros_like(self.sum), 0
        self.squares = self.missed = 0.0

    def learn(self, Y: Floats) -> None:
        """Improve the loadings by one minibatch ``(b, g)``."""
        H, to_rows = self.H, self.H @ Y.T
        gram = H @ H.T
        W = np.maximum(np.linalg.lstsq(gram.astype(np.float64), to_rows.astype(np.float64))[0], 0).astype(np.float32)
        for _ in range(_ROUNDS):
            sweep(W, to_rows, gram)
        own, towards = W @ W.T, W @ Y
        squares = float(np.einsum("ij,ij->", Y, Y, dtype=np.float64))
        cross = float(np.einsum("ij,ij->", towards, H, dtype=np.float64))
        self.missed += max(squares - 2 * cross + float(np.sum(own * gram, dtype=np.float64)), 0.0)
        self.squares += squares
        self.carried += W.sum(1, dtype=np.float64) * np.sqrt(np.einsum("ij,ij->i", H, H, dtype=np.float64))
        self.sum += Y.sum(0, dtype=np.float64)
        self.n += len(Y)
        left = np.float32(FORGET ** (len(Y) / self.n_all))
        self.gram = left * self.gram + own
        self.towards = left * self.towards + towards
        sweep(self.H, self.towards, self.gram)
        self.steps += 1

    def decoder(self, decoder: NMF) -> NMF:
        """Return a fitted decoder as `NMF.fit` leaves it: loadings of unit length, those that carry most first."""
        state, length = self.H.astype(np.float64), np.linalg.norm(self.H.astype(np.float64), axis=1)
        order = np.argsort(-self.carried, kind="stable")
        unit = (state / np.where(length > 0, length, 1.0)[:, None])[order].astype(np.float32)
        error = float(np.sqrt(self.missed / (self.squares or 1.0)))
        about = {"params": decoder.get_params(), "error": error, "n_iter": self.steps, "notes": []}
        return NMF.from_state({"components": unit, "mean": self.sum / max(1, self.n)}, about)


def _some(view: View, genes: tuple[str, ...], unit: Unit, seed: int) -> Floats:
    """Return targets of rows drawn over all slides."""
    n = min(START_ROWS, len(view))
    drawn = np.sort(np.random.default_rng([seed, 0]).choice(len(view), n, replace=False))
    found = list(_rows(view.select(drawn), range(len(view.parts)), genes, unit, {}))
    return np.concatenate(found) if found else np.zeros((0, len(genes)), np.float32)


def _rows(
    view: View, order: Sequence[int] | NDArray[Any], genes: tuple[str, ...], unit: Unit, left_out: dict[str, int]
) -> Iterator[Floats]:
    """Yield targets of the rows that have counts of all genes, slide by slide in an order."""

    def count(reason: str, n: int) -> None:
        if n:
            left_out[reason] = left_out.get(reason, 0) + n

    for number in order:
        part = view.parts[int(number)]
        if not len(part):
            continue
        if part.expression is None:
            count(WITHOUT, len(part))
            continue
        rows = SlideRows.of(part).open(part.store)
        refuse_normalised(rows)
        columns = np.array([rows.genes.place.get(gene, -1) for gene in genes], dtype=np.int64)
        if not rows.whole_transcriptome and (columns < 0).any():
            count(UNMEASURED, len(part))
            continue
        for begin, stop in rows.runs(BATCH_ROWS, counts=True):
            numbers = rows.count_row[begin:stop]
            count(WITHOUT, int((numbers < 0).sum()))
            yield gene_targets(rows, numbers[numbers >= 0], columns, unit)


def _batches(pieces: Iterator[Floats]) -> Iterator[Floats]:
    """Yield `BATCH_ROWS` rows at a time, and the rest."""
    held: list[Floats] = []
    n = 0
    for piece in pieces:
        held.append(piece)
        n += len(piece)
        while n >= BATCH_ROWS:
            rows = np.concatenate(held)
            yield rows[:BATCH_ROWS]
            held, n = [rows[BATCH_ROWS:]], n - BATCH_ROWS
    if n:
        yield np.concatenate(held)
