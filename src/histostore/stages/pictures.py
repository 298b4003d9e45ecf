"""Pictures and reports of what lies in a store: fed from views, drawn by `histostore.pl` and `histostore.report`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore._version import __version__
from histostore.heads.label_evaluation import IMAGE, LabelEvaluation
from histostore.pl import fold_table, gallery, gene_scores, plan_overlay, spatial, truth_and_prediction
from histostore.report import Section, evaluation_section, write_report
from histostore.stages.head_sections import (
    SAME_PATIENT,
    class_sections,
    histories,
    learning_section,
    prediction_section,
)
from histostore.stages.source import mpp_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.figure import Figure

    from histostore.heads.evaluate import Evaluation, FoldResult
    from histostore.heads.label_evaluation import LabelFold
    from histostore.stages.fit import FitResult
    from histostore.stages.hits import Hits
    from histostore.store.store import Store

SHOWN_GENES = 4
HEATMAP_GENES = 30
MAP_BINS, MAP_SLIDES = 5, 2
UNIT = "log1p counts per 10,000"
UNITS = {
    "log1p-cp10k": UNIT,
    "log1p": "log1p counts",
    "log-share": "log share of counts",
    "counts": "counts",
}
"""Unit of a head's targets -> what the axes say."""


def tile_picture(store: Store, slide: str, tiles: str, path: Path | None = None) -> Figure:
    """Draw the tiles of a tile set on the slide's overview, coloured by status."""
    manifest = store.slide(slide)
    source = store.group(manifest.find("source", "image"))
    group = store.group(manifest.find("tiles", tiles))
    geometry = group.read("geometry")
    overview = source.read("thumbnail")
    stored = manifest.get("pixels", tiles)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return plan_overlay(
        overview,
        source.attrs["width"] / overview.shape[1],
        geometry[:, 2:4],
        group.attrs["edge0"],
        status=store.group(stored).read("status") if stored is not None else None,
        tissue=geometry[:, 4],
        mpp0=mpp_of(store, manifest),
        title=f"{slide}: {tiles}",
        save=path,
    )


def best_genes(evaluation: Evaluation, n: int) -> list[str]:
    """Return the genes predicted best, best first: of those on the panel of every fold, where there are any.

    Those without a score (constant, or predicted as constants) come last.
    """
    return [str(g) for g in _ranked(evaluation).index[:n]]


def _ranked(evaluation: Evaluation) -> pd.Series[float]:
    """Return the score of each of these genes, best first, NaN last."""
    own = evaluation.genes[evaluation.genes["method"] == evaluation.method]
    everywhere = set.intersection(*(set(f.genes) for f in evaluation.folds))
    if everywhere:
        own = own[own["gene"].isin(everywhere)]
    means = own.groupby("gene", sort=False)["pearson"].mean()
    return means.sort_values(ascending=False, kind="stable", na_position="last")


