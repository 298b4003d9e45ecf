"""Which columns labels may have: each must be seen under its own name, and hide nothing that the slide has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.content.tables import OWN_COLUMNS, check_label_names, read_labels
from histostore.errors import ConflictError, UsageError
from histostore.io.obs import PIXEL_TOLERANCE
from histostore.part import REGION, are_calls, call_columns, label_columns
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store
    from histostore.tables import Points

SPOTS, LABELS = "spots", "obs"
"""The points that a slide's counts are of, and the labels that come in with them."""

METADATA = "metadata"
_TRUTH = {"true": 1.0, "false": 0.0}
_WHOLE = 0.5
"""What a place on the array, a whole number, may be off in a table."""


def taken_columns(store: Store, manifest: Manifest, *, points: str, but: str = "") -> dict[str, str]:
    """Return the columns that a slide has beside its own, and what has each of them.

    Parameters
    ----------
    points
        Labels of these points are looked at; those of others are columns of other rows.
    but
        Labels that are not looked at: those that are to be written.

    Returns
    -------
    dict
        Column -> ``metadata``, ``labels 'obs'``, ``polygons 'annotations'`` or ``classifier 'c'``.
    """
    if manifest.deleted:
        return {}
    found: dict[str, str] = {}
    for ref in manifest.of_kind("predictions"):
        if are_calls(store.header(ref)["attrs"]):
            found |= dict.fromkeys(call_columns(ref.name), f"classifier '{ref.name.rpartition('/')[2]}'")
    for ref in manifest.of_kind("regions"):
        found[f"{REGION}{ref.name}"] = f"polygons '{ref.name}'"
    if (meta := manifest.get("meta", "meta")) is not None:
        found |= dict.fromkeys(store.header(meta)["attrs"]["fields"], METADATA)
    for ref in manifest.of_kind("labels"):
        if ref.name != but:
            found |= dict.fromkeys(_columns_of(store, manifest, ref.name, points), f"labels '{ref.name}'")
    return found


def check_label_columns(store: Store, manifest: Manifest, name: str, columns: Iterable[str], *, points: str) -> None:
    """Refuse columns of labels that something else of the slide has.

    Raises
    ------
    ConflictError
        Other labels of the same points have the column: which of them would be seen nobody could tell.
    UsageError
        The column would hide metadata, polygons or the calls of a classifier.
    """
    taken = taken_columns(store, manifest, points=points, but=name)
    _refuse_taken(store, manifest, list(columns), taken, points)


def _refuse_taken(
    store: Store, manifest: Manifest, columns: Sequence[str], taken: Mapping[str, str], points: str
) -> None:
    for column in columns:
        what = taken.get(column)
        if what is not None and what.startswith("labels "):
            other = what.removeprefix("labels ").strip("'")
            lost = [c for c in _columns_of(store, manifest, other, points) if c not in columns]
            more = f" (their {', '.join(map(repr, lost))} would go)" if lost else ""
            raise ConflictError(
                f"slide '{manifest.owner}': {what} have a column '{column}' already: rename yours, or replace theirs "
                f"with --name {other} --replace{more}"
            )
        if what is not None:
            raise UsageError(
                f"slide '{manifest.owner}': label column '{column}' would hide the {what} of that name; "
                "rename or drop it"
            )


def settled(
    store: Store,
    slide: str,
    table: pd.DataFrame,
    along: Sequence[str],
    *,
    fields: Mapping[str, str],
    regions: str | None,
) -> tuple[pd.DataFrame | None, Report]:
    """Return the labels that a slide comes in with, None where none is left; raises as `check_label_columns`.

    Parameters
    ----------
    along
        Columns that came along with the counts, and that nobody asked for by name: where their names are taken they
        are left out, and the report says so.
    fields, regions
        Metadata, and the name of polygons, that come in with them.
    """
    there = store.manifest(slide)
    taken = taken_columns(store, there, points=SPOTS, but=LABELS)
    if there.deleted or there.get("meta", "meta") is None:
        taken |= dict.fromkeys(fields, METADATA)
    if regions is not None:
        taken[f"{REGION}{regions}"] = f"polygons '{regions}'"
    left = [c for c in along if c in taken and c in table]
    table = table.drop(columns=left)
    check_label_names(slide, map(str, table.columns))
    if there.deleted or there.get("labels", LABELS) is None:
        _refuse_taken(store, there, [str(c) for c in table.columns], taken, SPOTS)
    why = ", ".join(f"'{c}' is of the {taken[c]}" for c in left)
    report = Report({}, (f"obs columns left out, their names are taken: {why}",) if left else ())
    return table if len(table.columns) else None, report


