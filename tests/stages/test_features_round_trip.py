"""Features of other tools go into a store, are used there, and come out as they were."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from PIL import Image

import histostore as hs
from histostore.cli.options_features import COMMANDS
from histostore.errors import ConflictError, DataError, HistostoreError, SlideError, SpecMismatchError
from histostore.io.feature_files import TOOLS, find_features, read_features
from histostore.io.feature_table import TileFeatures
from histostore.stages.export_features import export_features
from histostore.stages.import_features import backbone_digest, import_features
from histostore.stages.imported_tiles import ImportSpec
from histostore.stages.predict import read_prediction
from histostore.store.store import create_store
from histostore.store.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable


N, D, EDGE, MPP = 30, 6, 64, 0.4993
CORNERS = (np.column_stack([np.arange(N) % 6, np.arange(N) // 6]) * EDGE + 7).astype(np.int64)
UNI = ImportSpec(backbone="uni", mpp=MPP)
SAID = {"parquet": {"anchor": "centre", "edge": EDGE}, "stamp": {"unit": "um", "tile_size_um": EDGE * MPP}}
"""Attributes that a file of the tool cannot do without."""


def values(seed: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(N, D)).astype(dtype)


def table(tool: str = "trident", seed: int = 0, **changed: Any) -> TileFeatures:
    """Return features as a file of that tool would give them."""
    unit, anchor = ("um" if tool == "stamp" else "px"), ("centre" if tool == "parquet" else "corner")
    coords: Any = CORNERS + EDGE / 2 if anchor == "centre" else CORNERS
    coords = CORNERS * MPP if unit == "um" else coords
    about: dict[str, Any] = {
        "tool": tool, "container": {"slide2vec": "npz", "parquet": "parquet"}.get(tool, "h5"),
        "features": values(seed, "float16" if tool == "stamp" else "float32"), "coords": coords, "unit": unit,
        "anchor": anchor, "edge": EDGE * MPP if unit == "um" else EDGE, "tile_px": EDGE // 2,
    }  # fmt: skip
    return TileFeatures(**about | changed)


def made(path: Path) -> hs.Store:
    create_store(path)
    return hs.open(path)


@pytest.fixture
def store(tmp_path: Path) -> hs.Store:
    return made(tmp_path / "S")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "S1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (420, 500, 3), dtype=np.uint8)).save(path)
    return path


def sound(store: hs.Store) -> bool:
    return verify(store, deep=True).ok


def run(command: str, *args: object) -> int:
    """Run a command by its own options."""
    module, _, _, declare = COMMANDS[command]
    parser = argparse.ArgumentParser()
    parser.set_defaults(json=False)
    declare(parser)
    parsed = parser.parse_args([str(a) for a in args])
    return int(getattr(importlib.import_module(f"histostore.cli.{module}"), parsed.function)(parsed) or 0)


@pytest.mark.parametrize("tool", TOOLS)
def test_features_come_out_as_they_went_in(store: hs.Store, tmp_path: Path, tool: str) -> None:
    given = table(tool, attrs={"file": SAID[tool]} if tool in SAID else {})
    done = import_features(store, "S1", given, UNI)
    assert done.done == "written"
    assert import_features(store, "S1", given, UNI).done == "already there"
    view = store.view(backbone="uni")
    assert view.numpy().tobytes() == given.features.tobytes()
    assert np.allclose(view.obs(["x", "y"]), CORNERS + EDGE / 2, atol=1e-9)
    assert view.names()[0] == "S1:7x7"
    assert sound(store)
    export_features(store, "S1", tmp_path / "out", backbone="uni", format=tool)
    again = read_features(find_features(tmp_path / "out", "S1")[0][1], "S1")
    assert again.features.tobytes() == given.features.tobytes()
    assert (again.coords.tobytes(), again.coords.dtype) == (given.coords.tobytes(), given.coords.dtype)


@pytest.mark.parametrize("tool", TOOLS)
def test_any_tool_reads_what_any_other_gave(store: hs.Store, tmp_path: Path, tool: str) -> None:
    """Coordinates are the same places after a change of unit and corner; values stay to the bit."""
    source = "stamp" if tool != "stamp" else "trident"
    given = table(source)
    import_features(store, "S1", given, UNI)
    done = export_features(store, "S1", tmp_path, backbone="uni", format=tool)
    assert "unreadable tiles" not in done.report.counts
    read = read_features(find_features(tmp_path, "S1")[0][1], "S1")
    assert read.features.tobytes() == given.features.tobytes()
    other = made(tmp_path / "other")
    import_features(other, "S1", read, UNI)
    assert np.allclose(other.view(backbone="uni").obs(["x", "y"]), CORNERS + EDGE / 2, atol=1e-6)


def test_coordinates_that_are_not_whole_pixels_are_counted_when_rounded(store: hs.Store, tmp_path: Path) -> None:
    import_features(store, "S1", table("stamp", coords=CORNERS * MPP + 0.1), UNI)
    done = export_features(store, "S1", tmp_path, backbone="uni", format="clam")
    assert done.report.counts == {"coordinates rounded to whole pixels": N}


def test_odd_coordinates_come_back_to_the_bit(store: hs.Store, tmp_path: Path) -> None:
    for dtype in ("float32", "float64"):
        coords = np.random.default_rng(1).uniform(50, 900, (N, 2)).astype(dtype)
        slide = dtype
        import_features(store, slide, table("stamp", coords=coords), UNI)
        export_features(store, slide, tmp_path, backbone="uni", format="stamp")
        with h5py.File(tmp_path / f"{slide}.h5") as h5:
            assert h5["coords"][()].tobytes() == coords.tobytes()


def test_attributes_of_the_file_come_back(store: hs.Store, tmp_path: Path) -> None:
    attrs = {"coords": {"patch_size": 32, "patch_size_level0": EDGE, "of my own": [1, 2]}, "features": {"encoder": "u"}}
    import_features(store, "S1", table(attrs=attrs, leading_axis=True, features=values(0, "float64") * 0 + 0.5), UNI)
    export_features(store, "S1", tmp_path, backbone="uni", format="trident")
    with h5py.File(tmp_path / "S1.h5") as h5:
        assert h5["features"].shape == (1, N, D)
        assert h5["features"].dtype == np.float64
        assert h5["features"].attrs["encoder"] == "u"
        assert h5["coords"].attrs["of my own"].tolist() == [1, 2]


def test_what_nobody_says_is_recorded_as_unknown(store: hs.Store) -> None:
    done = import_features(store, "S1", table(magnification=20.0), ImportSpec(backbone="uni"))
    attrs = store.group(store.slide("S1").find("embeddings", "imported/uni")).attrs
    unknown = " ".join(attrs["imported"]["unknown"])
    for what in ("weights", "transform", "mpp (0.5 by convention for 20x)", "the slide's size"):
        assert what in unknown
    assert any("not known" in note for note in done.report.notes)
    assert attrs["backbone_digest"].startswith("imported:uni:")
    meta = store.group(store.slide("S1").find("meta", "meta")).attrs
    assert (meta["mpp"], meta["mpp_origin"]) == (0.5, "magnification")


def test_a_digest_tells_encoders_apart_and_not_slides() -> None:
    one, two = table(seed=1, encoder={"patch_size": 256}), table(seed=2, encoder={"patch_size": 256})
    assert backbone_digest("uni", one) == backbone_digest("uni", two)
    others = [table(encoder={"patch_size": 224}), table("clam", encoder={"patch_size": 256})]
    assert len({backbone_digest("uni", t) for t in (one, *others)} | {backbone_digest("uni2", one)}) == 4


def test_search_and_heads_work_on_imported_slides_without_images(store: hs.Store) -> None:
    for seed, organ in enumerate(("kidney", "liver", "kidney", "liver")):
        features = table(seed=seed)
        features.features[:, 0] += 5 * (organ == "liver")
        import_features(store, f"S{seed}", features, UNI, meta={"patient": f"P{seed}", "organ": organ})
    hits = hs.tl.search(store, slide="S0", spot="7x7", backbone="uni", k=3, exclude_same="slide")
    assert len(hits.table) == 3
    split = "stratified-kfold:2:organ"
    hs.tl.fit(store, hs.heads.Logistic(1e-2), labels="organ", per="slide", split=split, backbone="uni", save="organ")
    hs.tl.predict(store, "organ")
    called = [read_prediction(store, slide, "organ").calls()[0] for slide in store.slides()]
    assert called == ["kidney", "liver"] * 2


def test_imported_features_never_mix_with_own_of_that_name(
    embedded: Path, copy_of: Callable[[Path], Path], cli: Callable[..., Any]
) -> None:
    store = hs.open(copy_of(embedded))
    dim = store.view(backbone="testing").numpy().shape[1]
    own = store.group(store.slide("A1").find("embeddings", "spots/testing")).attrs["backbone_digest"]
    features = np.random.default_rng(0).normal(size=(N, dim)).astype(np.float32)
    import_features(store, "X1", table(features=features), ImportSpec(backbone="testing", mpp=MPP))
    given = store.group(store.slide("X1").find("embeddings", "imported/testing")).attrs["backbone_digest"]
    assert own != given
    with pytest.raises(DataError, match="not the same backbone on all slides"):
        store.view(backbone="testing")
    hs.tl.fit(
        store, "ridge", genes="top-mean:2", backbone="testing", slides=["A1", "B1"], split="leave-one-out:patient",
        save="own",
    )  # fmt: skip
    with pytest.raises(SpecMismatchError, match="trained on backbone"):
        hs.tl.predict(store, "own", slides=["X1"], tiles="imported")
    out = Path(store.uri.removeprefix("file://")).parent
    done = export_features(store, "A1", out / "own", backbone="testing", format="trident")
    back = read_features(out / "own" / "A1.h5")
    assert (len(back), back.encoder["histostore_backbone_digest"]) == (done.rows, own)
    assert backbone_digest("testing", back) != own


def test_with_its_image_a_slide_is_whole(store: hs.Store, image: Path) -> None:
    done = import_features(store, "S1", table(), UNI, image=image)
    assert done.done == "written"
    adata = store.view(backbone="uni").to_adata()
    assert adata.shape == (N, 0)
    assert adata.obsm["X_uni"].shape == (N, D)
    hs.tl.embed(store, "testing", tiles="imported")  # own backbones read the same tiles from the image
    assert len(store.view(backbone=["uni", "testing"], tiles="imported")) == N
    assert sound(store)


def test_an_image_may_follow(store: hs.Store, image: Path, tmp_path: Path) -> None:
    given = table()
    import_features(store, "S1", given, UNI, meta={"patient": "P"})
    before = store.view(backbone="uni").obs(["tile_id", "patient"])
    assert import_features(store, "S1", given, UNI, image=image).done == "already there"
    assert store.slide("S1").get("source", "image") is not None
    assert store.view(backbone="uni").obs(["tile_id", "patient"]).equals(before)


def test_two_backbones_share_their_tiles(store: hs.Store) -> None:
    import_features(store, "S1", table(), UNI)
    import_features(store, "S1", table(seed=1), ImportSpec(backbone="virchow", mpp=MPP))
    assert store.view(backbone=["uni", "virchow"]).backbones == ("uni", "virchow")
    assert len(store.slide("S1").of_kind("tiles")) == 1


def nan_row(**changed: Any) -> TileFeatures:
    features = values(0)
    features[3] = np.nan
    return table(features=features, **changed)


def test_rows_of_nan_are_refused_or_kept_as_unreadable(store: hs.Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 rows of the features are NaN \(rows 3\)"):
        import_features(store, "S1", nan_row(), UNI)
    assert store.slides() == []
    allowed = ImportSpec(backbone="uni", mpp=MPP, allow_nan=True)
    done = import_features(store, "S1", nan_row(), allowed)
    assert done.report.counts["unreadable"] == 1
    assert store.view(backbone="uni").column("status")[3] == "unreadable"
    assert sound(store)
    export_features(store, "S1", tmp_path, backbone="uni", format="trident")
    assert np.isnan(read_features(tmp_path / "S1.h5").features[3]).all()


def some_nan() -> np.ndarray[Any, Any]:
    features = values(0)
    features[2, 1] = np.inf
    return features


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a value that is not finite": ({"features": some_nan()}, {}, "NaN or infinity"),
    "float64 that float32 cannot hold": ({"features": values(0, "float64")}, {}, "float64"),
    "unknown edge": ({"edge": None}, {}, "how large a tile is"),
    "another edge": ({}, {"px": 128.0}, "64 level-0 px by the file and 128"),
    "unknown anchor": ({"anchor": None}, {}, "corner or centre"),
    "another anchor": ({}, {"anchor": "centre"}, "leave anchor out"),
    "unknown mpp": ({}, {"mpp": None}, "mpp is unknown"),
    "two mpp": ({"slide_mpp": 0.25}, {}, "apart"),
    "off the slide": ({"size_px": (200, 200)}, {}, "lie off the slide of 200 x 200"),
    "negative": ({"coords": CORNERS - 200}, {}, "negative places"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line_and_writes_nothing(store: hs.Store, case: str) -> None:
    changed, options, said = REFUSED[case]
    with pytest.raises(HistostoreError, match=said) as caught:
        import_features(store, "S1", table(**changed), ImportSpec(**{"backbone": "uni", "mpp": MPP} | options))
    assert "\n" not in str(caught.value)
    assert store.owners() == []
    assert not list((Path(store.uri.removeprefix("file://"))).glob("slides/*/*/*"))


def test_another_image_or_resolution_is_refused(store: hs.Store, image: Path) -> None:
    with pytest.raises(SlideError, match="not of one slide"):
        import_features(store, "S1", table(size_px=(5000, 4000)), UNI, image=image)
    assert store.slides() == []
    import_features(store, "S1", table(), UNI)
    with pytest.raises(SlideError, match=r"the mpp given says 0\.25"):
        import_features(store, "S1", table(), ImportSpec(backbone="uni", mpp=0.25))


def test_other_features_of_a_name_are_a_conflict(store: hs.Store) -> None:
    import_features(store, "S1", table(), UNI)
    for other in (table(seed=1), table(coords=CORNERS + 1)):
        with pytest.raises(ConflictError):
            import_features(store, "S1", other, UNI)
    assert import_features(store, "S1", table(seed=1), UNI, replace=True).done == "written"
    assert store.view(backbone="uni").numpy().tobytes() == values(1).tobytes()


def test_tiles_at_one_place_are_kept_and_counted(store: hs.Store) -> None:
    coords = CORNERS.copy()
    coords[1] = coords[0]
    done = import_features(store, "S1", table(coords=coords), UNI)
    assert done.report.counts["tiles at the place of another"] == 1
    assert store.view(backbone="uni").names()[:2].tolist() == ["S1:7x7", "S1:7x7#2"]


def test_the_commands_take_a_folder_and_go_on_after_a_bad_file(
    store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = store.uri.removeprefix("file://")
    folder = tmp_path / "features"
    folder.mkdir()
    for slide in ("A", "B", "C"):
        with h5py.File(folder / f"{slide}.h5", "w") as h5:
            h5["features"], h5["coords"] = values(0), CORNERS
    (folder / "B.h5").write_bytes((folder / "B.h5").read_bytes()[:700])
    common = ("import", place, "--features", folder, "--backbone", "uni", "--mpp", MPP)
    assert run(*common, "--px", EDGE, "--meta", "cohort=tcga") == 3
    told = capsys.readouterr()
    assert store.slides() == ["A", "C"]
    assert "B.h5 is no whole HDF5 file" in told.err
    assert "30 tiles" in told.out
    assert run("export-features", place, "--backbone", "uni", "--format", "stamp", "-o", tmp_path / "stamp") == 0
    with h5py.File(tmp_path / "stamp" / "A.h5") as h5:
        assert h5["feats"][()].tobytes() == values(0).tobytes()
        assert np.allclose(h5["coords"][()], CORNERS * MPP)
        assert h5.attrs["unit"] == "um"


def test_slide2vec_files_say_what_is_known(store: hs.Store, tmp_path: Path) -> None:
    import_features(store, "S1", table(), UNI)
    export_features(store, "S1", tmp_path, backbone="uni", format="slide2vec")
    about = json.loads((tmp_path / "tiles" / "S1.coordinates.meta.json").read_text())
    assert about["tiling"]["tile_size_lv0"] == EDGE
    assert about["slide"]["base_spacing_um"] == MPP
