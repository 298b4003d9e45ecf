"""OME-TIFF and plain TIFF: resolution, levels, segments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from histostore.protocols import TileStatus
from histostore.slides import open_slide
from histostore.slides.tiff import TiffSlide
from histostore.slides.tiff_tables import ome_physical_size
from histostore.testing.slides import synthetic_histology

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


def test_a_segment_is_decoded_once_for_all_tiles_of_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(64, 64), compression="deflate")
    decoded: list[int] = []
    plane = TiffSlide._plane
    monkeypatch.setattr(TiffSlide, "_plane", lambda self, page, i: (decoded.append(i), plane(self, page, i))[1])
    xy0 = np.stack(np.meshgrid(np.arange(0, 640 - 50, 30), np.arange(0, 480 - 50, 30)), axis=-1).reshape(-1, 2)
    with TiffSlide(path) as slide:
        pixels, status = slide.read(np.random.default_rng(0).permutation(xy0), px=50)
    assert len(pixels) == 300
    assert not status.any()
    assert len(decoded) == len(set(decoded)) <= 80


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(64, 64), compression="deflate")
    monkeypatch.setattr("histostore.slides.tiff.CACHE_BYTES", 5 * 64 * 64 * 3)
    with TiffSlide(path) as slide:
        slide.read(np.array([[0, 0]]), px=400)
        assert len(slide._cache) == 5
        assert slide._cached_bytes == 5 * 64 * 64 * 3


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
