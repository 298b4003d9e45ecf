"""The most memory a piece of work took, as the system tells."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """With it, a thread looks twenty times a second at the memory that is the process's own (no mapped files)."""

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._before = anonymous_bytes()
        if self._before is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._before is not None:
            self._look()
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self._look()

    def _look(self) -> None:
        now = anonymous_bytes()
        if now is not None and self._before is not None:
            self.bytes = max(self.bytes or 0, now - self._before)


def anonymous_bytes() -> int | None:
    """Return the process's resident memory without mapped files; None where /proc does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found[0]) * 1024 if found else None
