"""Heads: estimators on cached embeddings, and the protocol that trains, chooses and scores them.

``ridge``, ``baselines`` are estimators; ``registry`` finds one by name; ``panels``, ``features`` and ``splits`` say
what is predicted, from what and on which rows; ``metrics`` and ``evaluate`` say how well; ``fitted`` is what is kept.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histostore.heads.baselines import PositionKNN, TrainingMean
    from histostore.heads.ridge import Ridge

__all__ = ["PositionKNN", "Ridge", "TrainingMean"]

_HOME = {"PositionKNN": "baselines", "Ridge": "ridge", "TrainingMean": "baselines"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
