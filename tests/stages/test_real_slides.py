"""The real SVS and the real Visium folder, through the stages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
import pandas as pd
import pytest
import scipy.io
from PIL import Image

import histostore as hs
from histostore.backbones import load_backbone
from histostore.specs import PixelSpec, TileSpec
from histostore.stages.embed import embed
from histostore.stages.pixels import plan_of
from histostore.stages.source import open_source
from histostore.stages.tile import tile
from histostore.store.store import open_store
from histostore.testing.slides import write_pyramid_tiff
from histostore.tiles.read import read_tiles

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.store.store import Store

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def cmu(real_data: Path, tmp_path_factory: pytest.TempPathFactory, cli: Any) -> Store:
    store = tmp_path_factory.mktemp("cmu") / "store"
    cli("init", store)
    cli("ingest", store, "--slide", "CMU", "--image", real_data / "slides" / "CMU-1-Small-Region.svs")
    return open_store(store)


@pytest.fixture(scope="module")
def by_openslide(real_data: Path) -> Any:
    with openslide.OpenSlide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:

        def read(xy0: np.ndarray, px: int) -> np.ndarray:
            regions = [slide.read_region(tuple(map(int, xy)), 0, (px, px)) for xy in xy0]
            return np.stack([np.asarray(r)[..., :3] for r in regions])

        yield read


def test_half_a_micron_is_native_and_bit_identical_to_openslide(cmu: Store, by_openslide: Any) -> None:
    spec = TileSpec.grid(px=224, mpp=0.5, min_tissue=0.1)
    for codec in ("lossless", "slide"):
        tile(cmu, "CMU", spec, pixels=PixelSpec(codec=codec), name=codec)
        tiles = cmu.group(cmu.slide("CMU").find("tiles", codec))
        assert not tiles.attrs["resample"]
        assert tiles.attrs["mpp"] == pytest.approx(0.499)
        xy0 = tiles.read("geometry")[:, 2:4]
        assert len(xy0) > 20
        assert (xy0 == np.rint(xy0)).all()
        if codec == "lossless":
            stored = cmu.group(cmu.slide("CMU").find("pixels", codec)).read("pixels")
        else:
            with open_source(cmu, cmu.slide("CMU")) as slide:
                stored, _ = read_tiles(slide, plan_of(tiles.attrs), xy0)
        assert np.array_equal(stored, by_openslide(xy0, 224))


def test_one_micron_is_resampled_and_says_so(cmu: Store, by_openslide: Any) -> None:
    result = tile(cmu, "CMU", TileSpec.grid(px=224, mpp=1.0, min_tissue=0.1), pixels=PixelSpec(codec="lossless"))
    tiles = cmu.group(cmu.slide("CMU").find("tiles", "grid@1"))
    assert tiles.attrs["resample"]
    assert tiles.attrs["mpp"] == 1.0
    pixels = cmu.group(result.refs[-1])
    assert "none" not in pixels.header["engine"]["resampler"]
    # the same place at half the size: alike in the mean, and not the native pixels
    xy0, edge0 = tiles.read("geometry")[:, 2:4], tiles.attrs["edge0"]
    native = by_openslide(np.rint(xy0), round(edge0))
    stored = pixels.read("pixels")
    assert np.abs(stored.mean((1, 2)) - native.mean((1, 2))).max() < 2.0


def test_tiles_read_from_the_slide_embed_as_stored_ones(cmu: Store) -> None:
    found = {}
    for codec in ("lossless", "slide"):
        tile(cmu, "CMU", TileSpec.grid(px=224, mpp=0.5, min_tissue=0.1), pixels=PixelSpec(codec=codec), name=codec)
        ref = embed(cmu, "CMU", [load_backbone("testing")], tiles=codec)[0].refs[0]
        found[codec] = cmu.group(ref).read("embedding")
    assert np.array_equal(found["lossless"], found["slide"])


@pytest.fixture(scope="module")
def visium_image(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The low-resolution image enlarged to the size that the spots' coordinates are of."""
    spatial = real_data / "visium_mini" / "outs" / "spatial"
    scale = 1 / json.loads((spatial / "scalefactors_json.json").read_text())["tissue_lowres_scalef"]
    small = np.asarray(Image.open(spatial / "tissue_lowres_image.png").convert("RGB"))
    height, width = (round(n * scale) for n in small.shape[:2])
    columns = np.minimum((np.arange(width) / scale).astype(int), small.shape[1] - 1)

    def rows(top: int, bottom: int) -> np.ndarray:
        lines = np.minimum((np.arange(top, min(bottom, height)) / scale).astype(int), small.shape[0] - 1)
        return small[lines[:, None], columns]

    path = tmp_path_factory.mktemp("visium") / "enlarged.tif"
    return write_pyramid_tiff(path, rows, size_px=(width, height), tile=512)


def test_visium_spots_and_counts_are_joined_by_barcode(
    real_data: Path, visium_image: Path, tmp_path: Path, cli: Any
) -> None:
    outs, store = real_data / "visium_mini" / "outs", tmp_path / "store"
    cli("init", store)
    done = cli("ingest", store, "--slide", "V1", "--image", visium_image, "--visium", outs, "--json")
    told = json.loads(done.stdout)
    assert told["rows"] == 50
    assert told["report"]["counts"]["matched"] == 50
    rows = hs.open(store).view()
    assert rows.column("in_tissue").sum() == 22
    raw = outs / "raw_feature_bc_matrix"
    barcodes = (raw / "barcodes.tsv").read_text().split()
    genes = [line.split("\t")[0] for line in (raw / "features.tsv").read_text().splitlines()]
    matrix = pd.DataFrame(
        scipy.io.mmread(raw / "matrix.mtx", spmatrix=False).toarray().T, index=barcodes, columns=genes
    )
    adata = rows.to_adata(images=False)
    found = pd.DataFrame(adata.X.toarray(), index=adata.obs["barcode"].to_list(), columns=adata.var["gene_ids"])
    assert (found.loc[barcodes, genes] == matrix).all(axis=None)
    place = pd.read_csv(outs / "spatial" / "tissue_positions_list.csv", header=None, index_col=0)
    wanted = place.loc[adata.obs["barcode"].to_list(), [5, 4]].to_numpy()
    assert np.array_equal(adata.obsm["spatial"], wanted)
    tiles = cli("tile", store, "--at", "spots", "--px", 128, "--json")
    assert json.loads(tiles.stdout)["rows"] == 22


def test_the_low_resolution_image_of_visium_is_refused_in_one_line(real_data: Path, tmp_path: Path, cli: Any) -> None:
    outs, store = real_data / "visium_mini" / "outs", tmp_path / "store"
    cli("init", store)
    image = outs / "spatial" / "tissue_lowres_image.png"
    refused = cli("ingest", store, "--slide", "V1", "--image", image, "--visium", outs, code=3)
    (line,) = [line for line in refused.stderr.splitlines() if "error" in line]
    assert "50 of 50 spots" in line
    assert "full-resolution image" in line
    assert not (store / "slides").exists()
