"""Run folders: what a recipe was asked, with what, how it went and what came out; listed and compared.

``<name>/`` holds ``settings.json``, ``environment.json``, ``protocol.json``, ``results.csv`` and ``results.json``,
pictures under ``files/``, and ``run.json``, which says whether all the others are whole. Every file appears at once
and entirely, and ``run.json`` says ``done`` only after the rest is there. A run that was killed left ``running``
behind and no lock: it is seen as ``unfinished``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import ConflictError, DataError, NotFoundError, near
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from histostore.store.files import Lock

RECORD, SETTINGS, ENVIRONMENT, PROTOCOL = "run.json", "settings.json", "environment.json", "protocol.json"
TABLE, RESULTS, FILES, SWEEP, METRICS = "results.csv", "results.json", "files", "sweep.json", "metrics.csv"
LOCK = ".lock"

type Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run as its folder tells it."""

    name: str
    folder: Path
    status: str
    """``done``, ``failed``, ``running`` (someone holds its lock) or ``unfinished`` (nobody does: it was killed)."""
    record: Mapping[str, Any]
    """``run.json``: recipe, digest, store, times, metrics, notes."""
    settings: Mapping[str, Any]
    fresh: bool = False
    """Made by this call, not found."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Headline numbers; empty unless it is done."""
        return self.record.get("metrics") or {} if self.status == "done" else {}

    def table(self) -> list[dict[str, Any]]:
        """Return the rows of the results table."""
        if self.status != "done":
            return []
        rows: list[dict[str, Any]] = json.loads((self.folder / RESULTS).read_text())["table"]
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**self.record, "name": self.name, "status": self.status, "settings": dict(self.settings)}


