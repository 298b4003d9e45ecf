"""OME-TIFF and plain TIFF: resolution, levels, segments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
import pytest
import tifffile

from histostore.protocols import TileStatus
from histostore.slides import open_slide
from histostore.slides.decode import buffer_for
from histostore.slides.decode import decoder_of as decode_of
from histostore.slides.tiff import TiffSlide
from histostore.slides.tiff_tables import ome_physical_size
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = synthetic_histology(640, 480, seed=6)[0]


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.25"', (0.25, 0.25)),
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="µm" PhysicalSizeY="250" PhysicalSizeYUnit="nm"', (0.25, 0.25)),
        ('PhysicalSizeX="0.0005" PhysicalSizeXUnit="mm" PhysicalSizeY="5e-5" PhysicalSizeYUnit="cm"', (0.5, 0.5)),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"', None),
        ('SizeX="640"', None),
    ],
    ids=["default_unit", "mixed", "mm_and_cm", "pixels", "none"],
)
def test_physical_size_is_read_in_its_unit(attributes: str, wanted: tuple[float, float] | None) -> None:
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels {attributes}/></Image></OME>'
    got = ome_physical_size(xml)
    assert got == (None if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(("unit", "per"), [("INCH", 25_400), ("CENTIMETER", 10_000)])
def test_resolution_tags_give_the_mpp(tmp_path: Path, unit: str, per: float) -> None:
    options: dict[str, Any] = {"resolution": (per / 0.69, per / 0.69), "resolutionunit": unit}
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="rgb", metadata=None, **options)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp == pytest.approx(0.69, rel=1e-4)
        assert slide.properties["histostore.mpp-origin"] == "tiff.XResolution/YResolution"


def test_reduced_pages_are_levels_and_labels_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": "lzw", "rowsperstrip": 32}
        file.write(IMAGE, **options)
        file.write(IMAGE[::4, ::4], subfiletype=1, **options)
        file.write(IMAGE[::2, ::2], subfiletype=1, **options)
        file.write(IMAGE[:100, :90], subfiletype=1, **options)
    with open_slide(path) as slide:
        assert slide.downsamples == (1.0, 2.0, 4.0)
        assert np.array_equal(slide.read(np.array([[80, 40]]), px=20, level=2)[0][0], IMAGE[40:120:4, 80:160:4])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note every segment that is decoded."""
    decoded: list[int] = []

    def decoder_of(page: Any, **options: Any) -> Any:
        decode = decode_of(page, **options)
        return lambda stored, segment, out: (decoded.append(segment), decode(stored, segment, out))[1]

    monkeypatch.setattr("histostore.slides.tiff.decoder_of", decoder_of)
    return decoded


@pytest.mark.parametrize("workers", [1, 3])
def test_a_segment_is_decoded_once_for_all_tiles_of_a_call(tmp_path: Path, counted: list[int], workers: int) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(64, 64), compression="deflate")
    xy0 = np.stack(np.meshgrid(np.arange(0, 640 - 50, 30), np.arange(0, 480 - 50, 30)), axis=-1).reshape(-1, 2)
    order = np.random.default_rng(0).permutation(len(xy0))
    with TiffSlide(path, workers=workers) as slide:
        pixels, status = slide.read(xy0[order], px=50)
    assert len(pixels) == 300
    assert not status.any()
    assert len(counted) == len(set(counted)) <= 80
    for tile, (x, y) in zip(pixels, xy0[order].tolist(), strict=True):
        assert np.array_equal(tile, IMAGE[y : y + 50, x : x + 50])


