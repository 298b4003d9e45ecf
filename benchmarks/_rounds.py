"""Rounds of several contestants, one after the other in turn, and lines of ratios between them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    type Times = dict[str, list[tuple[float, float]]]
    """Of each contestant and round: seconds by the clock, and of all processors together."""


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def interleaved(cases: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Time every case once a round, after one round that is not counted; every other round goes backwards."""
    found: Times = {name: [] for name in cases}
    for round_ in range(rounds + 1):
        for name in list(cases) if round_ % 2 else reversed(list(cases)):
            begun = time.process_time()
            took = seconds(cases[name])
            if round_:
                found[name].append((took, time.process_time() - begun))
    return found


def faster(times: Times, ours: str, than: str) -> list[tuple[float, float]]:
    """Return, round by round, how many times as fast ours was, by the clock and by processor time."""
    return [(b[0] / a[0], b[1] / a[1]) for a, b in zip(times[ours], times[than], strict=True)]


def slower(times: Times, ours: str, than: str) -> list[tuple[float, float]]:
    """Return, round by round, how many times as long ours took, by the clock and by processor time."""
    return faster(times, than, ours)


class Gates:
    """Prints what was measured beside what must be reached, and keeps what was missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def ratio(
        self, what: str, found: list[tuple[float, float]], *, least: float | None = None, most: float | None = None
    ) -> None:
        """Print the median of some ratios by the clock, which is gated, their range, and that by processor time."""
        wall, cpu = (list(column) for column in zip(*found, strict=True))
        note = f"({min(wall):.2f}-{max(wall):.2f}; cpu {np.median(cpu):.2f})"
        self.value(what, float(np.median(wall)), "x", least=least, most=most, note=note)

    def value(
        self, what: str, value: float, unit: str, *, least: float | None = None, most: float | None = None,
        note: str = "",
    ) -> None:  # fmt: skip
        """Print one figure."""
        good = (least is None or value >= least) and (most is None or value <= most)
        gate = f">= {least:g}" if least is not None else f"<= {most:g}" if most is not None else ""
        verdict = ("reached" if good else "MISSED") if gate else ""
        print(f"  {what:<48} {value:8.4g} {unit:<2} {note:<24} {gate:<8} {verdict}", flush=True)
        if not good:
            self.missed.append(what)

    def end(self) -> int:
        """Print the verdict; return the exit code."""
        print("missed: " + ", ".join(self.missed) if self.missed else "all gates reached")
        return 1 if self.missed else 0
