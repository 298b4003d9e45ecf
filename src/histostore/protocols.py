"""The seams: what a slide, a backbone and a head must offer. Nothing else of them is relied on."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from histostore.specs import BackboneSpec


class TileStatus(IntEnum):
    """What became of one tile; kept for every row, so nothing goes missing silently."""

    OK = 0
    PADDED = 1
    """Part of it lies outside the image and is white."""
    BLANK = 2
    """Read well, and has no structure (all glass, or one colour)."""
    UNREADABLE = 3
    """The decoder failed there; its pixels are zero and its embedding is NaN."""


@runtime_checkable
class Slide(Protocol):
    """An open image. Not thread-safe unless it says so: one per reading thread. Use it with ``with``."""

    uri: str
    reader: str
    """Library and version that decode it, for the record: ``openslide 4.0.1``."""
    size_px: tuple[int, int]
    """(width, height) of level 0."""
    mpp: float | None
    """Microns per pixel of level 0 as the file says; None where it does not."""
    downsamples: tuple[float, ...]
    """Level-0 pixels per pixel of each level; the first is 1.0."""
    properties: Mapping[str, str]
    """What the file says of itself (vendor, objective power, …)."""

    def read(self, xy0: NDArray[np.int64], *, px: int, level: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read many square tiles at once.

        Parameters
        ----------
        xy0
            ``(n, 2)`` top-left corners, (x, y), in level-0 pixels; may lie outside the image.
        px
            Edge in pixels of that level.
        level
            Index into `downsamples`.

        Returns
        -------
        pixels
            ``(n, px, px, 3)`` uint8 RGB (y, x, c), owned by the caller. White outside the image, zero where
            unreadable.
        status
            ``(n,)`` uint8 `TileStatus`: OK, PADDED or UNREADABLE. A tile that fails never raises and never
            harms the tiles after it.
        """
        ...

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Return the whole image as ``(h, w, 3)`` uint8 RGB with its longest edge at most `max_px`."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class Backbone(Protocol):
    """A loaded network with its preprocessing."""

    spec: BackboneSpec

    def engine(self) -> dict[str, str | int]:
        """Return what fixes the bits beside the spec: device kind, dtype, threads, library versions."""
        ...

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed a batch.

        Parameters
        ----------
        tiles
            ``(b, px, px, 3)`` uint8 RGB, borrowed: not written to, not kept.

        Returns
        -------
        numpy.ndarray
            ``(b, dim)`` float32, owned by the caller. A row depends on its own tile and on `b` alone, up to
            rounding.
        """
        ...


@runtime_checkable
class Head(Protocol):
    """A scikit-learn style estimator that sees embeddings and never pixels."""

    def fit(self, X: NDArray[Any], y: NDArray[Any], *, groups: NDArray[Any] | None = None) -> Self:
        """Learn from ``(n, d)`` features and ``(n, t)`` targets; `groups` tells which rows belong together."""
        ...

    def predict(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32 predictions for ``(n, d)`` features."""
        ...

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments."""
        ...

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return what was learned: arrays (for safetensors) and plain JSON."""
        ...

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted estimator that `to_state` described."""
        ...
