"""Options that commands share, and how their numbers are read. Imports argparse alone."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    type Declare = Callable[[argparse.ArgumentParser], None]
    type Commands = dict[str, tuple[str, str, str, Declare]]
    """Name: module of the function, what it does, an example, its options."""


def whole(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers of `least` or more."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return value

    return read


def hours(text: str) -> float:
    """Read a number of hours."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours, 0 or more")
    return value


def the_store(p: argparse.ArgumentParser) -> None:
    """Take the store."""
    p.add_argument("store", metavar="S", help="the store's folder, or s3://bucket/prefix")


def which_slides(p: argparse.ArgumentParser) -> None:
    """Take a choice of slides."""
    p.add_argument("--slides", metavar="A,B", help="only these slides (default: all)")


def reading(p: argparse.ArgumentParser) -> None:
    """Take how tiles are read."""
    p.add_argument("--read-batch", type=whole(1), default=64, metavar="N", help="tiles per read (default 64)")
    p.add_argument("--workers", type=whole(1), default=1, metavar="N", help="reading threads (default 1)")


def which_rows(p: argparse.ArgumentParser) -> None:
    """Take which embeddings and rows."""
    p.add_argument("--backbone", metavar="NAME", help="which embeddings (may be left out where there is one)")
    p.add_argument("--tiles", metavar="NAME", help="which tile set (may be left out where there is one)")
    p.add_argument("--where", metavar="EXPR", help="a filter, like \"patient != 'C' and n_counts >= 500\"")
