"""A store of every released format is read for ever: by us, by plain zarr, and by anndata."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import imagecodecs.zarr
import numpy as np
import pytest
import safetensors.numpy
import zarr

from histostore.schema.kinds import FORMAT, KINDS
from histostore.store.store import Store, open_store
from histostore.store.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.store.groups import Group

GOLDEN = Path(__file__).parents[1] / "stores" / "golden"
FORMATS = sorted(p.name for p in GOLDEN.iterdir() if (p / "STORE.json").exists())

imagecodecs.zarr.register_codecs(verbose=False)

I = np.arange(7)  # noqa: E741
READABLE = I != 4
STATUS = [0, 1, 0, 0, 3, 0, 0]
IDS = ["AAAC-1", "AAAG-1", "25x13", "spot with space", "Zürich µ", 'quote"d', "../not/a/path"]


def values_of(index: int) -> dict[str, Any]:
    y, x, c = np.indices((4, 7, 3))
    t, ty, tx, tc = np.indices((7, 16, 16, 3))
    pixels = (8 * t + 4 * ty + 4 * tx + 20 * tc).astype(np.uint8)
    pixels[~READABLE] = 0
    vectors = I[:, None] + np.arange(5) / 8
    vectors[~READABLE] = np.nan
    known: dict[str, Any] = {
        "source/image thumbnail": (10 * y + 20 * x + 30 * c).astype(np.uint8),
        "points/spots xy": np.column_stack([100.5 * I, 50.25 + I]),
        "points/spots in_tissue": READABLE,
        "points/spots array_row": I.astype(np.int32),
        "points/spots array_col": (2 * I).astype(np.int32),
        "labels/clusters numeric": np.where(READABLE, I / 2, np.nan)[:, None],
        "labels/clusters codes": np.where(READABLE, I % 2, -1)[:, None].astype(np.int32),
        "tiles/spots geometry": np.column_stack([I + k / 4 for k in range(5)]),
        "tiles/spots ids": np.column_stack([np.full(7, 2**63 + 1), I, I]).astype(np.uint64),
        "tiles/spots mask": np.indices((4, 6)).sum(axis=0) % 2 == 0,
        "pixels/lossless pixels": pixels,
        "pixels/lossless status": np.array(STATUS, np.uint8),
        "pixels/spots pixels": pixels,
        "pixels/spots status": np.array(STATUS, np.uint8),
        "embeddings/spots/toy-float16 embedding": vectors.astype(np.float16),
        "embeddings/spots/toy-float16 status": np.array(STATUS, np.uint8),
        "embeddings/spots/toy-float32 embedding": vectors.astype(np.float32),
        "embeddings/spots/toy-float32 status": np.array(STATUS, np.uint8),
        "predictions/spots/toy prediction": (10 * I[:, None] + np.arange(2)).astype(np.float32),
        "expression/counts X/data": np.arange(1, 8, dtype=np.int32),
        "expression/counts X/indices": (I % 4).astype(np.int32),
        "expression/counts X/indptr": np.arange(8),
    }
    return known if index == 1 else {}


@pytest.fixture(params=FORMATS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(shutil.copytree(GOLDEN / request.param, tmp_path / request.param))


def test_there_is_a_golden_store_of_this_major_format() -> None:
    assert f"v{FORMAT.split('.')[0]}" in FORMATS


def test_it_is_whole_and_holds_every_kind_but_indexes_and_tuned_backbones(golden: Store) -> None:
    assert verify(golden).problems == ()
    refs = [r for owner in golden.owners() for r in golden.manifest(owner).entries.values()]
    assert {(r.kind, golden.header(r)["version"]) for r in refs} == {
        k for k in KINDS if k[0] not in ("indexes", "backbones")
    }


def each_array(store: Store) -> list[tuple[str, Group, str]]:
    found = []
    for key, ref in store.slide("G1").entries.items():
        group = store.group(ref)
        for name in group.header["files"]:
            inside = name.removeprefix("zarr/").removesuffix("/zarr.json")
            if name.endswith("/zarr.json") and json.loads(group.bytes(name))["node_type"] == "array":
                found.append((f"{key} {inside}", group, inside))
    return found


@pytest.mark.parametrize("reader", ["histostore", "zarr"])
def test_every_array_has_the_known_values(golden: Store, reader: str) -> None:
    known = values_of(1)
    arrays = each_array(golden)
    texts = {label for label, group, name in arrays if group.array(name).spec.dtype == "string"}
    assert {label for label, _, _ in arrays} - texts == set(known)
    for label, group, name in arrays:
        got = group.read(name) if reader == "histostore" else zarr.open_group(group.path, mode="r")[name][...]
        if label in texts:
            continue
        assert got.dtype == known[label].dtype, label
        if label == "pixels/spots pixels":
            assert np.abs(got.astype(int) - known[label]).max() <= 6
            assert (got[~READABLE] == 0).all()
        else:
            np.testing.assert_array_equal(got, known[label], err_msg=label)


def test_both_readers_decode_the_same_pixels(golden: Store) -> None:
    group = golden.group(golden.slide("G1").find("pixels", "spots"))
    plain = zarr.open_group(group.path, mode="r")["pixels"]
    np.testing.assert_array_equal(group.read("pixels"), plain[:])
    assert plain.metadata.dimension_names == ("tile", "y", "x", "c")
    assert plain.shards == (4, 16, 16, 3)
    assert len([name for name in group.header["files"] if name.startswith("zarr/pixels/c/")]) == 2


def test_text_comes_back_as_it_was(golden: Store) -> None:
    points = golden.group(golden.slide("G1").find("points"))
    for got in (points.read("ids"), zarr.open_group(points.path, mode="r")["ids"][:]):
        assert got.tolist() == IDS
    assert points.attrs == {"assay": "visium", "pitch_um": 100.0, "spot_um": 55.0}


def test_anndata_opens_the_counts(golden: Store) -> None:
    adata = anndata.read_zarr(golden.group(golden.slide("G1").find("expression")).path)
    assert adata.obs_names.tolist() == IDS
    assert adata.var["symbols"].tolist() == ["ERBB2", "KRT8", "KRT8", "CD74"]
    dense = np.zeros((7, 4), np.int32)
    dense[I, I % 4] = I + 1
    np.testing.assert_array_equal(adata.X.toarray(), dense)
    assert adata.X.dtype == np.int32


def test_plain_files_and_the_past_are_there(golden: Store) -> None:
    regions = json.loads(golden.group(golden.slide("G1").find("regions")).bytes("regions.geojson"))
    assert regions["features"][0]["properties"]["name"] == "tumour"
    head = golden.group(golden.manifest("@heads").find("heads"))
    state = safetensors.numpy.load(head.bytes("state.safetensors"))
    np.testing.assert_array_equal(state["coef"], np.arange(6, dtype=np.float32).reshape(3, 2))
    patients = [golden.group(golden.manifest("G1", n).find("meta")).attrs["fields"]["patient"] for n in (1, 2, 3)]
    assert patients == ["A", "A", "B"]
    assert golden.slide("G1").number == 3


def test_the_script_still_makes_a_store_of_the_same_values(tmp_path: Path) -> None:
    import runpy

    make: Callable[[str], None] = runpy.run_path(str(GOLDEN / "make_v1.py"))["main"]
    make(str(tmp_path / "new"))
    made, kept = open_store(tmp_path / "new"), open_store(GOLDEN / "v1")
    for owner in ("G1", "@heads"):
        now, then = made.manifest(owner).entries, kept.manifest(owner).entries
        assert {k: r.digest for k, r in now.items()} == {k: r.digest for k, r in then.items()}
        for key, ref in now.items():
            old, new = kept.header(then[key]), made.header(ref)
            for same in ("kind", "version", "spec", "inputs", "engine", "rows", "attrs"):
                assert new[same] == old[same], (key, same)
            assert set(new["files"]) == set(old["files"]), key
