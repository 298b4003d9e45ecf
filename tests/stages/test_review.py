"""A round of review: tiles are chosen, looked at, labelled, and train the next round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import histostore as hs
from histostore.errors import AlignmentError, ConflictError, DataError, HistostoreError, NotFoundError, UsageError
from histostore.stages.hits import tiles_of
from histostore.stages.predict import read_prediction
from histostore.stages.review import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

TUMOUR = hs.LabelSpec(column="region_annotations", positive=("tumour",), negative=("region",))
SPLIT = "leave-one-out:patient"


@pytest.fixture(scope="session")
def called(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with the classifier ``c`` and its predictions, and the numbers ``r``. Shared: copy it to write."""
    import shutil

    path = shutil.copytree(embedded, tmp_path_factory.mktemp("called") / "S")
    store = hs.open(path)
    hs.tl.fit(store, hs.heads.Logistic(1e-2), labels=TUMOUR, split=SPLIT, save="c")
    hs.tl.predict(store, "c")
    hs.tl.fit(store, "mean", genes="top-mean:2", split=SPLIT, save="r")
    hs.tl.predict(store, "r")
    return path


@pytest.fixture
def store(called: Path, copy_of: Callable[[Path], Path]) -> hs.Store:
    return hs.open(copy_of(called))


@pytest.fixture
def shown(called: Path) -> hs.Store:
    """Return that store to look at only."""
    return hs.open(called)


def fill(path: Path, label: Callable[[Any], str]) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["label"] = [label(row) for row in table.itertuples()]
    table.to_csv(path, index=False)
    return table


