"""Labels are seen under their own names: what would hide something, or be hidden, is refused in one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.content.tables import write_labels
from histostore.errors import AlignmentError, ConflictError, DataError, UsageError
from histostore.stages.annotate import annotate_obs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

SLIDE = "A1"


@pytest.fixture
def store(ingested: Path, copy_of: Callable[[Path], Path]) -> hs.Store:
    return hs.open(copy_of(ingested))


@pytest.fixture
def obs(store: hs.Store) -> pd.DataFrame:
    return store.view(slides=[SLIDE]).obs()


@pytest.fixture
def table(obs: pd.DataFrame, tmp_path: Path) -> Callable[..., Path]:
    """Write a table of the slide's spots with some columns, under a name."""

    def write(name: str = "new", **columns: Any) -> Path:
        path = tmp_path / f"{name}.csv"
        pd.DataFrame({"barcode": obs["barcode"].to_numpy(), **columns}).to_csv(path, index=False)
        return path

    return write


@pytest.mark.parametrize("name", ["newer", "revised"])
def test_a_column_of_other_labels_is_refused_whichever_name_is_first(
    store: hs.Store, table: Callable[..., Path], name: str
) -> None:
    before = store.view(slides=[SLIDE]).column("label")
    said = r"slide 'A1': labels 'obs' have a column 'label' already: rename yours, or .* --name obs --replace"
    with pytest.raises(ConflictError, match=said):
        hs.pp.annotate(store, SLIDE, obs=table(name, label="x"))
    assert (store.view(slides=[SLIDE]).column("label") == before).all()


def test_the_way_that_the_refusal_names_shows_the_new_labels_and_says_what_went(
    store: hs.Store, table: Callable[..., Path]
) -> None:
    done = hs.pp.annotate(store, SLIDE, obs=table(label="x"), name="obs", replace=True)[0]
    assert set(store.view(slides=[SLIDE]).column("label")) == {"x"}
    assert any(n.startswith("the labels 'obs' no longer have 'pixel_x'") for n in done.report.notes)


def test_a_column_may_have_the_name_of_one_at_other_points(
    tiled: Path, copy_of: Callable[[Path], Path], cli: Callable[..., Any], table: Callable[..., Path], tmp_path: Path
) -> None:
    place = copy_of(tiled)
    cli("tile", place, "--grid", "--um", "400", "--slides", SLIDE)
    store = hs.open(place)
    (points,) = [p for p in store.slide(SLIDE).names("points") if p != "spots"]
    cells = store.view(tiles=points, slides=[SLIDE]).column("barcode")
    path = tmp_path / "cells.csv"
    pd.DataFrame({"barcode": cells, "label": "cell"}).to_csv(path, index=False)
    assert annotate_obs(store, SLIDE, path, points=points).done == "written"


@pytest.mark.parametrize("name", ["n_counts", "status", "tissue", "x", "slide", "in_tissue", "tile_id"])
def test_labels_that_would_never_be_seen_are_refused(store: hs.Store, table: Callable[..., Path], name: str) -> None:
    manifest = store.slide(SLIDE).number
    with pytest.raises(UsageError, match=rf"slide 'A1': label columns '{name}' have names of histostore's own") as told:
        hs.pp.annotate(store, SLIDE, obs=table(**{name: "z", "mine": 1.5}))
    assert "\n" not in str(told.value)
    assert store.slide(SLIDE).number == manifest


@pytest.mark.parametrize(
    ("name", "hidden"), [("region_annotations", "polygons 'annotations'"), ("patient", "metadata")]
)
def test_labels_that_would_hide_something_are_refused(
    store: hs.Store, table: Callable[..., Path], name: str, hidden: str
) -> None:
    before = store.view(slides=[SLIDE]).column(name)
    with pytest.raises(UsageError, match=f"label column '{name}' would hide the {hidden} of that name"):
        hs.pp.annotate(store, SLIDE, obs=table(**{name: "other"}))
    assert (store.view(slides=[SLIDE]).column(name) == before).all()


