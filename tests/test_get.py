"""``hs.get``: embeddings go out as files of other tools, as the command writes them; which backbones there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.backbones.catalog import known
from histostore.errors import ConflictError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_python_and_the_command_line_write_the_same_files(
    embedded: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    store = hs.open(embedded)
    done = hs.get.export_features(store, tmp_path / "py", backbone="testing", format="trident", tiles="spots")
    assert [(r.slide, r.done) for r in done] == [("A1", "written"), ("B1", "written")]
    cli("export-features", embedded, "--backbone", "testing", "--format", "trident", "-o", tmp_path / "cli")
    for slide in store.slides():
        ours, theirs = (tmp_path / of / f"{slide}.h5" for of in ("py", "cli"))
        assert ours.read_bytes() == theirs.read_bytes()
        with h5py.File(ours) as h5:
            rows = store.view(backbone="testing", tiles="spots", slides=[slide]).numpy()
            np.testing.assert_array_equal(np.asarray(h5["features"]).reshape(rows.shape), rows)


def test_only_the_slides_asked_for_are_written_and_files_that_are_there_are_left(
    embedded: Path, tmp_path: Path
) -> None:
    store, how = hs.open(embedded), {"backbone": "testing", "format": "parquet"}
    hs.get.export_features(store, tmp_path, slides="B1", **how)
    assert [p.name for p in tmp_path.iterdir()] == ["B1.parquet"]
    before = (tmp_path / "B1.parquet").stat().st_mtime_ns
    with pytest.raises(ConflictError, match=r"B1\.parquet is there already") as caught:
        hs.get.export_features(store, tmp_path, **how)
    assert caught.value.__notes__ == ["slide 'B1', after 1 of 2 slides"]
    assert (tmp_path / "B1.parquet").stat().st_mtime_ns == before
    hs.get.export_features(store, tmp_path, slides=["B1"], overwrite=True, **how)
    assert (tmp_path / "B1.parquet").stat().st_mtime_ns > before


def test_a_call_that_cannot_be_right_writes_nothing(embedded: Path, tmp_path: Path) -> None:
    store, out = hs.open(embedded), tmp_path / "out"
    with pytest.raises(UsageError, match="no format 'trydent'; did you mean 'trident'"):
        hs.get.export_features(store, out, backbone="testing", format="trydent")
    with pytest.raises(NotFoundError, match="no slide 'Z9'"):
        hs.get.export_features(store, out, backbone="testing", format="clam", slides=["A1", "Z9"])
    with pytest.raises(UsageError, match="no slides in"):
        hs.get.export_features(hs.create(tmp_path / "empty"), out, backbone="testing", format="clam")
    assert not out.exists()


def test_slides_without_spots_or_tiles_are_in_the_table_of_slides(
    ingested: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    store = hs.open(copy_of(ingested))
    with h5py.File(tmp_path / "Z.h5", "w") as h5:
        h5["features"], h5["coords"] = np.ones((3, 4), np.float32), np.arange(6).reshape(3, 2) * 64
    hs.pp.import_features(store, tmp_path / "Z.h5", backbone="uni", px=64, mpp=0.5, meta={"patient": "Z"})
    table = hs.get.slides(store)
    assert table.index.tolist() == table["slide"].tolist() == ["A1", "B1", "Z"]
    assert table.loc["Z", "patient"] == "Z"
    assert hs.get.slides(hs.create(tmp_path / "empty")).empty


def test_the_table_of_backbones_is_the_catalogue_and_what_a_store_has_of_it(
    embedded: Path, copy_of: Callable[[Path], Path], cli: Callable[..., Any]
) -> None:
    table = hs.get.models()
    assert table.index.tolist() == [r.name for r in known()]
    assert table.loc["testing", "available"] == "here"
    assert "slides" not in table
    store = hs.open(copy_of(embedded))
    hs.tl.embed(store, "testing", slides="A1", tiles="spots")
    of_store = hs.get.models(store)
    assert of_store["slides"].sum() == of_store.loc["testing", "slides"] == 2
    pd.testing.assert_frame_equal(of_store.drop(columns="slides"), table)


def test_a_backbone_that_no_catalogue_knows_is_in_the_table_of_its_store(tmp_path: Path) -> None:
    store = hs.create(tmp_path / "S")
    with h5py.File(tmp_path / "A.h5", "w") as h5:
        h5["features"], h5["coords"] = np.ones((3, 4), np.float32), np.arange(6).reshape(3, 2) * 64
    hs.pp.import_features(store, tmp_path / "A.h5", backbone="ours-alone", px=64, mpp=0.5)
    line = hs.get.models(store).loc["ours-alone"]
    assert line["slides"] == 1
    assert pd.isna(line["dim"])
    assert hs.get.models(store)["dim"].dtype == "Int64"
