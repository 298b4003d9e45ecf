"""What a fit's report shows, for every kind of head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.heads.label_evaluation import IMAGE, LabelEvaluation, LabelFold
from histostore.stages.head_sections import class_sections, histories, learning_section, prediction_section
from histostore.stages.pictures import best_genes, fit_report, fit_sections, spread_of_genes
from histostore.tables import Report

SPLIT = "leave-one-out:patient"
TUMOUR = hs.LabelSpec(column="region_annotations", positive=("tumour",), negative=("region",))


@pytest.fixture(scope="module")
def store(embedded):
    return hs.open(embedded)


def captions(sections):
    return [caption for section in sections for caption in section.figures]


def test_genes_are_shown_from_best_to_worst_with_a_heat_map_and_maps_in_bins(store):
    result = hs.tl.fit(store, "ridge", genes="top-variance:12", split=SPLIT)
    sections = fit_sections(result, result.data.view.to_adata())
    assert [s.title for s in sections][1:] == ["Predicted and measured", "On the tissue"]
    best, median, worst = spread_of_genes(result.evaluation)
    said = captions(sections)
    assert f"Residuals against predicted: {best} (best), {median} (median), {worst} (worst)" in said
    r = result.evaluation.genes.query("method == @result.evaluation.method").groupby("gene")["pearson"].mean()
    everywhere = set.intersection(*(set(f.genes) for f in result.evaluation.folds))
    assert r[list(everywhere)].idxmax() == best
    assert r[list(everywhere)].idxmin() == worst
    heat = next(f for s in sections for c, f in s.figures.items() if "spot under spot" in c)
    assert heat.axes[0].images[0].get_array().shape == (len(everywhere), len(result.data.obs))
    assert sum("bins of the measured values" in c for c in said) == 4


def test_a_gene_without_a_score_is_not_the_worst(store):
    evaluation = hs.tl.fit(store, hs.heads.Ridge(100.0), genes="top-mean:4", split=SPLIT).evaluation
    best, *others = best_genes(evaluation, 4)
    unscored = evaluation.genes["pearson"].mask(evaluation.genes["gene"] == best)
    shown = spread_of_genes(replace(evaluation, genes=evaluation.genes.assign(pearson=unscored)))
    assert list(shown.items()) == [(others[0], "best"), (others[1], "median"), (others[2], "worst")]


def test_a_head_without_a_score_still_has_a_report(store, tmp_path):
    result = hs.tl.fit(store, "mean", genes="top-mean:1", split=SPLIT)
    assert list(spread_of_genes(result.evaluation).values()) == ["the only one"]
    page = fit_report(tmp_path / "r.html", store, result).read_text()
    assert "On the tissue" in page


def test_a_classifier_is_reported_with_its_baselines_and_both_maps(store):
    result = hs.tl.fit(store, hs.heads.Logistic(1e-2), labels=TUMOUR, split=SPLIT)
    sections = fit_sections(result, result.data.view.to_adata(counts=False))
    assert [s.title for s in sections] == ["Head: logistic on region_annotations", "Classes", "On the tissue"]
    scores = sections[0].tables["AUROC by method and fold"]
    assert scores.loc[IMAGE, "mean"] == pytest.approx(result.evaluation.score())
    assert captions(sections[2:]) == [f"{s}: {c} class" for s in ("A1", "B1") for c in ("true", "predicted")]
    assert "Calibration" in captions(sections)


def evaluation(classes, folds):
    rng = np.random.default_rng(0)
    made = []
    for k, name in enumerate(folds):
        p = rng.dirichlet(np.ones(len(classes)), 30).astype(np.float32)
        truth = np.array([rng.choice(len(classes), p=q / q.sum()) for q in p.astype(float)])
        own = {"truth": truth, "probabilities": {IMAGE: p}, "guess": {IMAGE: p.argmax(1)}, "chosen": {}}
        made.append(LabelFold(name=name, n_train=30, rows=np.arange(30 * k, 30 * k + 30), **own))
    lines = [{"fold": f.name, "slide": f.name, "method": IMAGE, "auroc": 0.7, "auprc": 0.5} for f in made]
    table = np.zeros((len(classes), len(classes)), np.int64)
    for fold in made:
        np.add.at(table, (fold.truth, fold.guess[IMAGE]), 1)
    return LabelEvaluation(
        classes=classes, split_text="leave one patient out", folds=tuple(made), slides=pd.DataFrame(lines),
        summary=pd.DataFrame({"auroc": [0.7]}, index=[IMAGE]), confusion=table, report=Report(),
    )  # fmt: skip


def test_of_several_classes_each_is_ranked_against_the_rest():
    _, classes = class_sections(evaluation(("a", "b", "c"), ("p1", "p2")), title="t")
    assert list(classes.figures) == ["Confusion on held-out rows", "Each class against the rest", "Calibration"]
    text = [t.get_text().partition(":")[0] for t in classes.figures["Each class against the rest"].legends[0].texts]
    assert text == ["a", "b", "c"]


def test_of_two_classes_every_fold_has_its_curve_unless_there_are_very_many():
    few = class_sections(evaluation(("a", "b"), ("p1", "p2")), title="t")[1].figures
    (by_fold,) = (f for c, f in few.items() if "by fold" in c)
    assert len(by_fold.legends[0].texts) == 2
    many = class_sections(evaluation(("a", "b"), [f"p{i}" for i in range(13)]), title="t")[1].figures
    assert not [c for c in many if "by fold" in c]


def test_how_a_head_learned_is_shown_where_it_learned_by_epochs():
    head = hs.heads.RENN()
    variances = np.array([[1.0, 0.9], [0.8, 0.7], [0.7, 0.6]])
    head.history_ = {
        "loss": np.array([3.0, 2, 1]),
        "validation": np.array([3.0, 1, 2]),
        "s2_e": variances,
        "s2_b": variances / 9,
    }
    head.best_epoch_ = 2
    section = learning_section(histories(head))
    assert list(section.figures) == ["Loss by epoch: head (RENN)", "Variances by epoch: head (RENN)"]
    losses, variances = section.figures.values()
    assert [ax.get_ylabel() for ax in losses.axes] == ["likelihood loss per row", "validation squared error"]
    assert losses.get_suptitle() == "head (RENN) · kept epoch 2 of 3, validation 1"
    assert len(variances.axes[0].collections) == 2
    assert learning_section(histories(hs.heads.Ridge())) is None
    assert learning_section({"head": {"train": [], "validation": []}}) is None


def test_rows_of_slides_need_no_slides_to_be_drawn():
    truth = pd.DataFrame({"MKI67": [1.0, 2.0, 4.0]}, index=["s1", "s2", "s3"])
    section = prediction_section(truth, truth + 1, {"MKI67": "the only one"})
    assert len(section.figures) == 3
