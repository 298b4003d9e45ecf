"""The protocol for classes: predict held-out slides or patients, beside baselines that look at no image.

Position alone and library size alone tell many tissue classes apart about as well as an image does, so they stand in
every table. All lines are trained on the training rows of a fold and scored on the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.errors import UsageError
from histostore.head_specs import FeatureSpec
from histostore.heads import features as feature_steps
from histostore.heads.baselines import PositionKNN, TrainingMean
from histostore.heads.class_metrics import CLASS_METRICS, class_metrics, confusion
from histostore.heads.classifier import Logistic, as_labels, code_labels, missing_labels
from histostore.heads.estimator import as_rows, finite_rows
from histostore.heads.metrics import json_lines, scored_together
from histostore.heads.splits import describe, folds, inner_folds, kept_whole, leaks
from histostore.heads.training import places
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.head_specs import SplitSpec
    from histostore.heads.classifier import Classifier
    from histostore.heads.splits import Fold

    type Rows = NDArray[np.int64]

PRIOR = "class shares"
POSITION = "position"
LIBRARY = "library size"
IMAGE = "image"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelFold:
    """One fold: what was chosen and what was predicted."""

    name: str
    n_train: int
    rows: Rows
    """``(m,)`` test rows, as indices into the arrays that were given."""
    truth: Rows
    """``(m,)`` codes."""
    probabilities: dict[str, NDArray[np.float32]]
    """``(m, classes)`` of each method."""
    guess: dict[str, Rows]
    """``(m,)`` codes of what each method calls."""
    chosen: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelEvaluation:
    """Out-of-fold results of one classifier."""

    classes: tuple[str, ...]
    """With two, the second is the positive one."""
    split_text: str
    folds: tuple[LabelFold, ...]
    slides: pd.DataFrame
    """One line per fold, slide and method: rows, rows of each class, and the metrics; where rows are slides, those of a
    fold are one line (`histostore.heads.metrics.ALL`)."""
    summary: pd.DataFrame
    """One line per method: mean over the slides of a fold where defined, then over folds."""
    confusion: NDArray[np.int64]
    """``(classes, classes)`` of the image head over all folds, rows the truth."""
    report: Report

    def score(self, method: str = IMAGE, metric: str = "auroc") -> float:
        """Return one number of the summary."""
        return float(self.summary[metric][method])

    @property
    def method(self) -> str:
        """Which line of the table is the head."""
        return IMAGE

    def to_json(self) -> dict[str, Any]:
        """Return all but the rows' probabilities as plain JSON; NaN becomes null."""
        return {
            "classes": list(self.classes),
            "split": self.split_text,
            "method": self.method,
            "summary": json_lines(self.summary.reset_index()),
            "slides": json_lines(self.slides),
            "confusion": self.confusion.tolist(),
            "folds": [{"name": f.name, "n_train": f.n_train, "n_test": len(f.rows), **f.chosen} for f in self.folds],
            "report": self.report.to_json(),
        }

    def by_fold(self, method: str = IMAGE, metric: str = "auroc") -> dict[str, float]:
        """Return each fold's mean over its slides."""
        part = self.slides[self.slides["method"] == method]
        return {str(k): float(v) for k, v in part.groupby("fold", sort=False)[metric].mean().items()}


def cross_validate_labels(
    head: Classifier,
    *,
    X: NDArray[Any],
    labels: Any,
    obs: pd.DataFrame,
    split: SplitSpec,
    features: Sequence[FeatureSpec] = (FeatureSpec(),),
    library: NDArray[Any] | None = None,
    seed: int = 0,
) -> LabelEvaluation:
    """Train and score a classifier on rows it has not seen.

    Parameters
    ----------
    head
        Unfitted; cloned for every fold.
    X
        ``(n, d)`` embeddings; NaN rows (unreadable tiles) are left out and counted.
    labels
        ``(n,)``; rows without one (None, NaN, empty) are left out and counted, yet serve as context of others.
    obs
        ``n`` lines with ``slide``, ``patient``, the column to split by, and ``x_um``, ``y_um`` where known.
    features
        More than one: chosen by inner folds on log loss.
    library
        ``(n,)`` total counts, for the baseline that sees nothing else.

    Raises
    ------
    UsageError
        Arrays that do not fit together, a label that is no class, a training fold of one class only, a split that leaks
        patients without leave.
    """
    cohort = _Cohort.of(head, X=X, labels=labels, obs=obs, by=split.by, features=features, library=library, seed=seed)
    used = cohort.obs.iloc[cohort.usable]
    cohort = replace(cohort, inner_by=kept_whole(split, used))
    cut = folds(split, used)
    results = [_fold(head, cohort, f.name, cohort.usable[f.train], cohort.usable[f.test]) for f in cut]
    of = scored_together(cohort.slide, cohort.usable)
    slides = pd.concat([_slide_lines(r, of, cohort.classes) for r in results], ignore_index=True)
    table = np.sum([confusion(r.truth, r.guess[IMAGE], len(cohort.classes)) for r in results], axis=0)
    return LabelEvaluation(
        classes=cohort.classes,
        split_text=describe(split, used, cut),
        folds=tuple(results),
        slides=slides,
        summary=_summary(slides),
        confusion=table,
        report=cohort.report.merged(Report(notes=tuple(_notes(cohort, results, cut)))),
    )


