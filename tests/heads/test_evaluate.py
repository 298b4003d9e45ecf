from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from histostore.errors import UsageError
from histostore.head_specs import FeatureSpec, HeadSpec, PanelSpec, SplitSpec
from histostore.heads.baselines import PositionKNN
from histostore.heads.evaluate import BOTH, IMAGE, MEAN, POSITION, cross_validate
from histostore.heads.features import section_positions
from histostore.heads.metrics import pearson
from histostore.heads.panels import choose_genes, targets
from histostore.heads.ridge import Ridge
from histostore.heads.splits import inner_folds


def spec(**changes):
    fields = {
        "head": "ridge",
        "panel": PanelSpec.parse("top-variance:9"),
        "split": SplitSpec.parse("leave-one-out:patient"),
    }
    return HeadSpec(**{**fields, **changes})


@pytest.fixture(scope="module")
def data(make_cohort):
    return make_cohort()


@pytest.fixture(scope="module")
def evaluation(data):
    return cross_validate(spec(), **data)


def test_the_table_holds_the_head_beside_its_baselines(evaluation):
    assert list(evaluation.summary.index) == [MEAN, POSITION, IMAGE, BOTH]
    assert np.isnan(evaluation.score(MEAN))
    assert evaluation.summary.loc[MEAN, "pearson_undefined"] == 9 * 6
    assert evaluation.score(BOTH) > max(evaluation.score(IMAGE), evaluation.score(POSITION)) > 0.3
    assert evaluation.score(IMAGE, "mse") < evaluation.score(MEAN, "mse")
    assert evaluation.score() == evaluation.score(IMAGE)
    assert "no patient on both sides" in evaluation.split_text


def test_a_fold_equals_doing_it_by_hand(data, evaluation):
    obs, counts = data["obs"], data["counts"]
    for fold in evaluation.folds:
        train = np.flatnonzero(obs["patient"] != fold.name)
        np.testing.assert_array_equal(fold.rows, np.flatnonzero(obs["patient"] == fold.name))
        genes = choose_genes(PanelSpec.parse("top-variance:9"), counts[train], data["symbols"])
        assert fold.genes == tuple(data["symbols"][g] for g in genes)
        y = targets(counts[train], genes, "log1p-cp10k")
        head = Ridge().fit(data["X"][train], y, groups=inner_folds(obs.iloc[train], "patient")[0])
        assert fold.chosen["alpha"] == head.alpha_
        np.testing.assert_allclose(fold.predictions[IMAGE], head.predict(data["X"][fold.rows]), rtol=1e-5)
        where = section_positions(obs[["x_um", "y_um"]].to_numpy(), obs["slide"].to_numpy())
        knn = PositionKNN(15).fit(where[train], y)
        np.testing.assert_allclose(fold.predictions[POSITION], knn.predict(where[fold.rows]), rtol=1e-5)
        np.testing.assert_allclose(
            fold.predictions[BOTH], (fold.predictions[IMAGE] + fold.predictions[POSITION]) / 2, rtol=1e-5
        )


def test_metrics_are_per_gene_and_slide(data, evaluation):
    fold = evaluation.folds[0]
    at = data["obs"]["slide"].to_numpy()[fold.rows] == "s1"
    lines = evaluation.genes.query("fold == 'p0' and slide == 's1' and method == @IMAGE")
    assert tuple(lines["gene"]) == fold.genes
    np.testing.assert_allclose(lines["pearson"], pearson(fold.truth[at], fold.predictions[IMAGE][at]))
    assert set(lines["n"]) == {60}


def test_test_rows_have_no_say_in_what_is_chosen(data, evaluation):
    held = (data["obs"]["patient"] == "p1").to_numpy()
    rng = np.random.default_rng(9)
    counts = data["counts"].toarray()
    counts[held] = rng.poisson(50, size=counts[held].shape)
    changed = cross_validate(spec(), **{**data, "counts": sp.csr_array(counts)})
    before, after = evaluation.folds[1], changed.folds[1]
    assert before.genes == after.genes
    assert before.chosen == after.chosen
    np.testing.assert_array_equal(before.predictions[IMAGE], after.predictions[IMAGE])


