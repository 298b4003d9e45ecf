"""Glomeruli: which spots of a Visium section of kidney lie on a glomerulus, from its H&E.

A capstone project on kidney Visium data (glomerulus against the rest with ResNet50, its README being all that is
public: no data, no numbers, no code), made into a recipe that can be run again.

Reproduced: patches at the Visium spots, labels from polygons drawn in QuPath (GeoJSON), ResNet50 with the weights
IMAGENET1K_V2, a binary classifier, scores on sections it has not seen, its application to every spot, and a sheet of
patches to check by eye.

What differs:

- The network is frozen and a classifier sits on its cached embeddings; the capstone fine-tunes the network with
  augmented patches (``hs.tl.finetune`` makes a backbone of its own, whose name the setting ``backbone`` takes).
- Negatives come only from the annotated region, so that a glomerulus nobody drew is no negative; spots outside it are
  called, never trained on. The capstone does not say where its negatives come from.
- Patients are held out whole; how the capstone parts its patches is not said.
- The threshold is chosen on held-out rows of the training patients, and probabilities are calibrated on them too.
- The check by eye is a round of review: the table of patches takes labels, and ``histostore annotate --review`` brings
  them back for the next fit (set ``labels`` to ``review``).
- Patch size and share of negatives are not published: 224 px and three negatives per positive are ours.

    histostore run pipelines/glomeruli.py --store stores/kidney --name resnet50
    histostore run pipelines/glomeruli.py --store stores/kidney --name mlp --set head=mlp-classifier
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import histostore as hs
from histostore.heads.registry import make
from histostore.recipes import Recipe, Results, check_labels

if TYPE_CHECKING:
    from histostore.heads.label_evaluation import LabelEvaluation
    from histostore.recipes import RunReport

IMAGE = "image"


@dataclass(frozen=True)
class Settings:
    """What may be set."""

    backbone: str = "resnet50"
    px: int = 224
    codec: Literal["jpeg", "lossless", "slide"] = "jpeg"
    """How tiles are kept; slide: no copy."""
    labels: str = "region_annotations"
    """Obs column: region_NAME of polygons, or one that a review made."""
    positive: str = "glomerulus"
    negative: str = "region"
    """The class of the polygons that say which region was looked at; empty takes every labelled tile."""
    overlap: float = 0.5
    """Share of a tile that a polygon must cover to label it."""
    negatives_per_positive: float = 3.0
    """Drawn per slide, by seed."""
    head: str = "logistic"
    """logistic or mlp-classifier."""
    calibration: Literal["none", "temperature", "isotonic"] = "temperature"
    threshold: Literal["f1", "balanced_accuracy"] = "f1"
    """What the threshold is chosen for."""
    split: str = "leave-one-out:patient"
    save: str = "glomeruli"
    """Name of the head; the obs columns are call_NAME and p_NAME."""
    review: int = 50
    """Patches on each sheet to check by eye."""
    seed: int = 0


def check(store: hs.Store, settings: Settings) -> None:
    """Refuse settings that cannot be, before anything is tiled."""
    _tiles(settings)
    _head(settings)
    check_labels(store, backbone=settings.backbone, labels=_labels(settings), split=settings.split)


def run(store: hs.Store, settings: Settings, report: RunReport) -> Results:
    """Tile, embed, learn, score, call every spot, and draw what a person should check."""
    tiles = f"glomeruli-{settings.px}"
    with report.timed("tile"):
        cut = hs.pp.tile(store, _tiles(settings), name=tiles, pixels=hs.PixelSpec(codec=settings.codec))
    for result in cut:
        for what, n in result.report.counts.items():
            report.count(f"tile: {what}", n)
    with report.timed("embed"):
        made = hs.tl.embed(store, settings.backbone, tiles=tiles, progress=report.progress)
    backbone = made[0].refs[0].name.rpartition("/")[2]
    with report.timed("fit"):
        fitted = hs.tl.fit(
            store, _head(settings), labels=_labels(settings), region_share=settings.overlap, split=settings.split,
            backbone=backbone, tiles=tiles, seed=settings.seed, save=settings.save, replace=True,
        )  # fmt: skip
    scores = fitted.evaluation
    for what, n in {**fitted.left_out, **scores.report.counts}.items():
        report.count(f"rows: {what}", n)
    for note in scores.report.notes:
        report.note(note)
    with report.timed("predict"):
        hs.tl.predict(store, settings.save, tiles=tiles, replace=True)
    with report.timed("draw"):
        _draw_scores(scores, report)
        called = _draw_slides(store, settings, tiles, report)
    (tn, fp), (fn, tp) = scores.confusion.tolist()
    metrics = ("accuracy", "balanced_accuracy", "f1", "auroc", "auprc", "log_loss", "calibration_error")
    return Results(
        metrics={
            **{m: scores.score(metric=m) for m in metrics},
            "auroc_position": scores.score("position", "auroc"),
            "true_positives": tp, "false_positives": fp, "false_negatives": fn, "true_negatives": tn,
            "folds": len(scores.folds), "spots_called_positive": called,
        },
        table=scores.slides.to_dict("records"),
        protocol=scores.to_json(),
    )  # fmt: skip


def _tiles(settings: Settings) -> hs.TileSpec:
    return hs.TileSpec.at_spots(px=settings.px, mpp="native")


def _labels(settings: Settings) -> hs.LabelSpec:
    return hs.LabelSpec(
        column=settings.labels,
        positive=(settings.positive,),
        negative=(settings.negative,) if settings.negative else None,
        negatives_per_positive=settings.negatives_per_positive,
    )


def _head(settings: Settings) -> Any:
    options = {"class_weight": "balanced", "calibration": settings.calibration, "threshold": settings.threshold}
    return make(settings.head, options.items(), seed=settings.seed)


def _draw_scores(scores: LabelEvaluation, report: RunReport) -> None:
    """Draw confusion, ROC and precision-recall beside the baselines, and reliability, all on held-out rows."""
    hs.pl.confusion_matrix(scores.confusion, scores.classes, save=report.path("confusion.png"))
    truth = np.concatenate([f.truth for f in scores.folds]) == 1
    curves = {
        method: (truth, np.concatenate([f.probabilities[method][:, 1] for f in scores.folds]))
        for method in scores.summary.index
        if all(method in f.probabilities for f in scores.folds)
    }
    hs.pl.roc_pr(curves, title=f"{scores.classes[1]}, held-out spots", save=report.path("roc-pr.png"))
    hs.pl.calibration({IMAGE: curves[IMAGE]}, save=report.path("calibration.png"))


def _draw_slides(store: hs.Store, settings: Settings, tiles: str, report: RunReport) -> int:
    """Draw probabilities on every slide and the patches to check; return how many spots are called positive."""
    positive = 0
    for slide in store.slides():
        adata = store.view(tiles=tiles, slides=[slide]).to_adata(counts=False)
        called = adata.obs[f"call_{settings.save}"]
        positive += int((called == settings.positive).sum())
        report.count("spots without a call (unreadable)", int(called.isna().sum()))
        hs.pl.spatial(
            adata, f"p_{settings.save}", slide=slide, vmin=0.0, vmax=1.0, label=f"probability of {settings.positive}",
            save=report.path(f"{slide}.png"),
        )  # fmt: skip
    for name, uncertain in (("surest", False), ("least-sure", True)):
        hs.tl.review(
            store, settings.save, k=settings.review, tiles=tiles, uncertain=uncertain, again=True,
            folder=report.path(name), overwrite=True,
        )  # fmt: skip
    return positive


RECIPE = Recipe(
    name="glomeruli",
    citation="Kidney glomeruli capstone (ResNet50 IMAGENET1K_V2 on patches at Visium spots); only its README is public",
    settings=Settings,
    run=run,
    check=check,
    reproduces="patches at spots, labels of polygons, ResNet50 V2, every spot called, a check by eye",
    differs="frozen network; negatives of the annotated region; patients held out; calibrated; threshold on validation",
    quick={"backbone": "testing", "px": 96, "codec": "slide", "positive": "tumour", "overlap": 0.4, "review": 8},
)
