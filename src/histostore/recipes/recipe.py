"""A published system as one typed value, and what it is given to report with."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import HistostoreError, NotFoundError, UsageError, near
from histostore.ids import check_slug
from histostore.progress import Progress, Stopwatch
from histostore.recipes.folders import FILES
from histostore.recipes.settings import check_settings, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a recipe hands back."""

    metrics: Mapping[str, float | int | str | None]
    """Headline numbers by name: what runs are compared by."""
    table: Sequence[Mapping[str, Any]] = ()
    """Every number, one row each (per fold and method, per epoch, …), with plain values."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """How the numbers were come by: split, panel, what was left out, digests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A published system: what it is, what may be set, and the function that does it."""

    name: str
    citation: str
    settings: type
    """A frozen dataclass; every field has a type and a default, and its metadata may hold ``help``."""
    run: Callable[[Any, Any, RunReport], Results]
    """``run(store, settings, report)``; the store is None for a recipe that needs none."""
    check: Callable[[Any, Any], None] | None = None
    """``check(store, settings)`` raises, before anything is done, for settings that cannot be (see `check_fit`)."""
    reproduces: str = ""
    differs: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    """Published values by metric name."""
    needs_store: bool = True
    quick: Mapping[str, Any] = field(default_factory=dict)
    """Settings with which it runs in seconds on a small synthetic store."""

    def __post_init__(self) -> None:
        check_slug(self.name, "recipe name")
        if not self.citation.strip():
            raise UsageError(f"recipe '{self.name}' has no citation; say what it reproduces")
        check_settings(self.settings, self.name)
        resolve(self.settings, self.quick)

    def source(self) -> tuple[str | None, str | None]:
        """Return the name and the sha256 of the file that its function is written in, where there is one."""
        code = getattr(self.run, "__code__", None)
        path = Path(code.co_filename) if code is not None else None
        if path is None or not path.is_file():
            return None, None
        return path.name, hashlib.sha256(path.read_bytes()).hexdigest()


class RunReport:
    """What a recipe tells while it runs: progress, notes, counts, timings, pictures."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.progress = progress
        self.notes: list[str] = []
        self.counts: dict[str, int] = {}
        self._folder = folder
        self._watch = Stopwatch()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part, so far."""
        return {part: round(s, 3) for part, s in self._watch.seconds.items()}

    def say(self, text: str) -> None:
        """Tell the user one line now."""
        self.progress.say(text)

    def note(self, text: str) -> None:
        """Keep a line beside the numbers."""
        self.notes.append(text)

    def count(self, what: str, n: int) -> None:
        """Count rows used, left out, and why."""
        self.counts[what] = self.counts.get(what, 0) + int(n)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Tell that a part begins, and time it."""
        self.say(part)
        with self._watch.timed(part):
            yield

    def path(self, name: str) -> Path:
        """Return where a picture or table of this run goes."""
        folder = self._folder / FILES
        folder.mkdir(parents=True, exist_ok=True)
        return folder / check_slug(name, "file name")


def load_recipe(path: str | Path) -> Recipe:
    """Import a pipeline file and return its ``RECIPE``.

    Raises
    ------
    NotFoundError
        No such file; near names in its folder are suggested.
    UsageError
        It is no Python file, cannot be imported, or has no ``RECIPE``.
    """
    path = Path(path)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise NotFoundError(f"no pipeline {path}{near(path.name, beside)}")
    if path.suffix != ".py":
        raise UsageError(f"{path} is no Python file; a pipeline is a module with RECIPE = Recipe(…)")
    name = f"histostore_pipeline_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the types of a dataclass's fields are looked up there
    try:
        spec.loader.exec_module(module)
    except HistostoreError:
        raise
    except Exception as error:
        raise UsageError(f"{path} cannot be imported: {one_line(error)}") from error
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise UsageError(f"{path} has no RECIPE; a pipeline is a module with RECIPE = Recipe(…)")
    return recipe


def one_line(error: Exception) -> str:
    """Return an error as one line: its kind and what it says."""
    return " ".join(f"{type(error).__name__}: {error}".split())
