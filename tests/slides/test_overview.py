"""Overviews: exact means, every pyramid alike, bad tiles black and no larger than they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import UsageError
from histostore.slides import open_slide
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = synthetic_histology(1800, 1200, seed=7)[0]


def test_an_overview_is_the_mean_of_its_pixels(tmp_path: Path) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tif", IMAGE, levels=(1,), compression=None)
    with open_slide(path) as slide:
        wanted = IMAGE.reshape(400, 3, 600, 3, 3).mean(axis=(1, 3))
        assert np.abs(slide.thumbnail(600) - wanted).max() <= 1.5


def test_a_pyramid_and_a_single_level_look_alike(tmp_path: Path) -> None:
    one = write_pyramid_tiff(tmp_path / "a.tif", IMAGE, levels=(1,), compression=None)
    more = write_pyramid_tiff(tmp_path / "b.tif", IMAGE, levels=(1, 2, 4), compression=None)
    with open_slide(one) as a, open_slide(more) as b:
        for max_px in (1300, 333):
            x, y = a.thumbnail(max_px), b.thumbnail(max_px)
            assert x.shape == y.shape == (round(max_px * 2 / 3), max_px, 3)
            assert np.abs(x.astype(int) - y).mean() < 1


def test_max_px_is_positive(tmp_path: Path) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tif", IMAGE)
    with open_slide(path) as slide, pytest.raises(UsageError, match="max_px"):
        slide.thumbnail(0)