def test_a_round_goes_out_and_comes_back_into_the_next_fit(
    store: hs.Store, cohort: Cohort, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    truth = {(s.name, i): t for s in cohort.slides for i, t in zip(s.spot_ids, s.in_tumour.tolist(), strict=True)}
    place = store.uri.removeprefix("file://")
    told = cli("review", place, "--head", "c", "-k", 15, "-o", tmp_path / "top")
    assert "15 tiles to look at (80 tiles)" in told.stdout
    cli("review", place, "--head", "c", "-k", 12, "--uncertain", "-o", tmp_path / "edge", "--per-slide")
    for name in ("top", "edge"):
        path = tmp_path / name / "review.csv"
        given = fill(path, lambda r: "tumour" if truth[r.slide, r.barcode] else "region")
        assert len(given) == {"top": 15, "edge": 24}[name]
        told = cli("annotate", place, "--review", path)
    assert "24 labelled" in told.stdout
    obs = store.view(tiles="spots").obs(["slide", "barcode", "review"])
    reviewed = obs[obs["review"].notna()]
    right = [("tumour" if truth[s, b] else "region") == r for s, b, r in reviewed.itertuples(index=False)]
    assert all(right)
    assert 24 <= len(reviewed) <= 39
    told = cli("fit", place, "--label", "review", "--head", "logistic", "--set", "C=0.01", "--save", "second")
    assert "classes of review (region, tumour)" in told.stdout
    assert f"{80 - len(reviewed)} without a label" in told.stdout
    # twice is a no-op
    assert "already there" in cli("annotate", place, "--review", tmp_path / "edge" / "review.csv").stdout
    cli("predict", place, "--head", "second")
    again = hs.tl.review(store, "second", k=100)
    assert len(again) == 80 - len(reviewed)
    assert again.report.counts["reviewed before"] == len(reviewed)
    assert len(hs.tl.review(store, "second", k=100, again=True)) == 80


def test_the_surest_come_first_over_all_slides_or_of_each(shown: hs.Store) -> None:
    found = hs.tl.review(shown, "c", k=10)
    assert list(found.table.columns) == list(COLUMNS)
    every = pd.concat([read_prediction(shown, s, "c").frame() for s in ("A1", "B1")])
    want = every["tumour"].sort_values(ascending=False)[:10]
    assert (found.table["slide"] + ":" + found.table["barcode"]).tolist() == want.index.tolist()
    np.testing.assert_allclose(found.table["probability"], want, rtol=1e-5)
    assert (found.table["label"] == "").all()
    each = hs.tl.review(shown, "c", k=4, per_slide=True)
    assert each.table["slide"].tolist() == ["A1"] * 4 + ["B1"] * 4
    least = hs.tl.review(shown, "c", k=3, of="region", slides="B1")
    np.testing.assert_allclose(
        least.table["probability"], every.filter(like="B1", axis=0)["region"].nlargest(3), rtol=1e-5
    )


def test_the_least_certain_are_nearest_to_the_threshold(shown: hs.Store) -> None:
    found = hs.tl.review(shown, "c", k=80, uncertain=True)
    away = (found.table["probability"] - 0.5).abs()
    assert away.is_monotonic_increasing
    assert away.iloc[0] < 0.1


@pytest.mark.parametrize("codec", ["lossless", "slide"])
def test_the_sheet_shows_the_tiles_of_the_table(store: hs.Store, tmp_path: Path, codec: str) -> None:
    if codec == "slide":
        hs.pp.tile(store, hs.TileSpec.at_spots(px=96), pixels=hs.PixelSpec(codec="slide"), replace=True)
    found = hs.tl.review(store, "c", k=6, folder=tmp_path / "round")
    rows = store.view(tiles="spots")
    names = rows.names().tolist()
    at = np.array([names.index(f"{s}:{b}") for s, b in zip(found.table["slide"], found.table["barcode"], strict=True)])
    if codec == "lossless":
        assert np.array_equal(found.tiles(), tiles_of(rows, at))
    picture = np.asarray(Image.open(tmp_path / "round" / "review.png").convert("RGB"))
    corner = np.repeat(np.repeat(found.tiles()[0], 2, axis=0), 2, axis=1)
    hits = np.argwhere((picture == corner[0, 0]).all(axis=2))
    assert any(np.array_equal(picture[y : y + 192, x : x + 192], corner) for y, x in hits)
    page = (tmp_path / "round" / "review.html").read_text()
    assert found.table["barcode"][0] in page
    assert "data:image/png;base64" in page
    with pytest.raises(ConflictError, match="may hold labels"):
        hs.tl.review(store, "c", folder=tmp_path / "round")


@pytest.mark.parametrize(
    ("head", "options", "error", "said"),
    [
        ("r", {}, UsageError, "predicts numbers"),
        ("cc", {}, NotFoundError, "no slide has predictions of 'cc'.*did you mean 'c'"),
        ("c", {"of": "tumor"}, NotFoundError, "did you mean 'tumour'"),
        ("c", {"of": "tumour", "uncertain": True}, UsageError, "leave out the class"),
        ("c", {"k": 0}, UsageError, "k is 0"),
    ],
    ids=["numbers", "head", "class", "both", "k"],
)
def test_what_cannot_be_reviewed_is_one_line(shown: hs.Store, head, options, error, said) -> None:
    with pytest.raises(error, match=said) as told:
        hs.tl.review(shown, head, **options)
    assert "\n" not in str(told.value)


def row(**change: str) -> dict[str, str]:
    return {"slide": "A1", "barcode": "4x5", "label": "tumour", "head": "c", "tiles": "spots"} | change


BAD = [
    ([row(label="tumor")], DataError, "line 2: label 'tumor' is no class; did you mean 'tumour'.*region, tumour"),
    ([row(label="")], DataError, "no row has a label"),
    ([row(), row(label="region")], AlignmentError, "'A1:4x5' is 'tumour' in one row and 'region' in another"),
    ([row(), row(barcode="99x99")], AlignmentError, "1 of 2 rows are of tiles in this store, at least 90 %|90%"),
    ([row(slide="Z9")], AlignmentError, "0 of 1 rows"),
    ([row(tiles="grid@9")], AlignmentError, "0 of 1 rows"),
    ([row(head="cc")], NotFoundError, "did you mean 'c'"),
    ([{"slide": "A1", "barcode": "4x5", "label": "tumour"}], DataError, "no column 'head'"),
    ([{"slide": "A1", "barcode": "4x5", "lable": "tumour"}], DataError, "did you mean 'lable'"),
]


@pytest.mark.parametrize(("rows", "error", "said"), BAD, ids=range(len(BAD)))
def test_a_wrong_table_is_one_line_and_changes_nothing(shown: hs.Store, tmp_path: Path, rows, error, said) -> None:
    before = shown.slide("A1").number
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(error, match=said) as told:
        hs.pp.annotate(shown, review=tmp_path / "t.csv")
    assert isinstance(told.value, HistostoreError)
    assert "\n" not in str(told.value)
    assert shown.slide("A1").number == before


def test_unknown_ids_are_counted_and_a_table_by_hand_needs_its_classes_only(
    store: hs.Store, cohort: Cohort, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    ids = cohort.slides[0].spot_ids[:19]
    lines = [f"A1,{i},{'vessel' if k % 2 else ''}" for k, i in enumerate((*ids, "99x99"))]
    (tmp_path / "t.csv").write_text("\n".join(["slide,barcode,label", *lines]))
    place = store.uri.removeprefix("file://")
    told = cli("annotate", place, "--review", tmp_path / "t.csv", "--classes", "vessel,other", "--name", "vessels")
    assert "20 rows, 10 labelled, 10 without a label, 1 unknown, 9 new labels" in told.stdout
    obs = store.view(tiles="spots").obs(["vessels"])
    assert obs["vessels"].value_counts().to_dict() == {"vessel": 9}


def test_a_label_that_contradicts_an_earlier_one_needs_leave(store: hs.Store, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    pd.DataFrame([row(), row(barcode="5x5")]).to_csv(path, index=False)
    hs.pp.annotate(store, review=path)
    pd.DataFrame([row(label="region"), row(barcode="5x4", label="region")]).to_csv(path, index=False)
    with pytest.raises(ConflictError, match=r"1 tiles were called otherwise before.*was tumour, now region"):
        hs.pp.annotate(store, review=path)
    (done,) = hs.pp.annotate(store, review=path, replace=True)
    assert done.report.counts["changed labels"] == 1
    obs = store.view(tiles="spots", slides=["A1"]).obs(["barcode", "review"]).set_index("barcode")["review"]
    assert obs.dropna().to_dict() == {"4x5": "region", "5x5": "tumour", "5x4": "region"}


def test_ids_of_a_grid_are_not_those_of_spots(store: hs.Store, tmp_path: Path) -> None:
    hs.pp.tile(store, hs.TileSpec.grid(px=96), name="grid", pixels=hs.PixelSpec(codec="slide"))
    hs.tl.embed(store, "testing", tiles="grid")
    hs.tl.predict(store, "c", tiles="grid")
    hs.tl.review(store, "c", k=5, tiles="grid", folder=tmp_path / "g")
    table = fill(tmp_path / "g" / "review.csv", lambda _: "tumour")
    assert set(table["tiles"]) == {"grid"}
    hs.pp.annotate(store, review=tmp_path / "g" / "review.csv")
    assert "review" not in store.view(tiles="spots").columns()
    assert store.view(tiles="grid").obs(["review"])["review"].notna().sum() == 5
    pd.DataFrame([row()]).to_csv(tmp_path / "t.csv", index=False)
    hs.pp.annotate(store, review=tmp_path / "t.csv")
    assert store.view(tiles="spots").obs(["review"])["review"].notna().sum() == 1


def test_a_column_of_other_labels_is_not_taken(store: hs.Store, tmp_path: Path) -> None:
    pd.DataFrame([row()]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ConflictError, match="has a column 'label' in labels 'obs'"):
        hs.pp.annotate(store, review=tmp_path / "t.csv", name="label")
