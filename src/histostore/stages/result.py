"""What a stage hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from histostore.tables import Report

if TYPE_CHECKING:
    from histostore.store.manifest import Commit, Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """One stage on one slide."""

    slide: str
    stage: str
    refs: tuple[Ref, ...]
    """The groups it stands for, whether written now or found."""
    done: str
    """``written``, ``resumed``, ``already there`` (a no-op) or ``kept another writer's``."""
    rows: int = 0
    report: Report = field(default_factory=Report)
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the time went."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "slide": self.slide,
            "stage": self.stage,
            "done": self.done,
            "rows": self.rows,
            "groups": {r.key: r.digest for r in self.refs},
            "report": self.report.to_json(),
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
        }


def outcome(commit: Commit, *, resumed: bool) -> str:
    """Say in two words what a commit did."""
    if commit.already_there and not commit.added:
        return "kept another writer's"
    return "resumed" if resumed else "written"
