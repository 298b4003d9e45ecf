"""Every error histostore raises on purpose.

::

    HistostoreError                 kind               exit
    ├── UsageError(ValueError)      usage               2   the call itself is wrong
    ├── NotFoundError(KeyError)     not_found           2   a name that is not there (near names suggested)
    ├── MissingDependencyError      missing_dependency  2   an optional package is not installed
    ├── DataError(ValueError)       data                3   an input file or table cannot be used
    │   ├── SlideError              slide               3   a slide cannot be opened or trusted
    │   └── AlignmentError          alignment           3   rows of two sources do not belong together
    ├── SpecMismatchError           spec_mismatch       3   two things that must agree do not
    ├── ConflictError               conflict            3   the name is taken by something else
    ├── FormatError                 format              3   the store is of a format this version cannot read or write
    ├── CorruptionError             corruption          3   bytes differ from what was committed
    └── StorageError(OSError)       storage             3   the disk or the bucket refused

The tree is cut by what a caller would do. A message says what is wrong, what was got and what to do next, in
one line; ``add_note`` adds where (slide, group). ``kind`` is stable and append-only.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class HistostoreError(Exception):
    """Base of all errors raised on purpose."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 3

    def __str__(self) -> str:
        # KeyError would print its argument's repr
        return str(self.args[0]) if self.args else self.kind


class UsageError(HistostoreError, ValueError):
    """The call itself is wrong: an option, a spec, a combination."""

    kind = "usage"
    exit_code = 2


class NotFoundError(HistostoreError, KeyError):
    """A slide, group, gene or model of that name is not there."""

    kind = "not_found"
    exit_code = 2


class MissingDependencyError(HistostoreError, ImportError):
    """An optional package is needed and not installed."""

    kind = "missing_dependency"
    exit_code = 2


class DataError(HistostoreError, ValueError):
    """An input file or table cannot be used as it is."""

    kind = "data"


class SlideError(DataError):
    """A slide cannot be opened, or claims what it cannot hold."""

    kind = "slide"


class AlignmentError(DataError):
    """Rows of two sources (spots, counts, tiles, embeddings) do not belong together."""

    kind = "alignment"


class SpecMismatchError(HistostoreError, ValueError):
    """Two things that must agree (resolution, width, digest) do not."""

    kind = "spec_mismatch"


class ConflictError(HistostoreError):
    """The name is taken by something with another digest."""

    kind = "conflict"


class FormatError(HistostoreError, ValueError):
    """The store is of a format that this version cannot read or must not write."""

    kind = "format"


class CorruptionError(HistostoreError):
    """Bytes differ from what was committed."""

    kind = "corruption"


class StorageError(HistostoreError, OSError):
    """The disk or the bucket refused: full, read-only, gone."""

    kind = "storage"


def near(name: object, known: Iterable[object], *, limit: int = 3) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the names nearest to `name`, or ``""``; all are taken as text."""
    name = str(name)
    lowered = {str(k).lower(): str(k) for k in known}
    hits = difflib.get_close_matches(name.lower(), lowered, n=limit, cutoff=0.6)
    if not hits:
        hits = [k for k in lowered if name.lower() in k][:limit]
    return "; did you mean " + " or ".join(f"'{lowered[h]}'" for h in hits) + "?" if hits else ""
