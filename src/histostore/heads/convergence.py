"""What a head says when an optimisation stopped before it had settled: a warning and a note, never nothing."""

from __future__ import annotations

import warnings


class NotConvergedWarning(UserWarning):
    """An iteration reached its limit; the fit is usable, and further from its optimum than asked."""


def say_not_converged(what: str, limit: str, advice: str) -> tuple[str, ...]:
    """Warn that `what` stopped at `limit`, and return the note that the head keeps in ``notes_``."""
    note = f"{what} did not converge within {limit}: {advice}"
    warnings.warn(note, NotConvergedWarning, stacklevel=3)
    return (note,)
