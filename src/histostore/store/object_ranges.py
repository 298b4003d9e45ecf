"""Which requests fetch which pieces of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

type Range = tuple[int, int]
"""Offset and length, in bytes."""


def cut(ranges: Sequence[Range], most: int) -> tuple[list[Range], list[int]]:
    """Return the ranges cut into pieces of at most `most` bytes, and for each piece the range it is of."""
    pieces: list[Range] = []
    owner: list[int] = []
    for i, (at, length) in enumerate(ranges):
        for start in range(at, at + length, most):
            pieces.append((start, min(most, at + length - start)))
            owner.append(i)
    return pieces, owner


def coalesce(pieces: Sequence[Range], *, gap: int, most: int) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (start, stop, which pieces) of the requests that cover all pieces.

    Pieces are joined while no more than `gap` bytes lie between them and a request stays within `most`.
    """
    start = stop = -1
    members: list[int] = []
    for i in sorted(range(len(pieces)), key=lambda i: pieces[i][0]):
        at, length = pieces[i]
        if members and (at - stop > gap or max(stop, at + length) - start > most):
            yield start, stop, members
            members = []
        if not members:
            start, stop = at, at + length
        members.append(i)
        stop = max(stop, at + length)
    if members:
        yield start, stop, members
