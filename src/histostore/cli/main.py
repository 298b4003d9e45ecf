"""Parse, run, and turn every deliberate error into one line and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import TYPE_CHECKING

from histostore.cli.parser import build_parser
from histostore.errors import HistostoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_INTERRUPTED = 130
EXIT_DATA = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 (usage), 3 (data) or 130 (interrupted)."""
    args = build_parser().parse_args(argv)
    command = importlib.import_module(f"histostore.cli.{args.module}")
    try:
        return int(getattr(command, args.function)(args) or 0)
    except HistostoreError as error:
        return report(error, as_json=args.json)
    except KeyboardInterrupt:
        print("histostore: interrupted; finished shards are kept, run the same command to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        print(
            f"histostore: error: out of memory ({error}); use smaller --read-batch or fewer --workers", file=sys.stderr
        )
        return EXIT_DATA


def report(error: HistostoreError, *, as_json: bool, where: str = "") -> int:
    """Print an error as one line (or one JSON object) and return its exit code."""
    text = " ".join(str(error).split())
    notes = "; ".join(getattr(error, "__notes__", []))
    text = f"{text} [{notes}]" if notes else text
    if as_json:
        print(json.dumps({"error": {"kind": error.kind, "message": text, "exit_code": error.exit_code}}))
    prefix = f"histostore: error: {where}: " if where else "histostore: error: "
    print(prefix + text, file=sys.stderr)
    return error.exit_code
