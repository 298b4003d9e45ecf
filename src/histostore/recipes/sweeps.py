"""A recipe over a grid of settings: one run folder each, and flat tables of them all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from histostore.errors import ConflictError, HistostoreError, StorageError, UsageError
from histostore.ids import check_slug
from histostore.progress import Silent
from histostore.recipes.folders import METRICS, RECORD, SWEEP, TABLE, json_bytes, plain, read_run, write_table
from histostore.recipes.perform import FORMAT, job_of, run_job, runs_beside
from histostore.recipes.settings import to_json
from histostore.specs import digest_of
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.face import Store
    from histostore.progress import Progress
    from histostore.recipes.folders import Run
    from histostore.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A grid of runs and its flat tables."""

    name: str
    folder: Path
    points: tuple[str, ...]
    """Names of all points of the grid."""
    runs: tuple[Run, ...]
    """In the order of the grid; the last given setting changes fastest."""
    errors: Mapping[str, HistostoreError]
    """Of the points that failed, by name."""
    table: Path
    """All rows of all points, with the settings of their point before them."""
    metrics: Path
    """One line per point."""


def sweep(
    recipe: Recipe | str | Path,
    store: Store | str | Path | None,
    settings: Mapping[str, Any] | Any,
    grid: Mapping[str, Sequence[Any]],
    name: str | None = None,
    *,
    out: str | Path | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Run a recipe over a grid of settings: one folder each, two flat tables; done points are not redone.

    A point that fails is recorded and the others go on, except where the disk refuses. Parameters as in `run`;
    `grid` holds the values of each swept setting.

    Raises
    ------
    UsageError
        No values of a setting, or no list of them; a point is named twice; a setting or value that cannot be.
    ConflictError
        The name is that of a single run.
    """
    progress = progress or Silent()
    base = job_of(recipe, store, settings)
    for setting, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise UsageError(f"sweep over '{setting}' is {values!r}; give its values in a list")
    if not grid or not all(grid.values()):
        raise UsageError("a sweep needs at least one setting with its values")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    jobs = [job_of(base.recipe, base.store, to_json(base.settings) | point, base.place) for point in points]
    named: dict[str, str] = {}
    for job, point in zip(jobs, points, strict=True):
        if job.digest in named:
            raise UsageError(f"sweep: {named[job.digest]} and {_point_name(point)} are one; name each value once")
        named[job.digest] = _point_name(point)
    name = check_slug(name or f"{base.recipe.name}-sweep-{digest_of([j.digest for j in jobs])[:8]}", "run name")
    root = Path(out) if out is not None else runs_beside(base.place)
    folder = root / name
    if (folder / RECORD).exists():
        raise ConflictError(f"{folder} holds a single run; choose another name for the sweep")
    about = {"format": FORMAT, "recipe": base.recipe.name, "grid": grid, "points": [_point_name(p) for p in points]}
    LocalFiles(folder, make=True).put(SWEEP, json_bytes(about))
    runs: list[Run] = []
    errors: dict[str, HistostoreError] = {}
    for i, (job, point) in enumerate(zip(jobs, points, strict=True), 1):
        one = _point_name(point)
        progress.say(f"[{i} of {len(jobs)}] {one}")
        try:
            runs.append(run_job(job, folder / one, f"{name}/{one}", again=again, progress=progress))
        except HistostoreError as error:
            errors[one] = error
            found = read_run(folder / one, root=root)
            runs += [found] if found is not None else []
            if isinstance(error, StorageError):
                break
    swept = {_point_name(p): p for p in points}
    lines = [
        {"run": r.folder.name, **swept[r.folder.name], "status": r.status, "seconds": r.record.get("seconds"),
         "error": r.record.get("error"), **r.metrics}
        for r in runs
    ]  # fmt: skip
    rows = [_beside({"run": r.folder.name, **swept[r.folder.name]}, row) for r in runs for row in r.table()]
    return Sweep(
        name=name, folder=folder, points=tuple(swept), runs=tuple(runs), errors=MappingProxyType(errors),
        table=write_table(folder, TABLE, rows), metrics=write_table(folder, METRICS, lines),
    )  # fmt: skip


def _beside(point: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Put a point's settings before a row; a column that says something else under the same name keeps both."""
    own = {(f"{k} (row)" if k in point and plain(point[k]) != v else k): v for k, v in row.items()}
    return {**point, **own}


def _point_name(point: Mapping[str, Any]) -> str:
    """Return a folder name for a point of a grid: ``batch_size-2+seed-0``, with a digest where it had to be bent."""
    text = "+".join(f"{k}-{_short(v)}" for k, v in point.items())
    name = re.sub(r"[^A-Za-z0-9._+@-]", "-", text)
    if name == text and len(name) <= 64:
        return name
    return f"{name[:56]}-{digest_of(plain(point))[:8]}"


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
