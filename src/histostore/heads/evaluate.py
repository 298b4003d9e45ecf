"""The protocol: predict held-out slides or patients, beside the baselines that look at no image.

Inside each training fold: gene panel, centring, scaling, penalty and feature spec. The table always says what kind of
split it is, because between replicate sections position alone predicts about as well as images do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.errors import DataError
from histostore.heads.baselines import PositionKNN, TrainingMean
from histostore.heads.metrics import METRICS, json_lines, mean_defined, per_gene, scored_together
from histostore.heads.registry import head_class
from histostore.heads.splits import describe, folds, leaks
from histostore.heads.targets import targets_of
from histostore.heads.training import Cohort, Turn, train
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.head_specs import HeadSpec
    from histostore.heads.rows import Table
    from histostore.heads.training import Trained
    from histostore.progress import Progress

MEAN = "training mean"
POSITION = "position"
IMAGE = "image"
BOTH = "image + position"
METHODS = (MEAN, POSITION, IMAGE, BOTH)
"""Lines of the table; ``position`` is `PositionKNN` of µm about the section's centroid, the last the plain average."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldResult:
    """One fold: what was chosen and what was predicted."""

    name: str
    n_train: int
    rows: NDArray[np.int64]
    """``(m,)`` test rows, as indices into the arrays that were given."""
    genes: tuple[str, ...]
    """``(t,)`` the panel chosen on this fold's training rows."""
    truth: NDArray[np.float32]
    """``(m, t)``"""
    predictions: dict[str, NDArray[np.float32]]
    """``(m, t)`` of each method."""
    chosen: dict[str, Any]
    """Features, alpha, inner score and inner folds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Out-of-fold results of one head spec."""

    spec: HeadSpec
    split_text: str
    """What kind of split it is; belongs beside every number."""
    method: str
    """Which line of the table is the head that this spec asks for."""
    folds: tuple[FoldResult, ...]
    genes: pd.DataFrame
    """One line per fold, slide, method and gene, with n and the metrics; where rows are slides, those of a fold are
    one line (`histostore.heads.metrics.ALL`)."""
    slides: pd.DataFrame
    """One line per fold, slide and method: means over genes where defined, and how many genes have no Pearson."""
    summary: pd.DataFrame
    """One line per method: mean over the slides of a fold, then over folds; ``pearson_undefined`` is a sum."""
    report: Report

    def score(self, method: str | None = None, metric: str = "pearson") -> float:
        """Return one number of the summary; of the head itself unless a method is named."""
        return float(self.summary[metric][method or self.method])

    def to_json(self) -> dict[str, Any]:
        """Return all but predictions and per-gene lines as plain JSON; NaN becomes null."""
        return {
            "spec": self.spec.to_json(),
            "split": self.split_text,
            "method": self.method,
            "summary": json_lines(self.summary.reset_index()),
            "slides": json_lines(self.slides),
            "folds": [
                {
                    "name": f.name,
                    "n_train": f.n_train,
                    "n_test": len(f.rows),
                    "genes": list(f.genes),
                    **_plain(f.chosen),
                }
                for f in self.folds
            ],
            "report": self.report.to_json(),
        }


