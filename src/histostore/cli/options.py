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


def reading(p: argparse.ArgumentParser, *, threads: int | None = 1, told: str = "1") -> None:
    """Take how tiles are read."""
    p.add_argument("--read-batch", type=whole(1), default=64, metavar="N", help="tiles per read (default 64)")
    p.add_argument("--read-threads", type=whole(1), default=threads, metavar="N",
                   help=f"threads that read and decode ({told})")  # fmt: skip


def on_workers(p: argparse.ArgumentParser, *, gpu: bool = False) -> None:
    """Take where the work is done: here, in worker processes, or at a dask scheduler."""
    where = p.add_mutually_exclusive_group()
    where.add_argument("--workers", type=whole(1), metavar="N", help="spread the work over N processes (needs dask)")
    where.add_argument("--scheduler", metavar="URL", help="a dask scheduler, tls://HOST:8786 or tcp://127.0.0.1:8786")
    for name, what in (("ca", "authority"), ("cert", "certificate"), ("key", "key")):
        p.add_argument(f"--tls-{name}", metavar="PEM", help=f"{what} for encrypted connections")
    p.add_argument("--allow-plain-tcp", action="store_true", help="permit a tcp:// scheduler beyond this machine")
    if gpu:
        p.add_argument("--gpu-per-worker", action="store_true", help="one GPU for each worker (resource GPU=1)")


def which_rows(p: argparse.ArgumentParser) -> None:
    """Take which embeddings and rows."""
    p.add_argument("--backbone", metavar="NAME", help="which embeddings (may be left out where there is one)")
    p.add_argument("--tiles", metavar="NAME", help="which tile set (may be left out where there is one)")
    p.add_argument("--where", metavar="EXPR", help="a filter, like \"patient != 'C' and n_counts >= 500\"")
