"""Options of the command that serves a store over HTTP."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from histostore.cli.options import the_store, whole

if TYPE_CHECKING:
    from histostore.cli.options import Commands

PORT = 8765
MAX_PORT = 65_535
MAX_SECONDS = 3600


def _serve(p: argparse.ArgumentParser) -> None:
    the_store(p)
    p.add_argument(
        "--host", default="127.0.0.1", metavar="HOST",
        help="address to listen on (127.0.0.1: this machine alone); any other demands a token, made and shown once, "
        "or that of HISTOSTORE_TOKEN",
    )  # fmt: skip
    p.add_argument("--port", type=_port, default=PORT, metavar="N", help=f"port (default {PORT}); 0 takes a free one")
    p.add_argument("--allow-host", action="append", metavar="NAME", help="one more name clients call this server by")
    p.add_argument("--searches", type=whole(1), metavar="N", help="searches at once (default: processors, at most 4)")
    p.add_argument("--timeout", type=_seconds, default=30.0, metavar="S", help="seconds per request (default 30)")


def _port(text: str) -> int:
    value = whole(0)(text)
    if value > MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0-{MAX_PORT}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, above 0 and at most {MAX_SECONDS}")
    return value


COMMANDS: Commands = {
    "serve": ("serve", "search and pictures over HTTP, for this machine", "histostore serve S --port 0", _serve),
}
