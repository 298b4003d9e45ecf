"""The life of an index on disk: create, append, delete, compact; each returns a new snapshot and changes no file.

A log-structured index: what is added becomes a segment of its own, what is deleted is listed beside its segment, and
compaction builds small and hollow segments again as one. Source: O'Neil et al. 1996, "The log-structured merge-tree".
Files that no published snapshot names are garbage (`orphans`): a killed writer leaves nothing else.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import ConflictError, SpecMismatchError, UsageError
from histostore.index.build import build
from histostore.index.exact import ExactIndex
from histostore.index.files import check_file, read_array, write_faiss, write_rows
from histostore.index.snapshot import Segment, Snapshot
from histostore.index.vectors import Joined, Picked

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.index.encode import EncodeRows
    from histostore.index.spec import Device, IndexSpec
    from histostore.index.vectors import Vectors

APPEND_EXACT_ROWS = 50_000
"""Up to here an appended segment stays exact: written in a second, searched in milliseconds."""

HOLLOW = 0.2
"""A segment with more than this share of dead rows is built again by `compact`."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What `delete` did."""

    snapshot: Snapshot
    deleted: int
    absent: int
    """Ids asked for that no live row has."""


def create(
    folder: Path,
    values: Vectors,
    spec: IndexSpec,
    *,
    ids: NDArray[np.integer] | None = None,
    groups: NDArray[Any] | None = None,
    device: Device = "auto",
    encode: EncodeRows | None = None,
) -> Snapshot:
    """Build an index over embeddings and write its files.

    Parameters
    ----------
    folder
        Where the files go; every name in it is new.
    values
        ``(n, d)`` float16 or float32, read in blocks.
    ids
        ``(n,)`` row numbers answers are given in; 0 to n-1 by default. Each once, not negative.
    groups
        ``(n,)`` slide of each row, to spread the training sample.
    encode
        Who encodes the rows of an IVF index, by their numbers in `values`; this process by default.

    Returns
    -------
    Snapshot
        For the caller to publish. Rows that cannot be searched are counted in its segment's report.
    """
    empty = Snapshot(spec=spec, dim=int(values.shape[1]))
    return append(folder, empty, values, ids=np.arange(len(values)) if ids is None else ids, spec=spec,
                  groups=groups, device=device, encode=encode)  # fmt: skip


def append(
    folder: Path,
    snapshot: Snapshot,
    values: Vectors,
    *,
    ids: NDArray[np.integer],
    spec: IndexSpec | None = None,
    groups: NDArray[Any] | None = None,
    device: Device = "auto",
    encode: EncodeRows | None = None,
) -> Snapshot:
    """Add rows as a segment of their own; the segments there are not touched.

    Rows whose `ids` do not ascend are encoded by this process, whatever `encode` is: it knows them in their order.

    Raises
    ------
    ConflictError
        An id is live already.
    SpecMismatchError
        The rows are of another width.
    """
    rows = np.asarray(ids, dtype=np.int64)
    if rows.shape != (len(values),):
        raise UsageError(f"{len(values)} embeddings and ids of shape {rows.shape}: one id for each row")
    if values.shape[1] != snapshot.dim:
        raise SpecMismatchError(f"the embeddings have {values.shape[1]} features, the index {snapshot.dim}")
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    if len(rows) and (rows[0] < 0 or (np.diff(rows) == 0).any()):
        raise UsageError("ids must be whole numbers from 0, each once")
    for segment in snapshot.segments:
        taken = np.intersect1d(rows, _live_ids(folder, segment), assume_unique=True)
        if len(taken):
            raise ConflictError(f"{len(taken)} ids are in the index already, like {taken[0]}; delete them first")
    if not len(rows):
        return snapshot
    in_order = bool((order == np.arange(len(order))).all())
    spec = spec or spec_of_appended(snapshot, len(rows))
    groups = None if groups is None else np.asarray(groups)[order]
    if in_order:
        added = _write(folder, values, rows, spec, groups, device, encode)
    else:
        added = _write(folder, Picked(values, order), rows, spec, groups, device)
    return replace(snapshot, segments=(*snapshot.segments, added))


