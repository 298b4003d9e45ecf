"""What commands share: opening the store, choosing slides, printing results, going on after a bad slide."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.cli.main import report
from histostore.errors import ConflictError, HistostoreError, NotFoundError, StorageError, UsageError, near
from histostore.schema.kinds import check_format
from histostore.store.catalog import known_slides
from histostore.store.store import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from histostore.stages.result import StageResult
    from histostore.store.store import Store


def the_store(args: argparse.Namespace, *, writing: bool = False) -> Store:
    """Open the store of a command; one that may only be read is refused before any work."""
    store = open_store(args.store)
    check_format(store.format, where=store.uri, writing=writing)
    return store


EXIT_USAGE = UsageError.exit_code


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


def check_somewhere(store: Store, slides: Sequence[str], kind: str, name: str | None) -> None:
    """Check that one of many slides has a group that a command names; those that have not are told one by one.

    Raises
    ------
    NotFoundError
        None has.
    """
    key = f"{kind}/{name}"
    if name is None or len(slides) == 1 or key in store.slide(slides[0]).entries:
        return
    entries = [known.manifest.entries for known in known_slides(store, slides)]
    if any(key in of for of in entries):
        return
    there = sorted({other.removeprefix(f"{kind}/") for of in entries for other in of if other.startswith(f"{kind}/")})
    have = f"there are {', '.join(there)}" if there else f"there are no {kind} yet"
    raise NotFoundError(f"none of the {len(slides):,} slides has {kind} '{name}'{near(name, there)}; {have}")


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


def say_left_out(note: str | None) -> None:
    """Tell people, beside the result, which slides it was made without."""
    if note is not None:
        print(f"histostore: {note}", file=sys.stderr)


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


def each(
    items: Iterable[tuple[str, Callable[[], Iterable[StageResult]]]],
    args: argparse.Namespace,
    *,
    own_inputs: bool = False,
) -> int:
    """Run one slide after the other; a failing one is reported and the others go on.

    They do not where the disk refuses, and where the first two are told the same, word for word, about the call: the
    others would be too, and it is said once.

    Parameters
    ----------
    own_inputs
        Slides have options of their own (lines of a sheet): each is told what is wrong with its own.

    Returns
    -------
    int
        0, or the highest exit code of the failures.
    """
    worst, failed, rest, first, alike = 0, [], list(items), "", False
    n = len(rest)
    while rest:
        name, run = rest.pop(0)
        try:
            for result in run():
                show_stage(result, args)
        except HistostoreError as error:
            failed.append(name)
            told = "; ".join([str(error), *getattr(error, "__notes__", [])])
            alike = told == first and n - len(rest) == 2 and error.exit_code == EXIT_USAGE and not own_inputs
            if alike:
                break
            first = first or told
            worst = max(worst, report(error, args, where=name))
            if isinstance(error, StorageError):
                break
    if failed and n > 1:
        done = n - len(failed) - len(rest)
        untried = "not tried: the same would be said of them" if alike else "not tried"
        others = [f"{k} {what}" for k, what in ((done, "done"), (len(rest), untried)) if k]
        said = f"histostore: {len(failed)} of {n} slides failed: {', '.join(failed)}"
        print("; ".join([said, *others]), file=sys.stderr)
    return worst
