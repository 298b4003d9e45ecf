"""A tile set that moves to another spec: what stands on the old tiles is named, refused, and made again when asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import histostore as hs
from histostore.errors import ConflictError, NotFoundError, SpecMismatchError
from histostore.stages.export_features import export_features
from histostore.stages.predict import read_prediction
from histostore.store.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import CompletedProcess

PLAIN, OTHER = hs.TileSpec.at_spots(px=96), hs.TileSpec.at_spots(px=96, min_tissue=0.99)
LOSSLESS = hs.PixelSpec(codec="lossless")
TUMOUR = hs.LabelSpec(column="region_annotations", positive=("tumour",), negative=("region",))
TILES_SAID = "embeddings 'spots/testing' were made of other tiles than those there now; run embed --replace"
CALLS_SAID = "predictions 'spots/c' were made of other embeddings or tiles than those there now; run predict --replace"


@pytest.fixture(scope="module")
def predicted(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with a classifier ``c``, applied to both slides."""
    path = Path(shutil.copytree(embedded, tmp_path_factory.mktemp("predicted") / "store"))
    store = hs.open(path)
    hs.tl.fit(store, hs.heads.Logistic(1e-2), labels=TUMOUR, split="leave-one-out:patient", save="c")
    hs.tl.predict(store, "c")
    return path


@pytest.fixture
def moved(predicted: Path, copy_of: Callable[[Path], Path]) -> hs.Store:
    """Return that store with the tiles of A1 replaced."""
    store = hs.open(copy_of(predicted))
    hs.pp.tile(store, "A1", OTHER, pixels=LOSSLESS, replace=True)
    return store


def test_tile_says_what_it_leaves_behind_and_what_to_run(predicted: Path, copy_of: Callable[[Path], Path]) -> None:
    store = hs.open(copy_of(predicted))
    same = hs.pp.tile(store, "A1", PLAIN, pixels=LOSSLESS, replace=True)[0]
    assert same.done == "written", "its pixels, in larger shards: the tiles are the same"
    assert not [n for n in same.report.notes if "left behind" in n]
    (result,) = hs.pp.tile(store, "A1", OTHER, replace=True)
    assert result.report.notes[-1] == (
        "left behind, of other tiles or points than those there now, and joined to none: "
        "embeddings 'spots/testing', predictions 'spots/c'; run embed --replace, then predict --replace"
    )


def test_what_was_left_behind_is_made_again(moved: hs.Store, predicted: Path) -> None:
    before = hs.get.prediction(hs.open(predicted), "A1", "c")
    hs.tl.embed(moved, "testing", slides="A1", replace=True)
    with pytest.raises(SpecMismatchError, match=f"^slide 'A1': {CALLS_SAID}$"):
        hs.get.prediction(moved, "A1", "c")
    hs.tl.predict(moved, "c", slides="A1", replace=True)
    after = hs.get.prediction(moved, "A1", "c")
    assert len(after) < len(before)
    assert after.equals(before.loc[after.index])
    assert moved.view(tiles="spots").column("p_c").tolist() == moved.view(backbone="testing").column("p_c").tolist()


def test_verify_warns_of_what_is_left_behind_and_of_nothing_else(moved: hs.Store, predicted: Path) -> None:
    assert not [p for p in verify(hs.open(predicted), deep=False).problems if p.kind == "outdated"]
    report = verify(moved, deep=False)
    said = [(p.severity, p.owner, p.text) for p in report.problems if p.kind == "outdated"]
    assert said == [("warning", "A1", TILES_SAID), ("warning", "A1", CALLS_SAID)]
    assert report.ok