class RunFolder:
    """The writing side of one run's folder; hold its lock while you write.

    Raises
    ------
    ConflictError
        Another process is making this run, or the folder is no run's.
    """

    def __init__(self, folder: Path) -> None:
        there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if SWEEP in there:
            raise ConflictError(f"{folder} holds a sweep; choose another name")
        if there - {LOCK} and RECORD not in there:
            raise ConflictError(f"{folder} is there and is no run; choose another name")
        self.folder = folder
        self._files = LocalFiles(folder, make=True)
        self._lock: Lock | None = self._files.lock(LOCK)
        if self._lock is None:
            raise ConflictError(
                f"run {folder.name} is being made by another process; wait for it, or choose another name"
            )

    def begin(self, record: Mapping[str, Any], settings: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Say that it runs, and take away what an earlier attempt left."""
        self._put(RECORD, record)
        for name in (PROTOCOL, TABLE, RESULTS):
            self._files.delete(name)
        self._files.delete_tree(FILES)
        self._put(SETTINGS, settings)
        self._put(ENVIRONMENT, environment)

    def finish(
        self,
        record: Mapping[str, Any],
        results: Mapping[str, Any],
        protocol: Mapping[str, Any],
        environment: Mapping[str, Any],
    ) -> None:
        """Write what came out, and last that it is done."""
        self._put(ENVIRONMENT, environment)  # again: what was imported meanwhile says more
        self._put(PROTOCOL, protocol)
        self._put(RESULTS, results)
        self._files.put(TABLE, csv_text(results["table"]).encode())
        self._put(RECORD, record)

    def fail(self, record: Mapping[str, Any]) -> None:
        """Say that it failed, and why."""
        self._put(RECORD, record)

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _put(self, name: str, value: Any) -> None:
        self._files.put(name, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return readable JSON; numbers that are not finite become null."""
    return (json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def plain(value: Any) -> Any:
    """Return `value` as plain JSON: numpy scalars as numbers, tuples as lists, NaN and infinity as None.

    Raises
    ------
    DataError
        Something that JSON has no word for.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case Path():
            return value.as_posix()
    if hasattr(value, "items"):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, without importing numpy
        return plain(value.tolist())
    raise DataError(f"results hold a {type(value).__name__}; give numbers, text, lists and dicts of them")


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Return the columns of rows that need not all have the same, in order of first appearance."""
    return list(dict.fromkeys(str(key) for row in rows for key in row))


def csv_text(rows: Sequence[Row]) -> str:
    """Return rows as CSV; what a row does not have, and what is not finite, is left empty."""
    out, columns = io.StringIO(), columns_of(rows)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [plain(row.get(c)) for c in columns]
        writer.writerow([json.dumps(v) if isinstance(v, list | dict) else "" if v is None else v for v in cells])
    return out.getvalue()


def read_run(folder: Path, *, root: Path | None = None, fresh: bool = False) -> Run | None:
    """Return the run of a folder, None where there is none (or none that got as far as a record).

    Raises
    ------
    DataError
        Its record is no JSON: someone wrote over it.
    """
    record = _read_json(folder / RECORD)
    if record is None:
        return None
    status = str(record.get("status"))
    if status == "running" and not LocalFiles(folder).locked(LOCK):
        status = "unfinished"
    settings = (_read_json(folder / SETTINGS) or {}).get("settings", {})
    name = folder.relative_to(root).as_posix() if root is not None else folder.name
    return Run(name=name, folder=folder, status=status, record=record, settings=settings, fresh=fresh)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise DataError(f"{path}: not the JSON that a run writes ({error}); move it away") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not the JSON that a run writes; move it away")
    return value


def list_runs(root: Path) -> list[Run]:
    """Return all runs below a folder, points of sweeps too, in order of their names."""
    found = sorted([*root.glob(f"*/{RECORD}"), *root.glob(f"*/*/{RECORD}")]) if root.is_dir() else []
    read = (read_run(path.parent, root=root) for path in found)
    return [run for run in read if run is not None]


def find_runs(root: Path, names: Sequence[str]) -> list[Run]:
    """Return runs by name, in the order asked; the name of a sweep stands for all its points.

    Raises
    ------
    NotFoundError
        No run of that name; near names are suggested.
    """
    known = {run.name: run for run in list_runs(root)}
    chosen: dict[str, Run] = {}
    for name in names:
        hits = {k: r for k, r in known.items() if k == name or k.startswith(f"{name.rstrip('/')}/")}
        if not hits:
            every = [*known, *{k.partition("/")[0] for k in known if "/" in k}]
            have = near(name, every) or ("; there are " + ", ".join(every) if every else "; there are none")
            raise NotFoundError(f"no run '{name}' in {root}{have}")
        chosen |= hits
    return list(chosen.values())


def overview(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one line per run: name, recipe, status, start, seconds, and its metrics or its error."""
    return [
        {
            "run": r.name,
            "recipe": r.record.get("recipe", {}).get("name"),
            "status": r.status,
            "started": r.record.get("started"),
            "seconds": r.record.get("seconds"),
            **({"error": r.record["error"]} if r.status == "failed" else {}),
            **r.metrics,
        }
        for r in runs
    ]


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Set runs side by side.

    Returns
    -------
    dict
        ``runs``; ``differ``: settings (and recipe, pipeline file, store) that are not the same in all, by run;
        ``environment``: what of the machine and the libraries is not the same; ``metrics`` by run.
    """
    facts = [
        {"recipe": r.record.get("recipe", {}).get("name"), "pipeline": r.record.get("recipe", {}).get("sha256")}
        | {"store": (r.record.get("store") or {}).get("uuid"), "inputs": (r.record.get("store") or {}).get("inputs")}
        | dict(r.settings)
        for r in runs
    ]
    environments = [_flat(_read_json(r.folder / ENVIRONMENT) or {}) for r in runs]
    measured = columns_of([r.metrics for r in runs])
    return {
        "runs": [r.name for r in runs],
        "status": [r.status for r in runs],
        "differ": _differing(facts),
        "environment": _differing(environments),
        "metrics": {name: [r.metrics.get(name) for r in runs] for name in measured},
    }


def _differing(tables: Sequence[Row]) -> dict[str, list[Any]]:
    lines = {name: [t.get(name) for t in tables] for name in columns_of(tables)}
    return {name: values for name, values in lines.items() if any(v != values[0] for v in values)}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, one in value.items():
        out |= _flat(one, f"{prefix}{key} ") if isinstance(one, dict) else {f"{prefix}{key}": one}
    return out


def write_table(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    """Write a CSV at once and entirely."""
    LocalFiles(folder).put(name, csv_text(rows).encode())
    return folder / name