def check_seen(store: Store, manifest: Manifest, columns: Iterable[str], *, what: str) -> None:
    """Refuse metadata or polygons whose columns labels of the slide would hide.

    Raises
    ------
    ConflictError
        Naming the labels.
    """
    for column in columns:
        for ref in manifest.of_kind("labels"):
            if column in _columns_of(store, manifest, ref.name):
                raise ConflictError(
                    f"slide '{manifest.owner}': labels '{ref.name}' have a column '{column}', which would hide {what}; "
                    "choose another name"
                )


def lost_columns(store: Store, manifest: Manifest, name: str, columns: Iterable[str], *, points: str) -> Report:
    """Say which columns go when labels of that name are replaced by others."""
    lost = [c for c in _columns_of(store, manifest, name, points) if c not in set(columns)]
    return Report({}, (f"the labels '{name}' no longer have {', '.join(map(repr, lost))}",) if lost else ())


def _columns_of(store: Store, manifest: Manifest, name: str, points: str | None = None) -> list[str]:
    ref = manifest.get("labels", name)
    attrs = store.header(ref)["attrs"] if ref is not None else None
    if attrs is None or points not in (None, attrs["points"]):
        return []
    return label_columns(attrs)


def same_but_hidden(store: Store, old: Ref, new: Ref) -> bool:
    """Say whether labels that are there are the new ones and columns that were never seen, which are left out now."""
    before, now = (read_labels(store.group(ref)) for ref in (old, new))
    if not set(now) < set(before):
        return False
    fields = store.header(store.slide(old.owner).find("meta", "meta"))["attrs"]["fields"]
    hidden = before.keys() - now.keys() <= OWN_COLUMNS | fields.keys()
    return hidden and all(_equal(before[c], now[c]) for c in now)


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def without_known(
    table: pd.DataFrame, points: Points, slide: str, fields: Mapping[str, str]
) -> tuple[pd.DataFrame, Report]:
    """Leave out the columns of a table that say what the store knows of the spots: where they are, and whose.

    Parameters
    ----------
    table
        One row per point, in their order; texts.
    fields
        The slide's metadata.

    Returns
    -------
    table
        Columns that say something else are still there, to be refused.
    report
        Names what was left out.
    """
    same = [c for c in table.columns if any(_agrees(table[c], *known) for known in _known(points, slide, fields, c))]
    notes = (f"columns {', '.join(map(repr, same))} say what the store knows already: left out",) if same else ()
    return table.drop(columns=same), Report({}, notes)


def _known(points: Points, slide: str, fields: Mapping[str, str], column: str) -> Iterator[tuple[NDArray[Any], float]]:
    """Yield what the store has under a name, and what numbers may be off; ``x`` is pixels, or a place on the array."""
    texts = {"slide": slide, "library_id": slide, **fields}
    if column in texts:
        yield np.full(len(points), texts[column], dtype=object), 0
    if column == "barcode":
        yield np.array(points.ids, dtype=object), 0
    if column in ("x", "y"):
        yield points.xy[:, "xy".index(column)], PIXEL_TOLERANCE
    arrays = {"x": points.array_col, "y": points.array_row, "array_col": points.array_col,
              "array_row": points.array_row, "in_tissue": points.in_tissue}  # fmt: skip
    if (values := arrays.get(column)) is not None:
        yield values.astype(np.float64), _WHOLE


def _agrees(column: pd.Series[Any], known: NDArray[Any], off: float) -> bool:
    there = (column.notna() & (column.astype("string") != "")).to_numpy(dtype=bool, na_value=False)
    said = [str(v) for v in column[there]]
    if known.dtype == object:
        return bool(said == known[there].tolist())
    try:
        numbers = np.array([float(_TRUTH.get(v.lower(), v)) for v in said])
    except ValueError:
        return False
    return bool((np.abs(numbers - known[there]) <= off).all())