def test_predict_refuses_embeddings_of_other_tiles(
    moved: hs.Store, cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    with pytest.raises(SpecMismatchError, match=f"^slide 'A1': {TILES_SAID}$"):
        hs.tl.predict(moved, "c", slides="A1")
    assert TILES_SAID in cli("predict", moved.uri, "--head", "c", "--slides", "A1", code=3).stderr
    written = cli("predict", moved.uri, "--head", "c", "-o", tmp_path / "c.csv", code=3)
    assert TILES_SAID in written.stderr
    assert not (tmp_path / "c.csv").exists()


def test_predictions_of_other_tiles_are_not_read_as_of_these(moved: hs.Store) -> None:
    with pytest.raises(SpecMismatchError, match=f"^slide 'A1': {CALLS_SAID}$"):
        read_prediction(moved, "A1", "c")
    assert len(read_prediction(moved, "B1", "c").values) == len(moved.view(tiles="spots", slides=["B1"]))


def test_calls_of_other_tiles_are_no_column(moved: hs.Store) -> None:
    rows = moved.view(tiles="spots", slides=["A1", "B1"])
    here, there = rows.parts
    assert {"call_c", "p_c"} & set(here.columns()) == set()
    assert {"call_c", "p_c"} <= set(there.columns())
    with pytest.raises(NotFoundError, match=f"^no column 'p_c' on slide 'A1': {CALLS_SAID}$"):
        here.column("p_c")


def test_features_of_other_tiles_are_not_exported(moved: hs.Store, tmp_path: Path) -> None:
    with pytest.raises(SpecMismatchError, match=f"^slide 'A1': {TILES_SAID}$"):
        export_features(moved, "A1", tmp_path, backbone="testing", format="trident")
    assert list(tmp_path.glob("*.h5")) == []


def test_a_cohorts_view_says_which_slides_lack_the_column_and_why(moved: hs.Store) -> None:
    rows = moved.view(tiles="spots", slides=["A1", "B1"])
    left = rows.to_adata().uns["histostore"]["left_out"]
    assert [n for what, n in left.items() if "'p_c'" in what] == [1]
    with pytest.raises(NotFoundError, match=f"no column 'p_c'.*'A1': {CALLS_SAID}"):
        moved.view(tiles="spots", slides=["A1"]).where("p_c > 0.5")


def test_a_grid_does_not_take_the_place_of_the_spots(predicted: Path, copy_of: Callable[[Path], Path]) -> None:
    store = hs.open(copy_of(predicted))
    with pytest.raises(ConflictError, match="'spots' are points of its own"):
        hs.pp.tile(store, "A1", hs.TileSpec.grid(px=96), name="spots", replace=True)
    assert store.slide("A1").find("points", "spots") == hs.open(predicted).slide("A1").find("points", "spots")


def test_pixels_of_other_tiles_are_not_embedded(predicted: Path, copy_of: Callable[[Path], Path]) -> None:
    store = hs.open(copy_of(predicted))
    before = store.slide("A1").find("pixels", "spots")
    hs.pp.tile(store, "A1", OTHER, replace=True)
    store.commit("A1", [before], replace=True)
    with pytest.raises(SpecMismatchError, match="pixels 'spots' are of other tiles"):
        hs.tl.embed(store, "testing", slides="A1", replace=True)


def test_a_size_is_the_same_tiles_from_python_and_the_command_line(
    ingested: Path, copy_of: Callable[[Path], Path], cli: Callable[..., CompletedProcess[str]]
) -> None:
    store = copy_of(ingested)
    hs.pp.tile(hs.open(store), "A1", hs.TileSpec.grid(um=192), pixels=hs.PixelSpec(codec="slide"))
    again = cli("tile", store, "--slides", "A1", "--grid", "--um", "192", "--codec", "slide", "--json")
    assert json.loads(again.stdout)["done"] == "already there"


def test_tiles_of_a_whole_number_that_was_kept_as_one_are_still_there(
    ingested: Path, copy_of: Callable[[Path], Path]
) -> None:
    """Before, 192 and 192.0 had two digests; such a tile set is not made again."""
    store, pixels = hs.open(copy_of(ingested)), hs.PixelSpec(codec="slide")
    spec = hs.TileSpec.grid(um=192.0)
    object.__setattr__(spec, "um", 192)
    assert hs.pp.tile(store, "A1", spec, pixels=pixels)[0].done == "written"
    assert spec.digest != hs.TileSpec.grid(um=192).digest
    assert hs.pp.tile(store, "A1", hs.TileSpec.grid(um=192), pixels=pixels)[0].done == "already there"
