"""Bring the stain of a slide to one fixed reference: Macenko's and Reinhard's normalisation, fitted per slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from histostore.errors import DataError
from histostore.protocols import TileStatus
from histostore.tiles.read import read_tiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.protocols import Slide
    from histostore.tiles.plan import TilePlan

WHITE = 240.0
"""Intensity of unstained glass in the reference, and of a slide where it is not known."""

# Haematoxylin and eosin in optical density, and the concentrations that 99 % of pixels stay under: the reference image
# of M. Macenko et al., ISBI 2009, as its authors' MATLAB code gives them.
_REFERENCE_STAINS = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
_REFERENCE_MAXIMUM = np.array([1.9705, 1.0308])
# Mean and deviation of tissue in lαβ: region TCGA-A2-A3XS-DX1 of M. Amgad et al., Bioinformatics 35, 2019.
_REFERENCE_MEAN = np.array([8.74108109, -0.12440419, 0.0444982])
_REFERENCE_DEVIATION = np.array([0.6135447, 0.10989545, 0.0286032])

_STAINED = 0.15
"""Optical density (natural logarithm) in each channel above which a pixel is stained (Macenko's β)."""
_TISSUE = 0.05
"""Mean optical density above which a pixel is tissue, pale or not: Reinhard's reference counts those too."""
_ANGLE_PERCENT = 1.0
"""Share of pixels taken for outliers at each end (Macenko's α)."""
_MIN_STAINED_SHARE = 0.01
_MIN_PIXELS = 1_000
_MIN_ANGLE = math.radians(3)
_FIT_TILES = 64
_DIGITS = 6
"""Fits are rounded, so that they do not carry the last bits of one machine's linear algebra into a record."""

_RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LMS_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]])


