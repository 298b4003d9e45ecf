from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import histostore as hs
from histostore.head_specs import HeadSpec, PanelSpec, SplitSpec
from histostore.heads.metrics import pearson
from histostore.stages.fit import fit
from histostore.stages.protocol import leakage, protocol, significance, write_protocol


@pytest.fixture(scope="module")
def result(embedded):
    head = hs.heads.Ridge(100.0)
    return hs.tl.fit(hs.open(embedded), head, genes="MORPH001,MORPH002", split="leave-one-out:patient")


def test_the_protocol_says_what_was_done_and_how_sure_it_is(result, tmp_path):
    path = write_protocol(tmp_path / "p.json", result)
    told = json.loads(path.read_text())
    assert told == json.loads(json.dumps(protocol(result)))
    assert told["head"]["panel"]["genes"] == ["MORPH001", "MORPH002"]
    assert told["data"]["rows"] == len(result.data.X)
    assert told["leakage"] == {
        "patients known": True,
        "patients on both sides": [],
        "slides on both sides": [],
        "test rows with an embedding that is also trained on": 0,
    }
    gene = told["significance"]["genes"]["MORPH001"]
    r = [pearson(f.truth[:, :1], f.predictions[result.evaluation.method][:, :1])[0] for f in result.evaluation.folds]
    assert gene["above zero"] == sum(v > 0 for v in r)
    assert gene["of"] == 2
    assert told["significance"]["by"] == "patient"
    assert {"numpy", "histostore"} <= set(told["versions"])


def test_a_slide_that_several_folds_hold_out_counts_with_all_of_them(embedded):
    store, head = hs.open(embedded), hs.heads.Ridge(100.0)
    split = hs.SpatialBlocks(600, 3, allow_same_patient=True)
    evaluation = hs.tl.fit(store, head, genes="MORPH001,MORPH002", split=split).evaluation
    obs = store.view(backbone="testing").obs()
    told = significance(evaluation, obs.assign(patient=""))
    assert told["by"] == "slide"
    slide = obs["slide"].to_numpy()
    method, means = evaluation.method, []
    for name in np.unique(slide):
        parts = [(f, slide[f.rows] == name) for f in evaluation.folds if (slide[f.rows] == name).any()]
        assert len(parts) > 1
        means.append(np.mean([pearson(f.truth[at], f.predictions[method][at]) for f, at in parts], axis=0))
    for gene, r in zip(evaluation.folds[0].genes, np.transpose(means), strict=True):
        assert told["genes"][gene]["above zero"] == (r > 0).sum()
    # truth turned round in the last fold alone: the others still outweigh it
    last = evaluation.folds[-1]
    turned = replace(last, truth=-last.truth)
    most = significance(replace(evaluation, folds=(*evaluation.folds[:-1], turned)), obs.assign(patient=""))
    assert most["genes"] == told["genes"]
    rows = np.concatenate([f.rows for f in evaluation.folds])
    errors = np.concatenate([((f.predictions[method] - f.truth) ** 2).mean(1) for f in evaluation.folds])
    mean = np.concatenate([((f.predictions["training mean"] - f.truth) ** 2).mean(1) for f in evaluation.folds])
    apart = [(errors - mean)[slide[rows] == name].mean() for name in np.unique(slide)]
    assert told["mse minus training mean's"]["difference"] == pytest.approx(np.mean(apart), rel=1e-5)


def test_the_protocol_of_embeddings_that_are_streamed_is_that_of_those_in_memory(embedded):
    spec = HeadSpec(head="ridge", panel=PanelSpec.parse("MORPH001,MORPH002"), split=SplitSpec.parse("leave-one-out"))
    held, streamed = (
        protocol(fit(hs.open(embedded), spec, backbone="testing", in_memory=most)) for most in (1 << 30, 1)
    )
    assert streamed["leakage"] == held["leakage"]
    assert streamed["significance"]["genes"] == held["significance"]["genes"]


def test_leaks_are_named(result):
    obs = result.data.obs.assign(patient="P")
    X = result.data.X.copy()
    first, second = result.evaluation.folds
    X[first.rows[0]] = X[second.rows[0]]
    found = leakage(result.evaluation, obs, X)
    assert found["patients on both sides"] == ["P"]
    assert found["test rows with an embedding that is also trained on"] == 2
    assert np.isfinite(X).all()
