"""Tiles varied for training: what is drawn depends on (seed, epoch, row) alone, and what is done on the tile alone.

Each step works element by element or on exact integer sums, so a tile's pixels are the same in any batch, in any order
and after a resume.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from histostore.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.backbones.finetune_spec import AugmentSpec

GREY = (0.299, 0.587, 0.114)
"""Luma weights of R, G and B (ITU-R BT.601)."""

_YIQ = np.array([GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
_RGB = np.linalg.inv(_YIQ)


class Draws(NamedTuple):
    """What is done to each of n tiles."""

    symmetry: NDArray[np.int64]
    """``(n,)`` 0-7: turns by 90 degrees, from 4 on of the mirror image, as `dihedral.symmetries` orders them."""
    colour: NDArray[np.float64]
    """``(n, 4)`` factors of brightness, contrast and saturation, and the turn of hue in radians."""
    sigma: NDArray[np.float64]
    """``(n,)`` of the blur, in pixels; 0 is none."""


def draw(spec: AugmentSpec, rows: NDArray[np.integer], *, seed: int, epoch: int) -> Draws:
    """Draw what happens to some tiles in one epoch.

    Parameters
    ----------
    rows
        ``(n,)`` row numbers of the tiles, 0 or more: with `seed` and `epoch` they decide everything.

    Notes
    -----
    A part that is switched off leaves what is drawn for the others as it is.
    """
    uniform = np.array([np.random.default_rng((seed, epoch, row)).random(7) for row in rows.tolist()]).reshape(-1, 7)
    symmetry = (uniform[:, 0] * 8).astype(np.int64) if spec.symmetries else np.zeros(len(rows), np.int64)
    widths = np.array([spec.brightness, spec.contrast, spec.saturation, 2 * math.pi * spec.hue])
    colour = (2 * uniform[:, 1:5] - 1) * widths + (1, 1, 1, 0)
    sigma = np.where(uniform[:, 5] < spec.blur_share, uniform[:, 6] * spec.blur, 0.0)
    return Draws(symmetry, colour, sigma)


def augmented(tiles: torch.Tensor, draws: Draws, spec: AugmentSpec) -> torch.Tensor:
    """Vary a batch: ``(b, 3, h, h)`` uint8 RGB to float32 in 0-255, on the tiles' device."""
    turned = _turned(tiles, draws.symmetry) if spec.symmetries else tiles
    pixels = turned.float()
    if spec.blur > 0 and spec.blur_share > 0:
        pixels = _blurred(pixels, draws.sigma, math.ceil(3 * spec.blur))
    if spec.brightness or spec.contrast or spec.saturation or spec.hue:
        matrix, shift = _colour_maps(tiles, draws.colour)
        pixels = _recoloured(pixels, matrix, shift)
    return pixels.clamp(0, 255)


def oriented(tiles: torch.Tensor, symmetry: int) -> torch.Tensor:
    """Return ``(…, h, h)`` images in one of the eight orientations."""
    image = tiles.flip(-1) if symmetry >= 4 else tiles
    return torch.rot90(image, symmetry % 4, dims=(-2, -1))


def _turned(tiles: torch.Tensor, symmetry: NDArray[np.int64]) -> torch.Tensor:
    out = torch.empty_like(tiles)
    for one in np.unique(symmetry).tolist():
        at = torch.from_numpy(np.flatnonzero(symmetry == one)).to(tiles.device)
        out[at] = oriented(tiles[at], one)
    return out


def _colour_maps(tiles: torch.Tensor, colour: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``(b, 3, 3)`` matrices and ``(b,)`` shifts: brightness, contrast, saturation and hue are linear in RGB."""
    n_pixels = tiles.shape[-1] * tiles.shape[-2]
    mean = tiles.sum((2, 3), dtype=torch.int64).cpu().numpy() / n_pixels
    bright, contrast, saturation, turn = colour.T
    shift = (1 - contrast) * bright * (mean @ np.array(GREY))
    saturate = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * np.array(GREY)
    turned = np.zeros((len(colour), 3, 3))
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = np.cos(turn)
    turned[:, 1, 2], turned[:, 2, 1] = -np.sin(turn), np.sin(turn)
    # greys stay where they are under both, so the shift (a grey) is added last
    return (bright * contrast)[:, None, None] * (_RGB @ turned @ _YIQ @ saturate), shift


def _recoloured(pixels: torch.Tensor, matrix: NDArray[np.float64], shift: NDArray[np.float64]) -> torch.Tensor:
    # sums of products of whole planes, not a matrix product, whose last bits depend on the batch
    weight = torch.from_numpy(matrix.astype(np.float32)).to(pixels.device)[..., None, None]
    start = torch.from_numpy(shift.astype(np.float32)).to(pixels.device)[:, None, None]
    planes = [
        start + weight[:, c, 0] * pixels[:, 0] + weight[:, c, 1] * pixels[:, 1] + weight[:, c, 2] * pixels[:, 2]
        for c in range(3)
    ]
    return torch.stack(planes, dim=1)


def _blurred(pixels: torch.Tensor, sigma: NDArray[np.float64], radius: int) -> torch.Tensor:
    """Blur each tile with its own Gaussian, cut at `radius` whatever its sigma."""
    edge = pixels.shape[-1]
    if radius >= edge:
        msg = f"a blur of up to {radius // 3} px reaches {radius} px and the tiles are {edge} px: give a smaller blur"
        raise UsageError(msg)
    chosen = np.flatnonzero(sigma > 0)
    if not len(chosen):
        return pixels
    steps = np.arange(-radius, radius + 1)
    weight = np.exp(-(steps**2) / (2 * np.maximum(sigma[chosen, None], 1e-3) ** 2))
    weight /= weight.sum(axis=1, keepdims=True)
    taps = torch.from_numpy(weight.astype(np.float32)).to(pixels.device)
    at = torch.from_numpy(chosen).to(pixels.device)
    image = pixels[at]
    for dim, border in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = functional.pad(image, border, mode="reflect")
        image = torch.zeros_like(image)
        for i in range(len(steps)):
            image += padded.narrow(dim, i, edge) * taps[:, i].view(-1, 1, 1, 1)
    out = pixels.clone()
    out[at] = image
    return out
