"""Sections of a head's report: how it learned, how predicted and measured values compare, how it classifies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.heads.label_evaluation import IMAGE, PRIOR
from histostore.pl import (
    calibration,
    confusion_matrix,
    distributions,
    fold_table,
    gene_heatmap,
    loss_curves,
    residuals,
    roc_pr,
    scatter,
    variance_curves,
)
from histostore.report import Section, evaluation_section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from histostore.heads.label_evaluation import LabelEvaluation

    type Figures = dict[str, Figure | bytes]

MAX_FOLDS = 12
"""So many folds still have curves of their own."""

SAME_PATIENT = "same patient on both sides"
LOSSES = {"mse": "mean squared error", "poisson": "Poisson loss", "nb": "negative binomial loss"}


def learning_section(histories: Mapping[str, Mapping[str, Any]], *, title: str = "How it learned") -> Section | None:
    """Return the section of losses and variances by epoch, or None where there was nothing to learn by epochs.

    Parameters
    ----------
    histories
        What learned -> its history: ``train`` (or ``loss``) and ``validation``, one value per epoch; ``best_epoch``
        from 1; ``s2_e`` and ``s2_b``, one line per epoch; ``name`` and ``validation_name`` of the losses.
    """
    figures: Figures = {}
    for what, history in histories.items():
        losses = history.get("train", history.get("loss", ()))
        if not len(losses):
            continue
        best = history.get("best_epoch") or None
        validation = history.get("validation", ())
        figures[f"Loss by epoch: {what}"] = loss_curves(
            losses, validation, best_epoch=best if len(validation) else None, name=history.get("name", "loss"),
            validation_name=history.get("validation_name"), title=what,
        )  # fmt: skip
        variances = {n: history[k] for n, k in (("within groups", "s2_e"), ("between groups", "s2_b")) if k in history}
        variances = {n: v for n, v in variances.items() if np.size(v)}
        if variances:
            figures[f"Variances by epoch: {what}"] = variance_curves(
                variances, best_epoch=best, unit="scaled targets", title=what
            )
    text = "Of the head that was kept, trained on all rows; the dashed line is the epoch whose weights it has."
    return Section(title=title, text=text, figures=figures) if figures else None


def histories(estimator: Any) -> dict[str, dict[str, Any]]:
    """Return the histories of a fitted head and of the decoder and regressor it is made of, where they have one."""
    found = {}
    for what, part in (
        ("head", estimator),
        ("decoder", getattr(estimator, "decoder_", None)),
        ("regressor", getattr(estimator, "regressor_", None)),
    ):
        history = getattr(part, "history_", None)
        if history is None:
            continue
        own: dict[str, Any] = {"best_epoch": getattr(part, "best_epoch_", None), **history}
        if "loss" in history:  # random effects: trained by likelihood, stopped by squared error
            own |= {"name": "likelihood loss per row", "validation_name": "validation squared error"}
        else:
            own["name"] = LOSSES.get(str(getattr(part, "loss", "mse")), "loss")
        found[f"{what} ({type(part).__name__})"] = own
    return found


def prediction_section(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    chosen: Mapping[str, str],
    *,
    panel: Sequence[str] = (),
    slides: pd.Series[Any] | None = None,
    unit: str = "",
    title: str = "Predicted and measured",
) -> Section:
    """Return scatter, residuals and distributions of a few targets, and the heat map of many, on held-out rows.

    Parameters
    ----------
    truth, prediction
        Rows x targets, joined by id.
    chosen
        Target -> why it is shown, such as ``best``.
    panel
        Targets of the heat map; fewer than two draw none.
    slides
        Slide of each row, by id.
    """
    few = list(chosen)
    who = ", ".join(f"{gene} ({why})" for gene, why in chosen.items())
    figures: Figures = {
        f"Predicted against measured: {who}": scatter(truth, prediction, few, labels=slides, columns=3, unit=unit),
        f"Residuals against predicted: {who}": residuals(truth, prediction, few, labels=slides, columns=3, unit=unit),
        f"Distributions: {who}": distributions(truth, prediction, few, columns=3, unit=unit),
    }
    if len(panel) > 1:
        figures[f"The {len(panel)} best predicted of those in every fold, spot under spot"] = gene_heatmap(
            truth, prediction, panel, slides=slides, unit=unit
        )
    text = "Held-out rows only. In residuals the line joins means of bins of equal count; it should lie on zero."
    return Section(title=title, text=text, figures=figures)


def class_sections(evaluation: LabelEvaluation, *, title: str, notes: Sequence[str] = ()) -> list[Section]:
    """Return the report of a classifier: scores beside its baselines, confusion, ranking and calibration.

    Parameters
    ----------
    evaluation
        Out-of-fold results.
    notes
        Rows left out before, and the like.
    """
    scores = class_scores(evaluation)
    scored = evaluation_section(
        scores,
        title=title,
        metric="AUROC",
        split=evaluation.split_text,
        same_patient=SAME_PATIENT in evaluation.split_text,
        figures={"AUROC by fold": fold_table(scores.dropna(how="all"), name="AUROC")} if _any(scores) else {},
        notes=[*notes, *evaluation.report.notes],
    )
    scored = replace(scored, tables={**scored.tables, "All metrics, mean over folds": evaluation.summary})
    pooled = (
        "Curves and counts pool the held-out rows of all folds, though each fold has a model of its own; the areas of "
        "the table above are means over slides, then over folds."
    )
    return [scored, Section(title="Classes", text=pooled, figures=_class_figures(evaluation))]


def class_scores(evaluation: LabelEvaluation, metric: str = "auroc") -> pd.DataFrame:
    """Return a metric by method and fold, with the mean over folds."""
    rows = {method: evaluation.by_fold(str(method), metric) for method in evaluation.summary.index}
    return pd.DataFrame.from_dict(rows, orient="index").assign(mean=evaluation.summary[metric])


def _class_figures(evaluation: LabelEvaluation) -> Figures:
    classes, folds = evaluation.classes, evaluation.folds
    truth = np.concatenate([f.truth for f in folds])
    head = _pooled(evaluation, IMAGE)
    figures: Figures = {"Confusion on held-out rows": confusion_matrix(evaluation.confusion, classes)}
    if len(classes) > 2:
        curves = {c: (truth == k, head[:, k]) for k, c in enumerate(classes)}
        figures["Each class against the rest"] = roc_pr(curves, title="image head, each class against the rest")
        sure = {"likeliest class": (truth == head.argmax(1), head.max(1))}
        figures["Calibration"] = calibration(sure, name="probability of the likeliest class")
        return figures
    positive = truth == 1
    # class shares are one number per fold: they rank nothing
    methods = [m for m in reversed(list(folds[0].probabilities)) if m != PRIOR]
    curves = {m: (positive, _pooled(evaluation, m)[:, 1]) for m in methods}
    figures["The head beside its baselines"] = roc_pr(curves, title=f"{classes[1]} against {classes[0]}")
    if 1 < len(folds) <= MAX_FOLDS:
        by_fold = {f"without {f.name}": (f.truth == 1, f.probabilities[IMAGE][:, 1]) for f in folds}
        figures["The head by fold (trained without the named rows, scored on them)"] = roc_pr(by_fold)
    figures["Calibration"] = calibration({IMAGE: curves[IMAGE]}, name=f"probability of {classes[1]}")
    return figures


def _pooled(evaluation: LabelEvaluation, method: str) -> NDArray[np.float32]:
    return np.concatenate([f.probabilities[method] for f in evaluation.folds])


def _any(scores: pd.DataFrame) -> bool:
    return bool(scores.notna().to_numpy().any())
