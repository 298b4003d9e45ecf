"""Tiles varied for training: true symmetries, honest colours, and draws that nothing but (seed, epoch, row) moves."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from histostore.backbones.augment import augmented, draw, oriented
from histostore.backbones.dihedral import symmetries
from histostore.backbones.finetune_spec import AugmentSpec
from histostore.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = np.arange(40)
FULL = AugmentSpec(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, blur=1.5, blur_share=0.5)


def planes(tiles: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(tiles.copy()).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def some(tiles: NDArray[np.uint8]) -> torch.Tensor:
    return planes(tiles[np.arange(40) % 8, :48, :48])


def varied(tiles: torch.Tensor, rows: NDArray[np.int64], spec: AugmentSpec = FULL, epoch: int = 1) -> torch.Tensor:
    return augmented(tiles[torch.from_numpy(rows)], draw(spec, rows, seed=3, epoch=epoch), spec)


def test_the_eight_symmetries_are_eight_different_images_closed_under_composition() -> None:
    image = torch.arange(25).reshape(1, 5, 5)
    found = [oriented(image, k) for k in range(8)]
    assert len({f.numpy().tobytes() for f in found}) == 8
    for first, second in product(range(8), repeat=2):
        both = oriented(oriented(image, first), second)
        assert sum(torch.equal(both, f) for f in found) == 1


def test_a_flip_is_a_real_flip_and_no_turn() -> None:
    image = torch.arange(9).reshape(1, 3, 3)
    assert oriented(image, 4).tolist() == [[[2, 1, 0], [5, 4, 3], [8, 7, 6]]]
    turns = [oriented(image, k) for k in range(4)]
    assert not any(torch.equal(oriented(image, k), t) for k in range(4, 8) for t in turns)


def test_symmetries_are_those_that_embeddings_are_averaged_over(tiles: NDArray[np.uint8]) -> None:
    for number, expected in enumerate(symmetries(tiles[:2])):
        assert torch.equal(oriented(planes(tiles[:2]), number), planes(expected))


def test_all_eight_are_drawn_about_as_often() -> None:
    counts = np.bincount(draw(AugmentSpec(), np.arange(4000), seed=0, epoch=1).symmetry, minlength=8)
    assert counts.min() > 430
    assert counts.max() < 570


def test_a_tile_is_varied_alike_in_any_batch_and_order(some: torch.Tensor) -> None:
    whole = varied(some, ROWS)
    order = np.random.default_rng(0).permutation(ROWS)
    assert torch.equal(varied(some, order), whole[torch.from_numpy(order)])
    for part in (ROWS[7:8], ROWS[5:18]):
        assert torch.equal(varied(some, part), whole[torch.from_numpy(part)])


def test_another_epoch_seed_or_row_draws_anew(some: torch.Tensor) -> None:
    one = draw(FULL, ROWS, seed=3, epoch=1)
    for other in (
        draw(FULL, ROWS, seed=3, epoch=2),
        draw(FULL, ROWS, seed=4, epoch=1),
        draw(FULL, ROWS + 40, seed=3, epoch=1),
    ):
        assert not np.array_equal(one.colour, other.colour)
    assert not torch.equal(varied(some, ROWS), varied(some, ROWS, epoch=2))


def test_what_is_switched_off_does_nothing_and_moves_no_other_draw(some: torch.Tensor) -> None:
    assert torch.equal(varied(some, ROWS, AugmentSpec.none()), some.float())
    plain = AugmentSpec(symmetries=True, brightness=0, contrast=0, saturation=0, hue=0, blur=0, blur_share=0)
    assert np.array_equal(draw(plain, ROWS, seed=3, epoch=1).symmetry, draw(FULL, ROWS, seed=3, epoch=1).symmetry)
    assert sorted(varied(some, ROWS, plain)[5].flatten().tolist()) == sorted(some[5].flatten().float().tolist())


def test_greys_stay_grey_and_each_colour_channel_keeps_its_place() -> None:
    grey = torch.full((40, 3, 16, 16), 120, dtype=torch.uint8)
    out = varied(grey, ROWS)
    assert float((out - out.mean(dim=1, keepdim=True)).abs().max()) < 1e-3
    red = torch.zeros((40, 3, 16, 16), dtype=torch.uint8)
    red[:, 0] = 200
    assert bool((varied(red, ROWS).mean((2, 3)).argmax(dim=1) == 0).all())
    assert float(varied(red, ROWS).min()) >= 0
    assert float(varied(red, ROWS).max()) <= 255


def test_blur_keeps_the_mean_smooths_and_spares_the_rest(some: torch.Tensor) -> None:
    spec = AugmentSpec(symmetries=False, brightness=0, contrast=0, saturation=0, hue=0, blur=2, blur_share=0.5)
    sigma = draw(spec, ROWS, seed=3, epoch=1).sigma
    assert 8 < np.count_nonzero(sigma) < 32
    out = varied(some, ROWS, spec)
    still = torch.from_numpy(sigma == 0)
    assert torch.equal(out[still], some[still].float())
    strong = torch.from_numpy(sigma > 1)
    assert bool((out[strong].std((2, 3)) < some[strong].float().std((2, 3))).all())
    assert torch.allclose(out[strong].mean((2, 3)), some[strong].float().mean((2, 3)), atol=3)


@pytest.mark.parametrize(
    ("options", "words"), [({"hue": 0.7}, "outside 0-0.5"), ({"blur": -1}, "outside 0-10"), ({"contrast": 2}, "0-1")]
)
def test_strengths_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        AugmentSpec(**options)


def test_a_blur_wider_than_the_tile_is_refused() -> None:
    spec = AugmentSpec(blur=10)
    with pytest.raises(UsageError, match="give a smaller blur"):
        augmented(torch.zeros((2, 3, 16, 16), dtype=torch.uint8), draw(spec, ROWS[:2], seed=0, epoch=1), spec)
