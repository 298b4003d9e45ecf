"""What commands share: opening the store, choosing slides, printing results, going on after a bad slide."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore import inventory
from histostore.cli.main import report
from histostore.cli.streams import answer, tell
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
    """Split ``A,B`` into its names; None stays None.

    Raises
    ------
    UsageError
        There is no name in it: an empty variable of a shell does not mean all.
    """
    if text is None:
        return None
    found = [n.strip() for n in text.split(",") if n.strip()]
    if not found:
        raise UsageError(f"a list of names is empty ({text!r}): give one or more, or leave the option out")
    return found


def chosen_slides(store: Store, args: argparse.Namespace) -> list[str]:
    """Return the slides a command works on, checked to exist before any work.

    Raises
    ------
    UsageError
        The store has no slides.
    """
    return inventory.chosen_slides(store, names(args.slides))


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
        if key.strip() in found:
            raise UsageError(f"{option} '{key.strip()}' is given twice; give it once")
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
    answer(json.dumps(_finite(value), allow_nan=False) if args.json else text)


def say_left_out(note: str | None) -> None:
    """Tell people, beside the result, which slides it was made without."""
    if note is not None:
        tell(f"histostore: {note}")


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
            answer(f"  {note}")


class Failures:
    """What goes wrong with some of the slides of a command: told one by one, and about the call itself only once.

    Parameters
    ----------
    n
        How many slides there are.
    own_inputs
        Slides have options of their own (lines of a sheet): each is told what is wrong with its own.
    """

    def __init__(self, n: int, args: argparse.Namespace, *, own_inputs: bool = False) -> None:
        self._n, self._args, self._own_inputs = n, args, own_inputs
        self._failed: list[str] = []
        self._done, self._worst, self._first = 0, 0, ""
        self.alike = False
        """The first two were told the same, word for word, about the call: the others would be too."""

    def passed(self) -> None:
        """Count a slide that went well."""
        self._done += 1

    def add(self, slide: str, error: HistostoreError) -> None:
        """Tell what is wrong with a slide, unless it is what was said of the first."""
        self._failed.append(slide)
        told = "; ".join([str(error), *getattr(error, "__notes__", [])])
        second = self._done + len(self._failed) == 2
        self.alike = told == self._first and second and error.exit_code == EXIT_USAGE and not self._own_inputs
        if not self.alike:
            self._first = self._first or told
            self._worst = max(self._worst, report(error, self._args, where=slide))

    def exit_code(self) -> int:
        """Say what became of all, where some failed; return 0, or the highest exit code of the failures."""
        if self._failed and self._n > 1:
            untried = "not tried: the same would be said of them" if self.alike else "not tried"
            left = self._n - self._done - len(self._failed)
            others = [f"{k} {what}" for k, what in ((self._done, "done"), (left, untried)) if k]
            said = f"histostore: {len(self._failed)} of {self._n} slides failed: {', '.join(self._failed)}"
            tell("; ".join([said, *others]))
        return self._worst


def each(
    items: Sequence[tuple[str, Callable[[], Iterable[StageResult]]]],
    args: argparse.Namespace,
    *,
    own_inputs: bool = False,
) -> int:
    """Run one slide after the other; a failing one is reported and the others go on (see `Failures`).

    They do not where the disk refuses, nor where the same would be said of them.

    Returns
    -------
    int
        0, or the highest exit code of the failures.
    """
    failures = Failures(len(items), args, own_inputs=own_inputs)
    for name, run in items:
        try:
            for result in run():
                show_stage(result, args)
            failures.passed()
        except HistostoreError as error:
            failures.add(name, error)
            if failures.alike or isinstance(error, StorageError):
                break
    return failures.exit_code()
