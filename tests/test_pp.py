"""``hs.pp``: features of other tools come in as the command brings them; what annotating would not hear is refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import histostore as hs
from histostore.errors import ConflictError, DataError, NotFoundError, SlideError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

N, D, EDGE, MPP = 20, 5, 64, 0.5
CORNERS = (np.column_stack([np.arange(N) % 5, np.arange(N) // 5]) * EDGE).astype(np.int64)
FIRST, SECOND = "A", "B"


def values(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> hs.Store:
    return hs.create(tmp_path / "S")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Return a folder with CLAM's files of two slides, which do not say how large a tile is."""
    folder = tmp_path / "features"
    folder.mkdir()
    for seed, slide in enumerate((FIRST, SECOND)):
        with h5py.File(folder / f"{slide}.h5", "w") as h5:
            h5["features"], h5["coords"] = values(seed), CORNERS
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, slide in enumerate((FIRST, SECOND)):
        pixels = np.random.default_rng(seed).integers(0, 255, (4 * EDGE, 5 * EDGE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{slide}.png")
    return folder


def digests(store: hs.Store) -> dict[str, dict[str, str]]:
    return {s: {ref.key: ref.digest for ref in store.slide(s).entries.values()} for s in store.slides()}


def test_a_folder_of_features_comes_in_to_the_bit_and_a_second_call_is_a_no_op(store: hs.Store, features: Path) -> None:
    done = hs.pp.import_features(store, features, backbone="uni", px=EDGE, mpp=MPP, meta={"cohort": "tcga"})
    assert [(r.slide, r.done, r.rows) for r in done] == [(FIRST, "written", N), (SECOND, "written", N)]
    view = store.view(backbone="uni")
    np.testing.assert_array_equal(view.numpy(), np.vstack([values(0), values(1)]))
    assert set(hs.get.slides(store)["cohort"]) == {"tcga"}
    again = hs.pp.import_features(store, str(features), backbone="uni", px=EDGE, mpp=MPP)
    assert {r.done for r in again} == {"already there"}


def test_python_and_the_command_line_write_the_same_groups(
    store: hs.Store, features: Path, images: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    options = {"backbone": "uni", "px": EDGE, "mpp": MPP, "image": images, "tiles": "clam", "anchor": "corner"}
    hs.pp.import_features(store, features, **options, meta={"cohort": "tcga"})
    other = tmp_path / "T"
    cli("init", other)
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    cli("import", other, "--features", features, *flags, "--meta", "cohort=tcga")
    assert digests(store) == digests(hs.open(other))
    assert "source/image" in digests(store)[FIRST]


def test_one_slide_is_taken_from_the_folder_or_from_a_file_of_any_name(store: hs.Store, features: Path) -> None:
    hs.pp.import_features(store, features, backbone="uni", px=EDGE, mpp=MPP, slide=SECOND)
    hs.pp.import_features(store, features / "A.h5", backbone="uni", px=EDGE, mpp=MPP, slide="C")
    assert store.slides() == [SECOND, "C"]
    with pytest.raises(NotFoundError, match="no features of slide 'D'"):
        hs.pp.import_features(store, features, backbone="uni", slide="D")


def test_a_slide_that_fails_is_named_and_those_before_it_are_in(store: hs.Store, features: Path) -> None:
    (features / "B.h5").write_bytes((features / "B.h5").read_bytes()[:500])
    with pytest.raises(DataError, match=r"B\.h5 is no whole HDF5 file") as caught:
        hs.pp.import_features(store, features, backbone="uni", px=EDGE, mpp=MPP)
    assert caught.value.__notes__ == ["slide 'B', after 1 of 2 slides"]
    assert store.slides() == [FIRST]


def test_what_nobody_says_and_what_contradicts_is_refused_as_by_the_command(
    store: hs.Store, features: Path, images: Path
) -> None:
    with pytest.raises(SlideError, match="mpp"):
        hs.pp.import_features(store, features, backbone="uni", px=EDGE)
    with pytest.raises(DataError, match="px"):
        hs.pp.import_features(store, features, backbone="uni", mpp=MPP)
    with pytest.raises(UsageError, match="image is one file for 2 slides: give slide, or a folder"):
        hs.pp.import_features(store, features, backbone="uni", px=EDGE, mpp=MPP, image=images / "A.png")
    (images / "A.png").unlink()
    with pytest.raises(NotFoundError, match="one image of slide 'A', it has none"):
        hs.pp.import_features(store, features, backbone="uni", px=EDGE, mpp=MPP, image=images)
    assert store.slides() == []


def test_names_move_to_other_features_only_when_told(store: hs.Store, features: Path) -> None:
    options: dict[str, Any] = {"backbone": "uni", "px": EDGE, "mpp": MPP, "slide": FIRST}
    hs.pp.import_features(store, features, **options)
    shutil.copy(features / "B.h5", features / "A.h5")
    with pytest.raises(ConflictError):
        hs.pp.import_features(store, features, **options)
    hs.pp.import_features(store, features, **options, replace=True)
    np.testing.assert_array_equal(store.view(backbone="uni").numpy(), values(1))


def test_a_clinical_table_is_joined_by_the_column_that_is_named(
    ingested: Path, copy_of: Callable[[Path], Path], cohort: Cohort, tmp_path: Path
) -> None:
    store, table = hs.open(copy_of(ingested)), tmp_path / "t.csv"
    hs.pp.annotate(store, "A1", case="one")
    hs.pp.annotate(store, "B1", case="two")
    table.write_text("patient,case,grade\nsame,one,2\nsame,two,3\n")
    hs.pp.annotate(store, table=table, by="case")
    assert hs.get.slides(store)["grade"].tolist() == ["2", "3"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param({"table": "t.csv", "grade": "3"}, "a table names its slides itself, and grade", id="field"),
        pytest.param({"table": "t.csv", "slide": "A1"}, "a table names its slides itself, and slide", id="slide"),
        pytest.param({"review": "t.csv", "obs": "o.csv"}, "a review names its slides itself, and obs", id="obs"),
        pytest.param({"slide": "A1", "obs": "o.csv", "by": "case"}, "by is of a table", id="by"),
        pytest.param({"table": "t.csv", "classes": ["a"]}, "classes is of a review", id="classes"),
        pytest.param({"slide": "A1", "obs": "o.csv", "min_match": 0.5}, "min_match is of a review", id="min_match"),
        pytest.param({"table": "t.csv", "name": "x"}, "name is of a geojson or obs or review", id="name"),
    ],
)
def test_annotating_refuses_what_it_would_not_hear(ingested: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        hs.pp.annotate(hs.open(ingested), **given)


def test_clusters_of_a_cohort_come_back_as_labels_of_each_slide(
    embedded: Path, copy_of: Callable[[Path], Path]
) -> None:
    store = hs.open(copy_of(embedded))
    adata = store.view(backbone="testing").to_adata()
    adata.obs["leiden"] = pd.Categorical([str(k % 3) for k in range(adata.n_obs)])
    adata.obs["depth"] = np.arange(adata.n_obs) / 4
    adata.obs.loc[adata.obs_names[0], "leiden"] = None
    mixed = adata.obs[["leiden", "depth"]].sample(frac=1, random_state=0)
    for slide in store.slides():
        (done,) = hs.pp.annotate(store, slide, obs=mixed, name="clusters")
        own = int((adata.obs["slide"] == slide).sum())
        assert done.report.counts["rows of other slides"] == adata.n_obs - own
        assert done.report.counts["matched"] == own
    found = store.view(backbone="testing").obs(["leiden", "depth"]).loc[adata.obs_names]
    assert found["depth"].tolist() == adata.obs["depth"].tolist()
    assert pd.isna(found["leiden"].iloc[0])
    assert found["leiden"].tolist()[1:] == adata.obs["leiden"].tolist()[1:]
    with pytest.raises(UsageError, match="need a name"):
        hs.pp.annotate(store, "A1", obs=mixed)
    with pytest.raises(UsageError, match="got list"):
        hs.pp.annotate(store, "A1", obs=[1, 2], name="x")


def test_files_that_ingest_does_not_know_are_named(store: hs.Store, images: Path) -> None:
    with pytest.raises(UsageError, match=r"no 'counts'.*st_counts"):
        hs.pp.ingest(store, "A", image=images / "A.png", counts="c.tsv")


def test_what_ingest_would_not_hear_and_what_is_no_file_is_refused(
    store: hs.Store, images: Path, cohort: Cohort
) -> None:
    image = images / "A.png"
    for given, said in (
        ({"visium": "outs"}, "slide 'A' needs its image, or an image_folder"),
        ({"image": image, "image_folder": images}, "needs its image, or an image_folder"),
        ({"image": image, "obs": pd.DataFrame({"a": [1]})}, "obs is a path, and no DataFrame"),
    ):
        with pytest.raises(UsageError, match=said):
            hs.pp.ingest(store, "A", mpp=0.5, **given)
    with pytest.raises(UsageError, match="a sheet says what belongs to its slides: write mpp, meta there"):
        hs.pp.ingest(store, sheet=cohort.sheet, mpp=2.0, meta={"site": "x"})
    assert store.slides() == []
    hs.pp.ingest(store, "A", image=image, mpp=0.5, meta={5: "five"})
    assert hs.get.slides(store).loc["A", "5"] == "five"


def test_annotating_with_nothing_and_names_that_are_no_text_are_refused(ingested: Path) -> None:
    store = hs.open(ingested)
    with pytest.raises(UsageError, match="nothing to add to slide 'A1'"):
        hs.pp.annotate(store, "A1")
    with pytest.raises(UsageError, match=r"invalid slide id \['A1', 'B1'\]"):
        hs.pp.annotate(store, ["A1", "B1"], age=5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="geojson is a path, and no dict"):
        hs.pp.annotate(store, "A1", geojson={"type": "FeatureCollection"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="tile needs a TileSpec"):
        hs.pp.tile(store, "A1", {"px": 64})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="invalid tiles name 5: use 1-80"):
        hs.pp.tile(store, "A1", hs.TileSpec.at_spots(px=64), name=5)  # type: ignore[arg-type]