@pytest.mark.parametrize("stride", [48, 24])
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_batches_in_the_order_of_rows_decode_each_segment_once(
    tmp_path: Path, counted: list[int], batch: int, stride: int
) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tif", IMAGE, tile=64, levels=(1,))
    x, y = np.meshgrid(np.arange(0, 640, stride), np.arange(0, 480, stride))
    xy0 = np.stack([x, y], axis=-1).reshape(-1, 2)
    with open_slide(path) as slide:
        for start in range(0, len(xy0), batch):
            slide.read(xy0[start : start + batch], px=48)
    assert len(counted) == len(set(counted)) == 80


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("batch", "stride"), [(1, 48), (7, 48), (40, 48), (7, 24), (300, 48)])
def test_expected_batches_are_the_same_and_no_segment_is_held_for_them(
    tmp_path: Path, counted: list[int], batch: int, stride: int, workers: int
) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tif", IMAGE, tile=64, levels=(1,))
    x, y = np.meshgrid(np.arange(-10, 640, stride), np.arange(0, 480, stride))
    xy0 = np.stack([x, y], axis=-1).reshape(-1, 2)
    with TiffSlide(path, form="openslide") as slide:
        wanted, status = slide.read(xy0, px=48)
    counted.clear()
    with TiffSlide(path, form="openslide", workers=workers) as slide:
        got = []
        for start in range(0, len(xy0), batch):
            slide.expect(xy0[start + batch :], px=48)
            got.append(slide.read(xy0[start : start + batch], px=48))
            if len(xy0) - start - batch > 5 * len(x[0]):  # at the end nobody says that there are no more
                assert len(slide._cache) == 0
        assert slide._begun == []
    assert np.array_equal(np.concatenate([p for p, _ in got]), wanted)
    assert np.array_equal(np.concatenate([s for _, s in got]), status)
    assert len(counted) == len(set(counted)) == 80


def test_what_is_expected_in_vain_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tif", IMAGE, tile=64, levels=(1, 2))
    xy0 = np.random.default_rng(0).integers(-20, 480, (60, 2))
    rows = xy0[np.argsort(xy0[:, 1])]
    with TiffSlide(path, form="openslide") as slide:
        wanted = slide.read(rows, px=50)[0]
        small = slide.read(rows, px=50, level=1)[0]
    with TiffSlide(path, form="openslide") as slide:
        for level, px in ((0, 50), (0, 49), (1, 50)):
            slide.expect(rows[10:], px=px, level=level)
            assert np.array_equal(slide.read(rows[:10], px=50)[0], wanted[:10])
            assert np.array_equal(slide.read(rows[10:25], px=50)[0], wanted[10:25])
        slide.expect(rows[:10], px=50)
        first, _ = slide.read(rows[:10], px=50)
        again, _ = slide.read(rows[:10], px=50)
        assert not np.shares_memory(first, again)
        assert np.array_equal(first, again)
        slide.expect(rows[10:], px=50, level=1)
        assert np.array_equal(slide.read(rows[:10], px=50, level=1)[0], small[:10])
        slide.expect(xy0[10:], px=50)
        slide.read(xy0[:10], px=50)
        assert slide._begun == []
        monkeypatch.setattr("histostore.slides.tiff.MAX_BEGUN_BYTES", 10 * 50 * 50 * 3)
        slide.expect(rows[10:], px=50)
        slide.read(rows[:10], px=50)
        assert [len(tiles.low) for tiles in slide._begun] == [10]


def test_tiles_begun_from_a_damaged_segment_are_unreadable(tmp_path: Path) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tif", IMAGE, tile=64, levels=(1,))
    with tifffile.TiffFile(path) as file:
        at = file.pages.first.dataoffsets[0]  # type: ignore[union-attr]
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(bytes(40))
    xy0 = np.array([[0, 0], [70, 0], [0, 50], [70, 50]])
    with TiffSlide(path, form="openslide") as slide:
        slide.expect(xy0[2:], px=50)
        first = slide.read(xy0[:2], px=50)
        pixels, status = slide.read(xy0[2:], px=50)
    assert first[1].tolist() == status.tolist() == [TileStatus.UNREADABLE, TileStatus.OK]
    assert not pixels[0].any()
    assert pixels[1].any()


def test_jpegs_are_decoded_where_libjpeg_turbo_keeps_to_the_caches() -> None:
    for shape in ((64, 64), (256, 240), (16, 16)):
        buffer = buffer_for(shape)
        assert buffer.shape == (*shape, 3)
        assert buffer.flags.c_contiguous
        assert {(buffer.ctypes.data + row * buffer.strides[0]) % 16 for row in range(shape[0])} == {8}


def test_the_cache_is_bounded_and_a_small_one_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(64, 64), compression="deflate")
    for name in ("MIN_CACHE_BYTES", "MAX_CACHE_BYTES"):
        monkeypatch.setattr(f"histostore.slides.tiff.{name}", 5 * 64 * 64 * 3)
    with TiffSlide(path, workers=2) as slide:
        for _ in range(2):
            assert np.array_equal(slide.read(np.array([[0, 0]]), px=400)[0][0], IMAGE[:400, :400])
            assert len(slide._cache) == 5
            assert slide._cache.nbytes == 5 * 64 * 64 * 3


