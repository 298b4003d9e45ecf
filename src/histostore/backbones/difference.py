"""How far apart the embeddings of two engines of one backbone are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.backbones.engines import network_digest
from histostore.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.protocols import Backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDifference:
    """How far the embeddings of the same tiles by two engines are apart."""

    tiles: int
    max_abs: float
    """Largest difference of a value."""
    relative: float
    """The same as a share of the reference's largest value."""
    cosine_min: float
    """Cosine between the two rows of the worst tile."""
    cosine_median: float

    def to_json(self) -> dict[str, float]:
        """Return plain JSON."""
        return asdict(self)

    def text(self) -> str:
        """Return one line."""
        return (
            f"largest difference {self.max_abs:.1e} ({self.relative:.1e} of the largest value), "
            f"cosine {self.cosine_median:.7f}, worst {self.cosine_min:.7f}, {self.tiles} tiles"
        )


def compare_engines(reference: Backbone, other: Backbone, tiles: NDArray[np.uint8]) -> EngineDifference:
    """Embed ``(b, px, px, 3)`` uint8 tiles with two engines of one backbone and measure how the rows differ.

    Raises
    ------
    UsageError
        They are not the same backbone.
    """
    if network_digest(reference.spec) != network_digest(other.spec):
        msg = f"'{reference.spec.name}' and '{other.spec.name}' are two backbones: compare engines of one"
        raise UsageError(msg)
    a, b = (backbone.embed(tiles).astype(np.float64) for backbone in (reference, other))
    off = float(np.abs(a - b).max())
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)  # rows of zeros too, which have no direction
    cosine = np.where(same, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, np.nan))
    return EngineDifference(
        tiles=len(tiles),
        max_abs=off,
        relative=off / (float(np.abs(a).max()) or 1.0),
        cosine_min=float(cosine.min()),
        cosine_median=float(np.median(cosine)),
    )


def probe_tiles(count: int, px: int) -> NDArray[np.uint8]:
    """Return fixed ``(count, px, px, 3)`` uint8 tiles: eight by eight fields of colour with noise on them."""
    rng = np.random.default_rng(0)
    at = np.arange(px) * 8 // px
    fields = rng.integers(40, 216, (count, 8, 8, 3))[:, at[:, None], at]
    return (fields + rng.integers(-40, 40, (count, px, px, 3))).astype(np.uint8)
