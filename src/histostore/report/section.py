"""A part of a report, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One heading of a report and what stands below it, in this order."""

    title: str
    text: str = ""
    """Plain text; an empty line starts a new paragraph."""
    warnings: Sequence[str] = ()
    """What a reader must know before the numbers."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """Caption -> table."""
    figures: Mapping[str, Figure | bytes] = field(default_factory=dict)
    """Caption -> figure, or the bytes of a PNG."""
    notes: Sequence[str] = ()
    """Small print: what was left out, how something was computed."""
