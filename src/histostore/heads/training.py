"""Training on some rows of a cohort: everything that is chosen is chosen inside those rows.

`Cohort` checks the arrays once; `train` fits one head per turn (a fold, or all rows), choosing feature specs by inner
folds. Features are computed one spec at a time, so memory holds one feature matrix however many are tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import UsageError
from histostore.heads import features as feature_steps
from histostore.heads.estimator import as_rows, finite_rows
from histostore.heads.panels import as_counts, choose_genes, library_size, targets
from histostore.heads.registry import make
from histostore.heads.splits import inner_folds
from histostore.progress import Silent
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from histostore.progress import Progress
    from histostore.protocols import Head
    from histostore.specs import FeatureSpec, HeadSpec

    type Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cohort:
    """Aligned rows of one or more slides, and which of them can be used."""

    X: NDArray[Any]
    counts: sp.csr_array
    symbols: tuple[str, ...]
    obs: pd.DataFrame
    slide: NDArray[Any]
    xy_um: NDArray[np.float64] | None
    usable: Rows
    """Rows that have an embedding and enough counts."""
    report: Report

    @classmethod
    def of(
        cls, *, X: NDArray[Any], counts: Any, symbols: Sequence[str], obs: pd.DataFrame, min_counts: int = 0
    ) -> Cohort:
        """Check that the arrays belong together and count what is left out.

        Parameters
        ----------
        X
            ``(n, d)`` embeddings; NaN rows are unreadable tiles.
        counts
            ``(n, g)`` raw counts, sparse or dense.
        symbols
            ``(g,)`` unique gene names.
        obs
            ``n`` lines with ``slide``; ``patient`` and the column to split by; ``x_um`` and ``y_um``, the centres on
            the slide in µm, where known.
        min_counts
            Rows with fewer counts over all genes are left out.
        """
        X, matrix = as_rows(X, "X"), as_counts(counts)
        if not len(X) == matrix.shape[0] == len(obs):
            msg = f"X has {len(X)} rows, counts {matrix.shape[0]} and obs {len(obs)}: align them by id first"
            raise UsageError(msg)
        slide, xy = places(obs)
        library, finite = library_size(matrix), finite_rows(X)
        poor = library < min_counts
        usable = np.flatnonzero(finite & ~poor)
        left_out = {
            "unreadable": int((~finite).sum()),
            f"below {min_counts} counts": int((finite & poor).sum()),
            "without any counts, kept as zeros": int((library[usable] == 0).sum()),
        }
        report = Report({"rows": len(X), "used": len(usable), **{k: v for k, v in left_out.items() if v}})
        if not len(usable):
            msg = f"none of {len(X)} rows has an embedding and {min_counts} counts"
            raise UsageError(msg)
        return cls(
            X=X,
            counts=matrix,
            symbols=tuple(symbols),
            obs=obs.reset_index(drop=True),
            slide=slide,
            xy_um=xy,
            usable=usable,
            report=report,
        )

    def positions(self) -> NDArray[np.float64] | None:
        """Return ``(n, 2)`` µm about each section's centroid, or None where positions are unknown."""
        return None if self.xy_um is None else feature_steps.section_positions(self.xy_um, self.slide)


