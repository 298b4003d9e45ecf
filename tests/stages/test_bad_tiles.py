"""A slide with a damaged tile is kept: that tile says so, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

import histostore as hs
from histostore.protocols import TileStatus
from histostore.store.verify import verify
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

PX = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Two slides of one image; in the second the JPEG data of one 256 px segment is zeroed."""
    folder = tmp_path_factory.mktemp("bad_tiles")
    image, _ = synthetic_histology(1024, 1024, seed=3, tissue_share=0.9)
    store = hs.create(folder / "store")
    points = "id,x,y\n" + "".join(f"p{i}-{j},{128 * i + 64},{128 * j + 64}\n" for i in range(8) for j in range(8))
    (folder / "points.csv").write_text(points + "edge,1020,500\n")
    for name in ("whole", "hurt"):
        path = write_pyramid_tiff(folder / f"{name}.tif", image, mpp=0.5, tile=256, levels=(1,))
        if name == "hurt":
            with tifffile.TiffFile(path) as tif:
                start, size = tif.pages[0].dataoffsets[5], tif.pages[0].databytecounts[5]
            data = bytearray(path.read_bytes())
            data[start : start + size] = bytes(size)
            path.write_bytes(data)
        spec = hs.pp.IngestSpec(allow_off_tissue=True)
        hs.pp.ingest(store, name, image=path, points=folder / "points.csv", spec=spec)
    hs.pp.tile(store, hs.TileSpec.at_spots(px=PX), pixels=hs.PixelSpec(codec="lossless"))
    hs.tl.embed(store, "testing")
    return store


def status_of(store: hs.Store, slide: str) -> np.ndarray:
    return store.group(store.slide(slide).find("embeddings")).read("status")


def test_only_the_tiles_of_the_damaged_segment_are_unreadable(store: hs.Store) -> None:
    """Segment 5 of a 4 x 4 layout covers x 256-512, y 256-512: four of the points."""
    names = store.view(tiles="spots", slides=["hurt"]).column("barcode")
    unreadable = names[status_of(store, "hurt") == TileStatus.UNREADABLE]
    assert sorted(unreadable) == ["p2-2", "p2-3", "p3-2", "p3-3"]
    assert not (status_of(store, "whole") == TileStatus.UNREADABLE).any()


def test_an_embedding_is_nan_exactly_where_its_tile_is_unreadable(store: hs.Store) -> None:
    values = store.view(backbone="testing", slides=["hurt"]).numpy()
    bad = status_of(store, "hurt") == TileStatus.UNREADABLE
    assert np.isnan(values[bad]).all()
    assert np.isfinite(values[~bad]).all()
    assert verify(store).ok


def test_all_other_tiles_are_as_on_the_whole_slide(store: hs.Store) -> None:
    good = status_of(store, "hurt") != TileStatus.UNREADABLE
    whole = store.view(backbone="testing", slides=["whole"]).numpy()
    hurt = store.view(backbone="testing", slides=["hurt"]).numpy()
    assert np.array_equal(whole[good], hurt[good])


def test_a_tile_that_sticks_out_says_so(store: hs.Store) -> None:
    statuses = store.view(tiles="spots", slides=["whole"]).where("barcode == 'edge'").column("status")
    assert statuses.tolist() == ["padded"]


def test_search_never_returns_an_unreadable_tile(store: hs.Store) -> None:
    hits = hs.tl.search(store, backbone="testing", slide="whole", spot="p2-2", k=200)
    assert len(hits.table) == 2 * 65 - 1 - 4
    assert not {"hurt:p2-2", "hurt:p2-3", "hurt:p3-2", "hurt:p3-3"} & set(hits.table.index)


def test_the_report_of_tile_counts_them(store: hs.Store) -> None:
    again = hs.pp.tile(store, "hurt", hs.TileSpec.at_spots(px=PX), pixels=hs.PixelSpec(codec="lossless"))
    assert again[0].done == "already there"
    assert again[0].report.counts["unreadable"] == 4
