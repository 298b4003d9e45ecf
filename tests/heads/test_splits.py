from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.errors import DataError, UsageError
from histostore.head_specs import SplitSpec
from histostore.heads.splits import describe, folds, inner_folds, leaks, merge_groups, patients_known


def cohort(slides=6, per_patient=2, rows=10):
    slide = np.repeat(np.arange(slides), rows)
    x = np.tile(np.arange(rows) * 100.0, slides)
    return pd.DataFrame(
        {"slide": [f"s{i}" for i in slide], "patient": [f"p{i // per_patient}" for i in slide], "x_um": x}
    )


def test_leave_one_out_holds_every_value_out_once():
    obs = cohort()
    made = folds(SplitSpec.parse("leave-one-out:patient"), obs)
    assert [f.name for f in made] == ["p0", "p1", "p2"]
    for fold in made:
        assert set(obs["patient"].iloc[fold.test]) == {fold.name}
        assert len(np.intersect1d(fold.train, fold.test)) == 0
        assert len(fold.train) + len(fold.test) == len(obs)


def test_group_kfold_is_balanced_by_rows_and_drawn_by_seed():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"patient": np.repeat([f"p{i:02d}" for i in range(30)], rng.integers(5, 60, size=30))})
    made = folds(SplitSpec.parse("group-kfold:5:patient"), obs)
    sizes = [len(f.test) for f in made]
    assert sum(sizes) == len(obs)
    assert max(sizes) - min(sizes) <= 10
    other = folds(SplitSpec.parse("group-kfold:5:patient", seed=1), obs)
    assert [f.name for f in made] != [f.name for f in other]


def test_folds_do_not_depend_on_the_order_of_rows():
    obs = cohort(slides=12)
    order = np.random.default_rng(0).permutation(len(obs))
    split = SplitSpec.parse("group-kfold:3:patient")
    for one, two in zip(folds(split, obs), folds(split, obs.iloc[order]), strict=True):
        assert one.name == two.name
        np.testing.assert_array_equal(np.sort(order[two.test]), one.test)


def test_the_same_patient_on_both_sides_is_refused_by_name():
    with pytest.raises(UsageError, match=r"puts patient p0, p1, p2 on both sides.*allow-same-patient"):
        folds(SplitSpec.parse("leave-one-out:slide"), cohort())
    allowed = SplitSpec.parse("leave-one-out:slide", allow_same_patient=True)
    made = folds(allowed, cohort())
    assert "same patient on both sides (p0, p1, p2)" in describe(allowed, cohort(), made)


def test_a_split_by_slide_is_fine_when_every_slide_is_a_patient():
    obs, split = cohort(per_patient=1), SplitSpec.parse("leave-one-out:slide")
    assert "no patient on both sides" in describe(split, obs, folds(split, obs))


@pytest.mark.parametrize(
    "spoil", [lambda o: o.drop(columns="patient"), lambda o: o.assign(patient=[None, *o["patient"][1:]])]
)
def test_unknown_patients_are_refused_and_said_so_when_allowed(spoil):
    obs = spoil(cohort())
    assert not patients_known(obs)
    with pytest.raises(UsageError, match="do not all name their patient"):
        folds(SplitSpec.parse("leave-one-out:slide"), obs)
    allowed = SplitSpec.parse("leave-one-out:slide", allow_same_patient=True)
    assert "patients not known" in describe(allowed, obs, folds(allowed, obs))


def test_what_cannot_be_split_is_named():
    obs = cohort()
    with pytest.raises(UsageError, match=r"no column 'patients'.*did you mean 'patient'"):
        folds(SplitSpec.parse("leave-one-out:patients"), obs)
    with pytest.raises(UsageError, match="only 'p0'"):
        folds(SplitSpec.parse("leave-one-out:patient"), obs.iloc[:20])
    with pytest.raises(UsageError, match="4 folds from 3 values"):
        folds(SplitSpec.parse("group-kfold:4:patient"), obs)
    with pytest.raises(DataError, match="1 of 60 rows have no 'patient'"):
        folds(SplitSpec.parse("leave-one-out:patient"), obs.assign(patient=["", *obs["patient"][1:]]))


