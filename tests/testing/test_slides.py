"""Synthetic slides: what is drawn follows the truth, and what is written opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openslide
import pytest

from histostore.errors import UsageError
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from pathlib import Path


def test_the_seed_fixes_every_pixel() -> None:
    one, two, other = (synthetic_histology(300, 200, seed=s)[0] for s in (1, 1, 2))
    assert one.shape == (200, 300, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_morphology_follows_the_latents() -> None:
    """Nuclei (dark in red) follow the first, the green of the stroma the third."""
    image, truth = synthetic_histology(1200, 1200, seed=8)
    xy = np.stack(np.meshgrid(np.arange(50, 1150, 50.0), np.arange(50, 1150, 50.0)), axis=-1).reshape(-1, 2)
    xy = xy[truth.on_tissue(xy)]
    latents = truth.at(xy)
    tiles = [image[int(y) - 24 : int(y) + 24, int(x) - 24 : int(x) + 24] for x, y in xy]
    nuclei = np.array([(tile[..., 0] < 170).mean() for tile in tiles])
    stroma = np.array([np.median(tile[..., 1]) for tile in tiles])
    assert np.corrcoef(nuclei, latents[:, 0])[0, 1] > 0.5
    assert np.corrcoef(nuclei, latents[:, 1])[0, 1] > 0.2
    assert np.corrcoef(stroma, latents[:, 2])[0, 1] < -0.6


def test_glass_is_bright_and_tissue_is_not() -> None:
    image, truth = synthetic_histology(800, 600, seed=9, tissue_share=0.4)
    small = image.reshape(75, 8, 100, 8, 3).mean(axis=(1, 3))
    assert truth.tissue.mean() == pytest.approx(0.4, abs=0.01)
    assert small[~truth.tissue].mean() > 235
    assert np.median(small[truth.tissue][:, 1]) < 200


def test_a_pyramid_from_a_function_equals_one_from_an_array(tmp_path: Path) -> None:
    image, _ = synthetic_histology(1300, 700, seed=10)
    bands: list[int] = []

    def rows(top: int, bottom: int) -> np.ndarray:
        bands.append(bottom - top)
        return image[top:bottom]

    one = write_pyramid_tiff(tmp_path / "a.tif", image, mpp=0.5)
    two = write_pyramid_tiff(tmp_path / "b.tif", rows, size_px=(1300, 700), mpp=0.5)
    assert one.read_bytes() == two.read_bytes()
    assert max(bands) <= 256
    with openslide.OpenSlide(one) as slide:
        assert slide.level_dimensions == ((1300, 700), (325, 175))


def test_levels_rise_from_one(tmp_path: Path) -> None:
    image, _ = synthetic_histology(64, 64, seed=1)
    with pytest.raises(UsageError, match="rising"):
        write_pyramid_tiff(tmp_path / "a.tif", image, levels=(1, 4, 2))