def out_of_fold(
    evaluation: Evaluation, names: Sequence[str], genes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return truth and out-of-fold prediction of some genes, one line per row that was held out once.

    Parameters
    ----------
    names
        Row names of what was evaluated, in its order.
    """
    truths, predictions = [], []
    for fold in evaluation.folds:
        index = pd.Index([names[r] for r in fold.rows])
        truths.append(_some(fold, fold.truth, index, genes))
        predictions.append(_some(fold, fold.predictions[evaluation.method], index, genes))
    return pd.concat(truths), pd.concat(predictions)


def _some(fold: FoldResult, values: np.ndarray, index: pd.Index, genes: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(values, index=index, columns=list(fold.genes)).reindex(columns=list(genes))


def score_table(evaluation: Evaluation, metric: str = "pearson") -> pd.DataFrame:
    """Return a metric by method and fold, with the mean over folds.

    That of a fold is the mean over its slides, and that of a slide the mean over the targets where it is defined.
    """
    wide = evaluation.slides.pivot_table(index="method", columns="fold", values=metric, sort=False, dropna=False)
    wide["mean"] = evaluation.summary[metric]
    wide.columns.name, wide.index.name = None, None
    return wide


def fit_sections(result: FitResult, adata: AnnData | None) -> list[Section]:
    """Return the report of one head: scores, predicted and measured or classes, how it learned, and maps.

    Parameters
    ----------
    adata
        The rows it was scored on, with overview images, by the names of ``result.data.obs``; None where rows are
        slides: no maps then.
    """
    evaluation = result.evaluation
    counts = {**result.left_out, **evaluation.report.counts}
    rows = "Rows: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) + "."
    learned = learning_section(histories(result.head.estimator)) if result.head is not None else None
    if isinstance(evaluation, LabelEvaluation):
        sections = class_sections(evaluation, title=f"Head: {head_title(result)}", notes=[rows])
        maps = {} if adata is None else _class_maps(evaluation, result, adata)
    else:
        sections = _value_sections(evaluation, result, rows)
        maps = {} if adata is None else _value_maps(evaluation, result, adata)
    sections += [learned] if learned is not None else []
    if maps:
        sections.append(Section(title="On the tissue", text="Held-out rows.", figures=maps))
    return sections


def head_title(result: FitResult) -> str:
    """Return a head and what it predicts, in words."""
    spec = result.spec
    if spec.labels is not None:
        return f"{spec.head} on {spec.labels.column}"
    return f"{spec.head} on {spec.panel if spec.columns is None else ', '.join(spec.columns)}"


def spread_of_genes(evaluation: Evaluation) -> dict[str, str]:
    """Return the best, the median and the worst predicted target -> which it is; fewer where there are fewer.

    Of those that have a score, unless none has.
    """
    scores = _ranked(evaluation)
    ranked = [str(g) for g in (scores.dropna() if scores.notna().any() else scores).index]
    names = {0: "best", (len(ranked) - 1) // 2: "median", len(ranked) - 1: "worst"}
    if len(ranked) < 3:
        names = {0: "best", len(ranked) - 1: "worst"} if len(ranked) == 2 else {0: "the only one"}
    return {ranked[at]: why for at, why in names.items()}


_PER_SLIDE = "Score of a fold: the mean over its slides, each scored by itself."


def _value_sections(evaluation: Evaluation, result: FitResult, rows: str) -> list[Section]:
    genes, spread = best_genes(evaluation, HEATMAP_GENES), spread_of_genes(evaluation)
    truth, prediction = out_of_fold(evaluation, list(result.data.obs.index), list(dict.fromkeys([*genes, *spread])))
    slides = _slides(result, truth)
    unit = _unit(result)
    scores = score_table(evaluation)
    by_gene = evaluation.genes.pivot_table(index="gene", columns="method", values="pearson", dropna=False)
    figures: dict[str, Figure | bytes] = {}
    if scores.notna().to_numpy().any():
        figures["Scores by fold"] = fold_table(scores.dropna(how="all"))
        figures["Scores by gene"] = gene_scores(by_gene.dropna(how="all", axis=1), method=_drawn(by_gene, evaluation))
    scored = evaluation_section(
        scores,
        by_gene.sort_values(evaluation.method, ascending=False),
        title=f"Head: {head_title(result)}",
        split=evaluation.split_text,
        same_patient=SAME_PATIENT in evaluation.split_text,
        figures=figures,
        notes=[rows, *([_PER_SLIDE] if result.spec.bag is None else []), *evaluation.report.notes],
    )
    everywhere = [g for g in genes if all(g in f.genes for f in evaluation.folds)]
    return [scored, prediction_section(truth, prediction, spread, panel=everywhere, slides=slides, unit=unit)]


def _drawn(by_gene: pd.DataFrame, evaluation: Evaluation) -> str | None:
    """Return the method that orders the genes: the head, unless it predicts constants and has no score."""
    return evaluation.method if by_gene[evaluation.method].notna().any() else None


def _slides(result: FitResult, truth: pd.DataFrame) -> pd.Series[Any] | None:
    """Return the slide of each row, or None where rows are slides."""
    of = result.data.obs["slide"].astype(str)
    return None if result.spec.bag is not None else of.reindex(truth.index)


def _unit(result: FitResult) -> str:
    return UNITS[result.spec.target] if result.spec.task == "genes" else ""


def _value_maps(evaluation: Evaluation, result: FitResult, adata: AnnData) -> dict[str, Figure | bytes]:
    genes = best_genes(evaluation, SHOWN_GENES)
    truth, prediction = out_of_fold(evaluation, list(result.data.obs.index), genes)
    maps: dict[str, Figure | bytes] = {}
    for slide in _held_out_slides(evaluation.folds, result):
        part = adata[adata.obs["slide"] == slide]
        for gene in genes[: SHOWN_GENES // 2]:
            measured, predicted = (t[gene].reindex(part.obs_names) for t in (truth, prediction))
            if measured.notna().any():
                maps[f"{gene} on {slide}, in {MAP_BINS} bins of the measured values"] = truth_and_prediction(
                    part, gene, slide=slide, truth=measured, prediction=predicted, bins=MAP_BINS, label=_unit(result)
                )
    return maps


def _class_maps(evaluation: LabelEvaluation, result: FitResult, adata: AnnData) -> dict[str, Figure | bytes]:
    folds = evaluation.folds
    index = np.asarray(result.data.obs.index)[np.concatenate([f.rows for f in folds])]
    codes = {
        "true class": np.concatenate([f.truth for f in folds]),
        "predicted class": np.concatenate([f.guess[IMAGE] for f in folds]),
    }
    maps: dict[str, Figure | bytes] = {}
    for slide in _held_out_slides(folds, result):
        part = adata[adata.obs["slide"] == slide].copy()
        for what, of in codes.items():
            named = pd.Series([evaluation.classes[k] for k in of], index=index, dtype=object)
            # all classes, so that a class has its colour also where another is missing
            part.obs[what] = pd.Categorical(named.reindex(part.obs_names), categories=list(evaluation.classes))
            maps[f"{slide}: {what}"] = spatial(part, what, slide=slide)
    return maps


def _held_out_slides(folds: Sequence[FoldResult | LabelFold], result: FitResult) -> list[str]:
    """Return the slides of the first rows of the first folds."""
    slide = result.data.obs["slide"].astype(str)
    return list(dict.fromkeys(str(slide.iloc[int(fold.rows[0])]) for fold in folds))[:MAP_SLIDES]


def fit_report(path: Path, store: Store, result: FitResult) -> Path:
    """Write the one-file HTML report of a fit."""
    counts = None if result.spec.task == "genes" else False
    adata = result.data.view.to_adata(counts=counts) if result.spec.bag is None else None
    return write_report(
        path,
        title=head_title(result),
        store=store.name,
        subtitle=f"embeddings {result.data.view.backbones[0]}",
        sections=fit_sections(result, adata),
        appendix=appendix(store, result),
    )


def appendix(store: Store, result: FitResult) -> dict[str, object]:
    """Return what a number stands on: digests of all groups, the spec, the choices of each fold."""
    groups = {
        p.slide: {r.key: r.digest for r in (p.points, p.expression, *p.embeddings.values()) if r is not None}
        for p in result.data.view.parts
    }
    return {
        "histostore": __version__,
        "store": {"name": store.name, "uuid": store.uuid, "format": store.format},
        "evaluation": result.evaluation.to_json(),
        "groups": groups,
    }


def search_section(hits: Hits, title: str) -> Section:
    """Return the report of one search: its table and the gallery."""
    captions = hits.table.reset_index().rename(columns={"barcode": "id"})
    picture = gallery(hits.query_tile(), hits.tiles(), captions, query_caption=hits.query)
    shown = hits.table.drop(columns=["barcode"])
    return Section(title=title, tables={"Nearest tiles": shown}, figures={f"Look-alikes of {hits.query}": picture})