def test_a_code_that_reads_na_is_a_value_and_numbers_are_names():
    obs = pd.DataFrame({"tss": ["NA", "BH", "NA", "D8"], "patient": [1, 2, 1, 3]})
    assert [f.name for f in folds(SplitSpec.parse("leave-one-out:tss"), obs)] == ["BH", "D8", "NA"]


def test_leaks_names_shared_patients_and_slides():
    obs = cohort()
    assert leaks(obs.iloc[:10], obs.iloc[10:20]) == {"patient": ("p0",)}
    assert leaks(obs.iloc[:5], obs.iloc[5:10]) == {"patient": ("p0",), "slide": ("s0",)}
    assert leaks(obs.iloc[:20], obs.iloc[20:]) == {}


def test_inner_folds_keep_groups_whole_and_fall_back_to_slides_then_stripes():
    obs = cohort()
    labels, text = inner_folds(obs, "patient")
    assert text == "3 inner folds by patient"
    assert obs.groupby("patient").apply(lambda p: len(np.unique(labels[p.index]))).eq(1).all()
    assert inner_folds(obs.iloc[:20], "patient")[1] == "2 inner folds by slide"
    stripes, text = inner_folds(obs.iloc[:10], "patient")
    assert "stripes" in text
    np.testing.assert_array_equal(stripes, np.repeat(np.arange(5), 2))
    with pytest.raises(UsageError, match="one patient and one slide"):
        inner_folds(obs.iloc[:10].drop(columns="x_um"), "patient")


def test_merging_keeps_groups_whole():
    keys = np.repeat(np.arange(25), np.arange(1, 26))
    labels = merge_groups(keys, 4, seed=0)
    assert all(len(np.unique(labels[keys == k])) == 1 for k in range(25))
    assert np.ptp(np.bincount(labels)) <= 3


def strata(n=120, seed=0):
    rng = np.random.default_rng(seed)
    patient = np.array([f"p{i}" for i in rng.integers(0, 40, n)])
    centre = np.array([f"c{int(p[1:]) % 4}" for p in patient])
    return pd.DataFrame({"patient": patient, "slide": patient, "centre": centre})


def test_stratified_folds_keep_patients_whole_and_centres_even():
    obs = strata()
    made = folds(SplitSpec.parse("stratified-kfold:5:centre"), obs)
    assert sorted(np.concatenate([f.test for f in made]).tolist()) == list(range(len(obs)))
    share = obs["centre"].value_counts() / 5
    for fold in made:
        assert not leaks(obs.iloc[fold.train], obs.iloc[fold.test])
        held = obs.iloc[fold.test]["centre"].value_counts()
        assert (held.reindex(share.index, fill_value=0) - share).abs().max() <= 5
    shuffled = obs.sample(frac=1, random_state=1)
    again = folds(SplitSpec.parse("stratified-kfold:5:centre"), shuffled)
    assert [set(shuffled.index[f.test]) for f in again] == [set(f.test) for f in made]
    assert "each with every centre" in describe(SplitSpec.parse("stratified-kfold:5:centre"), obs, made)


def test_squares_are_whole_and_their_buffer_is_out_of_training():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"slide": np.repeat(["a", "b"], 200), "patient": "p"})
    obs[["x_um", "y_um"]] = rng.uniform(0, 3000, (400, 2))
    split = SplitSpec.parse("spatial-block:4:1000:150", allow_same_patient=True)
    made = folds(split, obs)
    assert sorted(np.concatenate([f.test for f in made]).tolist()) == list(range(400))
    xy, square = obs[["x_um", "y_um"]].to_numpy(), (obs[["x_um", "y_um"]] // 1000).astype(str).agg("-".join, axis=1)
    key = (obs["slide"] + square).to_numpy()
    for fold in made:
        assert fold.buffered > 0
        assert not set(key[fold.test]) & set(key[fold.train])
        for slide in "ab":
            a, b = (xy[rows[obs["slide"].to_numpy()[rows] == slide]] for rows in (fold.train, fold.test))
            assert np.linalg.norm(a[:, None] - b[None], axis=2).min() > 150
    with pytest.raises(UsageError, match="patient"):
        folds(SplitSpec.parse("spatial-block:4:1000"), obs)
    with pytest.raises(UsageError, match="smaller squares"):
        folds(SplitSpec.parse("spatial-block:4:9000", allow_same_patient=True), obs.iloc[:200])
