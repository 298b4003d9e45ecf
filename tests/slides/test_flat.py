"""Flat images in the forms they come in."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from histostore.slides import open_slide
from histostore.testing.slides import synthetic_histology

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = synthetic_histology(160, 96, seed=5)[0]


def read_all(path: Path) -> np.ndarray:
    with open_slide(path) as slide:
        return slide.read(np.array([[0, 0]]), px=160)[0][0, : slide.size_px[1]]


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = np.ascontiguousarray(IMAGE[..., 1])
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(grey))
    assert np.array_equal(read_all(tmp_path / "a.png"), np.repeat(grey[..., None], 3, axis=2))


def test_sixteen_bits_become_the_upper_eight(tmp_path: Path) -> None:
    wide = IMAGE.astype(np.uint16) * 256 + 77
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(wide))
    assert np.array_equal(read_all(tmp_path / "a.png"), IMAGE)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.full((96, 160, 1), 255, np.uint8)
    alpha[:, :40], alpha[:, 40:80] = 0, 51
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.concatenate([IMAGE, alpha], axis=2)))
    got = read_all(tmp_path / "a.png")
    assert (got[:, :40] == 255).all()
    assert np.abs(got[:, 40:80] - (IMAGE[:, 40:80] * 0.2 + 255 * 0.8)).max() <= 0.5
    assert np.array_equal(got[:, 80:], IMAGE[:, 80:])


def test_a_palette_becomes_rgb(tmp_path: Path) -> None:
    palette = Image.fromarray(IMAGE).quantize(16)
    palette.save(tmp_path / "a.png")
    assert np.array_equal(read_all(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))


def test_orientation_is_told_and_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "JPEG", exif=exif.tobytes(), quality=95)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    with open_slide(tmp_path / "a.jpg") as slide:
        assert slide.size_px == (160, 96)
        assert slide.properties["exif.Orientation"] == "6"
        assert slide.mpp is None


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_bytes_after_the_image_do_no_harm(tmp_path: Path, progressive: bool) -> None:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "JPEG", progressive=progressive)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue() + bytes(100))
    assert read_all(tmp_path / "a.jpg").shape == (96, 160, 3)


def test_a_jpeg_named_png_is_read_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(imagecodecs.jpeg_encode(IMAGE))
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.properties["histostore.format"] == "JPEG"


@pytest.mark.real
def test_a_real_section_reads_as_pillow_decodes_it(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**28)
    path = real_data / "her2st" / "C2.jpg"
    with open_slide(path) as slide, Image.open(path) as theirs:
        assert slide.size_px == theirs.size
        tile = slide.read(np.array([[6930 - 112, 3510 - 112]]), px=224)[0][0]
        wanted = np.asarray(theirs.crop((6930 - 112, 3510 - 112, 6930 + 112, 3510 + 112)))
        assert np.abs(tile.astype(int) - wanted).max() <= 2
