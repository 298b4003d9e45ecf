"""Feature files of other tools: what their own layouts say, and what cannot be believed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from histostore.errors import ConflictError, DataError, HistostoreError, MissingDependencyError, NotFoundError
from histostore.io.feature_files import find_features, read_features, write_features

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

N, D = 12, 5
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(N, D)).astype(np.float32)
COORDS = np.column_stack([np.arange(N) % 4, np.arange(N) // 4]) * 512 + 100
TRIDENT = {
    "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20, "overlap": 0,
    "name": "S1", "savetodir": "/somewhere", "level0_width": 4000, "level0_height": 3000,
}  # fmt: skip


def write_h5(
    path: Path, arrays: dict[str, Any], coords: dict[str, Any] | None = None, file: dict[str, Any] | None = None
) -> Path:
    with h5py.File(path, "w") as h5:
        for name, value in arrays.items():
            h5[name] = value
        for name, value in (coords or {}).items():
            h5["coords"].attrs[name] = value
        for name, value in (file or {}).items():
            h5.attrs[name] = value
    return path


def trident(folder: Path, features: NDArray[Any] = FEATURES, **changed: Any) -> Path:
    path = write_h5(folder / "S1.h5", {"features": features, "coords": COORDS.astype(np.int64)}, TRIDENT | changed)
    with h5py.File(path, "a") as h5:
        h5["features"].attrs["encoder"] = "uni_v1"
    return path


def clam(folder: Path) -> Path:
    attrs = {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0), "level_dim": (2000, 1500), "name": "S1"}
    return write_h5(folder / "S1.h5", {"features": FEATURES, "coords": COORDS.astype(np.int32)}, attrs)


def stamp(folder: Path, dtype: str = "float64", **changed: Any) -> Path:
    attrs = {
        "stamp_version": "2.4.0", "extractor": "uni-1a2b", "unit": "um", "tile_size_um": 256.0, "tile_size_px": 224,
        "code_hash": "1a2b3c4d",
    } | changed  # fmt: skip
    um = (COORDS * 0.4993).astype(dtype)
    attrs = {k: v for k, v in attrs.items() if v is not None}
    return write_h5(folder / "S1.h5", {"feats": FEATURES.astype(np.float16), "coords": um}, file=attrs)


def slide2vec(folder: Path, container: str = "npz") -> Path:
    for sub in ("tile_embeddings", "tiles"):
        (folder / sub).mkdir()
    path = folder / "tile_embeddings" / f"S1.{container}"
    if container == "npz":
        np.savez_compressed(path, features=FEATURES, tile_index=np.arange(N, dtype=np.int32))
    else:
        torch.save(torch.from_numpy(FEATURES), path)
    (folder / "tile_embeddings" / "S1.meta.json").write_text(json.dumps({"sample_id": "S1", "encoder_name": "uni"}))
    np.savez_compressed(
        folder / "tiles" / "S1.coordinates.npz", tile_index=np.arange(N, dtype=np.int32), x=COORDS[:, 0],
        y=COORDS[:, 1], tissue_fractions=np.linspace(0.5, 1, N, dtype=np.float32),
    )  # fmt: skip
    told = {
        "slide": {"base_spacing_um": 0.25, "dimensions": [4000, 3000]},
        "tiling": {"tile_size_lv0": 512, "requested_tile_size_px": 256, "requested_spacing_um": 0.5},
    }
    (folder / "tiles" / "S1.coordinates.meta.json").write_text(json.dumps(told))
    return path


def parquet(folder: Path, **columns: Any) -> Path:
    table = {"slide": ["S1"] * N, "x": COORDS[:, 0], "y": COORDS[:, 1]}
    table |= {f"f{i}": FEATURES[:, i] for i in range(D)} | columns
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), folder / "many.parquet")
    return folder / "many.parquet"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "trident": trident, "clam": clam, "stamp": stamp, "slide2vec": slide2vec, "parquet": parquet,
    "slide2vec pt": lambda folder: slide2vec(folder, "pt"),
}  # fmt: skip


def test_trident_says_edge_power_size_and_encoder(tmp_path: Path) -> None:
    found = read_features(trident(tmp_path))
    assert (found.tool, found.unit, found.anchor, found.edge, found.tile_px) == ("trident", "px", "corner", 512, 256)
    assert (found.magnification, found.size_px) == (40, (4000, 3000))
    assert found.encoder == {"patch_size": 256, "target_magnification": 20, "encoder": "uni_v1"}
    assert found.attrs["coords"]["savetodir"] == "/somewhere"


def test_trident_of_old_says_the_edge_by_magnifications(tmp_path: Path) -> None:
    path = write_h5(
        tmp_path / "a.h5", {"features": FEATURES, "coords": COORDS},
        {"patch_size": 256, "level0_magnification": 40, "target_magnification": 10},
    )  # fmt: skip
    assert read_features(path).edge == 1024


def test_clam_says_the_edge_at_its_level_or_nothing(tmp_path: Path) -> None:
    found = read_features(clam(tmp_path))
    assert (found.tool, found.edge, found.tile_px) == ("clam", 512, 256)
    bare = read_features(write_h5(tmp_path / "b.h5", {"features": FEATURES, "coords": COORDS}))
    assert (bare.tool, bare.edge, bare.tile_px, bare.anchor) == ("clam", None, None, "corner")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stamp_is_in_um(tmp_path: Path, dtype: str) -> None:
    found = read_features(stamp(tmp_path, dtype))
    assert (found.tool, found.unit, found.edge, found.tile_px) == ("stamp", "um", 256.0, 224)
    assert found.coords.dtype == dtype
    assert found.encoder["extractor"] == "uni-1a2b"


@pytest.mark.parametrize("container", ["npz", "pt"])
def test_slide2vec_has_its_coordinates_in_another_folder(tmp_path: Path, container: str) -> None:
    found = read_features(slide2vec(tmp_path, container))
    assert (found.container, found.edge, found.tile_px, found.slide_mpp) == (container, 512, 256, 0.25)
    assert found.size_px == (4000, 3000)
    assert np.array_equal(found.coords, COORDS)
    assert found.tissue is not None


def test_slide2vec_rows_are_joined_by_tile_index(tmp_path: Path) -> None:
    path = slide2vec(tmp_path)
    turned = np.arange(N, dtype=np.int32)[::-1]
    np.savez_compressed(path, features=FEATURES, tile_index=turned)
    assert np.array_equal(read_features(path).coords, COORDS[::-1])
    np.savez_compressed(path, features=FEATURES, tile_index=turned + 1)
    with pytest.raises(DataError, match="same tile_index"):
        read_features(path)


def test_a_tensor_finds_the_patches_of_its_tool(tmp_path: Path) -> None:
    for sub in ("pt_files", "patches"):
        (tmp_path / sub).mkdir()
    torch.save(torch.from_numpy(FEATURES).bfloat16(), tmp_path / "pt_files" / "S1.pt")
    trident(tmp_path / "patches").rename(tmp_path / "patches" / "S1_patches.h5")
    found = read_features(tmp_path / "pt_files" / "S1.pt")
    assert (found.tool, found.edge, found.features.dtype) == ("trident", 512, np.float32)


def test_a_leading_axis_of_one_is_no_slide(tmp_path: Path) -> None:
    found = read_features(trident(tmp_path, FEATURES[None]))
    assert found.leading_axis
    assert np.array_equal(found.features, FEATURES)


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_written_is_what_was_read(tmp_path: Path, maker: str) -> None:
    before = read_features(MAKERS[maker](tmp_path))
    written = write_features(before, tmp_path / "again", "S1")
    after = read_features(next(p for p in written if p.stem == "S1" and p.suffix != ".json"))
    assert after.features.tobytes() == before.features.tobytes()
    assert (after.coords.tobytes(), after.coords.dtype) == (before.coords.tobytes(), before.coords.dtype)
    for field in ("tool", "container", "unit", "anchor", "edge", "tile_px", "slide_mpp", "encoder", "attrs", "size_px"):
        assert getattr(after, field) == getattr(before, field), field
    with pytest.raises(ConflictError, match="there already"):
        write_features(before, tmp_path / "again", "S1")
    assert not list((tmp_path / "again").rglob(".*"))


def test_slides_are_called_what_their_files_are_called(tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_h5(tmp_path / f"{name}.h5", {"features": FEATURES, "coords": COORDS})
    (tmp_path / "notes.txt").write_text("no features")
    assert [s for s, _ in find_features(tmp_path)] == ["A", "B"]
    assert find_features(tmp_path, "B") == [("B", tmp_path / "B.h5")]
    assert find_features(tmp_path / "A.h5", "other") == [("other", tmp_path / "A.h5")]
    with pytest.raises(NotFoundError, match="no features of slide 'C'"):
        find_features(tmp_path, "C")
    torch.save(torch.from_numpy(FEATURES), tmp_path / "A.pt")
    with pytest.raises(DataError, match="both of slide 'A'"):
        find_features(tmp_path)


def test_slide2vec_is_found_by_its_folder(tmp_path: Path) -> None:
    path = slide2vec(tmp_path)
    assert find_features(tmp_path) == [("S1", path)]


def test_one_parquet_may_hold_several_slides(tmp_path: Path) -> None:
    path = parquet(tmp_path, slide=["A"] * 5 + ["B"] * (N - 5))
    assert find_features(path) == [("A", path), ("B", path)]
    assert np.array_equal(read_features(path, "B").features, FEATURES[5:])
    with pytest.raises(DataError, match="say which slide"):
        read_features(path)
    with pytest.raises(DataError, match="none is of slide 'C'"):
        read_features(path, "C")


def test_parquet_of_another_maker_does_not_say_what_x_and_y_are(tmp_path: Path) -> None:
    found = read_features(parquet(tmp_path))
    assert (found.anchor, found.edge, found.slide_mpp) == (None, None, None)


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def pickled(folder: Path) -> Path:
    path = slide2vec(folder, "pt")
    torch.save(FEATURES, path)  # an array, as TRIDENT saves ``.pt``
    return path


def objects(folder: Path) -> Path:
    path = slide2vec(folder)
    np.savez(path, features=np.array([{"run": "me"}], dtype=object))
    return path


def bomb(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as h5:
        h5.create_dataset("features", shape=(1 << 32, 1 << 10), dtype="f4", chunks=(1, 1024))
        h5["coords"] = COORDS
    return folder / "a.h5"


def lonely(folder: Path) -> Path:
    torch.save(torch.from_numpy(FEATURES), folder / "S1.pt")
    return folder / "S1.pt"


def h5(**arrays: Any) -> Callable[[Path], Path]:
    return lambda folder: write_h5(folder / "a.h5", arrays)


UNUSABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no coords": (h5(features=FEATURES), "no 'coords'"),
    "no features": (h5(coords=COORDS), "neither 'features' nor 'feats'"),
    "other lengths": (h5(features=FEATURES, coords=COORDS[:-1]), "12 features and 11 coords"),
    "one vector": (h5(features=FEATURES[0], coords=COORDS), "one vector"),
    "four axes": (h5(features=FEATURES[None, None], coords=COORDS), "of shape"),
    "no rows": (h5(features=FEATURES[:0], coords=COORDS[:0]), "of shape"),
    "integers": (h5(features=FEATURES.astype(int), coords=COORDS), "are int64"),
    "text": (h5(features="hello", coords=COORDS), "no array of numbers"),
    "coords of three": (h5(features=FEATURES, coords=np.zeros((N, 3))), r"of shape \(12, 3\)"),
    "coords NaN": (h5(features=FEATURES, coords=np.full((N, 2), np.nan)), "not finite"),
    "edge below 0": (lambda f: trident(f, patch_size_level0=-512), "no positive number"),
    "edge text": (lambda f: trident(f, patch_size_level0="big"), "no positive number"),
    "stamp without unit": (lambda f: stamp(f, unit=None, tile_size_um=None, tile_size=224), "in µm"),
    "stamp in px": (lambda f: stamp(f, unit="px"), "in µm"),
    "stamp of a patient": (lambda f: stamp(f, feat_type="patient"), "of a patient"),
    "h5 cut": (lambda f: cut(trident(f)), "no whole HDF5"),
    "npz cut": (lambda f: cut(slide2vec(f)), "no whole npz"),
    "pt cut": (lambda f: cut(slide2vec(f, "pt")), "no whole torch file"),
    "parquet cut": (lambda f: cut(parquet(f)), "no whole Parquet"),
    "pickle": (pickled, "pickle"),
    "objects": (objects, "plain arrays"),
    "h5 bomb": (bomb, "cannot hold"),
    "tensor alone": (lonely, "no coordinates beside it"),
    "parquet lacks y": (lambda f: parquet(f, y=None), "no column y"),
    "parquet strange": (lambda f: parquet(f, f7=FEATURES[:, 0]), "not known .f7"),
    "parquet null": (lambda f: parquet(f, f1=[None] + [1.0] * (N - 1)), "missing|several types"),
    "missing": (lambda f: f / "none.h5", "no file"),
    "suffix": (lambda f: f / "a.csv", "features are read from"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, case: str) -> None:
    make, said = UNUSABLE[case]
    with pytest.raises(HistostoreError, match=said) as caught:
        read_features(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError)


def test_a_pickle_does_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = slide2vec(tmp_path, "pt")
    torch.save(Bad(), path)
    with pytest.raises(DataError, match="may run code"):
        read_features(path)
    assert not (tmp_path / "ran").exists()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path)
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        read_features(path)
