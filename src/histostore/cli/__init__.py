"""The command line: one thin function per command, heavy imports inside them."""

from histostore.cli.main import main

__all__ = ["main"]
