"""Run a recipe into a folder that says everything about its numbers; what is there already is not redone."""

from __future__ import annotations

import dataclasses
import os
import re
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore import face
from histostore.errors import ConflictError, DataError, HistostoreError, UsageError
from histostore.ids import check_slug
from histostore.progress import Silent
from histostore.recipes.environment import environment
from histostore.recipes.folders import RunFolder, columns_of, plain, read_run
from histostore.recipes.recipe import Recipe, Results, RunReport, load_recipe, one_line
from histostore.recipes.settings import resolve, to_json
from histostore.specs import digest_of
from histostore.store.object_address import is_object_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.face import Store
    from histostore.progress import Progress
    from histostore.recipes.folders import Run

FORMAT = 1
BROUGHT_IN = ("source", "meta", "points", "expression", "labels", "regions")
"""Kinds that come from outside; a run that tiles and embeds by itself does not change them."""


def runs_beside(store: str | Path | None) -> Path:
    """Return where runs go by default: ``runs/`` beside the store; here without one, and of one in a bucket."""
    if store is None or is_object_address(store):
        return Path("runs")
    path = Path(store)
    return (path if path.name not in ("", "..") else path.resolve()).parent / "runs"


def run(
    recipe: Recipe | str | Path,
    store: Store | str | Path | None = None,
    settings: Mapping[str, Any] | Any = None,
    name: str | None = None,
    *,
    out: str | Path | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Run a recipe into a folder; the same run again is found there and not redone.

    Parameters
    ----------
    recipe
        A `Recipe`, or the pipeline file that has one.
    store
        The store, or where it lies (a folder, ``s3://bucket/prefix``); None for a recipe that needs none.
    settings
        The recipe's settings object, or a mapping of those that differ from its defaults (values or text).
    name
        Name of the run; by default the recipe's and the first digits of what was asked.
    out
        Folder of runs; by default ``runs/`` beside the store, or here where that is in a bucket.
    again
        Redo it although it is there, and replace one of that name that was asked something else.

    Returns
    -------
    Run
        ``fresh`` is false where it was there already.

    Raises
    ------
    UsageError
        Unknown settings, bad values, no store where one is needed.
    ConflictError
        The name is taken by a run of something else (what differs is said), or another process is at it.
    DataError
        The recipe failed with an error of its own; the run says so too.
    """
    job = job_of(recipe, store, settings)
    name = check_slug(name or f"{job.recipe.name}-{job.digest[:8]}", "run name")
    root = Path(out) if out is not None else runs_beside(job.place)
    return run_job(job, root / name, name, again=again, progress=progress or Silent())


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked, resolved and checked before anything is written."""

    recipe: Recipe
    store: Store | None
    place: str | None
    """Where the store lies, as it was asked for: a folder, or ``s3://bucket/prefix``."""
    settings: Any
    facts: Mapping[str, Any]
    """All that makes it another run: recipe, its file, settings, store, what was brought into the store."""

    @property
    def digest(self) -> str:
        """The identity of what is asked."""
        return digest_of(self.facts)


def job_of(
    recipe: Recipe | str | Path, store: Store | str | Path | None, settings: Any, place: str | None = None
) -> Job:
    """Resolve and check what is asked; nothing is written."""
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe)
    if isinstance(store, str | Path):
        place = str(store)
        store = face.open(store)
    elif store is not None and place is None:
        place = store.uri
    if recipe.needs_store and store is None:
        raise UsageError(f"recipe '{recipe.name}' needs a store; give one with --store")
    if settings is None or not isinstance(settings, recipe.settings):
        settings = resolve(recipe.settings, settings or {})
    file, sha256 = recipe.source()
    facts = {
        "recipe": {"name": recipe.name, "file": file, "sha256": sha256},
        "settings": to_json(settings),
        "store": None if store is None else {"name": store.name, "uuid": store.uuid, **_inputs(store)},
    }
    return Job(recipe=recipe, store=store, place=place, settings=settings, facts=facts)


def _inputs(store: Store) -> dict[str, Any]:
    slides = {s: store.manifest(s) for s in store.slides()}
    groups = {s: {r.key: r.digest for k in BROUGHT_IN for r in m.of_kind(k)} for s, m in slides.items()}
    return {"slides": len(slides), "inputs": digest_of(groups)}


def run_job(job: Job, folder: Path, name: str, *, again: bool, progress: Progress) -> Run:
    """Run a job in its folder, or find it there."""
    before = read_run(folder) if folder.is_dir() else None
    if before is not None and before.status == "done" and not again:
        changed = _changed({**before.record, "settings": before.settings}, job.facts)
        if changed:
            raise ConflictError(f"run '{name}' is there with another {changed}; choose another name, or pass --again")
        progress.say(f"run '{name}' is there already ({before.record.get('ended')}); --again redoes it")
        return dataclasses.replace(before, name=name)
    if before is not None and before.status in ("failed", "unfinished"):
        progress.say(f"run '{name}' is {before.status}; it is made anew")
    if job.recipe.check is not None:
        try:
            job.recipe.check(job.store, job.settings)
        except HistostoreError:
            raise
        except Exception as error:
            raise _told(error, job.recipe) from error
    keeper = RunFolder(folder)
    try:
        _keep(job, keeper, name, progress)
    finally:
        keeper.release()
    made = read_run(folder, fresh=True)
    assert made is not None
    return dataclasses.replace(made, name=name)


def _keep(job: Job, keeper: RunFolder, name: str, progress: Progress) -> None:
    """Run it, and write down what there is to know, whether it ends well or not."""
    recipe, begun = job.recipe, time.perf_counter()
    report = RunReport(keeper.folder, progress)
    given = to_json(job.settings)
    about = {"settings": given, "seeds": {k: v for k, v in given.items() if re.search(r"(^|_)seeds?($|_)", k)}}
    record: dict[str, Any] = {
        "format": FORMAT, "name": name, "recipe": dict(job.facts["recipe"]), "digest": job.digest,
        "store": job.facts["store"], "status": "running", "error": None, "started": _now(),
    }  # fmt: skip
    keeper.begin(record, about, environment())
    try:
        results = recipe.run(job.store, job.settings, report)
        if not isinstance(results, Results):
            raise DataError(f"recipe '{recipe.name}' returned a {type(results).__name__}, not Results")
        metrics, table, protocol = plain(results.metrics), plain(list(results.table)), plain(results.protocol)
    except Exception as error:
        failed = _told(error, recipe)
        ended = {"ended": _now(), "seconds": round(time.perf_counter() - begun, 3)}
        keeper.fail(record | ended | {"status": "failed", "error": _without_paths(str(failed), job)})
        if failed is error:
            raise
        raise failed from error
    told = {"notes": report.notes, "counts": report.counts}
    record |= {"status": "done", "ended": _now(), "seconds": round(time.perf_counter() - begun, 3)}
    record |= {"timings": report.seconds, "metrics": metrics, "rows": len(table), **_without_paths(told, job)}
    protocol = {
        "recipe": recipe.name, "citation": recipe.citation, "reproduces": recipe.reproduces, "differs": recipe.differs,
        "published": dict(recipe.published), **about, "store": job.facts["store"], **protocol, **told,
    }  # fmt: skip
    results_json = {"run": name, "digest": job.digest, "metrics": metrics, "table": table}
    keeper.finish(record, _without_paths(results_json, job), _without_paths(protocol, job), environment())


def _told(error: Exception, recipe: Recipe) -> HistostoreError:
    """Return the error as one of ours; of a stranger, say where in the recipe it came from."""
    if isinstance(error, HistostoreError):
        return error
    file, _ = recipe.source()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == file]
    where = f" ({file} line {frames[-1].lineno})" if frames else ""
    return DataError(f"recipe '{recipe.name}' failed{where}: {one_line(error)}")


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what makes two runs different, or return ''."""
    old, new = plain(before), plain(now)
    settings = [
        f"{k} ({old.get('settings', {}).get(k)} there, {new['settings'].get(k)} asked)"
        for k in columns_of([old.get("settings", {}), new["settings"]])
        if old.get("settings", {}).get(k) != new["settings"].get(k)
    ]
    said = [f"setting: {', '.join(settings)}"] if settings else []
    was, is_ = old.get("recipe") or {}, new["recipe"]
    if was != is_:
        said.append("recipe" if was.get("name") != is_["name"] else "version of the pipeline file")
    if (old.get("store") or {}) != (new["store"] or {}):
        same = (old.get("store") or {}).get("uuid") == (new["store"] or {}).get("uuid")
        said.append("content of the store (slides were brought in, changed or deleted)" if same else "store")
    return " and another ".join(said)


def _without_paths(value: Any, job: Job) -> Any:
    """Take the absolute paths of this machine out of what is told: the store's, this folder's and the home folder."""
    match value:
        case dict():
            return {k: _without_paths(v, job) for k, v in value.items()}
        case list():
            return [_without_paths(v, job) for v in value]
        case str():
            known = [(job.store.uri, "<store>")] if job.store is not None else []
            for path, said in (*known, (os.getcwd(), "."), (str(Path.home()), "~")):  # noqa: PTH109
                value = value.replace(path, said) if len(path) > 1 else value
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
