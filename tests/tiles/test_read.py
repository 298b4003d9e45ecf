from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from histostore.errors import UsageError
from histostore.protocols import TileStatus
from histostore.slides import open_slide
from histostore.specs import MaskSpec, TileSpec
from histostore.tiles.mask import tissue_mask
from histostore.tiles.plan import corners, plan_tiles
from histostore.tiles.read import RESAMPLER, Foreseeing, is_blank, read_tiles
from histostore.units import plan_read

if TYPE_CHECKING:
    from pathlib import Path

BLOB = np.array([523.37, 441.81])
"""Where the dark spot of `blob` lies, (x, y), to a fraction of a pixel."""


def centroid(tile: np.ndarray) -> np.ndarray:
    dark = 255.0 - tile[..., 0]
    along = np.arange(len(tile)) + 0.5
    return np.array([(dark.sum(axis=0) * along).sum(), (dark.sum(axis=1) * along).sum()]) / dark.sum()


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def blob():
    y, x = np.mgrid[:1000, :1200] + 0.5
    dark = 220 * np.exp(-((x - BLOB[0]) ** 2 + (y - BLOB[1]) ** 2) / (2 * 11.0**2))
    return np.repeat(np.rint(255 - dark).astype(np.uint8)[..., None], 3, axis=2)


def test_native_tiles_are_the_slides_own_pixels(noise, slide_of):
    read = plan_read(0.5, (1.0,), out_px=64, mpp=0.5)
    pixels, status = read_tiles(slide_of(noise), read, np.array([[0.0, 0.0], [637, 3], [-10, 0], [640, 480]]))
    assert np.array_equal(pixels[0], noise[:64, :64])
    assert np.array_equal(pixels[1][:, :63], noise[3:67, 637:])
    assert np.array_equal(pixels[2][:, 10:], noise[:64, :54])
    assert (pixels[2][:, :10] == 255).all()
    assert status.tolist() == [TileStatus.OK, *[TileStatus.PADDED] * 3]


@pytest.mark.parametrize("mpp", [0.5, 0.8])
def test_tiles_are_the_same_where_the_next_ones_are_told(noise, tmp_path, mpp):
    tifffile.imwrite(tmp_path / "a.tif", noise, photometric="rgb", metadata=None, tile=(64, 64), compression="jpeg")
    read = plan_read(0.5, (1.0,), out_px=64, mpp=mpp)
    x, y = np.meshgrid(np.arange(0, 700, read.edge0), np.arange(0, 500, read.edge0))
    xy0 = np.floor(np.stack([x, y], axis=-1).reshape(-1, 2))
    with open_slide(tmp_path / "a.tif") as slide:
        assert isinstance(slide, Foreseeing)
        wanted, status = read_tiles(slide, read, xy0)
        begun = 0
        for start in range(0, len(xy0), 8):
            pixels, got = read_tiles(slide, read, xy0[start : start + 8], then=xy0[start + 8 :])
            begun += len(slide._begun)
            assert np.array_equal(pixels, wanted[start : start + 8])
            assert np.array_equal(got, status[start : start + 8])
    assert begun


def test_native_tiles_at_a_fraction_of_a_pixel_are_refused(noise, slide_of):
    with pytest.raises(UsageError, match="whole level-0 pixels"):
        read_tiles(slide_of(noise), plan_read(0.5, (1.0,), out_px=64, mpp=None), np.array([[0.5, 0.0]]))


@pytest.mark.parametrize("mpp", [0.4786, 0.501, 0.55, 1.0, 1.37, 2.9])
@pytest.mark.parametrize("levels", [1, 3])
def test_tiles_lie_where_they_should_to_a_twentieth_of_a_pixel(blob, slide_of, mpp, levels):
    slide = slide_of(blob, levels)
    assert slide.downsamples == pytest.approx((1, 2, 4)[:levels])
    read = plan_read(0.499, slide.downsamples, out_px=200, mpp=mpp, allow_upsample=True)
    assert read.level == (0 if levels == 1 or mpp < 0.99 else 2 if mpp > 2 else 1)
    shift = np.array([[0.0, 0.0], [0.25, 0.75], [0.37, -13.81], [-20.5, 7.01]])
    xy0 = corners(BLOB + shift, read)
    pixels, _ = read_tiles(slide, read, xy0)
    found = np.array([centroid(tile) for tile in pixels])
    expected = (BLOB - xy0) * read.out_px / read.edge0
    assert np.abs(found - expected).max() < 0.05


def test_neighbouring_resampled_tiles_join_without_a_seam(noise, slide_of):
    smooth = np.asarray(Image.fromarray(noise).resize((90, 60)).resize((700, 500), Image.Resampling.BICUBIC))
    slide = slide_of(smooth)
    read = plan_read(0.5, (1.0,), out_px=40, mpp=1.0)
    pixels, _ = read_tiles(slide, read, np.array([[100.0, 100], [180, 100], [140, 100]]))
    across = np.concatenate([pixels[0][:, 20:], pixels[1][:, :20]], axis=1)
    assert np.array_equal(across, pixels[2])


def test_the_white_beyond_the_border_does_not_leak_into_tiles_that_lie_inside(slide_of):
    dark = np.full((400, 600, 3), (60, 30, 90), dtype=np.uint8)
    read = plan_read(0.5, (1.0,), out_px=50, mpp=1.23)
    edge = np.array([600.0, 400.0]) - read.edge0
    pixels, status = read_tiles(slide_of(dark), read, np.array([[0.0, 0.0], edge, edge + 1.0]))
    assert (pixels[:2] == dark[0, 0]).all()
    assert status.tolist() == [TileStatus.BLANK, TileStatus.BLANK, TileStatus.PADDED]
    assert pixels[2].max() > 100


