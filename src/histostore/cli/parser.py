"""The parser of all commands. Imports argparse alone, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from histostore._version import __version__
from histostore.cli import (
    options_build,
    options_care,
    options_features,
    options_find,
    options_runs,
    options_serve,
    options_use,
)
from histostore.errors import UsageError

if TYPE_CHECKING:
    from histostore.cli.options import Commands

COMMANDS: Commands = {
    **options_build.COMMANDS,
    **options_use.COMMANDS,
    **options_find.COMMANDS,
    **options_features.COMMANDS,
    **options_serve.COMMANDS,
    **options_care.COMMANDS,
    **options_runs.COMMANDS,
}


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="histostore",
        formatter_class=_Help,
        description="A streaming feature store and embedding database for spatial histology.",
        epilog="Start with `histostore demo`, or `histostore init S` and `histostore ingest S --help`.",
    )
    parser.add_argument("--version", action="version", version=f"histostore {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, (module, about, example, declare) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".",
            epilog=f"example:\n  {example}", formatter_class=_Help,
        )  # fmt: skip
        sub.set_defaults(module=module, function=name, json=False)
        declare(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object per result on stdout")
    return parser