def test_results_do_not_depend_on_the_order_of_rows(data, evaluation):
    order = np.random.default_rng(0).permutation(len(data["obs"]))
    shuffled = {
        "X": data["X"][order],
        "counts": data["counts"][order],
        "symbols": data["symbols"],
        "obs": data["obs"].iloc[order],
    }
    again = cross_validate(spec(), **shuffled)
    np.testing.assert_allclose(again.summary.to_numpy(), evaluation.summary.to_numpy(), rtol=1e-4)


def test_features_are_chosen_by_inner_folds(data):
    noisy = {**data, "X": data["X"].copy()}
    # an offset per slide hides the signal unless slides are standardised
    shift = np.random.default_rng(0).normal(scale=30, size=(6, data["X"].shape[1]))
    noisy["X"] += shift[np.repeat(np.arange(6), 60)].astype(np.float32)
    choices = (FeatureSpec(), FeatureSpec(standardise="slide"), FeatureSpec(context_um=(200.0,)))
    chosen = cross_validate(spec(features=choices), **noisy)
    assert [f.chosen["features"]["standardise"] for f in chosen.folds] == ["slide"] * 3
    assert chosen.score() > cross_validate(spec(), **noisy).score() + 0.1
    alone = cross_validate(spec(features=choices[1:2]), **noisy)
    assert chosen.score() == alone.score()


def test_a_head_without_an_inner_score_gets_one_by_refitting(data):
    choices = (FeatureSpec(context_um=(200.0,)), FeatureSpec())
    out = cross_validate(spec(features=choices, options=(("alphas", 10.0),)), **data)
    assert all(np.isfinite(f.chosen["inner_score"]) for f in out.folds)


def test_what_is_left_out_is_counted(data):
    spoilt = {**data, "X": data["X"].copy()}
    spoilt["X"][[3, 70], 0] = np.nan
    counts = data["counts"].toarray()
    counts[[5, 6]] = 0
    counts[5, 0] = 4
    spoilt["counts"] = sp.csr_array(counts)
    strict = cross_validate(spec(min_counts=5), **spoilt)
    assert strict.report.counts == {"rows": 360, "used": 356, "unreadable": 2, "below 5 counts": 2}
    assert not {3, 5, 6} & set(strict.folds[0].rows)
    lax = cross_validate(spec(), **spoilt)
    assert lax.report.counts["without any counts, kept as zeros"] == 1


def test_without_positions_there_is_no_position_baseline_and_it_says_so(data):
    blind = {**data, "obs": data["obs"].drop(columns=["x_um", "y_um"])}
    out = cross_validate(spec(), **blind)
    assert list(out.summary.index) == [MEAN, IMAGE]
    assert any("no position baseline" in note for note in out.report.notes)
    with pytest.raises(UsageError, match="positions"):
        cross_validate(spec(features=(FeatureSpec(context_um=(100.0,)),)), **blind)


@pytest.mark.parametrize(("head", "line"), [("position-knn", POSITION), ("mean", MEAN)])
def test_a_baseline_can_be_the_head(data, evaluation, head, line):
    out = cross_validate(spec(head=head), **data)
    assert out.method == line
    assert list(out.summary.index) == [MEAN, POSITION]
    assert out.score(line, "mse") == evaluation.score(line, "mse")


def test_context_that_sees_across_the_split_is_noted(data):
    obs = data["obs"].assign(half=np.where(data["obs"]["y_um"] > 0, "up", "down"))
    split = SplitSpec.parse("leave-one-out:half", allow_same_patient=True)
    out = cross_validate(spec(split=split, features=(FeatureSpec(context_um=(100.0,)),)), **{**data, "obs": obs})
    assert any("see across the split" in note for note in out.report.notes)
    assert "same patient on both sides (p0, p1, p2)" in out.split_text


def test_it_is_plain_json(evaluation):
    value = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert value["summary"][0]["pearson"] is None
    assert [f["name"] for f in value["folds"]] == ["p0", "p1", "p2"]