OPENSLIDE_KNOWS: list[Any] = [
    pytest.param({"compression": "jpeg"}, "generic-tiff", id="jpeg_420"),
    pytest.param({"compression": "jpeg", "subsampling": (1, 1)}, "generic-tiff", id="jpeg_444"),
    pytest.param({"compression": "jpeg", "subsampling": (2, 1)}, "generic-tiff", id="jpeg_422"),
    pytest.param(
        {"compression": "jpeg", "compressionargs": {"colorspace": "RGB", "outcolorspace": "RGB"}},
        "generic-tiff",
        id="jpeg_rgb",
    ),
    pytest.param({"compression": "lzw"}, "generic-tiff", id="lzw"),
    pytest.param({"compression": "deflate", "predictor": True}, "generic-tiff", id="deflate"),
    pytest.param({}, "generic-tiff", id="uncompressed"),
    pytest.param({"compression": 33005, "compressionargs": {"level": 40}}, "aperio", id="jpeg_2000"),
    pytest.param({"compression": "jpeg"}, "aperio", id="svs_jpeg"),
]


@pytest.mark.parametrize(("options", "vendor"), OPENSLIDE_KNOWS)
def test_pixels_are_openslides_bit_for_bit(tmp_path: Path, options: dict[str, Any], vendor: str) -> None:
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v0\r\n640x480 [0,0 640x480] (128x128)|AppMag = 20|MPP = 0.5"
    more: dict[str, Any] = {"description": text} if vendor == "aperio" else {}
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, tile=(128, 128), **more, **options)
    assert openslide.OpenSlide.detect_format(path) == vendor
    xy0 = np.random.default_rng(0).integers(-30, (610, 450), (30, 2))
    with open_slide(path, workers=2) as slide, openslide.OpenSlide(path) as theirs:
        assert slide.reader.startswith("tifffile")
        assert slide.mpp == (0.5 if vendor == "aperio" else None)
        pixels, status = slide.read(xy0, px=96)
        assert set(status.tolist()) == {TileStatus.OK, TileStatus.PADDED}
        for tile, (x, y) in zip(pixels, xy0.tolist(), strict=True):
            rgba = np.asarray(theirs.read_region((x, y), 0, (96, 96)))
            inside = rgba[..., 3] == 255
            assert np.array_equal(tile[inside], rgba[inside][:, :3])
            assert (tile[~inside] == 255).all()


def test_svs_with_ycbcr_jpeg_2000_is_left_to_openslide(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    tifffile.imwrite(
        path, IMAGE, photometric="rgb", metadata=None, tile=(128, 128), compression=33003, description="Aperio x"
    )
    with open_slide(path) as slide:
        assert slide.reader.startswith("openslide")


def test_pixels_stay_the_callers_while_any_view_of_them_lives(tmp_path: Path) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tif", IMAGE, tile=64, levels=(1,))
    here, there = np.array([[0, 0], [64, 64]]), np.array([[300, 200], [500, 300]])
    with open_slide(path) as slide:
        wanted = slide.read(here, px=64)[0].copy()
        part = slide.read(here, px=64)[0][1:, ::2]
        for _ in range(5):
            slide.read(there, px=64)
        assert np.array_equal(part, wanted[1:, ::2])
    assert np.array_equal(part, wanted[1:, ::2])


def test_rgba_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.full((480, 640, 1), 255, np.uint8)
    alpha[:240] = 0
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"extrasamples": ["unassalpha"], "compression": "lzw", "rowsperstrip": 40}
    tifffile.imwrite(path, np.concatenate([IMAGE, alpha], axis=2), photometric="rgb", metadata=None, **options)
    with open_slide(path) as slide:
        pixels, status = slide.read(np.array([[100, 100], [100, 300]]), px=64)
        assert (pixels[0] == 255).all()
        assert np.array_equal(pixels[1], IMAGE[300:364, 100:164])
        assert status.tolist() == [TileStatus.OK] * 2


def test_stripped_jpeg_is_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        IMAGE,
        photometric="rgb",
        metadata=None,
        compression="jpeg",
        compressionargs={"level": 98},
        rowsperstrip=64,
    )
    with open_slide(path) as slide:
        assert slide.reader.startswith("tifffile")
        pixels, _ = slide.read(np.array([[300, 200]]), px=128)
        assert np.abs(pixels[0].astype(int) - IMAGE[200:328, 300:428]).mean() < 4
