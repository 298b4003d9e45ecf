"""What an AnnData says of its spots beside counts: obs columns that become labels, names that an export made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from histostore.content.tables import OWN_COLUMNS
from histostore.part import CALL, PROBABILITY, REGION
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histostore.io.adata import ObsTable
    from histostore.tables import Counts, Points

PATIENT = "patient"


def own_names(points: Points, counts: Counts, obs: ObsTable, slide: str) -> tuple[Points, Counts, Report]:
    """Give spots the ids back that they had before an export wrote them as ``<slide>:<id>``.

    The prefix is the slide that the file's obs names in ``slide`` or ``library_id``, or the one that comes in.
    """
    columns = [obs.columns[c] for c in ("slide", "library_id") if c in obs.columns]
    named = [str(column.iloc[0]) for column in columns if column.notna().all() and column.nunique() == 1]
    for prefix in dict.fromkeys((*named, slide)):
        start = f"{prefix}:"
        if all(i.startswith(start) and i != start for i in points.ids):
            ids = tuple(i.removeprefix(start) for i in points.ids)
            note = f"spots are named '{start}…' in the file: taken without that prefix"
            return replace(points, ids=ids), replace(counts, ids=ids), Report({}, (note,))
    return points, counts, Report()


def labels_of(obs: ObsTable, ids: Sequence[str]) -> tuple[pd.DataFrame | None, Report]:
    """Return the obs columns that are labels, for spots `ids` in the order of the file; None where there are none.

    Left out are the columns that a slide has by itself, what an export of a store made of polygons and classifiers,
    and the patient, which is metadata of the whole slide.
    """
    table = obs.columns
    own = [c for c in table.columns if c in OWN_COLUMNS or not c.strip()]
    derived = [c for c in table.columns if obs.exported and _is_derived(c, table)]
    gone = {*own, *derived, PATIENT}
    kept = table.drop(columns=[c for c in table.columns if c in gone])
    kept.index = pd.Index(ids, name="id")
    notes = []
    if derived:
        notes.append(f"obs columns {', '.join(derived)} are of polygons or classifiers of another store: left out")
    if PATIENT in table:
        values = ", ".join(map(str, table[PATIENT].dropna().unique()[:3]))
        notes.append(f"obs column '{PATIENT}' ({values}) is metadata of a slide and no label: give it as such")
    if len(kept.columns):
        notes.append(f"labels from obs: {', '.join(kept.columns)}")
    counts = {
        "obs columns kept as labels": len(kept.columns),
        "obs columns left out": len(table.columns) - len(kept.columns),
    }
    return kept if len(kept.columns) else None, Report(counts, tuple(notes))


def _is_derived(column: str, table: pd.DataFrame) -> bool:
    call = f"{CALL}{column.removeprefix(PROBABILITY)}"
    return column.startswith((REGION, CALL)) or (column.startswith(PROBABILITY) and call in table)
