"""Parse, run, and turn every deliberate error, and what the disk says, into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import re
import sys
from typing import TYPE_CHECKING

from histostore.cli.parser import build_parser
from histostore.cli.streams import answer, prepare, tell
from histostore.errors import HistostoreError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_INTERRUPTED = 130
EXIT_DATA = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 (usage), 3 (data) or 130 (interrupted)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = argparse.Namespace(json="--json" in argv)
    prepare()
    try:
        args = build_parser().parse_args(argv)
        command = importlib.import_module(f"histostore.cli.{args.module}")
        return int(getattr(command, args.function)(args) or 0)
    except HistostoreError as error:
        return report(error, args)
    except KeyboardInterrupt:
        tell("histostore: interrupted; finished shards are kept, run the same command to go on")
        return EXIT_INTERRUPTED
    except OSError as error:  # a file outside the store: an output, a table, a picture
        place = f"{error.filename}: " if error.filename else ""
        return report(StorageError(f"{place}{error.strerror or error}"), args)
    except MemoryError as error:
        tell(f"histostore: error: out of memory ({error}); use smaller --read-batch or fewer --read-threads")
        return EXIT_DATA


def report(error: HistostoreError, args: argparse.Namespace, *, where: str = "") -> int:
    """Print an error as one line (or one JSON object) and return its exit code."""
    notes = "; ".join(getattr(error, "__notes__", []))
    text = _in_flags(" ".join(f"{error} [{notes}]".split()) if notes else " ".join(str(error).split()), args)
    if args.json:
        told = {"error": {"kind": error.kind, "message": text, "exit_code": error.exit_code}}
        with contextlib.suppress(OSError):  # stdout may be what is full
            answer(json.dumps(told))
    prefix = f"histostore: error: {where}: " if where else "histostore: error: "
    tell(prefix + text)
    return error.exit_code


def _in_flags(text: str, args: argparse.Namespace) -> str:
    """Write the options that the library calls ``allow_upsample`` as the command line does: ``--allow-upsample``."""

    def flag(match: re.Match[str]) -> str:
        return f"--{match[0].replace('_', '-')}" if match[0] in vars(args) else match[0]

    return re.sub(r"(?<![\w./'-])[a-z]+(?:_[a-z]+)+(?![\w./'-])", flag, text)
