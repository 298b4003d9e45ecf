"""What commands share: opening the store, choosing slides, printing results, going on after a bad slide."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.cli.main import report
from histostore.errors import ConflictError, HistostoreError, StorageError, UsageError
from histostore.schema.kinds import check_format
from histostore.store.store import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from histostore.stages.result import StageResult
    from histostore.store.store import Store


def the_store(args: argparse.Namespace, *, writing: bool = False) -> Store:
    """Open the store of a command; one that may only be read is refused before any work."""
    store = open_store(args.store)
    check_format(store.format, where=store.uri, writing=writing)
    return store


def names(text: str | None) -> list[str] | None:
    """Split ``A,B`` into its names; None stays None."""
    return [n.strip() for n in text.split(",") if n.strip()] if text else None


def chosen_slides(store: Store, args: argparse.Namespace) -> list[str]:
    """Return the slides a command works on, checked to exist before any work.

    Raises
    ------
    UsageError
        The store has no slides.
    """
    slides = names(args.slides) or store.slides()
    if not slides:
        raise UsageError(f"no slides in {store.uri}; bring some in with `histostore ingest`")
    for slide in slides:
        store.slide(slide)
    return slides


def pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """Return ``KEY=VALUE`` options as a dict."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{option} {text!r}: write it as KEY=VALUE")
        found[key.strip()] = value
    return found


def target(text: str | None, *, overwrite: bool = True) -> Path | None:
    """Return where a result goes, checked before the work that makes it.

    Raises
    ------
    UsageError
        There is no such folder.
    ConflictError
        The file is there and `overwrite` is false.
    """
    if text is None:
        return None
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.absolute().parent}; make it first")
    if not overwrite and path.exists():
        raise ConflictError(f"{path} is there already; choose another name, or pass --overwrite")
    return path


def show(value: dict[str, Any], text: str, args: argparse.Namespace) -> None:
    """Print one result: its JSON (numbers that are not finite as null), or a line for people."""
    print(json.dumps(_finite(value), allow_nan=False) if args.json else text, flush=True)


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(v) for key, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
        case float() if not math.isfinite(value):
            return None
    return value


def show_stage(result: StageResult, args: argparse.Namespace) -> None:
    """Print what a stage did on one slide."""
    counts = ", ".join(f"{n:,} {what}" for what, n in result.report.counts.items() if n)
    spent = sum(result.seconds.values())
    where = ", ".join(f"{part} {s:.1f} s" for part, s in result.seconds.items() if s >= 0.1)
    line = f"{result.slide}: {result.stage} {result.done}, {result.rows:,} rows"
    line += f" ({counts})" if counts else ""
    line += f" [{spent:.1f} s: {where}]" if where else ""
    show(result.to_json(), line, args)
    if not args.json:
        for note in result.report.notes:
            print(f"  {note}")


def each(items: Iterable[tuple[str, Callable[[], Iterable[StageResult]]]], args: argparse.Namespace) -> int:
    """Run one slide after the other; a failing one is reported and the others go on.

    They do not where the disk refuses: it would refuse them too.

    Returns
    -------
    int
        0, or the highest exit code of the failures.
    """
    worst, failed, rest = 0, [], list(items)
    n = len(rest)
    while rest:
        name, run = rest.pop(0)
        try:
            for result in run():
                show_stage(result, args)
        except HistostoreError as error:
            failed.append(name)
            worst = max(worst, report(error, args, where=name))
            if isinstance(error, StorageError):
                break
    if failed and n > 1:
        done = n - len(failed) - len(rest)
        others = [f"{k} {what}" for k, what in ((done, "done"), (len(rest), "not tried")) if k]
        said = f"histostore: {len(failed)} of {n} slides failed: {', '.join(failed)}"
        print("; ".join([said, *others]), file=sys.stderr)
    return worst