@dataclass(frozen=True, slots=True, eq=False)
class TrainedClassifier:
    """A classifier trained on all rows that have a label."""

    head: Classifier
    features: FeatureSpec
    chosen: dict[str, Any]
    report: Report


def train_labels(
    head: Classifier,
    *,
    X: NDArray[Any],
    labels: Any,
    obs: pd.DataFrame,
    by: str,
    features: Sequence[FeatureSpec] = (FeatureSpec(),),
    seed: int = 0,
) -> TrainedClassifier:
    """Train on all rows; features and settings are chosen by inner folds of whole values of `by`.

    The other parameters are those of `cross_validate_labels`.
    """
    cohort = _Cohort.of(head, X=X, labels=labels, obs=obs, by=by, features=features, library=None, seed=seed)
    made, best, chosen = _train(head, cohort, cohort.usable)
    return TrainedClassifier(made, cohort.features[best], chosen, cohort.report)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cohort:
    classes: tuple[str, ...]
    codes: Rows
    """-1 where a row is not used."""
    usable: Rows
    obs: pd.DataFrame
    slide: NDArray[Any]
    features: tuple[FeatureSpec, ...]
    built: tuple[NDArray[np.float32], ...]
    positions: NDArray[np.float64] | None
    library: NDArray[np.float64] | None
    inner_by: str
    seed: int
    report: Report

    @classmethod
    def of(
        cls,
        head: Classifier,
        *,
        X: NDArray[Any],
        labels: Any,
        obs: pd.DataFrame,
        by: str,
        features: Sequence[FeatureSpec],
        library: NDArray[Any] | None,
        seed: int,
    ) -> _Cohort:
        X, names = as_rows(X, "X"), np.asarray(labels, dtype=object)
        if not len(X) == len(names) == len(obs):
            msg = f"X has {len(X)} rows, labels {len(names)} and obs {len(obs)}: align them by id first"
            raise UsageError(msg)
        if not features:
            msg = "no feature specs: give at least one"
            raise UsageError(msg)
        obs = obs.reset_index(drop=True)
        slide, xy = places(obs)
        readable, unlabelled = finite_rows(X), missing_labels(names)
        usable = np.flatnonzero(readable & ~unlabelled)
        if not len(usable):
            msg = f"none of {len(X)} rows has both an embedding and a label"
            raise UsageError(msg)
        classes, known = code_labels(as_labels(names[usable]), head.classes)
        codes = np.full(len(X), -1, np.int64)
        codes[usable] = known
        counts = {"unreadable": int((~readable).sum()), "without a label": int((readable & unlabelled).sum())}
        return cls(
            classes=classes,
            codes=codes,
            usable=usable,
            obs=obs,
            slide=slide,
            features=tuple(features),
            built=tuple(feature_steps.build(spec, X, slide, xy)[0] for spec in features),
            positions=None if xy is None else feature_steps.section_positions(xy, slide),
            library=None if library is None else _log_library(library, len(X)),
            inner_by=by,
            seed=seed,
            report=Report({"rows": len(X), "used": len(usable), **{k: v for k, v in counts.items() if v}}),
        )


