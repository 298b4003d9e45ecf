from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from histostore.errors import DataError
from histostore.slides import open_slide
from histostore.specs import MaskSpec, TileSpec
from histostore.tables import Points
from histostore.tiles.mask import tissue_mask
from histostore.tiles.plan import plan_tiles
from histostore.tiles.read import read_tiles
from histostore.tiles.stain import StainFit, fit_slide_stain, fit_stain

if TYPE_CHECKING:
    from pathlib import Path

REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
METHODS = ("macenko", "reinhard")


def stained(stains, scale=(1.0, 1.0), *, white=240.0, seed=0, n=200) -> np.ndarray:
    """Draw an ``(n, n, 3)`` tile of two stains (rows of `stains`) at random concentrations; a tenth is glass."""
    rng = np.random.default_rng(seed)
    amount = rng.gamma(2.0, 0.35, (n, n, 2)) * scale
    alone = rng.random((n, n))
    amount[alone < 0.2, 0] = 0
    amount[alone > 0.8, 1] = 0
    amount[: n // 10] = 0
    return np.clip(np.rint(white * np.exp(-amount @ np.asarray(stains))), 0, 255).astype(np.uint8)


def test_macenko_finds_the_stains_it_was_given_and_removes_the_scanner():
    other = np.array([[0.70, 0.62, 0.35], [0.10, 0.90, 0.42]])
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    here, there = stained(REFERENCE), stained(other, scale=(0.7, 1.3), white=225.0)
    fits = fit_stain("macenko", here), fit_stain("macenko", there, white=(225.0, 225.0, 225.0))
    before = np.abs(here.astype(float) - there).mean()
    after = np.abs(fits[0].apply(here).astype(float) - fits[1].apply(there)).mean()
    assert after < 0.25 * before


def test_reinhard_brings_mean_and_spread_of_two_scanners_together():
    here = stained(REFERENCE)
    there = np.clip(here * [0.8, 0.9, 0.75] + [5, 0, 20], 0, 255).astype(np.uint8)
    white = tuple(float(v) for v in there[0, 0])
    here_after = fit_stain("reinhard", here).apply(here).reshape(-1, 3)
    there_after = fit_stain("reinhard", there, white=white).apply(there).reshape(-1, 3)
    tissue = slice(here.shape[1] * 20, None)
    before = np.abs(here.reshape(-1, 3)[tissue].mean(axis=0) - there.reshape(-1, 3)[tissue].mean(axis=0))
    after = np.abs(here_after[tissue].mean(axis=0) - there_after[tissue].mean(axis=0))
    assert after.max() < 0.25 * before.max()


@pytest.mark.parametrize("method", METHODS)
def test_glass_stays_glass_and_blank_tiles_come_back_unchanged(method):
    tile = stained(REFERENCE)
    fit = fit_stain(method, tile)
    normal = fit.apply(tile)
    assert np.abs(normal[:15].astype(int) - 240).max() <= 2
    for blank in (np.full((64, 64, 3), 243, np.uint8), np.full((64, 64, 3), 255, np.uint8)):
        again = fit.apply(blank)
        assert np.array_equal(again, blank)
        assert again is not blank


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_is_plain_json_and_comes_back_equal(method):
    tile = stained(REFERENCE)
    fit = fit_stain(method, tile)
    back = StainFit.from_json(json.loads(json.dumps(fit.to_json())))
    assert back == fit
    assert np.array_equal(back.apply(tile), fit.apply(tile))


@pytest.mark.parametrize("method", METHODS)
def test_a_pixel_becomes_the_same_colour_in_every_tile(method):
    tile = stained(REFERENCE)
    fit = fit_stain(method, tile)
    assert np.array_equal(fit.apply(tile)[50:90], fit.apply(tile[50:90]))
    assert np.array_equal(fit_stain(method, tile[::-1]).matrix, fit.matrix)


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_without_tissue_has_no_stain_to_learn(method):
    with pytest.raises(DataError, match="too few"):
        fit_stain(method, np.full((100, 100, 3), 244, np.uint8))


def test_one_stain_alone_is_told_and_not_split():
    with pytest.raises(DataError, match="only one is there"):
        fit_stain("macenko", stained(REFERENCE[[0, 0]], scale=(0.3, 0.3)))


@pytest.mark.real
@pytest.mark.parametrize("method", METHODS)
def test_a_real_section_looks_the_same_from_two_scanners(real_data: Path, method: str, tmp_path: Path):
    with open_slide(real_data / "her2st" / "C2.jpg") as slide:
        crop = slide.read(np.array([[4000, 3600]]), px=2400)[0][0]
    fits, tiles = [], []
    for gain, gamma in (((1.0, 1.0, 1.0), 1.0), ((0.85, 0.95, 0.8), 1.2)):
        seen = np.rint(255 * (crop / 255) ** gamma * gain).astype(np.uint8)
        path = tmp_path / f"{gamma}.png"
        Image.fromarray(seen).save(path, compress_level=0)
        with open_slide(path) as slide:
            where = {"size_px": slide.size_px, "slide_mpp": 0.688, "downsamples": slide.downsamples}
            mask = tissue_mask(slide, MaskSpec(), mpp=0.688)
            plan = plan_tiles(TileSpec.grid(px=224, max_tiles=24), mask=mask, source_digest="s", **where)
            fits.append(fit_slide_stain(method, slide, plan, white=mask.glass_rgb))
            tiles.append([read_tiles(slide, plan.read, plan.xy0, stain=fit)[0] for fit in (None, fits[-1])])
    assert fits[0] != fits[1]
    before, after = (np.abs(one.astype(float) - other).mean() for one, other in zip(*tiles, strict=True))
    assert after < 0.5 * before


def test_the_tiles_a_slide_is_learned_from_do_not_depend_on_row_order(slide_of):
    slide = slide_of(stained(REFERENCE, n=400))
    xy = np.random.default_rng(0).random((120, 2)) * 400
    fits = []
    for order in (np.arange(120), np.arange(120)[::-1]):
        points = Points(ids=tuple(f"p{i}" for i in order), xy=xy[order])
        where = {"size_px": slide.size_px, "slide_mpp": 0.5, "downsamples": slide.downsamples}
        plan = plan_tiles(TileSpec.at_spots(px=32), points=points, source_digest="s", **where)
        fits.append(fit_slide_stain("macenko", slide, plan))
    assert fits[0] == fits[1]
