"""A reviewed table comes back: its labels become an obs column of the tiles that were looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.content.tables import read_labels, read_points, write_labels
from histostore.errors import AlignmentError, ConflictError, DataError, near
from histostore.ids import check_slug
from histostore.io.check import first_few
from histostore.io.delimited import read_delimited
from histostore.part import label_columns
from histostore.stages.fit import find_head
from histostore.stages.label_columns import check_label_columns
from histostore.stages.result import StageResult
from histostore.store.lineage import rows_of
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.io.delimited import TextTable
    from histostore.store.manifest import Ref
    from histostore.store.store import Store

REVIEW = "review"
"""Name of the labels that reviews become, and of their obs column."""

SPOTS = "spots"
MIN_MATCH = 0.9


@dataclass(slots=True)
class _Target:
    """The points of one slide that rows of the table are about, and what they are called."""

    points: Ref
    ids: tuple[str, ...]
    row_of: dict[str, int]
    old: Ref | None
    """The labels of earlier rounds."""
    values: NDArray[Any]
    """``(points,)`` labels of earlier rounds and of this one; None where there is none."""
    given: dict[int, str] = field(default_factory=dict)
    """Row -> label of this round."""
    changed: list[str] = field(default_factory=list)
    """What was called otherwise in an earlier round."""
    new: int = 0

    def give(self, row: int, point: str, label: str, path: Path) -> None:
        """Note one label."""
        if self.given.setdefault(row, label) != label:
            other = self.given[row]
            msg = f"{path}: '{self.points.owner}:{point}' is '{other}' in one row and '{label}' in another; keep one"
            raise AlignmentError(msg)
        before = self.values[row]
        self.new += before is None
        if before not in (None, label):
            self.changed.append(f"{self.points.owner}:{point} was {before}, now {label}")
        self.values[row] = label


def annotate_review(
    store: Store,
    path: Path,
    *,
    name: str = REVIEW,
    classes: Sequence[str] = (),
    min_match: float = MIN_MATCH,
    replace: bool = False,
) -> list[StageResult]:
    """Bring the labels of a reviewed table in, for all slides it names, as the obs column `name`.

    Labels of earlier rounds stay: the new ones are added to them.

    Parameters
    ----------
    path
        CSV or TSV as `histostore.stages.review.Review.write` writes it, with ``label`` filled in; an empty label says
        nothing. Needed are ``slide``, ``barcode`` and ``label``; without ``tiles`` the barcodes are of spots.
    classes
        The labels there may be; by default the classes of the heads that the table names.
    min_match
        Least share of the rows whose slide and id must be in the store.
    replace
        Let a label differ from an earlier one.

    Returns
    -------
    list of StageResult
        One per slide (and set of points) that got labels; the first counts the rows: labelled, without a label,
        unknown.

    Raises
    ------
    DataError
        A label that is no class (with its line and what may have been meant), a column is missing, or no row has a
        label.
    AlignmentError
        Too few rows are of tiles in the store, or one tile has two different labels.
    ConflictError
        A tile was called otherwise before and `replace` is false, or the column or the name belongs to other labels.
    UsageError
        The column would hide metadata, polygons or the calls of a classifier.
    """
    check_slug(name, "labels name")
    table = read_delimited(path)
    labels = table.column("label")
    _check_labels(store, table, labels, classes)
    while True:
        targets, unknown = _joined(store, table, labels, name)
        if unknown > (1 - min_match) * len(table) + 1e-9:
            known = len(table) - unknown
            raise AlignmentError(
                f"{path}: {known} of {len(table)} rows are of tiles in this store, at least {min_match:.0%} must be"
            )
        if not any(t.given for t in targets):
            raise AlignmentError(f"{path}: no row with a label is of a tile in this store")
        _refuse_changes(targets, path, replace=replace)
        try:
            results = [_write(store, name, target) for target in targets]
        except _Overtaken:
            continue
        break
    given = sum(1 for label in labels if label)
    counts = {"rows": len(table), "labelled": given, "without a label": len(table) - given, "unknown": unknown}
    first = results[0]
    merged = Report(counts).merged(first.report)
    results[0] = StageResult(
        slide=first.slide, stage=first.stage, refs=first.refs, done=first.done, rows=first.rows, report=merged
    )
    return results


def _check_labels(store: Store, table: TextTable, labels: Sequence[str], classes: Sequence[str]) -> None:
    path = table.path
    allowed = list(dict.fromkeys(classes))
    if not allowed and "head" not in table.columns:
        raise DataError(f"{path} has no column 'head' that says which classes there are; name them with --classes")
    if not allowed:
        heads = dict.fromkeys(h for h in table.column("head") if h)
        allowed = list(dict.fromkeys(c for h in heads for c in store.group(find_head(store, h)).attrs["genes"]))
    wrong = [k for k, label in enumerate(labels) if label and label not in allowed]
    if wrong:
        label = labels[wrong[0]]
        raise DataError(
            f"{path} line {table.lines[wrong[0]]}: label {first_few([label])} is no class{near(label, allowed)} "
            f"({len(wrong)} such labels; classes are {', '.join(allowed)})"
        )
    if not any(labels):
        raise DataError(f"{path}: no row has a label, so nothing was reviewed; fill in the column 'label'")


def _joined(store: Store, table: TextTable, labels: Sequence[str], name: str) -> tuple[list[_Target], int]:
    """Return the points with their labels, and how many rows are of no tile in the store."""
    slides, ids = table.column("slide"), table.column("barcode")
    sets = table.column("tiles") if "tiles" in table.columns else [""] * len(table)
    there = set(store.slides())
    points = {pair: _points_of(store, *pair) if pair[0] in there else None for pair in zip(slides, sets, strict=True)}
    # two tile sets at the same points share their labels
    targets = {ref: _target(store, ref, name) for ref in dict.fromkeys(points.values()) if ref is not None}
    unknown = 0
    for slide, tiles, point, label in zip(slides, sets, ids, labels, strict=True):
        ref = points[slide, tiles]
        target = targets[ref] if ref is not None else None
        row = target.row_of.get(point) if target is not None else None
        if target is None or row is None:
            unknown += 1
        elif label:
            target.give(row, point, label, table.path)
    return [t for t in targets.values() if t.given or t.old is not None], unknown


def _points_of(store: Store, slide: str, tiles: str) -> Ref | None:
    """Return the points that a tile set of a slide is at; spots where none is named, None where it is not there."""
    manifest = store.slide(slide)
    group = manifest.get("tiles", tiles) if tiles else None
    if tiles and group is None:
        return None
    return manifest.get("points", SPOTS if group is None else str(store.group(group).attrs["points"]))


def _target(store: Store, points: Ref, name: str) -> _Target:
    manifest = store.slide(points.owner)
    group = _group_name(name, points.name)
    for ref in manifest.of_kind("labels"):
        attrs = store.group(ref).attrs
        columns = label_columns(attrs)
        taken = name in columns and attrs["points"] == points.name
        if taken and ref.name != group:
            raise ConflictError(
                f"slide '{points.owner}' has a column '{name}' in labels '{ref.name}'; give another --name"
            )
        if ref.name == group and columns != [name]:
            raise ConflictError(f"slide '{points.owner}': labels '{group}' are of no review; give another --name")
    check_label_columns(store, manifest, group, [name], points=points.name)
    ids = read_points(store.group(points)).ids
    old = manifest.get("labels", group)
    if old is not None and rows_of(store.header(old)) not in (None, points.digest):
        raise ConflictError(
            f"slide '{points.owner}': labels '{group}' are of other {points.name} than those there now, and would be "
            "lost; give another --name"
        )
    values = read_labels(store.group(old))[name] if old is not None else np.full(len(ids), None, dtype=object)
    return _Target(points, ids, {point: row for row, point in enumerate(ids)}, old, values.astype(object))


def _group_name(name: str, points: str) -> str:
    """Return the name of the labels group: ids of a grid are not those of spots, though they may look alike."""
    return name if points == SPOTS else f"{name}-{points}"


def _refuse_changes(targets: Sequence[_Target], path: Path, *, replace: bool) -> None:
    changed = [c for t in targets for c in t.changed]
    if changed and not replace:
        raise ConflictError(
            f"{path}: {len(changed)} tiles were called otherwise before ({first_few(changed)}); pass --replace"
        )


class _Overtaken(Exception):
    """Another process changed the labels meanwhile."""


def _write(store: Store, name: str, target: _Target) -> StageResult:
    frame = pd.DataFrame({name: target.values}, index=pd.Index(target.ids, name="id"))
    group = _group_name(name, target.points.name)
    ref = write_labels(store, target.points.owner, group, frame, target.points)
    try:
        commit = store.commit(
            target.points.owner,
            [ref],
            replace=True,
            expect={ref.key: target.old.digest if target.old is not None else None},
        )
    except ConflictError as error:
        raise _Overtaken from error
    counts = {"new labels": target.new, "changed labels": len(target.changed)}
    done = "written" if commit.added else "already there"
    rows = int(sum(v is not None for v in target.values))
    return StageResult(
        slide=target.points.owner, stage="annotate", refs=(ref,), done=done, rows=rows, report=Report(counts)
    )
