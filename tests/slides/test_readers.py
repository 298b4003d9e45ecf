"""Each reader under the one contract, in the forms its formats come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import imagecodecs
import numpy as np
import tifffile

from histostore.slides import open_slide
from histostore.slides.choose import open_ranges
from histostore.slides.ranges import FileRanges
from histostore.slides.wsi import OpenSlideSlide
from histostore.testing.contracts import SlideContract
from histostore.testing.slides import write_pyramid_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.protocols import Slide


def damage(path: Path, segment: int) -> None:
    """Zero the second half of a tile or strip of the first page."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offset, count = page.dataoffsets[segment], page.databytecounts[segment]
    with path.open("r+b") as raw:
        raw.seek(offset + count // 2)
        raw.write(bytes(count - count // 2))


def edge_filled(image: NDArray[np.uint8], edge: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of an image; tifffile itself fills the last ones with black, which JPEG would smear inwards."""
    height, width, _ = image.shape
    whole = np.pad(image, ((0, -height % edge), (0, -width % edge), (0, 0)), mode="edge")
    for y in range(0, height, edge):
        for x in range(0, width, edge):
            yield np.ascontiguousarray(whole[y : y + edge, x : x + edge])


class TestJpeg(SlideContract):
    tolerance = 6

    def make_slide(self, folder: Path, image: NDArray[np.uint8]) -> Slide:
        path = folder / "a.jpg"
        path.write_bytes(imagecodecs.jpeg_encode(image, level=95, subsampling="444"))
        return open_slide(path)


class TestPng(SlideContract):
    def make_slide(self, folder: Path, image: NDArray[np.uint8]) -> Slide:
        path = folder / "a.png"
        path.write_bytes(imagecodecs.png_encode(image))
        return open_slide(path)


class TestTiledTiff(SlideContract):
    """JPEG-tiled TIFF as any program writes it: decoded by segment, in two threads."""

    tolerance = 8
    vendor: ClassVar[Any] = "generic"
    reader: ClassVar[str] = "tifffile"

    def make_slide(self, folder: Path, image: NDArray[np.uint8]) -> Slide:
        path = write_pyramid_tiff(folder / "a.tif", image, mpp=0.5, tile=64, levels=(1, 4), vendor=self.vendor)
        return self.opened(path)

    def opened(self, path: Path) -> Slide:
        slide = open_slide(path, workers=2)
        assert slide.reader.startswith(self.reader)
        return slide

    def make_damaged(self, folder: Path, image: NDArray[np.uint8]) -> tuple[Slide, tuple[int, int]]:
        path = write_pyramid_tiff(folder / "a.tif", image, mpp=0.5, tile=64, vendor=self.vendor, levels=(1,))
        damage(path, 11 * 2 + 3)
        return self.opened(path), (3 * 64 + 32, 2 * 64 + 32)


class TestAperio(TestTiledTiff):
    vendor = "aperio"


class TestOpenSlide(TestTiledTiff):
    """What openslide itself makes of a file; its threads have a handle each."""

    reader = "openslide"

    def opened(self, path: Path) -> Slide:
        return OpenSlideSlide(path, workers=3)


class TestRanges(TestTiledTiff):
    """The same file, known by its bytes alone."""

    def opened(self, path: Path) -> Slide:
        return open_ranges("memory:a.tif", FileRanges(path), workers=2)


class TestOmeTiff(SlideContract):
    """Levels in sub-directories, resolution in OME-XML."""

    tolerance = 8
    options: ClassVar[dict[str, Any]] = {"tile": (64, 64), "compression": "jpeg", "compressionargs": {"level": 90}}

    def make_slide(self, folder: Path, image: NDArray[np.uint8]) -> Slide:
        path = folder / "a.ome.tif"
        metadata = {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}
        metadata |= {"PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}
        options = {"photometric": "rgb", **self.options}
        with tifffile.TiffWriter(path) as file:
            more: dict[str, Any] = {"dtype": np.uint8, **options}
            file.write(edge_filled(image, 64), shape=image.shape, subifds=1, metadata=metadata, **more)
            half = image.reshape(250, 2, 350, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
            file.write(edge_filled(half, 64), shape=half.shape, subfiletype=1, **more)
        slide = open_slide(path)
        assert slide.reader.startswith("tifffile")
        assert slide.mpp == 0.5
        assert slide.downsamples == (1.0, 2.0)
        return slide

    def make_damaged(self, folder: Path, image: NDArray[np.uint8]) -> tuple[Slide, tuple[int, int]]:
        self.make_slide(folder, image).close()
        path = folder / "a.ome.tif"
        damage(path, 11 * 2 + 3)
        return open_slide(path), (3 * 64 + 32, 2 * 64 + 32)


class TestOmeTiffDeflate(TestOmeTiff):
    tolerance = 0
    options: ClassVar[dict[str, Any]] = {"tile": (64, 64), "compression": "deflate", "predictor": True}


class TestStrippedTiff(SlideContract):
    """Strips, compressed: openslide leaves these alone."""

    options: ClassVar[dict[str, Any]] = {"rowsperstrip": 16, "compression": "lzw"}

    def make_slide(self, folder: Path, image: NDArray[np.uint8]) -> Slide:
        path = folder / "a.tif"
        tifffile.imwrite(path, image, photometric="rgb", metadata=None, **self.options)
        slide = open_slide(path)
        assert slide.reader.startswith("tifffile")
        return slide

    def make_damaged(self, folder: Path, image: NDArray[np.uint8]) -> tuple[Slide, tuple[int, int]] | None:
        if not self.options.get("compression"):
            return None
        self.make_slide(folder, image).close()
        with tifffile.TiffFile(folder / "a.tif") as file:
            strip = 200 // file.pages.first.rowsperstrip
        damage(folder / "a.tif", strip)
        return open_slide(folder / "a.tif"), (400, 200)


class TestUncompressedTiff(TestStrippedTiff):
    """One strip, as it is: mapped, not read."""

    options: ClassVar[dict[str, Any]] = {"compression": None}


class TestPlanarTiff(TestStrippedTiff):
    """Colours kept apart."""

    options: ClassVar[dict[str, Any]] = {"planarconfig": "separate", "rowsperstrip": 16, "compression": "deflate"}

    def make_slide(self, folder: Path, image: NDArray[np.uint8]) -> Slide:
        return super().make_slide(folder, np.ascontiguousarray(np.moveaxis(image, 2, 0)))


class TestBigEndianBigTiff(TestStrippedTiff):
    def make_slide(self, folder: Path, image: NDArray[np.uint8]) -> Slide:
        path = folder / "a.tif"
        options: dict[str, Any] = {"bigtiff": True, "byteorder": ">", "compression": "zlib", "rowsperstrip": 7}
        tifffile.imwrite(path, image, photometric="rgb", metadata=None, **options)
        return open_slide(path)
