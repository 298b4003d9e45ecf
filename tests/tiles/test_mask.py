from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from histostore.errors import DataError
from histostore.slides import open_slide
from histostore.specs import MaskSpec
from histostore.tiles import mask as mask_module
from histostore.tiles.mask import TissueMask, mask_of_image, tissue_mask

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UM_PER_PX = 8.0
DISC_SHARE = np.pi * 150**2 / (600 * 800)


def drawn(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).line([(30, 40), (400, 60), (770, 90), (760, 560)], fill=colour, width=9)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1)))


def mask_from(mask: NDArray[np.bool_], downsample: tuple[float, float]) -> TissueMask:
    overview = np.zeros((*mask.shape, 3), dtype=np.uint8)
    return TissueMask(mask=mask, overview=overview, downsample=downsample, threshold=0.1)


def test_a_disc_of_tissue_is_found_to_one_percent_of_its_area(tissue_picture):
    mask, threshold = mask_of_image(tissue_picture, MaskSpec(), UM_PER_PX)
    assert abs(mask.mean() / DISC_SHARE - 1) < 0.03
    assert 0.05 < threshold < 0.25
    assert mask[300, 400]
    assert not mask[30, 30]


@pytest.mark.parametrize(
    "colour",
    [(40, 60, 170), (60, 90, 200), (20, 110, 70), (200, 30, 45), (30, 30, 35)],
    ids=["blue", "pale blue", "green", "red", "black"],
)
def test_ink_is_not_tissue(tissue_picture, colour):
    inked = drawn(tissue_picture, colour)
    clean, _ = mask_of_image(inked, MaskSpec(), UM_PER_PX)
    assert abs(clean.mean() / DISC_SHARE - 1) < 0.05
    if colour != (30, 30, 35):  # black has no colour to be taken for tissue by
        kept, _ = mask_of_image(inked, MaskSpec(reject_pen=False), UM_PER_PX)
        assert kept.sum() > clean.sum() + 5_000


def test_a_black_border_is_neither_tissue_nor_glass(tissue_picture):
    framed = tissue_picture.copy()
    framed[:60] = framed[:, -50:] = (4, 1, 6)
    mask, _ = mask_of_image(framed, MaskSpec(), UM_PER_PX)
    assert not mask[:55].any()
    assert not mask[:, -45:].any()
    assert abs(mask.mean() / DISC_SHARE - 1) < 0.03


def test_empty_glass_of_any_tint_gives_an_empty_mask():
    rng = np.random.default_rng(1)
    halo = np.hypot(*(np.mgrid[:300, :400] - np.array([150, 200])[:, None, None]))[..., None]
    pictures = {
        "white": np.full((300, 400, 3), 255.0),
        "grey": np.full((300, 400, 3), 128.0),
        "pink": np.full((300, 400, 3), (240.0, 215, 235)),
        "noisy": 240 + rng.normal(0, 6, (300, 400, 3)),
        "shaded": np.linspace(180, 250, 400)[None, :, None] * np.ones((300, 1, 3)),
        "a halo of eosin": np.array([240, 225, 235]) - np.exp(-halo / 60) * [5, 45, 20],
        "black": np.zeros((300, 400, 3)),
    }
    for name, picture in pictures.items():
        mask, _ = mask_of_image(picture.clip(0, 255).astype(np.uint8), MaskSpec(), UM_PER_PX)
        assert mask.sum() == 0, name


def test_a_picture_that_is_all_tissue_is_not_halved(tissue_picture):
    inside = tissue_picture[220:380, 320:480]
    mask, _ = mask_of_image(inside, MaskSpec(), UM_PER_PX)
    assert mask.mean() > 0.99
    # two stains with a gap between them, as Otsu likes it, and hardly any glass
    rng = np.random.default_rng(2)
    dark = np.repeat(np.repeat(rng.random((40, 40, 1)), 4, axis=0), 4, axis=1)
    left = dark * [225, 190, 215] + (1 - dark) * [190, 140, 180]
    right = dark * [200, 60, 110] + (1 - dark) * [120, 30, 90]
    both = np.concatenate([left, right], axis=1).astype(np.uint8)
    both[:12, :40] = 243
    mask, _ = mask_of_image(both, MaskSpec(), UM_PER_PX)
    assert mask.mean() > 0.95


def test_small_islands_go_and_small_holes_are_filled_by_area(tissue_picture):
    picture = tissue_picture.copy()
    picture[40:52, 40:52] = picture[280:292, 380:392]  # (96 µm)² of tissue on glass
    picture[300:309, 400:409] = 243  # a hole of about (72 µm)²
    kept, _ = mask_of_image(picture, MaskSpec(min_area_um2=2_000, max_hole_um2=100), UM_PER_PX)
    dropped, _ = mask_of_image(picture, MaskSpec(min_area_um2=20_000, max_hole_um2=10_000), UM_PER_PX)
    assert (kept[46, 46], kept[304, 404]) == (True, False)
    assert (dropped[46, 46], dropped[304, 404]) == (False, True)


