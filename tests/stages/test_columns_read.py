"""Heads know the columns they were trained on: labels, polygons, metadata; and predictions the groups they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore import pp
from histostore.errors import ConflictError
from histostore.stages.fit import HEADS, find_head, load_head, stale

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPLIT = hs.SpatialBlocks(600, 3, allow_same_patient=True)
RIDGE = hs.heads.Ridge(alphas=(1.0,))


@pytest.fixture
def store(embedded: Path, copy_of: Callable[[Path], Path]) -> hs.Store:
    return hs.open(copy_of(embedded))


def label(store: hs.Store, folder: Path, *, turn: bool = False, only: str | None = None) -> None:
    """Give every spot a flag of its column of spots, a number of its row, and the slide's half."""
    for slide in store.slides() if only is None else [only]:
        obs = store.view(slides=[slide]).obs()
        left = (obs["x"] < obs["x"].median()).to_numpy()
        table = pd.DataFrame({"barcode": obs["barcode"].to_numpy(), "flag": np.where(left ^ turn, "left", "right")})
        table.to_csv(folder / f"{slide}.csv", index=False)
        pp.annotate(store, slide, obs=folder / f"{slide}.csv", name="flags", replace=True)


def changes(store: hs.Store, head: str) -> list[str]:
    return stale(store, load_head(store, head)[1])


def test_a_head_is_stale_when_its_labels_changed(store: hs.Store, tmp_path: Path) -> None:
    label(store, tmp_path)
    head = hs.heads.Logistic(1e-2)
    hs.tl.fit(store, head, labels="flag", split=SPLIT, save="flag")
    digest = find_head(store, "flag").digest
    assert changes(store, "flag") == []
    label(store, tmp_path)  # the same again
    pp.annotate(store, "A1", stage="II")  # and what it never read
    assert changes(store, "flag") == []
    label(store, tmp_path, turn=True, only="A1")
    assert changes(store, "flag") == ["labels/flags of slide 'A1' is another now"]
    (done,) = hs.tl.predict(store, "flag", slides="A1")
    assert "head 'flag' is stale: labels/flags of slide 'A1'" in done.report.notes[0]
    hs.tl.fit(store, head, labels="flag", split=SPLIT, save="flag", replace=True)
    assert changes(store, "flag") == []
    assert find_head(store, "flag").digest != digest


def test_a_head_is_stale_when_its_polygons_or_its_filter_changed(
    store: hs.Store, embedded: Path, tmp_path: Path
) -> None:
    tumour = hs.LabelSpec(column="region_annotations", positive=("tumour",), negative=("region",))
    label(store, tmp_path)
    hs.tl.fit(store, hs.heads.Logistic(1e-2), labels=tumour, split=SPLIT, save="polygons")
    hs.tl.fit(store, RIDGE, genes="top-mean:2", where="flag == 'left'", split=SPLIT, save="filtered")
    hs.tl.fit(store, RIDGE, genes="top-mean:2", split=SPLIT, save="free")
    regions = store.group(store.slide("B1").find("regions")).bytes("regions.geojson")
    (tmp_path / "fewer.geojson").write_bytes(regions.replace(b'"tumour"', b'"stroma"'))
    pp.annotate(store, "B1", geojson=tmp_path / "fewer.geojson", name="annotations", replace=True)
    label(store, tmp_path, turn=True, only="A1")
    assert changes(store, "polygons") == ["regions/annotations of slide 'B1' is another now"]
    assert changes(store, "filtered") == ["labels/flags of slide 'A1' is another now"]
    assert changes(store, "free") == []


def test_a_head_is_stale_when_its_patients_changed_and_is_another_when_fitted_again(store: hs.Store) -> None:
    how = {"genes": "top-mean:2", "split": "leave-one-out:patient"}
    hs.tl.fit(store, RIDGE, **how, save="ridge")
    before = find_head(store, "ridge")
    hs.tl.fit(store, RIDGE, **how, save="ridge")
    assert find_head(store, "ridge") == before
    pp.annotate(store, "A1", patient="Z")
    assert changes(store, "ridge") == ["metadata 'patient' of slide 'A1' is another now"]
    with pytest.raises(ConflictError, match="another metadata or labels of the same rows"):
        hs.tl.fit(store, RIDGE, **how, save="ridge")
    for _ in range(2):
        hs.tl.fit(store, RIDGE, **how, save="ridge", replace=True)
        assert changes(store, "ridge") == []
    again = find_head(store, "ridge")
    assert again.digest != before.digest
    hs.tl.fit(store, RIDGE, **how, save="ridge")  # taken for what it is, without leave
    assert find_head(store, "ridge") == again
    hs.tl.fit(store, RIDGE, **how, save="other")  # its first digest is that of the head of other patients
    assert find_head(store, "other").digest == again.digest
    pp.annotate(store, "A1", patient="A")
    hs.tl.fit(store, RIDGE, **how, save="ridge", replace=True)
    assert find_head(store, "ridge") == before


def test_heads_that_did_not_record_their_columns_are_judged_by_what_they_did(store: hs.Store) -> None:
    how = {"genes": "top-mean:2", "split": "leave-one-out:patient"}
    hs.tl.fit(store, RIDGE, **how, save="new")
    group = store.group(find_head(store, "new"))
    kept = ("n", "digest", "groups")
    trained = {s: {k: one[k] for k in kept} for s, one in group.attrs["trained_on"].items()}
    with store.begin(HEADS, "heads", "old", spec=group.header["spec"], inputs={"made": "before"}) as writer:
        for name in ("state.safetensors", "head.json"):
            writer.put_file(name, group.bytes(name))
        store.commit(HEADS, [writer.seal(rows=group.rows, attrs={**group.attrs, "trained_on": trained})])
    pp.annotate(store, "A1", patient="Z")
    assert changes(store, "old") == []
    assert hs.tl.predict(store, "old", slides="A1")[0].report.notes == ()


def test_predictions_with_random_effects_are_others_for_another_group(store: hs.Store) -> None:
    for slide, site in (("A1", "n"), ("B1", "s")):
        pp.annotate(store, slide, site=site)
    renn = hs.heads.RENN((), epochs=2, validation=0.0)
    hs.tl.fit(store, renn, genes="top-mean:2", groups="site", split=SPLIT, save="renn")
    hs.tl.fit(store, RIDGE, genes="top-mean:2", split=SPLIT, save="ridge")
    for head in ("renn", "ridge"):
        assert [d.done for d in hs.tl.predict(store, head)] == ["written", "written"]
        assert [d.done for d in hs.tl.predict(store, head)] == ["already there", "already there"]
    pp.annotate(store, "A1", site="s")
    with pytest.raises(ConflictError, match="other inputs"):
        hs.tl.predict(store, "renn", slides="A1")
    (done,) = hs.tl.predict(store, "renn", slides="A1", replace=True)
    assert done.done == "written"
    rows = store.view(backbone="testing", slides=["A1"])
    now = load_head(store, "renn")[0].predict(rows.numpy(), rows.obs())
    np.testing.assert_array_equal(hs.get.prediction(store, "A1", "renn").to_numpy(), now)
    assert [d.done for d in hs.tl.predict(store, "ridge")] == ["already there", "already there"]
    ref = store.slide("A1").find("predictions", "spots/ridge")
    assert set(store.header(ref)["inputs"]) == {"head", "embeddings"}