def test_the_bytes_do_not_depend_on_the_batch(noise, slide_of):
    slide = slide_of(noise, levels=2)
    xy0 = np.random.default_rng(1).random((64, 2)) * [720, 520] - 20
    for mpp, corner in ((None, np.floor(xy0)), (0.77, xy0), (1.9, xy0)):
        read = plan_read(0.5, slide.downsamples, out_px=32, mpp=mpp)
        whole = read_tiles(slide, read, corner)
        for batch in (1, 7):
            parts = [read_tiles(slide, read, corner[i : i + batch]) for i in range(0, 64, batch)]
            assert np.array_equal(np.concatenate([p for p, _ in parts]), whole[0])
            assert np.array_equal(np.concatenate([s for _, s in parts]), whole[1])


def test_a_large_reduction_is_read_piecewise_to_the_same_bytes(noise, slide_of, monkeypatch):
    slide = slide_of(noise)
    read = plan_read(0.1, (1.0,), out_px=16, mpp=1.0)
    xy0 = np.random.default_rng(1).random((9, 2)) * 300
    whole, _ = read_tiles(slide, read, xy0)
    monkeypatch.setattr("histostore.tiles.read._READ_BYTES", 1)
    assert np.array_equal(read_tiles(slide, read, xy0)[0], whole)


def test_only_tiles_read_well_become_blank(slide_of):
    rng = np.random.default_rng(0)
    image = (240 + rng.normal(0, 2, (300, 600, 3))).clip(0, 255).astype(np.uint8)
    image[:, 300:] = rng.integers(60, 200, (300, 300, 3))
    image[100:112, 50:62] = (90, 40, 120)  # one cell on glass is something
    read = plan_read(0.5, (1.0,), out_px=100, mpp=None)
    xy0 = np.array([[0.0, 200], [300, 0], [-1, 200], [0, 50], [100, 0]])
    _, status = read_tiles(slide_of(image), read, xy0)
    names = [TileStatus(s).name for s in status]
    assert names == ["BLANK", "OK", "PADDED", "OK", "BLANK"]


@pytest.mark.parametrize("mpp", [None, 0.77])
def test_a_broken_segment_makes_its_tiles_unreadable_and_zero_and_harms_no_other(noise, tmp_path, mpp):
    path = tmp_path / "broken.tif"
    tifffile.imwrite(path, noise, tile=(128, 128), photometric="rgb", compression="adobe_deflate")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages.first.dataoffsets[0]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(2000))
    read = plan_read(0.5, (1.0,), out_px=32, mpp=mpp)
    with open_slide(path) as slide:
        pixels, status = read_tiles(slide, read, np.array([[300.0, 300], [10, 10], [400, 300]]))
    assert status.tolist() == [TileStatus.OK, TileStatus.UNREADABLE, TileStatus.OK]
    assert (pixels[1] == 0).all()
    assert pixels[[0, 2]].std() > 20


def test_blank_is_a_standard_deviation_of_six():
    tile = np.full((20, 20, 3), 100, dtype=np.uint8)
    tile[:10, :, 1] = 112
    assert is_blank(tile)
    tile[:10, :, 1] = 113
    assert not is_blank(tile)
    assert RESAMPLER.startswith("pillow-")


@pytest.mark.real
def test_a_real_svs_is_native_at_half_a_micron_bit_for_bit_and_resampled_at_one(real_data: Path):
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide, openslide.OpenSlide(path) as other:
        mask = tissue_mask(slide, MaskSpec(), mpp=slide.mpp)
        where = {"size_px": slide.size_px, "slide_mpp": slide.mpp, "downsamples": slide.downsamples}
        native = plan_tiles(TileSpec.grid(px=224, mpp=0.5), mask=mask, source_digest="s", **where)
        assert (native.read.resample, native.read.mpp) == (False, 0.499)
        pixels, status = read_tiles(slide, native.read, native.xy0)
        assert (status == TileStatus.OK).all()
        for tile, (x, y) in zip(pixels, native.xy0.astype(int).tolist(), strict=True):
            assert np.array_equal(tile, np.asarray(other.read_region((x, y), 0, (224, 224)))[..., :3])
        half = plan_tiles(TileSpec.grid(px=112, mpp=1.0), mask=mask, source_digest="s", **where)
        assert half.read.resample
        assert half.read.edge0 == pytest.approx(224 / 0.998)
        reduced, _ = read_tiles(slide, half.read, half.xy0)
        # the same tissue at half the resolution has the same mean colour
        plain, _ = slide.read(np.rint(half.xy0).astype(np.int64), px=224)
        assert np.abs(reduced.mean(axis=(1, 2)) - plain.mean(axis=(1, 2))).max() < 1.5


@pytest.mark.real
def test_on_a_real_section_glass_is_blank_and_tissue_is_not(real_data: Path):
    with open_slide(real_data / "her2st" / "C3.jpg") as slide:
        mask = tissue_mask(slide, MaskSpec(), mpp=0.688)
        where = {"size_px": slide.size_px, "slide_mpp": 0.688, "downsamples": slide.downsamples}
        spec = TileSpec.grid(px=224, min_tissue=0, max_tiles=300)
        plan = plan_tiles(spec, mask=mask, source_digest="s", **where)
        _, status = read_tiles(slide, plan.read, plan.xy0)
    blank = status == TileStatus.BLANK
    assert blank[plan.tissue == 0].mean() > 0.85
    assert not blank[plan.tissue > 0.3].any()
