"""Pictures and reports of what lies in a store: fed from views, drawn by `histostore.pl` and `histostore.report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histostore._version import __version__
from histostore.pl import fold_table, gallery, gene_scores, plan_overlay, scatter, truth_and_prediction
from histostore.report import Section, evaluation_section, write_report
from histostore.stages.predict import read_prediction
from histostore.stages.source import mpp_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.figure import Figure

    from histostore.heads.evaluate import Evaluation, FoldResult
    from histostore.stages.fit import FitResult
    from histostore.stages.search import Hits
    from histostore.store.store import Store

SHOWN_GENES = 4
SCATTER_GENES = 8
UNIT = "log1p counts per 10,000"


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
    """Return the genes predicted best, best first: of those on the panel of every fold, where there are any."""
    own = evaluation.genes[evaluation.genes["method"] == evaluation.method]
    everywhere = set.intersection(*(set(f.genes) for f in evaluation.folds))
    if everywhere:
        own = own[own["gene"].isin(everywhere)]
    means = own.groupby("gene", sort=False)["pearson"].mean().dropna()
    return [str(g) for g in means.sort_values(ascending=False, kind="stable").index[:n]]


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
    """Return a metric by method and fold, with the mean over folds."""
    wide = evaluation.slides.pivot_table(index="method", columns="fold", values=metric, sort=False, dropna=False)
    wide["mean"] = evaluation.summary[metric]
    wide.columns.name, wide.index.name = None, None
    return wide


def fit_sections(result: FitResult, adata: AnnData) -> list[Section]:
    """Return the report of one head: scores, genes, predicted against true, and maps of the best genes.

    Parameters
    ----------
    adata
        The rows it was scored on, with overview images.
    """
    evaluation = result.evaluation
    genes = best_genes(evaluation, SCATTER_GENES)
    truth, prediction = out_of_fold(evaluation, list(adata.obs_names), genes)
    slide_of = pd.Series(adata.obs["slide"]).astype(str).reindex(truth.index)
    scores = score_table(evaluation)
    counts = {**result.left_out, **evaluation.report.counts}
    rows = "Rows: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) + "."
    by_gene = evaluation.genes.pivot_table(index="gene", columns="method", values="pearson", dropna=False)
    scored = evaluation_section(
        scores,
        by_gene.sort_values(evaluation.method, ascending=False),
        title=f"Head: {evaluation.spec.head} on {evaluation.spec.panel}",
        split=evaluation.split_text,
        same_patient="same patient on both sides" in evaluation.split_text,
        figures={
            "Scores by fold": fold_table(scores.dropna(how="all")),
            "Scores by gene": gene_scores(by_gene.dropna(how="all", axis=1), method=evaluation.method),
            "Predicted against measured, held-out rows": scatter(
                truth,
                prediction,
                genes,
                labels=slide_of,
                unit=UNIT,
            ),
        },
        notes=[rows, *evaluation.report.notes],
    )
    maps: dict[str, Figure | bytes] = {}
    for fold in evaluation.folds[:2]:
        slide = str(adata.obs["slide"].iloc[int(fold.rows[0])])
        part = adata[adata.obs["slide"] == slide]
        for gene in [g for g in genes if g in fold.genes][: SHOWN_GENES // 2]:
            measured, predicted = (t[gene].reindex(part.obs_names) for t in (truth, prediction))
            maps[f"{gene} on {slide}, held out"] = truth_and_prediction(
                part, gene, slide=slide, truth=measured, prediction=predicted, label=UNIT
            )
    return [scored, Section(title="On the tissue", text="Each pair of maps shares one colour scale.", figures=maps)]


def fit_report(path: Path, store: Store, result: FitResult) -> Path:
    """Write the one-file HTML report of a fit."""
    adata = result.data.view.to_adata()
    return write_report(
        path,
        title=f"{result.evaluation.spec.head} on {result.evaluation.spec.panel}",
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


def prediction_maps(
    store: Store, slides: Sequence[str], head: str, folder: Path, *, genes: Sequence[str] | None = None
) -> list[Path]:
    """Draw predicted genes on the tissue of each slide, beside the measured ones where there are counts."""
    from histostore.pl import spatial

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for slide in slides:
        found = read_prediction(store, slide, head)
        table = found.frame()
        has_counts = found.view.parts[0].expression is not None
        adata = found.view.to_adata() if has_counts else found.view.to_adata(counts=False)
        for gene in list(genes or found.genes[:SHOWN_GENES]):
            path = folder / f"{slide}-{head}-{gene.replace('/', '_')}.png"
            values = table[gene].reindex(adata.obs_names)
            if has_counts and gene in adata.var_names:
                measured = pd.Series(_log_cp10k(adata, gene), index=adata.obs_names)
                truth_and_prediction(adata, gene, slide=slide, truth=measured, prediction=values, label=UNIT, save=path)
            else:
                spatial(adata, values.to_numpy(), slide=slide, title=f"{gene} predicted on {slide}", save=path)
            written.append(path)
    return written


def _log_cp10k(adata: AnnData, gene: str) -> np.ndarray:
    total = np.asarray(adata.X.sum(axis=1)).ravel()
    counts = np.asarray(adata[:, [gene]].X.sum(axis=1)).ravel()
    return np.log1p(np.divide(counts * 1e4, total, out=np.zeros(len(total)), where=total > 0))