def places(obs: pd.DataFrame) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """Return the slide ``(n,)`` and the position ``(n, 2)`` in µm of each row; None where obs has no positions."""
    if "slide" not in obs:
        msg = "obs has no column 'slide'"
        raise UsageError(msg)
    slide = obs["slide"].astype(str).to_numpy(dtype=object).astype(str)
    if "x_um" not in obs or "y_um" not in obs:
        return slide, None
    return slide, feature_steps.check_positions(obs[["x_um", "y_um"]].to_numpy(dtype=np.float64), len(obs))


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Rows to train on and rows to predict; indices into the cohort."""

    train: Rows
    test: Rows
    name: str


@dataclass(slots=True, eq=False)
class Trained:
    """What one turn learned."""

    turn: Turn
    genes: Rows
    """``(t,)`` columns of the panel, chosen on the training rows."""
    y_train: NDArray[np.float32]
    inner: NDArray[np.int64] | None
    inner_text: str
    features: FeatureSpec | None = None
    head: Head | None = None
    score: float = -np.inf
    """Inner score of the features chosen (higher is better); NaN where there was no choice."""
    predicted: NDArray[np.float32] | None = None
    """``(test rows, t)``"""


def train(spec: HeadSpec, cohort: Cohort, turns: Sequence[Turn], progress: Progress | None = None) -> list[Trained]:
    """Fit the spec's head on each turn's training rows and predict its test rows."""
    if len({f.position for f in spec.features}) != 1:
        msg = "give all feature specs the same `position`: whether to average with the position baseline is not chosen"
        raise UsageError(msg)
    report = progress or Silent()
    report.start(f"fit {spec.head}", len(spec.features) * len(turns), unit="fits")
    template = make(spec.head, spec.options, seed=spec.seed)
    sees = getattr(template, "sees", "embeddings")
    choices = spec.features if sees == "embeddings" else spec.features[:1]
    needs_inner = len(choices) > 1 or getattr(template, "tunes", True)
    learned = [_prepare(spec, cohort, turn, needs_inner) for turn in turns]
    for features in choices:
        X = inputs(sees, features, cohort.X, cohort.slide, cohort.xy_um)
        for one in learned:
            _try(spec, one, features, X, choosing=len(choices) > 1)
            report.advance(1)
    report.finish()
    return learned


def inputs(
    sees: str, features: FeatureSpec, X: NDArray[Any], slide: NDArray[Any], xy_um: NDArray[np.float64] | None
) -> NDArray[Any]:
    """Return the X that a head of that kind is fed: built features, section positions or the embeddings as they are."""
    if sees == "embeddings":
        return feature_steps.build(features, X, slide, xy_um)[0]
    if sees == "positions":
        if xy_um is None:
            msg = "this head predicts from positions and obs has no x_um, y_um"
            raise UsageError(msg)
        return feature_steps.section_positions(xy_um, slide)
    return X


def _prepare(spec: HeadSpec, cohort: Cohort, turn: Turn, needs_inner: bool) -> Trained:
    counts = cohort.counts[turn.train]
    genes = choose_genes(spec.panel, counts, cohort.symbols)
    inner, text = None, "nothing to choose"
    if needs_inner:
        inner, text = inner_folds(cohort.obs.iloc[turn.train], spec.split.by, seed=spec.seed)
    return Trained(turn, genes, targets(counts, genes, spec.target), inner, text)


def _try(spec: HeadSpec, one: Trained, features: FeatureSpec, X: NDArray[Any], *, choosing: bool) -> None:
    """Fit on one kind of features, and keep it if its inner score is better than what is kept."""
    rows = X[one.turn.train]
    head = make(spec.head, spec.options, seed=spec.seed).fit(rows, one.y_train, groups=one.inner)
    score = float(getattr(head, "inner_score_", np.nan))
    if choosing:
        if np.isnan(score):
            score = _inner_score(spec, rows, one)
        if score <= one.score:
            return
    one.features, one.head, one.score = features, head, score
    one.predicted = head.predict(X[one.turn.test]) if len(one.turn.test) else None


def _inner_score(spec: HeadSpec, rows: NDArray[Any], one: Trained) -> float:
    """Return the negated mean squared error over inner folds, for heads that do not keep such a score themselves."""
    assert one.inner is not None
    errors = []
    for fold in np.unique(one.inner):
        held = one.inner == fold
        head = make(spec.head, spec.options, seed=spec.seed)
        head.fit(rows[~held], one.y_train[~held], groups=one.inner[~held])
        errors.append(float(np.mean((head.predict(rows[held]) - one.y_train[held]) ** 2)))
    return -float(np.mean(errors))
