from __future__ import annotations

import json

import numpy as np
import pytest

import histostore as hs
from histostore.heads.metrics import pearson
from histostore.stages.protocol import leakage, protocol, write_protocol


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


def test_leaks_are_named(result):
    obs = result.data.obs.assign(patient="P")
    X = result.data.X.copy()
    first, second = result.evaluation.folds
    X[first.rows[0]] = X[second.rows[0]]
    found = leakage(result.evaluation, obs, X)
    assert found["patients on both sides"] == ["P"]
    assert found["test rows with an embedding that is also trained on"] == 2
    assert np.isfinite(X).all()