@pytest.fixture
def classifying(embedded: Path, copy_of: Callable[[Path], Path]) -> hs.Store:
    """Return a store with the classifier ``c``, which has predicted nothing yet."""
    store = hs.open(copy_of(embedded))
    tumour = hs.LabelSpec(column="region_annotations", positive=("tumour",), negative=("region",))
    hs.tl.fit(store, hs.heads.Logistic(1e-2), labels=tumour, split="leave-one-out:patient", save="c")
    return store


def test_labels_that_would_hide_a_classifier_are_refused(classifying: hs.Store, table: Callable[..., Path]) -> None:
    store = classifying
    hs.tl.predict(store, "c")
    with pytest.raises(UsageError, match="label column 'p_c' would hide the classifier 'c'"):
        hs.pp.annotate(store, SLIDE, obs=table(p_c=0.5))
    hs.pp.annotate(store, SLIDE, obs=table(p_value=0.5))
    assert set(store.view(slides=[SLIDE]).column("p_value")) == {0.5}


def test_calls_that_labels_would_hide_are_refused_before_anything_is_predicted(
    classifying: hs.Store, table: Callable[..., Path]
) -> None:
    store = classifying
    hs.pp.annotate(store, SLIDE, obs=table("mine", call_c="benign"))
    before = store.manifest(SLIDE)
    with pytest.raises(ConflictError, match="labels 'mine' have a column 'call_c', which would hide the calls of head"):
        hs.tl.predict(store, "c", slides=[SLIDE])
    assert store.manifest(SLIDE) == before


def test_metadata_and_polygons_that_labels_would_hide_are_refused(
    store: hs.Store, table: Callable[..., Path], cohort: Cohort
) -> None:
    hs.pp.annotate(store, SLIDE, obs=table(age=1.5, region_drawn="r"))
    with pytest.raises(ConflictError, match="labels 'new' have a column 'age', which would hide the metadata"):
        hs.pp.annotate(store, SLIDE, age=3)
    with pytest.raises(ConflictError, match="which would hide the metadata"):
        hs.pp.annotate(store, table=pd.DataFrame({"slide": ["B1", SLIDE], "age": [1, 2]}))
    assert "age" not in hs.get.slides(store), "nothing was changed before it was refused"
    with pytest.raises(ConflictError, match="'region_drawn', which would hide the polygons 'drawn'"):
        hs.pp.annotate(store, SLIDE, geojson=cohort.slides[0].geojson, name="drawn")


def test_columns_that_say_what_the_store_knows_are_left_out_and_named(
    store: hs.Store, obs: pd.DataFrame, table: Callable[..., Path]
) -> None:
    known = {c: obs[c].to_numpy() for c in ("x", "y", "in_tissue", "array_row", "patient", "slide") if c in obs}
    done = hs.pp.annotate(store, SLIDE, obs=table(**known, mine="m"))[0]
    assert set(store.view(slides=[SLIDE]).column("mine")) == {"m"}
    said = ", ".join(map(repr, known))
    assert f"columns {said} say what the store knows already: left out" in done.report.notes
    with pytest.raises(DataError, match="no column that the store does not know"):
        hs.pp.annotate(store, SLIDE, obs=table("known", **known))


@pytest.mark.parametrize(
    ("column", "said"),
    [("patient", "would hide the metadata"), ("region_annotations", "would hide the polygons"), ("x", "own")],
)
def test_a_slide_does_not_come_in_with_labels_that_hide_something(
    store: hs.Store, cohort: Cohort, table: Callable[..., Path], tmp_path: Path, column: str, said: str
) -> None:
    a1 = cohort.slides[0]
    drawn = tmp_path / "annotations.geojson"
    drawn.write_bytes(a1.geojson.read_bytes())
    files = {"image": a1.image, "mpp": 2.0, "st_counts": a1.counts, "st_spots": a1.spots, "geojson": drawn}
    with pytest.raises(UsageError, match=said):
        hs.pp.ingest(store, "N1", **files, obs=table(**{column: "z"}), meta={"patient": "A"})
    assert not [key for key, *_ in store.files.walk("slides/N1")], "nothing is written before it is refused"