def test_a_picture_that_is_no_rgb_is_refused():
    with pytest.raises(DataError, match="uint8 RGB"):
        mask_of_image(np.zeros((5, 5), dtype=np.uint8), MaskSpec(), UM_PER_PX)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_fraction_is_the_exact_area_for_boxes_that_cut_pixels(data):
    seed = data.draw(st.integers(0, 1000))
    mask = np.random.default_rng(seed).random((6, 9)) > 0.5
    sx, sy = data.draw(st.sampled_from([(1.0, 1.0), (3.0, 3.0), (11.5, 11.25)]))
    x0, y0 = data.draw(st.floats(-20, 60)), data.draw(st.floats(-20, 60))
    edge = data.draw(st.floats(0.5, 80))
    rows, cols = np.nonzero(mask)
    wide = np.minimum((cols + 1) * sx, x0 + edge) - np.maximum(cols * sx, x0)
    tall = np.minimum((rows + 1) * sy, y0 + edge) - np.maximum(rows * sy, y0)
    area = (np.maximum(wide, 0) * np.maximum(tall, 0)).sum()
    got = mask_from(mask, (sx, sy)).fraction(np.array([[x0, y0]]), edge)
    assert got.dtype == np.float32
    assert got[0] == pytest.approx(min(1.0, area / edge**2), abs=1e-5)


def test_contains_takes_x_before_y_and_nothing_outside():
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 5] = True
    points = np.array([[55.0, 15], [15, 55], [59.99, 10], [60, 10], [-0.5, -0.5]])
    assert mask_from(mask, (10.0, 10.0)).contains(points).tolist() == [True, False, True, False, False]


def test_the_overview_is_made_at_the_resolution_of_the_spec(tissue_picture, slide_of):
    slide = slide_of(tissue_picture)
    found = tissue_mask(slide, MaskSpec(mpp=8.0), mpp=4.0)
    assert found.mask.shape == (300, 400)
    assert found.downsample == (2.0, 2.0)
    assert found.overview.shape == (300, 400, 3)
    assert abs(found.share / DISC_SHARE - 1) < 0.05
    assert found.fraction(np.array([[300.0, 200.0]]), 200.0)[0] > 0.98
    assert found.overlay().shape == found.overview.shape
    assert np.allclose(found.glass_rgb, (243, 240, 242), atol=2)
    # never finer than the slide, whatever is asked
    assert tissue_mask(slide, MaskSpec(mpp=0.1), mpp=4.0).mask.shape == (600, 800)
    assert tissue_mask(slide, MaskSpec(), mpp=None).mask.shape == (600, 800)


@pytest.mark.parametrize("strip_px", [800 * 7, 800 * 3 + 5, 1])
def test_a_picture_looked_at_strip_by_strip_is_the_same_to_the_bit(tissue_picture, monkeypatch, strip_px: int):
    picture = drawn(np.concatenate([tissue_picture, tissue_picture[::-1, ::-1]]), (20, 40, 180))
    monkeypatch.setattr(mask_module, "_STRIP_PX", 1 << 30)
    whole, threshold = mask_of_image(picture, MaskSpec(), UM_PER_PX)
    monkeypatch.setattr(mask_module, "_STRIP_PX", strip_px)
    strips, again = mask_of_image(picture, MaskSpec(), UM_PER_PX)
    assert again == threshold
    assert np.array_equal(strips, whole)
    assert 0.1 < whole.mean() < 0.9


@pytest.mark.real
@pytest.mark.parametrize("section", ["C2", "C3", "C4", "C5"])
def test_real_sections_have_their_spots_on_tissue_and_their_halo_on_glass(real_data: Path, section: str):
    with open_slide(real_data / "her2st" / f"{section}.jpg") as slide:
        found = tissue_mask(slide, MaskSpec(), mpp=0.688)
    table = np.genfromtxt(real_data / "her2st" / f"{section}.spots.tsv", names=True, delimiter="\t")
    spots = np.stack([table["pixel_x"], table["pixel_y"]], axis=1)
    assert 0.14 < found.share < 0.18
    assert found.contains(spots).mean() > 0.92
    assert np.median(found.fraction(spots - 112, 224.0)) > 0.98
    # bare glass on every section, with dust and prints of spots
    assert found.mask[-140:].sum() == 0
    assert found.mask[:, -60:].sum() == 0


@pytest.mark.real
def test_a_real_svs_is_told_from_glass_at_any_resolution_and_its_inside_is_all_tissue(real_data: Path):
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        shares = [tissue_mask(slide, MaskSpec(mpp=mpp), mpp=slide.mpp).share for mpp in (2.0, 4.0, 8.0)]
        overview = slide.thumbnail(742)
    assert all(0.30 < share < 0.35 for share in shares)
    inside, _ = mask_of_image(overview[640:, 150:290], MaskSpec(), 2.0)
    assert inside.mean() > 0.99
    glass, _ = mask_of_image(overview[450:700, :120], MaskSpec(), 2.0)
    assert glass.sum() == 0
