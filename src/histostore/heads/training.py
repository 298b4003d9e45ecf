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
from histostore.heads.blas import threads_for
from histostore.heads.estimator import as_table, finite_rows
from histostore.heads.registry import make
from histostore.heads.rows import RowSource, pick
from histostore.heads.shared_sums import SharedSums
from histostore.heads.splits import inner_folds, kept_whole, level_column
from histostore.heads.targets import TargetRows
from histostore.progress import Silent
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.head_specs import FeatureSpec, HeadSpec
    from histostore.heads.gram import GramAccumulator
    from histostore.heads.rows import Table
    from histostore.heads.targets import Targets
    from histostore.progress import Progress
    from histostore.protocols import Head

    type Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cohort:
    """Aligned rows of one or more slides, and which of them can be used."""

    X: Table
    """``(n, d)`` embeddings: an array, or a row source that is never all in memory."""
    targets: Targets
    obs: pd.DataFrame
    slide: NDArray[Any]
    xy_um: NDArray[np.float64] | None
    effects: NDArray[Any] | None
    """``(n,)`` or ``(n, k)`` levels of the random effects, where the spec names their columns."""
    usable: Rows
    """Rows that have an embedding and what is to be predicted."""
    report: Report

    @classmethod
    def of(cls, spec: HeadSpec, *, X: Table, targets: Targets, obs: pd.DataFrame) -> Cohort:
        """Check that the arrays belong together and count what is left out.

        Parameters
        ----------
        X
            ``(n, d)`` embeddings; NaN rows are unreadable tiles.
        targets
            Of the same rows.
        obs
            ``n`` lines with ``slide``; ``patient`` and the column to split by; ``x_um`` and ``y_um``, the centres on
            the slide in µm, where known.
        """
        X = as_table(X, "X")
        if not len(X) == len(targets) == len(obs):
            msg = f"X has {len(X)} rows, the targets {len(targets)} and obs {len(obs)}: align them by id first"
            raise UsageError(msg)
        slide, xy = places(obs)
        readable, (wanted, said) = readable_rows(spec, X), targets.usable()
        usable = np.flatnonzero(readable & wanted)
        left_out = {"unreadable": int((~readable).sum())}
        left_out |= {reason: int((rows & readable).sum()) for reason, rows in said.items()}
        report = Report({"rows": len(X), "used": len(usable), **{k: v for k, v in left_out.items() if v}})
        if not len(usable):
            why = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n)
            msg = f"none of {len(X)} rows can be used ({why})"
            raise UsageError(msg)
        return cls(
            X=X,
            targets=targets,
            obs=obs.reset_index(drop=True),
            slide=slide,
            xy_um=xy,
            effects=effects_of(spec, obs),
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


def readable_rows(spec: HeadSpec, X: Table) -> NDArray[np.bool_]:
    """Return ``(n,)`` True where a row has an embedding; of tiles side by side, at least one of them."""
    if spec.bag is not None and spec.bag.pool == "tiles" and not isinstance(X, RowSource):
        some: NDArray[np.bool_] = np.isfinite(X).any(axis=1)
        return some
    return finite_rows(X)


def effects_of(spec: HeadSpec, obs: pd.DataFrame) -> NDArray[Any] | None:
    """Return the levels of the random effects, ``(n,)`` text for one column and ``(n, k)`` for several; None for none.

    Raises
    ------
    UsageError
        There is no such column.
    DataError
        A row has no value there.
    """
    if not spec.groups:
        return None
    columns = [level_column(obs, name, "group by") for name in spec.groups]
    return columns[0] if len(columns) == 1 else np.column_stack(columns)


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
    columns: Rows
    """``(t,)`` of the targets, chosen on the training rows."""
    y_train: Table
    """``(train rows, t)`` float32"""
    inner: NDArray[np.int64] | None
    inner_text: str
    features: FeatureSpec | None = None
    head: Head | None = None
    score: float = -np.inf
    """Inner score of the features chosen (higher is better); NaN where there was no choice."""
    predicted: NDArray[np.float32] | None = None
    """``(test rows, t)``"""
    limits: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    """Of the 90 % interval, ``(test rows, t)`` each, for heads that give one."""
    interval: dict[str, Any] | None = None
    """How many test rows are of groups not trained on."""


def train(spec: HeadSpec, cohort: Cohort, turns: Sequence[Turn], progress: Progress | None = None) -> list[Trained]:
    """Fit the spec's head on each turn's training rows and predict its test rows."""
    if len({f.position for f in spec.features}) != 1:
        msg = "give all feature specs the same `position`: whether to average with the position baseline is not chosen"
        raise UsageError(msg)
    report = progress or Silent()
    report.start(f"fit {spec.head}", len(spec.features) * len(turns), unit="fits")
    template = make(spec.head, spec.options, seed=spec.seed)
    if spec.groups and not hasattr(template, "wants_groups"):
        msg = f"head '{spec.head}' has no random effects: leave out groups ({', '.join(spec.groups)})"
        raise UsageError(msg)
    sees = getattr(template, "sees", "embeddings")
    choices = spec.features if sees == "embeddings" else spec.features[:1]
    needs_inner = len(choices) > 1 or getattr(template, "tunes", True)
    learned = [_prepare(spec, cohort, turn, needs_inner) for turn in turns]
    with threads_for(cohort.X, max(len(one.columns) for one in learned)):
        for features in choices:
            X = inputs(sees, features, cohort.X, cohort.slide, cohort.xy_um)
            shared = _shared(template, X, cohort, learned) if getattr(template, "from_sums", False) else None
            for at, one in enumerate(learned):
                sums = None if shared is None else shared.of_fold(at, one.columns)
                _try(spec, cohort, one, features, X, choosing=len(choices) > 1, sums=sums)
                report.advance(1)
    report.finish()
    return learned


def inputs(sees: str, features: FeatureSpec, X: Table, slide: NDArray[Any], xy_um: NDArray[np.float64] | None) -> Any:
    """Return the X that a head of that kind is fed: built features, section positions or the embeddings as they are."""
    if sees == "embeddings":
        return feature_steps.build(features, X, slide, xy_um)[0]
    if sees == "positions":
        if xy_um is None:
            msg = "this head predicts from positions and obs has no x_um, y_um"
            raise UsageError(msg)
        return feature_steps.section_positions(xy_um, slide)
    return X


def fit_head(head: Head, X: Any, y: Any, cohort: Cohort, rows: Rows, inner: NDArray[np.int64] | None) -> Head:
    """Fit on some rows of a cohort, with the random effects or library sizes that the head asks for.

    Parameters
    ----------
    X, y
        Of `rows`.
    inner
        ``(rows,)`` inner folds, which heads without random effects choose by.
    """
    groups: NDArray[Any] | None = inner
    if getattr(head, "wants_groups", False):
        if cohort.effects is None:
            msg = f"{type(head).__name__} has random effects: name their obs columns (groups)"
            raise UsageError(msg)
        groups = cohort.effects[rows]
    if getattr(head, "wants_library", False) and cohort.targets.library is not None:
        counted: Any = head
        fitted: Head = counted.fit(X, y, groups=groups, library=cohort.targets.library[rows])
        return fitted
    return head.fit(X, y, groups=groups)


def predict_head(head: Head, X: Any, effects: NDArray[Any] | None) -> NDArray[np.float32]:
    """Predict; a head with random effects uses those of the groups it knows, where groups are given."""
    if getattr(head, "wants_groups", False) and effects is not None:
        mixed: Any = head
        out: NDArray[np.float32] = mixed.predict(X, groups=effects)
        return out
    return head.predict(X)


def _prepare(spec: HeadSpec, cohort: Cohort, turn: Turn, needs_inner: bool) -> Trained:
    columns = cohort.targets.choose(turn.train)
    inner, text = None, "nothing to choose"
    if needs_inner:
        some = cohort.obs.iloc[turn.train]
        inner, text = inner_folds(some, kept_whole(spec.split, some), seed=spec.seed)
    y: Table = TargetRows(cohort.targets, turn.train, columns)
    # beside embeddings that are streamed, targets are made block by block too
    return Trained(turn, columns, y if isinstance(cohort.X, RowSource) else y[:], inner, text)


def _shared(template: Any, X: Table, cohort: Cohort, learned: Sequence[Trained]) -> SharedSums | None:
    """Return sums that all turns are fitted from; None where a turn has fewer rows than features, or they are many."""
    if min(len(one.turn.train) for one in learned) <= X.shape[1]:
        return None
    trains = [one.turn.train for one in learned]
    inners = [template.folds(len(one.turn.train), one.inner) for one in learned]
    return SharedSums.of(X, cohort.targets, trains, inners, [one.columns for one in learned])


def _try(
    spec: HeadSpec, cohort: Cohort, one: Trained, features: FeatureSpec, X: Table, *, choosing: bool,
    sums: GramAccumulator | None,
) -> None:  # fmt: skip
    """Fit on one kind of features, and keep it if its inner score is better than what is kept."""
    head = make(spec.head, spec.options, seed=spec.seed)
    if sums is not None:
        summed: Any = head
        head = summed.fit_gram(sums)
    else:
        head = fit_head(head, pick(X, one.turn.train), one.y_train, cohort, one.turn.train, one.inner)
    score = float(getattr(head, "inner_score_", np.nan))
    if choosing:
        if np.isnan(score):
            score = _inner_score(spec, cohort, pick(X, one.turn.train), one)
        if score <= one.score:
            return
    one.features, one.head, one.score = features, head, score
    if len(one.turn.test):
        effects = None if cohort.effects is None else cohort.effects[one.turn.test]
        one.predicted = predict_head(head, pick(X, one.turn.test), effects)
        if effects is not None and hasattr(head, "predict_interval"):
            mixed: Any = head
            one.limits = mixed.predict_interval(X[one.turn.test], effects, level=0.9)
            known = cohort.effects[one.turn.train] if cohort.effects is not None else effects
            one.interval = {"rows of unseen groups": _unseen(known, effects)}


def _unseen(known: NDArray[Any], asked: NDArray[Any]) -> int:
    """Return how many rows have a level, in any column, that training has not seen."""
    known, asked = known.reshape(len(known), -1), asked.reshape(len(asked), -1)
    new = [~np.isin(asked[:, k], known[:, k]) for k in range(asked.shape[1])]
    return int(np.any(new, axis=0).sum())


def _inner_score(spec: HeadSpec, cohort: Cohort, rows: Table, one: Trained) -> float:
    """Return the negated mean squared error over inner folds, for heads that do not keep such a score themselves."""
    assert one.inner is not None
    errors = []
    for fold in np.unique(one.inner):
        held = one.inner == fold
        head = make(spec.head, spec.options, seed=spec.seed)
        train = one.turn.train[~held]
        head = fit_head(head, pick(rows, ~held), pick(one.y_train, ~held), cohort, train, one.inner[~held])
        effects = None if cohort.effects is None else cohort.effects[one.turn.train[held]]
        guess = predict_head(head, pick(rows, held), effects)
        errors.append(float(np.mean((guess - one.y_train[np.flatnonzero(held)]) ** 2)))
    return -float(np.mean(errors))