def _train(head: Classifier, cohort: _Cohort, train: Rows) -> tuple[Classifier, int, dict[str, Any]]:
    """Return a classifier of these rows, which features it chose, and all that was chosen."""
    inner, text = None, "nothing to choose"
    if len(cohort.built) > 1 or head.tunes:
        inner, text = inner_folds(cohort.obs.iloc[train], cohort.inner_by, seed=cohort.seed)
    y = np.array(cohort.classes)[cohort.codes[train]]
    made = [head.clone().set_params(classes=cohort.classes).fit(F[train], y, groups=inner) for F in cohort.built]
    scores = [one.inner_score_ for one in made]
    if len(made) > 1 and np.isnan(scores).any():
        msg = "choosing features needs a head with something else to choose (several C, a calibration, a threshold)"
        raise UsageError(msg)
    best = int(np.argmax(scores)) if len(made) > 1 else 0
    one = made[best]
    chosen = {
        "features": cohort.features[best].to_json(),
        "setting": one.chosen_,
        "threshold": one.threshold_,
        "inner": text,
        "inner_score": None if np.isnan(one.inner_score_) else one.inner_score_,
        "notes": list(one.notes_),
    }
    return one, best, chosen


def _fold(head: Classifier, cohort: _Cohort, name: str, train: Rows, test: Rows) -> LabelFold:
    image, best, chosen = _train(head, cohort, train)
    probabilities = _baselines(cohort, train, test)
    probabilities[IMAGE] = image.predict_proba(cohort.built[best][test])
    guess = {method: p.argmax(1).astype(np.int64) for method, p in probabilities.items()}
    guess[IMAGE] = image.decide_codes(probabilities[IMAGE])
    return LabelFold(
        name=name,
        n_train=len(train),
        rows=test,
        truth=cohort.codes[test],
        probabilities=probabilities,
        guess=guess,
        chosen=chosen,
    )


def _baselines(cohort: _Cohort, train: Rows, test: Rows) -> dict[str, NDArray[np.float32]]:
    """Return what the training rows' classes, positions and library sizes alone say of the test rows."""
    shares = np.eye(len(cohort.classes), dtype=np.float32)[cohort.codes[train]]
    prior = TrainingMean().fit(np.zeros((len(train), 1)), shares)
    out = {PRIOR: prior.predict(np.zeros((len(test), 1)))}
    if cohort.positions is not None:
        out[POSITION] = PositionKNN().fit(cohort.positions[train], shares).predict(cohort.positions[test])
    if cohort.library is not None:
        y = np.array(cohort.classes)[cohort.codes[train]]
        alone = Logistic(1.0, classes=cohort.classes).fit(cohort.library[train], y)
        out[LIBRARY] = alone.predict_proba(cohort.library[test])
    return out


def _log_library(library: NDArray[Any], n: int) -> NDArray[np.float64]:
    sizes = np.asarray(library, dtype=np.float64)
    if sizes.shape != (n,) or not np.isfinite(sizes).all() or (sizes < 0).any():
        msg = f"library has shape {sizes.shape} for {n} rows, or holds negative or missing values"
        raise UsageError(msg)
    return np.log1p(sizes)[:, None]


def _slide_lines(result: LabelFold, slide: NDArray[Any], classes: tuple[str, ...]) -> pd.DataFrame:
    of, lines = slide[result.rows], []
    for name in np.unique(of):
        at = of == name
        there = {f"n {c}": int((result.truth[at] == k).sum()) for k, c in enumerate(classes)}
        for method, p in result.probabilities.items():
            values = class_metrics(result.truth[at], p[at], result.guess[method][at])
            line = {"fold": result.name, "slide": str(name), "method": method, "n": int(at.sum())}
            lines.append({**line, **there, **values})
    return pd.DataFrame(lines)


def _summary(slides: pd.DataFrame) -> pd.DataFrame:
    metrics = list(CLASS_METRICS)
    lines = {}
    for method, part in slides.groupby("method", sort=False):
        by_fold = part.groupby("fold", sort=False)[metrics].mean()
        undefined = int(part["auroc"].isna().sum())
        lines[method] = {**by_fold.mean().to_dict(), "auroc_undefined": undefined, "folds": len(by_fold)}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("method")


def _notes(cohort: _Cohort, results: list[LabelFold], cut: list[Fold]) -> list[str]:
    notes = []
    if cohort.positions is None:
        notes.append("no x_um, y_um in obs: no position baseline")
    if cohort.library is None:
        notes.append("no library sizes: no library size baseline")
    used = cohort.obs.iloc[cohort.usable]
    shared = {s for f in cut for s in leaks(used.iloc[f.train], used.iloc[f.test]).get("slide", ())}
    if shared and any(f.context_um or f.standardise == "slide" for f in cohort.features):
        notes.append(f"{len(shared)} slides lie on both sides: context and per-slide scale see across the split")
    return notes + [f"fold {r.name}: {note}" for r in results for note in r.chosen["notes"]]