def test_a_slide_with_labels_of_before_that_were_never_seen_comes_in_again_as_it_is(
    store: hs.Store, cohort: Cohort, obs: pd.DataFrame, table: Callable[..., Path]
) -> None:
    a1 = cohort.slides[0]
    files = {"image": a1.image, "mpp": 2.0, "st_counts": a1.counts, "st_spots": a1.spots, "meta": {"patient": "A"}}
    hs.pp.ingest(store, "N1", **files)
    points = store.slide("N1").find("points", "spots")
    frame = pd.DataFrame({"patient": "A", "mine": "m"}, index=obs.index)
    store.commit("N1", [write_labels(store, "N1", "obs", frame, points)])
    same = table("same", patient="A", mine="m")
    assert hs.pp.ingest(store, "N1", **files, obs=same)[0].done == "already there"
    with pytest.raises(ConflictError):
        hs.pp.ingest(store, "N1", **files, obs=table("other", patient="A", mine="n"))


def test_a_review_is_refused_as_other_labels_are(store: hs.Store, obs: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    rows = {"slide": SLIDE, "barcode": obs["barcode"].to_numpy(), "label": "yes"}
    pd.DataFrame(rows).to_csv(path, index=False)
    for name, error, said in (
        ("patient", UsageError, "would hide the metadata"),
        ("status", UsageError, "histostore's own"),
        ("label", ConflictError, "has a column 'label' in labels 'obs'"),
        ("obs", ConflictError, "labels 'obs' are of no review"),
    ):
        with pytest.raises(error, match=said):
            hs.pp.annotate(store, review=path, name=name, classes=["yes", "no"])
    hs.pp.annotate(store, review=path, classes=["yes", "no"])
    assert set(store.view(slides=[SLIDE]).column("review")) == {"yes"}


LINE = {"type": "Feature", "properties": {}, "geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}}
POINT = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [5, 5]}}
SQUARE = {"type": "Feature", "properties": {},
          "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [500, 0], [500, 500], [0, 0]]]}}  # fmt: skip


def drawn(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_what_is_no_polygon_is_said_by_annotate_and_by_ingest(
    store: hs.Store, cohort: Cohort, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    path = drawn(tmp_path / "d.geojson", LINE, SQUARE)
    out = cli("annotate", store.uri, "--slide", SLIDE, "--geojson", path).stdout
    assert "1 features of type LineString were left out (no polygons)" in out
    again = hs.pp.annotate(store, SLIDE, geojson=path)[0]
    assert (again.done, again.report.notes) == ("already there", tuple(line.strip() for line in out.splitlines()[1:]))
    done = hs.pp.ingest(store, "N1", image=cohort.slides[0].image, mpp=2.0, geojson=path)[0]
    assert "1 features of type LineString were left out (no polygons)" in done.report.notes


def test_a_file_without_a_polygon_is_refused(store: hs.Store, cohort: Cohort, tmp_path: Path) -> None:
    points = drawn(tmp_path / "points.geojson", POINT, POINT)
    with pytest.raises(DataError, match=r"points.geojson holds no polygon \(2 features of type Point were left out"):
        hs.pp.annotate(store, SLIDE, geojson=points)
    with pytest.raises(DataError, match="holds no polygon"):
        hs.pp.ingest(store, "N1", image=cohort.slides[0].image, mpp=2.0, geojson=points)
    assert store.manifest("N1").number == 0
    with pytest.raises(DataError, match=r"holds no polygon \(no features at all\)"):
        hs.pp.annotate(store, SLIDE, geojson=drawn(tmp_path / "empty.geojson"))


def test_names_with_a_slash_are_written_under_another_and_said(
    store: hs.Store, obs: pd.DataFrame, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    hs.pp.annotate(store, SLIDE, **{"HER2/neu": "3+"})
    given = pd.DataFrame({"CD4/CD8": np.arange(len(obs)) / 2}, index=obs.index)
    hs.pp.annotate(store, SLIDE, obs=given.sample(frac=1, random_state=0), name="ratio")
    place = store.uri.removeprefix("file://")
    for end, read in ((".h5ad", ad.read_h5ad), (".zarr", ad.read_zarr)):
        told = cli("export", place, "--slides", SLIDE, "-o", tmp_path / f"a{end}")
        assert "'HER2/neu' is 'HER2_neu', 'CD4/CD8' is 'CD4_CD8'" in told.stderr
        written = read(tmp_path / f"a{end}").obs
        assert (written["CD4_CD8"] == given["CD4/CD8"].reindex(written.index)).all()
        assert set(written["HER2_neu"]) == {"3+"}
    hs.pp.annotate(store, SLIDE, HER2_neu="other")
    told = cli("export", place, "--slides", SLIDE, "-o", tmp_path / "b.h5ad", code=2)
    assert "column 'HER2/neu' cannot be 'HER2_neu', which is there too" in told.stderr
    assert not (tmp_path / "b.h5ad").exists()


def test_the_rows_of_a_frame_are_named_by_its_index_or_a_column_and_the_index_is_no_label(
    store: hs.Store, obs: pd.DataFrame
) -> None:
    given = pd.DataFrame({"barcode": obs["barcode"], "mine": [f"m{i}" for i in range(len(obs))]})
    for name, frame in (
        ("bare", given.set_index("barcode")[["mine"]]),
        ("barcodes", given.reset_index(drop=True)),
        ("ids", given.rename(columns={"barcode": "id"}).reset_index(drop=True)),
    ):
        done = hs.pp.annotate(store, SLIDE, obs=frame.iloc[::-1], name=name)[0]
        rows = store.view(slides=[SLIDE])
        assert rows.column("mine").tolist() == given["mine"].tolist(), done.report
        assert "id" not in rows.columns()
        store.commit(SLIDE, [], remove=[f"labels/{name}"])
    both = pd.MultiIndex.from_product([[SLIDE], obs["barcode"]])
    with pytest.raises(AlignmentError, match="0 of 41 rows"):
        hs.pp.annotate(store, SLIDE, obs=given[["mine"]].set_axis(both), name="both")
    with pytest.raises(DataError, match="a column without a name"):
        hs.pp.annotate(store, SLIDE, obs=given.rename(columns={"mine": ""}), name="unnamed")


def test_whole_numbers_too_long_for_a_float_keep_their_digits(store: hs.Store, obs: pd.DataFrame) -> None:
    ids = np.arange(len(obs)) + 2**53 + 1
    hs.pp.annotate(store, SLIDE, obs=pd.DataFrame({"cell": ids, "n": range(len(obs))}, index=obs.index), name="cells")
    rows = store.view(slides=[SLIDE])
    assert rows.column("cell").tolist() == [str(v) for v in ids]
    assert rows.column("n").dtype.kind == "f"


def test_polygons_off_the_image_are_said_by_annotate_and_by_ingest(
    store: hs.Store, cohort: Cohort, tmp_path: Path
) -> None:
    ring = [[5000, 0], [5500, 0], [5500, 500], [5000, 0]]
    away = SQUARE | {"geometry": {"type": "Polygon", "coordinates": [ring]}}
    path = drawn(tmp_path / "d.geojson", SQUARE, away)
    said = "1 of 2 polygons lie off the image of 1,200 x 1,200 px: are they in full-resolution pixels?"
    assert said in hs.pp.annotate(store, SLIDE, geojson=path)[0].report.notes
    assert said in hs.pp.ingest(store, "N1", image=cohort.slides[0].image, mpp=2.0, geojson=path)[0].report.notes
    assert not hs.pp.annotate(store, SLIDE, geojson=cohort.slides[0].geojson, name="own")[0].report.notes
