"""Fetch a data set into a folder: what is there and right is left, what is there and other is never overwritten."""

from __future__ import annotations

import csv
import fnmatch
import io
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from histostore.errors import ConflictError, HistostoreError, StorageError, UsageError
from histostore.fetch.catalog import Dataset, Remote, at_mirror, check_url, find
from histostore.fetch.download import download, hashes_of
from histostore.fetch.gdc import ask
from histostore.fetch.lock import LockFile
from histostore.progress import Silent
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from histostore.fetch.download import Limits
    from histostore.progress import Progress

BUSY = ".fetch.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be fetched."""

    dataset: Dataset
    files: tuple[Remote, ...]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """CSV tables that describe the files, by file name."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was found, and what of it was left out and why."""

    @property
    def bytes_known(self) -> int:
        """Bytes of the files whose size is known."""
        return sum(f.size or 0 for f in self.files)

    @property
    def sizes_unknown(self) -> int:
        """How many files have no known size."""
        return sum(f.size is None for f in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one file."""

    path: str
    done: str
    """``fetched``, ``resumed``, ``already there`` or ``failed``."""
    size: int = 0
    sha256: str = ""
    checked: str = ""
    """Against what: ``catalogue``, ``lock`` (the hash seen the first time), or ``nothing`` (it is the first time)."""
    error: HistostoreError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What became of a data set."""

    plan: Plan
    folder: Path
    files: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Files that are not there."""
        return tuple(f for f in self.files if f.error is not None)


def plan(
    dataset: str | Dataset, *, only: str | None = None, limit: int | None = None, base_url: str | None = None
) -> Plan:
    """Return what `fetch` would fetch; asks the GDC's API where the data set is a query.

    Parameters
    ----------
    only
        A pattern that the files' paths must match: ``images/C?.jpg``.
    limit
        Of a query: only the first cases, in order of their ids.
    base_url
        A mirror that keeps the paths; replaces scheme and host.
    """
    dataset = find(dataset) if isinstance(dataset, str) else dataset
    if base_url is not None:
        check_url(base_url)
    files = list(dataset.files)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = {}
    counts: Mapping[str, int] = {}
    if dataset.gdc:
        found = ask(dataset, base_url=base_url, limit=limit)
        files, tables, counts = [*files, *found.files], found.tables, found.counts
    elif limit is not None:
        raise UsageError(f"data set '{dataset.name}' is a list of files, not of cases; choose some with --only PATTERN")
    if only is not None:
        every, files = files, [f for f in files if fnmatch.fnmatchcase(f.path, only)]
        if not files:
            shown = ", ".join(f.path for f in every[:5])
            raise UsageError(f"no file of '{dataset.name}' matches {only!r}; it has {shown}{', …' * (len(every) > 5)}")
        counts = {**counts, "files not asked for": len(every) - len(files)}
    return Plan(dataset=dataset, files=tuple(files), tables=tables, counts=counts)


def fetch(
    dataset: str | Dataset | Plan,
    folder: Path,
    *,
    only: str | None = None,
    limit: int | None = None,
    base_url: str | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch a data set's files; parameters as in `plan`.

    A file is checked against the catalogue's hash; where that is unknown, against the one seen the first time, which
    ``fetch.lock.json`` keeps beside the data with address, licence and citation. A file that fails is told and the
    others go on, except where server or disk stay away.

    Raises
    ------
    ConflictError
        Another process fetches into the folder.
    """
    planned = dataset if isinstance(dataset, Plan) else plan(dataset, only=only, limit=limit, base_url=base_url)
    files = LocalFiles(folder, make=True)
    busy = files.lock(BUSY)
    if busy is None:
        raise ConflictError(f"{folder}: another process is fetching into it; wait for it")
    try:
        for name, rows in planned.tables.items():
            files.put(name, _csv(rows).encode())
        lock, outcomes = LockFile(folder), list[Outcome]()
        for remote in planned.files:
            try:
                outcomes.append(_one(remote, planned.dataset, folder, lock, base_url, limits, progress or Silent()))
            except HistostoreError as error:
                outcomes.append(Outcome(path=remote.path, done="failed", error=error))
                if isinstance(error, StorageError):
                    break
        return Fetched(plan=planned, folder=folder, files=tuple(outcomes))
    finally:
        busy.release()


def _one(
    remote: Remote,
    dataset: Dataset,
    folder: Path,
    lock: LockFile,
    base_url: str | None,
    limits: Limits | None,
    progress: Progress,
) -> Outcome:
    target, known = folder / remote.path, lock.get(remote.path)
    if target.exists():
        return _there(remote, target, known)
    pinned = remote
    if remote.sha256 is None and known is not None:
        pinned = Remote(path=remote.path, url=remote.url, size=remote.size, sha256=known["sha256"], md5=remote.md5)
    got = download(pinned, at_mirror(remote.url, base_url), target, limits=limits, progress=progress)
    checked = "catalogue" if remote.sha256 or remote.md5 else "lock" if known is not None else "nothing"
    about = {"dataset": dataset.name, "url": remote.url, "size": got.size, "sha256": got.sha256, "checked": checked}
    about |= {"mirror": base_url} if base_url else {}
    about |= {"fetched": datetime.now(UTC).isoformat(timespec="seconds")}
    terms = {k: getattr(dataset, k) for k in ("title", "licence", "licence_url", "citation", "homepage")}
    lock.put(remote.path, about, dataset.name, terms)
    done = "resumed" if got.resumed else "fetched"
    return Outcome(path=remote.path, done=done, size=got.size, sha256=got.sha256, checked=checked)


def _there(remote: Remote, target: Path, known: Mapping[str, Any] | None) -> Outcome:
    """Check a file that is there; it is never overwritten."""
    if not target.is_file():
        raise ConflictError(f"{target} is there and is no file; move it away")
    sha256, md5, size = hashes_of(target)
    wanted = remote.sha256 or (known or {}).get("sha256")
    if wanted is None and remote.md5 is None:
        raise ConflictError(f"{target} is there and nothing tells what it is; move it away, or choose another folder")
    same = sha256 == wanted if wanted is not None else md5 == remote.md5
    if not same:
        raise ConflictError(f"{target} is there with other content (sha256 {sha256[:12]}…); it is not overwritten")
    checked = "catalogue" if remote.sha256 or (wanted is None and remote.md5) else "lock"
    return Outcome(path=remote.path, done="already there", size=size, sha256=sha256, checked=checked)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
