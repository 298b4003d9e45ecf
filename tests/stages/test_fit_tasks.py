"""What `hs.tl.fit` can be asked for beside genes: classes, numbers, whole slides, random effects."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import histostore as hs
from histostore.errors import HistostoreError
from histostore.heads.label_evaluation import IMAGE, LIBRARY, POSITION, PRIOR
from histostore.stages.predict import read_prediction, write_predictions

SPLIT = "leave-one-out:patient"
TUMOUR = hs.LabelSpec(column="region_annotations", positive=("tumour",), negative=("region",))


@pytest.fixture
def store(embedded, copy_of):
    return hs.open(copy_of(embedded))


def test_a_classifier_learns_polygons_and_calls_every_tile(store, cohort, tmp_path):
    head = hs.heads.Logistic(1e-2, threshold="f1", calibration="temperature")
    result = hs.tl.fit(store, head, labels=TUMOUR, split=SPLIT, save="tumour")
    evaluation = result.evaluation
    assert evaluation.classes == ("region", "tumour")
    assert set(evaluation.summary.index) == {PRIOR, POSITION, LIBRARY, IMAGE}
    assert evaluation.score() > 0.65
    assert evaluation.confusion.sum() == evaluation.report.counts["used"]
    done = hs.tl.predict(store, "tumour")
    assert [d.done for d in done] == ["written", "written"]
    found = read_prediction(store, "A1", "tumour")
    np.testing.assert_allclose(found.values.sum(1), 1, rtol=1e-5)
    adata = store.view(tiles="spots").to_adata(counts=False)
    called = adata.obs.loc[adata.obs["slide"] == "A1", "call_tumour"]
    assert called.tolist() == found.calls().tolist()
    truth = dict(zip(cohort.slides[0].spot_ids, cohort.slides[0].in_tumour, strict=True))
    right = [(c == "tumour") == truth[b] for c, b in zip(called, adata.obs["barcode"], strict=False)]
    assert np.mean(right) > 0.8
    hits = store.view(tiles="spots", where="call_tumour == 'tumour' and p_tumour > 0.5")
    assert 0 < len(hits) <= (adata.obs["call_tumour"] == "tumour").sum()
    path = write_predictions(store, ["A1", "B1"], "tumour", tmp_path / "p.h5ad")
    again = ad.read_h5ad(path)
    assert list(again.obs["call"].cat.categories) == ["region", "tumour"]
    assert list(again.var_names) == ["region", "tumour"]


def test_a_saved_classifier_is_another_when_its_labels_are(store):
    hs.tl.fit(store, hs.heads.Logistic(1e-2), labels=TUMOUR, split=SPLIT, save="c")
    with pytest.raises(HistostoreError, match="another spec or other rows"):
        hs.tl.fit(store, hs.heads.Logistic(1e-2), labels=TUMOUR, region_share=0.9, split=SPLIT, save="c")


def test_counts_are_modelled_with_the_library_as_offset_and_predicted_without(store):
    head = hs.heads.MLP((16,), loss="poisson", max_epochs=400, patience=3)
    result = hs.tl.fit(store, head, genes="top-mean:5", target="counts", split=SPLIT, save="poisson")
    fold = result.evaluation.folds[0]
    np.testing.assert_array_equal(fold.truth, np.round(fold.truth))
    assert result.head is not None
    assert result.head.estimator.reference_library_ > 1
    hs.tl.predict(store, "poisson", slides="A1")
    assert (read_prediction(store, "A1", "poisson").values > 0).all()


def test_the_unit_of_st_net_is_a_log_share(store):
    result = hs.tl.fit(store, "mean", genes="top-mean:5", target="log-share", split=SPLIT)
    counts = result.data.genes
    fold = result.evaluation.folds[0]
    column = [counts.symbols.index(g) for g in fold.genes]
    dense = counts.matrix.toarray().astype(float)
    want = np.log((1 + dense[:, column]) / (dense.shape[1] + dense.sum(1))[:, None])
    np.testing.assert_allclose(fold.truth, want[fold.rows], rtol=1e-5)


def test_a_target_in_the_metadata_is_of_whole_slides(store):
    # two slides are too few to learn from: what is tested is what reaches the head
    for slide, tpm, centre in (("A1", "3.5", "x"), ("B1", "1.25", "y")):
        hs.pp.annotate(store, slide=slide, MKI67=tpm, tss=centre)
    result = hs.tl.fit(store, "mean", target="MKI67", tiles_per_slide=8, split="leave-one-out:slide", save="m")
    assert result.spec.bag is not None
    assert result.data.X.shape[0] == 2
    assert result.data.obs["n_tiles"].tolist() == [8, 8]
    np.testing.assert_allclose(result.data.values["MKI67"].astype(float), [3.5, 1.25])
    rows = store.view(backbone="testing", slides=["A1"])
    again = hs.tl.fit(store, "mean", target="MKI67", split="leave-one-out:slide")
    np.testing.assert_allclose(again.data.X[0], rows.numpy().astype(np.float64).mean(0), rtol=1e-3)
    hs.tl.predict(store, "m", slides="A1")
    found = read_prediction(store, "A1", "m")
    assert found.frame().shape == (1, 1)
    assert found.frame().index.tolist() == ["A1"]


def test_random_effects_are_of_the_columns_that_are_named(store):
    head = hs.heads.RENN((), epochs=2, validation=0.0)
    split = hs.SpatialBlocks(600, 3, allow_same_patient=True)
    kept = hs.tl.fit(store, head, genes="top-mean:2", groups="slide", split=split, save="renn")
    assert kept.head is not None
    assert set(kept.head.estimator.levels_.names) == {"A1", "B1"}
    assert 0.5 < kept.evaluation.folds[0].chosen["interval"]["covered"] <= 1
    assert kept.evaluation.folds[0].chosen["interval"]["rows of unseen groups"] == 0
    obs = kept.data.obs.assign(slide="new")
    middle = kept.head.predict(kept.data.X, obs) - kept.head.predict(kept.data.X, kept.data.obs)
    blup = kept.head.estimator.blup_
    own = (kept.data.obs["slide"] == "B1").to_numpy().astype(int)
    np.testing.assert_allclose(middle, -blup[own], atol=1e-4)
    with pytest.raises(HistostoreError, match="name their obs columns"):
        hs.tl.fit(store, head, genes="top-mean:2", split=SPLIT)


def test_squares_of_tissue_are_held_out_with_a_buffer(store):
    split = hs.SpatialBlocks(600, 3, buffer_um=250, allow_same_patient=True)
    result = hs.tl.fit(store, "ridge", genes="top-mean:3", split=split)
    assert "250 µm around them left out" in result.evaluation.split_text
    obs = result.data.obs
    for fold in result.evaluation.folds:
        assert fold.n_train < len(obs) - len(fold.rows)


BAD = [
    ({"labels": "librry_id"}, "did you mean 'library_id'"),
    ({"head": "ridge", "labels": "slide"}, "predicts numbers and classes are asked for"),
    ({"head": "logistic"}, "predicts classes and numbers are asked for"),
    ({"target": "MKI76"}, "no column 'MKI76'"),
    ({"target": "barcode"}, "no number"),
    ({"tiles_per_slide": 4}, "per='slide'"),
    ({"groups": "centr"}, "did you mean 'centre'"),
    ({"labels": hs.LabelSpec(column="slide", positive=("A2",))}, "there are A1, B1"),
    ({"groups": "slide"}, "head 'mean' has no random effects: leave out groups"),
    ({"labels": "slide", "groups": "slide"}, "classes have no random effects: leave out groups"),
    ({"labels": "slide", "features": hs.FeatureSpec(position=True)}, "position is joined to predicted numbers"),
    ({"target": "n_counts", "min_counts": 10}, "min_counts is 10 and no genes are predicted"),
]


@pytest.mark.parametrize(("change", "said"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_requests_are_one_line(store, change, said):
    asked = {"head": "logistic" if "labels" in change else "mean", "split": SPLIT, **change}
    with pytest.raises(HistostoreError, match=said) as error:
        hs.tl.fit(store, **asked)
    assert "\n" not in str(error.value)


def test_empty_table_columns_are_counted(store):
    hs.pp.annotate(store, slide="A1", age="")
    hs.pp.annotate(store, slide="B1", age="61")
    with pytest.raises(HistostoreError, match="holds only"):
        hs.tl.fit(store, "mean", target="age", split="leave-one-out:slide")
