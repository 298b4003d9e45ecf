"""Probabilities of classes as they are kept, and the class that is called from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def call_classes(probabilities: NDArray[Any], classes: Sequence[str], threshold: float) -> NDArray[Any]:
    """Return the class ``(n,)`` called for each row of probabilities ``(n, classes)``; None for a row with NaN.

    Of two classes the second from `threshold` on, of more the likeliest.
    """
    known = np.isfinite(probabilities).all(axis=1)
    filled = np.nan_to_num(probabilities, nan=0.0)
    codes = (filled[:, 1] >= threshold).astype(np.int64) if len(classes) == 2 else filled.argmax(axis=1)
    called: NDArray[Any] = np.array([*classes, None], dtype=object)[np.where(known, codes, len(classes))]
    return called


def call_probability(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """Return ``(n,)`` float32: of two classes that of the second, of more that of the likeliest."""
    chosen = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities.max(axis=1)
    return chosen.astype(np.float32)
