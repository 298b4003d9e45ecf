"""The command that serves a store over HTTP."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from histostore.cli.common import show, the_store

if TYPE_CHECKING:
    import argparse

    from histostore.serve.server import Place


def serve(args: argparse.Namespace) -> None:
    """Serve until interrupted."""
    from histostore.serve import Limits, Server

    store = the_store(args)
    searches = args.searches or min(4, os.cpu_count() or 1)
    limits = Limits(searches=searches, timeout_s=args.timeout)
    server = Server(store, host=args.host, port=args.port, allow_hosts=args.allow_host or (), limits=limits)

    def announce(place: Place) -> None:
        told = place.token if place.token_is_new else None
        text = (
            f"serving '{store.name}' on {place.address} (what it answers: {place.address}/openapi.json); Ctrl-C ends it"
        )
        if told is not None:
            text += f"\ntoken, shown only now: {told} (send 'Authorization: Bearer {told}')"
        show({"address": place.address, "token": told, "token_demanded": place.token is not None}, text, args)

    server.run(announce)
