"""How a long stage tells where it is, and where its time goes."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Progress(Protocol):
    """What a stage reports to; the CLI draws it, the library is silent by default."""

    def start(self, what: str, total: int, *, done: int = 0, unit: str = "tiles") -> None:
        """Begin something of `total` units, `done` of which were there already."""
        ...

    def advance(self, n: int, seconds: dict[str, float] | None = None) -> None:
        """Report `n` more units and the seconds spent so far by part (read, decode, forward, write)."""
        ...

    def say(self, text: str) -> None:
        """Report one line."""
        ...

    def finish(self) -> None:
        """End what `start` began."""
        ...


class Silent:
    """Reports nothing."""

    def start(self, what: str, total: int, *, done: int = 0, unit: str = "tiles") -> None:
        """Begin."""

    def advance(self, n: int, seconds: dict[str, float] | None = None) -> None:
        """Advance."""

    def say(self, text: str) -> None:
        """Say."""

    def finish(self) -> None:
        """Finish."""


@dataclass(slots=True)
class Stopwatch:
    """Seconds by part of a stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - begun)

    def add(self, part: str, seconds: float) -> None:
        """Add time that was measured elsewhere to a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
