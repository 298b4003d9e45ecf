"""Standard streams as they may be: closed, of a narrow alphabet, on a full disk, or read by someone who went away."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

_FAIL = ("strict", "surrogateescape")
"""How streams treat what their encoding lacks, as Python opens them (the second in the locale C): not at all."""


def prepare() -> None:
    """Make them fit to be used: closed ones go nowhere, and what an encoding lacks is escaped.

    The first file that is opened would take a closed one's number, and what is printed would go into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper) and stream.errors in _FAIL:
            stream.reconfigure(errors="backslashreplace")


def answer(text: str) -> None:
    """Print a result on stdout. A reader that went away, as ``head`` does, wants no more of it; the work goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _to_nowhere(sys.stdout)


def tell(text: str, *, end: str = "\n") -> None:
    """Print on stderr, for people; where that fails there is nobody to tell, and the work goes on."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        _to_nowhere(sys.stderr)


def _to_nowhere(stream: Any) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
