"""Progress on stderr: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from histostore.cli.streams import tell

EVERY_TERMINAL_S = 0.2
EVERY_LOG_S = 10.0


class Line:
    """Draws rate, ETA and where the time goes."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._what, self._unit = "", "tiles"
        self._total = self._done = self._before = 0
        self._begun = self._shown = 0.0

    def start(self, what: str, total: int, *, done: int = 0, unit: str = "tiles") -> None:
        """Begin something of `total` units."""
        self._what, self._unit, self._total, self._done, self._before = what, unit, total, done, done
        self._begun = time.perf_counter()
        self._shown = self._begun if not self._terminal else 0.0
        if done:
            self.say(f"{what}: {done:,} of {total:,} {unit} are there already, going on")

    def advance(self, n: int, seconds: dict[str, float] | None = None) -> None:
        """Report `n` more units."""
        self._done += n
        now = time.perf_counter()
        if now - self._shown < (EVERY_TERMINAL_S if self._terminal else EVERY_LOG_S):
            return
        self._shown = now
        rate = (self._done - self._before) / max(1e-9, now - self._begun)
        left = (self._total - self._done) / max(1e-9, rate)
        spent = sum((seconds or {}).values()) or 1.0
        parts = " ".join(f"{k} {100 * v / spent:.0f}%" for k, v in (seconds or {}).items())
        text = (
            f"{self._what}: {self._done:,}/{self._total:,} {self._unit}, {rate:,.0f}/s, {_clock(left)} left ({parts})"
        )
        tell(f"\r\x1b[K{text}" if self._terminal else text, end="" if self._terminal else "\n")

    def say(self, text: str) -> None:
        """Report one line."""
        tell(f"\r\x1b[K{text}" if self._terminal else text)

    def finish(self) -> None:
        """End what `start` began."""
        if self._terminal:
            tell("\r\x1b[K", end="")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