@dataclass(frozen=True, slots=True, kw_only=True)
class StainFit:
    """What was learned of one slide's stain; goes into the record, and `apply` needs nothing else."""

    method: Literal["macenko", "reinhard"]
    white: tuple[float, float, float]
    """Intensity of unstained glass in each channel."""
    matrix: tuple[tuple[float, ...], ...]
    """``(3, 3)``: optical density to normalised optical density, or lαβ to normalised lαβ."""
    offset: tuple[float, float, float]
    """Added after the matrix."""

    def apply(self, tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a ``(h, w, 3)`` uint8 RGB tile in the reference's stain.

        A tile with less than 1 % of stained pixels comes back unchanged (a copy).
        """
        density = _density(tile, self.white)
        if (density > _STAINED).all(axis=-1).mean() < _MIN_STAINED_SHARE:
            return tile.copy()
        matrix, offset = np.array(self.matrix), np.array(self.offset)
        if self.method == "macenko":
            return _to_uint8(WHITE * np.exp(-(density @ matrix.T + offset)))
        moved = _from_lab(_to_lab(tile) @ matrix.T + offset)
        # glass is not stained: moved with the tissue it would get a colour
        weight = np.clip(density.mean(axis=-1, keepdims=True) / _STAINED, 0, 1)
        return _to_uint8(tile + weight * (moved - tile))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        matrix = [list(row) for row in self.matrix]
        return {"method": self.method, "white": list(self.white), "matrix": matrix, "offset": list(self.offset)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the fit that `to_json` wrote."""
        return cls(
            method=value["method"],
            white=tuple(value["white"]),
            matrix=tuple(tuple(row) for row in value["matrix"]),
            offset=tuple(value["offset"]),
        )


def fit_stain(
    method: Literal["macenko", "reinhard"],
    rgb: NDArray[np.uint8],
    *,
    white: tuple[float, float, float] | None = None,
) -> StainFit:
    """Learn the stain of a slide from some of its pixels.

    Parameters
    ----------
    method
        ``macenko`` finds the two stains and scales their concentrations; ``reinhard`` matches mean and deviation.
    rgb
        ``(..., 3)`` uint8 RGB: sampled tiles, at the resolution that `StainFit.apply` will see.
    white
        Colour of the slide's glass (`TissueMask.glass_rgb`); None takes 240.

    Raises
    ------
    DataError
        There are fewer than 1,000 stained pixels, or only one stain for ``macenko``.

    Notes
    -----
    Sources: M. Macenko et al., ISBI 2009; E. Reinhard et al., IEEE Computer Graphics and Applications 21(5), 2001.
    Differs in: fitted once per slide, so that tiles of one slide stay comparable; glass does not count; what the
    two stains do not explain is dropped; Reinhard's shift fades out towards glass.
    """
    white = (WHITE, WHITE, WHITE) if white is None else white
    pixels = np.asarray(rgb, dtype=np.uint8).reshape(-1, 3)
    density = _density(pixels, white)
    stained = (density > _STAINED).all(axis=-1)
    if stained.sum() < _MIN_PIXELS:
        msg = f"{int(stained.sum())} stained pixels are too few to learn a stain from; tile without stain normalisation"
        raise DataError(msg)
    if method == "macenko":
        matrix, offset = _macenko(density[stained]), np.zeros(3)
    else:
        matrix, offset = _reinhard(pixels[density.mean(axis=-1) > _TISSUE])
    rounded = np.round(matrix, _DIGITS).tolist()
    a, b, c = np.round(offset, _DIGITS).tolist()
    return StainFit(
        method=method,
        white=(float(white[0]), float(white[1]), float(white[2])),
        matrix=tuple(tuple(row) for row in rounded),
        offset=(a, b, c),
    )


def fit_slide_stain(
    method: Literal["macenko", "reinhard"],
    slide: Slide,
    plan: TilePlan,
    *,
    white: tuple[float, float, float] | None = None,
) -> StainFit:
    """Learn the stain of a slide from 64 of its planned tiles.

    The tiles are those of the smallest `TilePlan.tile_id`: a random choice that the order of rows does not change.
    Errors as in `fit_stain`; unreadable tiles are passed over.
    """
    chosen = np.lexsort((plan.tile_id[:, 1], plan.tile_id[:, 0]))[:_FIT_TILES]
    pixels, status = read_tiles(slide, plan.read, plan.xy0[chosen])
    return fit_stain(method, pixels[status != TileStatus.UNREADABLE], white=white)


def _density(rgb: NDArray[np.uint8], white: tuple[float, float, float]) -> NDArray[np.float64]:
    # uint8 has 256 values: a table is exact and saves most of the logarithms
    table = np.log(np.asarray(white)) - np.log(np.maximum(np.arange(256.0), 1))[:, None]
    return np.stack([table[rgb[..., c], c] for c in range(3)], axis=-1)


def _macenko(density: NDArray[np.float64]) -> NDArray[np.float64]:
    _, vectors = np.linalg.eigh(np.cov(density, rowvar=False))
    plane = vectors[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    on_plane = density @ plane
    angle = np.arctan2(on_plane[:, 1], on_plane[:, 0])
    low, high = np.percentile(angle, [_ANGLE_PERCENT, 100 - _ANGLE_PERCENT])
    if high - low < _MIN_ANGLE:
        msg = f"the two stains lie {math.degrees(high - low):.1f}° apart: only one is there; take reinhard or no stain"
        raise DataError(msg)
    pair = plane @ np.array([[np.cos(low), np.cos(high)], [np.sin(low), np.sin(high)]])
    # haematoxylin takes more red than eosin does
    stains = pair[:, np.argsort(-pair[0])]
    unmix = np.linalg.pinv(stains)
    maximum = np.percentile(density @ unmix.T, 99, axis=0)
    matrix: NDArray[np.float64] = _REFERENCE_STAINS @ np.diag(_REFERENCE_MAXIMUM / np.maximum(maximum, 1e-3)) @ unmix
    return matrix


def _reinhard(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lab = _to_lab(rgb)
    scale = _REFERENCE_DEVIATION / np.maximum(lab.std(axis=0), 1e-3)
    return np.diag(scale), _REFERENCE_MEAN - lab.mean(axis=0) * scale


def _to_lab(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    lms = np.maximum(rgb.astype(np.float64), 1.0) @ _RGB_TO_LMS.T
    lab: NDArray[np.float64] = np.log(lms) @ _LMS_TO_LAB.T
    return lab


def _from_lab(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    rgb: NDArray[np.float64] = np.exp(lab @ np.linalg.inv(_LMS_TO_LAB).T) @ np.linalg.inv(_RGB_TO_LMS).T
    return rgb


def _to_uint8(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
