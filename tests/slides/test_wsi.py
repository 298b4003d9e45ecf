"""Scanner files: bits are openslide's own, resolution is the file's or a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openslide
import pytest
import tifffile

from histostore.protocols import TileStatus
from histostore.slides import open_slide
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = synthetic_histology(600, 400, seed=4)[0]


@pytest.mark.real
def test_a_real_svs_is_bit_identical_to_openslide(real_data: Path) -> None:
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    xy0 = np.random.default_rng(0).integers(0, (2220 - 224, 2967 - 224), (60, 2))
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        assert slide.size_px == (2220, 2967)
        assert slide.mpp == 0.499
        assert slide.reader.startswith("tifffile")
        said = {k: v for k, v in slide.properties.items() if k.startswith(("openslide.", "aperio."))}
        assert said["openslide.objective-power"] == "20"
        assert said.items() <= dict(theirs.properties).items()
        pixels, status = slide.read(xy0, px=224)
        assert not status.any()
        for tile, (x, y) in zip(pixels, xy0.tolist(), strict=True):
            rgba = np.asarray(theirs.read_region((x, y), 0, (224, 224)))
            assert np.array_equal(tile, rgba[..., :3])


@pytest.mark.real
def test_a_real_svs_past_its_edge_is_white_and_padded(real_data: Path) -> None:
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        pixels, status = slide.read(np.array([[2120, 100], [-100, -100]]), px=200)
        assert status.tolist() == [TileStatus.PADDED] * 2
        assert (pixels[0, :, 100:] == 255).all()
        assert not (pixels[0, :, :100] == 255).all()
        assert (pixels[1, :100] == 255).all()
        assert slide.thumbnail(256).shape == (256, round(256 * 2220 / 2967), 3)


@pytest.mark.real
def test_half_of_a_real_svs_is_refused(real_data: Path, tmp_path: Path) -> None:
    whole = (real_data / "slides" / "CMU-1-Small-Region.svs").read_bytes()
    for share in (0.3, 0.6, 0.95):
        (tmp_path / "a.svs").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match="truncated"):
            open_slide(tmp_path / "a.svs")


@pytest.mark.real
def test_a_corrupt_tile_of_a_real_svs_costs_itself_alone(real_data: Path, tmp_path: Path) -> None:
    source, path = real_data / "slides" / "CMU-1-Small-Region.svs", tmp_path / "a.svs"
    raw = bytearray(source.read_bytes())
    with tifffile.TiffFile(source) as file:
        offset, count = file.pages.first.dataoffsets[35], file.pages.first.databytecounts[35]
    raw[offset : offset + count] = bytes(count)
    path.write_bytes(raw)
    # tile 35 of rows of 10: column 5, row 3, 240 px each
    xy0 = np.array([[0, 0], [1210, 730], [1000, 700], [1000, 800], [2000, 2000]])
    with open_slide(path) as slide, open_slide(source) as whole:
        pixels, status = slide.read(xy0, px=200)
        wanted, _ = whole.read(xy0, px=200)
        assert status.tolist() == [0, TileStatus.UNREADABLE, 0, 0, 0]
        fine = status == TileStatus.OK
        assert np.array_equal(pixels[fine], wanted[fine])
        assert not pixels[1].any()


def test_levels_of_a_pyramid_are_openslides(tmp_path: Path) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tif", IMAGE, mpp=0.25, tile=64, levels=(1, 2, 4))
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        assert slide.mpp == pytest.approx(0.25)
        assert slide.downsamples == (1.0, 2.0, 4.0)
        for level in range(3):
            pixels, _ = slide.read(np.array([[120, 80]]), px=50, level=level)
            rgba = np.asarray(theirs.read_region((120, 80), level, (50, 50)))
            assert np.array_equal(pixels[0], rgba[..., :3])


@pytest.mark.parametrize(
    ("resolution", "unit", "why"),
    [((72, 72), "INCH", "352.778"), (None, "NONE", "does not say"), ((1e6, 1e6), "CENTIMETER", "0.01 µm per pixel")],
    ids=["72_dpi", "none", "too_fine"],
)
@pytest.mark.parametrize("tile", [(128, 128), None], ids=["tiled", "stripped"])
def test_resolution_no_slide_can_have_is_none_with_the_reason(
    tmp_path: Path, resolution: tuple[float, float] | None, unit: str, why: str, tile: tuple[int, int] | None
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        IMAGE,
        photometric="rgb",
        metadata=None,
        tile=tile,
        resolution=resolution,
        resolutionunit=unit,
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp is None
        assert why in slide.properties["histostore.mpp-origin"]


def test_what_was_not_scanned_is_white(tmp_path: Path) -> None:
    """A sparse tile: legal, no bytes, no error."""
    path = write_pyramid_tiff(tmp_path / "a.svs", IMAGE, tile=64, levels=(1,), vendor="aperio")
    with tifffile.TiffFile(path) as file:
        tag = file.pages.first.tags["TileByteCounts"]
        counts, offset, size = list(tag.value), tag.valueoffset, {3: 2, 4: 4}[int(tag.dtype)]
    counts[3] = 0
    raw = bytearray(path.read_bytes())
    raw[offset : offset + size * len(counts)] = np.array(counts, f"<u{size}").tobytes()
    path.write_bytes(raw)
    with open_slide(path) as slide:
        pixels, status = slide.read(np.array([[3 * 64, 0]]), px=64)
        assert (pixels == 255).all()
        assert status.tolist() == [TileStatus.OK]