def spec_of_appended(snapshot: Snapshot, n: int) -> IndexSpec:
    """Return what a segment of n rows is built as, when it comes to an index that is there."""
    return replace(snapshot.spec, kind="exact") if n <= APPEND_EXACT_ROWS else snapshot.spec


def delete(folder: Path, snapshot: Snapshot, ids: NDArray[np.integer]) -> Deleted:
    """Delete rows: they are never found again, unless the same ids are appended anew."""
    wanted = np.unique(np.asarray(ids, dtype=np.int64))
    gone, segments = 0, []
    for segment in snapshot.segments:
        live = _live(folder, segment)
        hit = live & np.isin(_ids(folder, segment), wanted, assume_unique=True)
        count = int(hit.sum())
        gone += count
        if count == live.sum() and count:
            continue
        if count:
            name = f"{_stem(segment)}.{secrets.token_hex(8)}.dead.npy"
            dead = np.flatnonzero(~live | hit)
            segments.append(replace(segment, dead=write_rows(folder, name, dead), n_dead=len(dead)))
        else:
            segments.append(segment)
    return Deleted(replace(snapshot, segments=tuple(segments)), gone, len(wanted) - gone)


def compact(
    folder: Path,
    snapshot: Snapshot,
    *,
    embeddings: Vectors | None = None,
    whole: bool = False,
    device: Device = "auto",
) -> Snapshot:
    """Build exact and hollow segments again as one, by the index's spec; dead rows are dropped.

    Parameters
    ----------
    embeddings
        The embeddings by row number (as the ids count); needed where a FAISS segment is built again.
    whole
        Build everything again as one segment.

    Returns
    -------
    Snapshot
        The same one where there is nothing to gain.
    """
    chosen = [s for s in snapshot.segments if whole or s.tuning is None or s.n_dead > HOLLOW * s.rows]
    if not chosen or (len(chosen) == 1 and not chosen[0].n_dead and not whole):
        return snapshot
    parts, ids = [], []
    for segment in chosen:
        own = np.flatnonzero(_live(folder, segment))
        numbers = _ids(folder, segment)[own]
        if segment.tuning is None:
            parts.append(Picked(read_array(check_file(folder, segment.body)), own))
        elif embeddings is None:
            raise UsageError(f"compacting {segment.body.name} needs the embeddings it was built from")
        else:
            parts.append(Picked(embeddings, numbers))
        ids.append(numbers)
    numbers = np.concatenate(ids)
    order = np.argsort(numbers)
    merged = _write(folder, Picked(Joined(parts), order), numbers[order], snapshot.spec, None, device)
    return replace(snapshot, segments=(*(s for s in snapshot.segments if s not in chosen), merged))


def orphans(folder: Path, snapshots: Iterable[Snapshot]) -> list[Path]:
    """Return the files of the folder that none of the snapshots names, for the caller to delete."""
    named = {f.name for s in snapshots for f in s.files()}
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name not in named)


def _write(
    folder: Path,
    values: Vectors,
    ids: NDArray[np.int64],
    spec: IndexSpec,
    groups: NDArray[Any] | None,
    device: Device,
    encode: EncodeRows | None = None,
) -> Segment:
    built = build(values, spec, groups=groups, device=device, encode=encode)
    stem = secrets.token_hex(8)
    tuning = None
    if isinstance(built.index, ExactIndex):
        body = write_rows(folder, f"{stem}.vectors.npy", built.index.values)
    else:
        body = write_faiss(folder, f"{stem}.faiss", built.index)
        tuning = built.index.tuning
    numbers = write_rows(folder, f"{stem}.ids.npy", ids[built.rows])
    return Segment(rows=len(built.rows), ids=numbers, body=body, tuning=tuning, report=built.report)


def _stem(segment: Segment) -> str:
    return segment.ids.name.partition(".")[0]


def _ids(folder: Path, segment: Segment) -> NDArray[np.int64]:
    return read_array(check_file(folder, segment.ids))


def _live(folder: Path, segment: Segment) -> NDArray[np.bool_]:
    live = np.ones(segment.rows, dtype=bool)
    if segment.dead is not None:
        live[read_array(check_file(folder, segment.dead))] = False
    return live


def _live_ids(folder: Path, segment: Segment) -> NDArray[np.int64]:
    return _ids(folder, segment)[_live(folder, segment)]
