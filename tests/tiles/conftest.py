"""Slides of known content, written to real files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from PIL import Image

from histostore.slides import open_slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.protocols import Slide


@pytest.fixture
def slide_of(tmp_path: Path) -> Iterator[Callable[..., Slide]]:
    """Return a function that writes an image (with `levels` halvings where asked) and opens it as a slide."""
    opened: list[Slide] = []

    def make(image: NDArray[np.uint8], levels: int = 1) -> Slide:
        path = tmp_path / f"slide{len(opened)}.{'png' if levels == 1 else 'ome.tif'}"
        if levels == 1:
            Image.fromarray(image).save(path, compress_level=1)
        else:
            _write_pyramid(path, image, levels)
        opened.append(open_slide(path))
        return opened[-1]

    yield make
    for slide in opened:
        slide.close()


def _write_pyramid(path: Path, image: NDArray[np.uint8], levels: int) -> None:
    with tifffile.TiffWriter(path, ome=True) as tif:
        how = {"tile": (128, 128), "photometric": "rgb", "metadata": {"axes": "YXS"}}
        tif.write(image, subifds=levels - 1, **how)
        for level in range(1, levels):
            height, width = (n >> level for n in image.shape[:2])
            smaller = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
            tif.write(np.asarray(smaller), subfiletype=1, **how)


@pytest.fixture(scope="session")
def tissue_picture() -> NDArray[np.uint8]:
    """``(600, 800, 3)``: glass with a textured disc of H&E colours, centre (400, 300), radius 150."""
    rng = np.random.default_rng(0)
    glass = np.array([243, 240, 242]) + rng.normal(0, 1, (600, 800, 1))
    mix = rng.random((150, 200, 1)).repeat(4, axis=0).repeat(4, axis=1)
    tissue = mix * [95, 60, 140] + (1 - mix) * [225, 150, 190]
    y, x = np.mgrid[:600, :800]
    inside = ((x + 0.5 - 400) ** 2 + (y + 0.5 - 300) ** 2 <= 150**2)[..., None]
    return np.where(inside, tissue, glass).clip(0, 255).astype(np.uint8)