def test_progress_counts_every_fit(data):
    class Count:
        total = seen = 0

        def start(self, what, total, *, done=0, unit="tiles"):
            self.total = total

        def advance(self, n, seconds=None):
            self.seen += n

        def say(self, text): ...

        def finish(self): ...

    count = Count()
    cross_validate(spec(features=(FeatureSpec(), FeatureSpec(standardise="slide"))), progress=count, **data)
    assert count.total == count.seen == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda d: {**d, "X": d["X"][:-1]}, "align them by id", id="rows"),
        pytest.param(lambda d: {**d, "obs": d["obs"].drop(columns="slide")}, "no column 'slide'", id="slide"),
        pytest.param(lambda d: {**d, "X": np.full_like(d["X"], np.nan)}, "none of 360 rows", id="unreadable"),
        pytest.param(lambda d: {**d, "symbols": d["symbols"][:-1]}, "39 symbols", id="symbols"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(data, change, says):
    with pytest.raises(UsageError, match=says):
        cross_validate(spec(), **change(data))


def test_whether_to_average_with_position_is_not_chosen(data):
    with pytest.raises(UsageError, match="same `position`"):
        cross_validate(spec(features=(FeatureSpec(), FeatureSpec(position=True))), **data)
    assert cross_validate(spec(features=(FeatureSpec(position=True),)), **data).method == BOTH


def test_a_held_out_group_gets_no_effect_and_it_is_said(data):
    renn = spec(
        head="renn", groups=("slide",), options=(("epochs", 2), ("hidden", (8,))), panel=PanelSpec.parse("top-mean:2")
    )
    out = cross_validate(renn, **data)
    assert any(("groups" in note and "few" in note) or "8" in note for note in out.report.notes)
    assert sum("not trained on: effect 0" in note for note in out.report.notes) == 3
    fold = out.folds[0].chosen["interval"]
    assert fold["rows of unseen groups"] == len(out.folds[0].rows)
    assert 0.6 < fold["covered"] <= 1


def test_numbers_of_a_table_are_predicted_like_genes(data):
    table = data["obs"][["x_um"]].assign(half=lambda t: (t["x_um"] / 2).astype(str))
    table.loc[table.index[:5], "half"] = ""
    arrays = {"X": data["X"], "obs": data["obs"], "values": table}
    out = cross_validate(spec(panel=None, columns=("x_um", "half"), options=(("alphas", 10.0),)), **arrays)
    assert out.report.counts["without x_um or half"] == 5
    assert out.folds[0].genes == ("x_um", "half")
    r = out.genes.query("method == @IMAGE").groupby("gene")["mse"].mean()
    assert r["x_um"] == pytest.approx(4 * r["half"], rel=1e-3)


def test_inner_folds_of_a_stratified_split_keep_patients_whole(make_cohort):
    made = make_cohort(per_patient=1)
    # every patient is at both centres: folds by centre would have it on both sides
    made["obs"]["centre"] = np.where(np.arange(len(made["obs"])) % 2, "A", "B")
    found = cross_validate(spec(split=SplitSpec.parse("stratified-kfold:3:centre")), **made)
    assert {f.chosen["inner"] for f in found.folds} == {"4 inner folds by patient"}


def test_slides_that_are_rows_are_correlated_over_those_of_a_fold():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3)).astype(np.float32)
    obs = pd.DataFrame({"slide": [f"s{i}" for i in range(40)], "patient": [f"p{i // 2}" for i in range(40)]})
    values = pd.DataFrame({"age": 3 * X[:, 0] + rng.normal(size=40)})
    asked = spec(panel=None, columns=("age",), split=SplitSpec.parse("group-kfold:4:patient"))
    found = cross_validate(asked, X=X, obs=obs, values=values)
    by_hand = [pearson(f.truth, f.predictions[IMAGE])[0] for f in found.folds]
    assert found.score() == pytest.approx(np.mean(by_hand))
    assert found.score() > 0.8
    assert found.summary.loc[IMAGE, "pearson_undefined"] == 0
    errors = [np.mean((f.truth - f.predictions[IMAGE]) ** 2) for f in found.folds]
    assert found.score(metric="mse") == pytest.approx(np.mean(errors))