def cross_validate(
    spec: HeadSpec,
    *,
    X: Table,
    obs: pd.DataFrame,
    counts: Any = None,
    symbols: Sequence[str] | None = None,
    values: pd.DataFrame | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Train and score a head on rows it has not seen.

    Parameters
    ----------
    spec
        Head, panel, target, split and features.
    X
        ``(n, d)`` embeddings; NaN rows (unreadable tiles) are left out and counted. A row source is never all in
        memory; held-out truth and predictions are (16 bytes a row and target).
    obs
        ``n`` lines: ``slide``, the columns to split and group by, ``patient``, and ``x_um``, ``y_um`` for context and
        for the position baseline (left out, and said so, where they are missing).
    counts, symbols
        ``(n, g)`` raw counts, sparse or dense, and ``(g,)`` unique gene names, where the spec predicts genes.
    values
        ``n`` lines of the numbers to predict, where it predicts columns; rows without one are left out and counted.

    Raises
    ------
    UsageError
        Arrays that do not fit together, a split that leaks patients without leave, options that make no sense.
    NotFoundError
        Unknown head, or a listed gene that is not there.
    """
    targets = targets_of(spec, counts=counts, symbols=symbols, values=values)
    cohort = Cohort.of(spec, X=X, targets=targets, obs=obs)
    used = cohort.obs.iloc[cohort.usable]
    cut = folds(spec.split, used)
    turns = [Turn(cohort.usable[f.train], cohort.usable[f.test], f.name) for f in cut]
    learned = train(spec, cohort, turns, progress)
    positions = cohort.positions()
    sees = getattr(head_class(spec.head), "sees", "embeddings")
    results = tuple(_result(spec, cohort, one, positions, sees) for one in learned)
    of = scored_together(cohort.slide, cohort.usable)
    genes = pd.concat([_gene_table(result, of) for result in results], ignore_index=True)
    slides = _slide_table(genes)
    return Evaluation(
        spec=spec,
        split_text=describe(spec.split, used, cut),
        method=_method(sees, position=spec.features[0].position),
        folds=results,
        genes=genes,
        slides=slides,
        summary=_summary(slides),
        report=cohort.report.merged(Report(notes=tuple(_notes(spec, cohort, learned)))),
    )


def average(image: NDArray[np.float32], position: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the plain mean of two predictions of the same targets: fixed beforehand, nothing is tuned."""
    return ((image + position) / np.float32(2)).astype(np.float32)


def _method(sees: str, *, position: bool) -> str:
    if sees == "nothing":
        return MEAN
    if sees == "positions":
        return POSITION
    return BOTH if position else IMAGE


def _result(
    spec: HeadSpec, cohort: Cohort, one: Trained, positions: NDArray[np.float64] | None, sees: str
) -> FoldResult:
    train_rows, test_rows = one.turn.train, one.turn.test
    truth = cohort.targets.values(test_rows, one.columns)
    mean = TrainingMean().fit(np.zeros((len(train_rows), 1)), one.y_train)
    predictions = {MEAN: mean.predict(np.zeros((len(test_rows), 1)))}
    assert one.predicted is not None
    if not np.isfinite(one.predicted).all():
        msg = f"head '{spec.head}' predicts NaN or infinite values in fold {one.turn.name}"
        raise DataError(msg)
    if positions is not None:
        knn = PositionKNN().fit(positions[train_rows], one.y_train)
        predictions[POSITION] = knn.predict(positions[test_rows])
    if sees == "embeddings":
        predictions[IMAGE] = one.predicted
        if positions is not None:
            predictions[BOTH] = average(one.predicted, predictions[POSITION])
    else:
        predictions[_method(sees, position=False)] = one.predicted
    return FoldResult(
        name=one.turn.name,
        n_train=len(train_rows),
        rows=test_rows,
        genes=tuple(cohort.targets.names[c] for c in one.columns),
        truth=truth,
        predictions=predictions,
        chosen=chosen(one) | _coverage(one, truth),
    )


def _coverage(one: Trained, truth: NDArray[np.float32]) -> dict[str, Any]:
    """Return how often the truth lies in the 90 % interval, for heads that give one."""
    if one.limits is None:
        return {}
    low, high = one.limits
    inside = (truth >= low) & (truth <= high)
    return {"interval": {**(one.interval or {}), "level": 0.9, "covered": float(inside.mean()),
                         "mean width": float((high - low).mean())}}  # fmt: skip


def chosen(one: Trained) -> dict[str, Any]:
    """Return what a turn chose: features, alpha where the head has one, inner score and inner folds."""
    out: dict[str, Any] = {"features": one.features.to_json() if one.features else {}, "inner": one.inner_text}
    alpha = getattr(one.head, "alpha_", None)
    if alpha is not None:
        out["alpha"] = float(alpha)
    if np.isfinite(one.score):
        out["inner_score"] = float(one.score)
    if one.interval is not None:
        out["interval"] = one.interval
    return out


def _gene_table(result: FoldResult, slide: NDArray[Any]) -> pd.DataFrame:
    of = slide[result.rows]
    tables = []
    for name in np.unique(of):
        at = of == name
        for method in METHODS:
            if method in result.predictions:
                values = per_gene(result.truth[at], result.predictions[method][at])
                head = {"fold": result.name, "slide": str(name), "method": method, "gene": list(result.genes)}
                tables.append(pd.DataFrame({**head, "n": int(at.sum()), **values}))
    return pd.concat(tables, ignore_index=True)


def _slide_table(genes: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for (fold, slide, method), part in genes.groupby(["fold", "slide", "method"], sort=False):
        line = {"fold": fold, "slide": slide, "method": method, "n": int(part["n"].iloc[0]), "genes": len(part)}
        for metric in METRICS:
            line[metric], undefined = mean_defined(part[metric].to_numpy())
            if metric == "pearson":
                line["pearson_undefined"] = undefined
        lines.append(line)
    return pd.DataFrame(lines)


def _summary(slides: pd.DataFrame) -> pd.DataFrame:
    lines = {}
    for method, part in slides.groupby("method", sort=False):
        by_fold = part.groupby("fold", sort=False)[list(METRICS)].mean()
        undefined = int(part["pearson_undefined"].sum())
        lines[method] = {**by_fold.mean().to_dict(), "pearson_undefined": undefined, "folds": len(by_fold)}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("method")


def _notes(spec: HeadSpec, cohort: Cohort, learned: list[Trained]) -> list[str]:
    notes = []
    if cohort.xy_um is None:
        notes.append("no x_um, y_um in obs: no position baseline")
    shared = {
        s for o in learned for s in leaks(cohort.obs.iloc[o.turn.train], cohort.obs.iloc[o.turn.test]).get("slide", ())
    }
    if shared and any(f.context_um or f.standardise == "slide" for f in spec.features):
        notes.append(f"{len(shared)} slides lie on both sides: context and per-slide scale see across the split")
    for one in learned:
        notes += [f"fold {one.turn.name}: {note}" for note in getattr(one.head, "notes_", ())]
        unseen = (one.interval or {}).get("rows of unseen groups")
        if unseen:
            share = f"{unseen} of {len(one.turn.test)} rows"
            notes.append(f"fold {one.turn.name}: {share} are of groups not trained on: effect 0, a wider interval")
        alphas = np.atleast_1d(getattr(one.head, "alphas", ()))
        if len(alphas) > 1 and getattr(one.head, "alpha_", None) in (min(alphas), max(alphas)):
            notes.append(f"fold {one.turn.name}: alpha {one.head.alpha_:g} is at the end of the grid")  # type: ignore[union-attr]
    return notes


def _plain(line: dict[Any, Any]) -> dict[str, Any]:
    return {str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
