"""What every implementation of a seam must do, as test classes to subclass.

::

    class TestMySlide(SlideContract):
        def make_slide(self, folder, image):
            return MySlide(write_mine(folder / "slide.xyz", image))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from histostore.errors import HistostoreError
from histostore.protocols import Slide, TileStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

TEAL = (0, 128, 160)
ORANGE = (230, 110, 20)
"""Colours of which no two channels agree, so that no swap goes unseen."""


class SlideContract(ABC):
    """Tests of `histostore.protocols.Slide`; subclass it and give `make_slide`.

    The image is 700 x 500 px: its left 320 px teal, the rest orange with a gradient.
    """

    tolerance: ClassVar[int] = 0
    """What lossy codecs may differ by, in grey levels, away from the colours' border."""

    @abstractmethod
    def make_slide(self, folder: Path, image: NDArray[np.uint8]) -> Slide:
        """Return an open slide of these level-0 pixels, written in `folder`."""

    def make_damaged(self, folder: Path, image: NDArray[np.uint8]) -> tuple[Slide, tuple[int, int]] | None:
        """Return a slide of which one segment is damaged and a pixel (x, y) in it; None where that cannot be."""
        return None

    @pytest.fixture
    def image(self) -> NDArray[np.uint8]:
        """Return the level-0 pixels."""
        image = np.empty((500, 700, 3), np.uint8)
        image[...] = ORANGE
        image[..., 2] = np.linspace(20, 200, 500).astype(np.uint8)[:, None]
        image[:, :320] = TEAL
        return image

    @pytest.fixture
    def slide(self, tmp_path: Path, image: NDArray[np.uint8]) -> Iterator[Slide]:
        """Return the open slide and close it after the test."""
        with self.make_slide(tmp_path, image) as slide:
            yield slide

    def assert_pixels(self, got: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> None:
        """Fail where pixels differ by more than `tolerance`."""
        assert got.dtype == np.uint8
        assert got.shape == wanted.shape
        assert int(np.abs(got.astype(int) - wanted).max(initial=0)) <= self.tolerance

    def test_says_what_it_is(self, slide: Slide) -> None:
        """Size, levels, reader and properties are there and of their types."""
        assert isinstance(slide, Slide)
        assert slide.size_px == (700, 500)
        assert slide.downsamples[0] == 1.0
        assert list(slide.downsamples) == sorted(slide.downsamples)
        assert slide.mpp is None or 0.05 <= slide.mpp <= 10
        assert slide.uri
        assert slide.reader
        texts = [*slide.properties.keys(), *slide.properties.values()]
        assert {type(text) for text in texts} <= {str}

    def test_gives_rgb_in_that_order(self, slide: Slide) -> None:
        """A known colour comes back with its channels in place."""
        pixels, status = slide.read(np.array([[40, 40]]), px=64)
        self.assert_pixels(pixels, np.broadcast_to(np.array(TEAL, np.uint8), (1, 64, 64, 3)))
        assert status.tolist() == [TileStatus.OK]
        assert status.dtype == np.uint8

    def test_x_is_the_column_and_y_the_row(self, slide: Slide, image: NDArray[np.uint8]) -> None:
        """A tile is the slice [y:y+px, x:x+px] of the image."""
        pixels, _ = slide.read(np.array([[400, 300]]), px=100)
        self.assert_pixels(pixels[0], image[300:400, 400:500])

    def test_outside_the_image_is_white_and_padded(self, slide: Slide) -> None:
        """Left, above, right, below and far away; what lies inside is kept."""
        xy0 = np.array([[-32, 40], [40, -32], [680, 200], [400, 460], [-900, -900], [5000, 5000], [636, 436]])
        pixels, status = slide.read(xy0, px=64)
        assert status.tolist() == [TileStatus.PADDED] * 6 + [TileStatus.OK]
        teal = np.broadcast_to(np.array(TEAL, np.uint8), (64, 32, 3))
        assert (pixels[0, :, :32] == 255).all()
        self.assert_pixels(pixels[0, :, 32:], teal)
        assert (pixels[1, :32] == 255).all()
        assert (pixels[2, :, 20:] == 255).all()
        assert (pixels[3, 40:] == 255).all()
        assert (pixels[4:6] == 255).all()

    def test_a_tile_larger_than_the_image_holds_all_of_it(self, slide: Slide, image: NDArray[np.uint8]) -> None:
        """Everything around the image is white."""
        pixels, status = slide.read(np.array([[-100, -200]]), px=900)
        assert status.tolist() == [TileStatus.PADDED]
        assert (pixels[0, :200] == 255).all()
        away = np.abs(np.arange(700) - 320) > 16
        self.assert_pixels(pixels[0, 200:700, 100:800][:, away], image[:, away])

    def test_many_tiles_at_once_equal_one_at_a_time(self, slide: Slide) -> None:
        """Order, repeats and neighbours change no tile."""
        xy0 = np.random.default_rng(0).integers(-40, 680, (40, 2))
        xy0[7] = xy0[3]
        for level in range(len(slide.downsamples)):
            pixels, status = slide.read(xy0, px=48, level=level)
            for i, corner in enumerate(xy0):
                one, its = slide.read(corner[None], px=48, level=level)
                assert np.array_equal(one[0], pixels[i])
                assert its[0] == status[i]

    def test_no_tiles_are_no_tiles(self, slide: Slide) -> None:
        """An empty request gives empty arrays of the right shape."""
        pixels, status = slide.read(np.empty((0, 2), np.int64), px=32)
        assert pixels.shape == (0, 32, 32, 3)
        assert status.shape == (0,)

    def test_pixels_belong_to_the_caller(self, slide: Slide) -> None:
        """Writing into what was read changes no later read."""
        first, _ = slide.read(np.array([[40, 40]]), px=32)
        kept = first.copy()
        first[...] = 0
        assert np.array_equal(slide.read(np.array([[40, 40]]), px=32)[0], kept)

    def test_levels_show_the_same_place(self, slide: Slide, image: NDArray[np.uint8]) -> None:
        """Corners are level-0 pixels at every level."""
        for level, down in enumerate(slide.downsamples):
            pixels, status = slide.read(np.array([[440, 200]]), px=8, level=level)
            assert status.tolist() == [TileStatus.OK]
            edge = round(8 * down)
            wanted = image[200 : 200 + edge, 440 : 440 + edge].reshape(-1, 3).mean(axis=0)
            assert np.abs(pixels.reshape(-1, 3).mean(axis=0) - wanted).max() <= self.tolerance + 2

    def test_thumbnails_are_the_whole_image_small(self, slide: Slide, image: NDArray[np.uint8]) -> None:
        """The longest edge is the one asked for, and colours lie where they lay."""
        small = slide.thumbnail(70)
        assert small.shape == (50, 70, 3)
        assert small.dtype == np.uint8
        blocks = image.reshape(50, 10, 70, 10, 3).mean(axis=(1, 3))
        away = np.abs(np.arange(70) - 32) > 3
        assert np.abs(small[2:-2, away][:, 2:-2] - blocks[2:-2, away][:, 2:-2]).max() <= self.tolerance + 3

    def test_thumbnails_are_not_enlarged(self, slide: Slide) -> None:
        """A small slide stays as it is."""
        assert slide.thumbnail(5000).shape == (500, 700, 3)

    def test_a_wrong_request_is_an_error(self, slide: Slide) -> None:
        """A level that is not there, an edge of nothing, corners of the wrong shape."""
        with pytest.raises(HistostoreError):
            slide.read(np.array([[0, 0]]), px=32, level=len(slide.downsamples))
        with pytest.raises(HistostoreError):
            slide.read(np.array([[0, 0]]), px=0)
        with pytest.raises(HistostoreError):
            slide.read(np.array([0, 0]), px=32)

    def test_closes_and_says_so(self, slide: Slide) -> None:
        """Closing twice is fine, reading after it an error."""
        slide.close()
        slide.close()
        with pytest.raises(HistostoreError):
            slide.read(np.array([[0, 0]]), px=32)

    def test_a_damaged_segment_costs_only_its_own_tiles(self, tmp_path: Path, image: NDArray[np.uint8]) -> None:
        """Its tile is zero and UNREADABLE; those before and after, in one call and the next, are fine."""
        made = self.make_damaged(tmp_path, image)
        if made is None:
            pytest.skip("this format has no segments to damage")
        slide, (x, y) = made
        with slide:
            xy0 = np.array([[8, 8], [x - 8, y - 8], [600, 400], [x - 8, y - 8], [9, 9]])
            for _ in range(2):
                pixels, status = slide.read(xy0, px=16)
                bad, ok = TileStatus.UNREADABLE, TileStatus.OK
                assert status.tolist() == [ok, bad, ok, bad, ok]
                assert not pixels[[1, 3]].any()
                self.assert_pixels(pixels[2], image[400:416, 600:616])
                self.assert_pixels(pixels[4], image[9:25, 9:25])
            thumbnail = slide.thumbnail(700)
            assert not thumbnail[y - 4 : y + 4, x - 4 : x + 4].any()
            assert thumbnail[8:16, 8:16].any()
