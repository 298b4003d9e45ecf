"""Where the time of a streamed stage went, and which part of it binds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

WAITING = "waiting"
"""Parts whose name begins so are time in which nothing was done: they are told, but cannot bind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Seconds that each part of a stage was busy, beside the seconds that passed.

    Parts work side by side, so their seconds add up to more than the wall where they overlap. The part that binds is
    the one that was busy longest: making another one faster changes little.
    """

    wall: float
    rows: int
    busy: Mapping[str, float] = field(default_factory=dict)

    @property
    def binds(self) -> str | None:
        """The part that was busy longest; None where nothing was done."""
        work = {part: s for part, s in self.busy.items() if not part.startswith(WAITING)}
        return max(work, key=lambda part: work[part]) if work else None

    def share(self, part: str) -> float:
        """Return a part's seconds as a share of the wall."""
        return self.busy.get(part, 0.0) / self.wall if self.wall > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "wall_s": round(self.wall, 3),
            "rows": self.rows,
            "rows_per_s": round(self.rows / self.wall, 1) if self.wall > 0 else None,
            "busy_s": {part: round(s, 3) for part, s in self.busy.items()},
            "share": {part: round(self.share(part), 3) for part in self.busy},
            "binds": self.binds,
        }

    def text(self) -> str:
        """Return one line that names the part that binds, and below it one per part."""
        head = f"  {self.rows:,} rows in {self.wall:.1f} s, {self.rows / max(self.wall, 1e-9):,.0f} rows/s"
        if (binds := self.binds) is not None:
            head += f": {binds} binds, busy {100 * self.share(binds):.0f} % of the time"
        lines = [head]
        for part, seconds in sorted(self.busy.items(), key=lambda item: -item[1]):
            mark = "  <- binds" if part == self.binds else ""
            lines.append(f"  {part:<18} {seconds:8.1f} s {100 * self.share(part):4.0f} %{mark}")
        return "\n".join(lines)
