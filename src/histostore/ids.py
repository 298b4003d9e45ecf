"""Names that may become paths, and ids that never do: pure checks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SLUG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]{0,79}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")
MAX_POINT_ID = 128

RESERVED = frozenset({"con", "prn", "aux", "nul", "heads", "indexes"})


def check_slug(name: object, what: str) -> str:
    """Return `name` if it may be part of a path in a store.

    Slugs name slides, tile sets, backbones and heads: 1-80 characters of ``A-Z a-z 0-9 . _ + @ -``, not
    starting with a dot, none of the names that file systems reserve.

    Raises
    ------
    UsageError
        Naming the rule and what was got.
    """
    if not isinstance(name, str) or not _SLUG.fullmatch(name) or name.lower() in RESERVED or ".." in name:
        got = repr(name)
        got = got if len(got) <= 60 else f"{got[:57]}… ({len(str(name))} characters)"
        msg = f"invalid {what} {got}: use 1-80 of A-Z a-z 0-9 . _ + @ -, not starting with a dot"
        raise UsageError(msg)
    return name


def each_once(slides: str | Iterable[object]) -> list[str]:
    """Return the slides that are asked for, in order; one alone may be given as text.

    Raises
    ------
    UsageError
        One is asked for twice, and its rows would count twice; or none is: an empty list does not mean all.
    """
    asked = [slides] if isinstance(slides, str) else [str(slide) for slide in slides]
    if not asked:
        raise UsageError("slides is an empty list: name some, or leave it out for all")
    twice = [slide for slide in dict.fromkeys(asked) if asked.count(slide) > 1] if len(set(asked)) < len(asked) else []
    if twice:
        raise UsageError(f"slide '{twice[0]}' is asked for {asked.count(twice[0])} times: name each once")
    return asked


def check_name(name: object, what: str) -> str:
    """Return `name` if it is one or more slugs joined by ``/`` (a group's name in a manifest)."""
    return "/".join(check_slug(part, what) for part in (name.split("/") if isinstance(name, str) else [name]))


def bad_point_id(point_id: str) -> str | None:
    """Say what is wrong with a spot or tile id, or return None.

    Point ids (barcodes, ``25x13``) are never paths, so they may hold any printable text of 1-128 characters.
    """
    if not point_id:
        return "empty"
    if len(point_id) > MAX_POINT_ID:
        return f"{len(point_id)} characters, at most {MAX_POINT_ID}"
    if _CONTROL.search(point_id):
        return "control character"
    return None
