"""Labels and metadata that arrive later: new versions of small groups, nothing rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.content.regions import read_annotations, write_regions
from histostore.content.tables import read_points, write_labels
from histostore.errors import ConflictError, DataError, UsageError
from histostore.ids import check_slug
from histostore.io.obs import as_obs_table, as_table, join_obs, read_obs_table, read_table
from histostore.part import REGION
from histostore.stages.ingest import naming, regions_name
from histostore.stages.label_columns import check_label_columns, check_seen, lost_columns, without_known
from histostore.stages.metadata import as_texts, check_fields, write_meta
from histostore.stages.result import StageResult
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from histostore.store.store import Store


def annotate_meta(store: Store, slide: str, fields: Mapping[str, Any]) -> StageResult:
    """Set metadata fields of one slide: a new version of its ``meta`` group.

    A change that another process commits meanwhile is kept: ours is applied on top of it.

    Parameters
    ----------
    fields
        Values are kept as text. None, NaN, NA and NaT say nothing, as an empty cell of a table does: what is stored
        stays, and the report says so. An empty text erases.

    Raises
    ------
    UsageError
        A field has the name of a column that every slide has.
    ConflictError
        Labels of the slide have a column of that name, which would hide the field.
    """
    said, unset = as_texts(fields)
    check_fields(slide, fields)
    notes = tuple(f"'{name}' was given no value: left as it was (an empty text erases)" for name in unset)
    while True:
        manifest = store.slide(slide)
        old = manifest.find("meta", "meta")
        attrs = store.group(old).attrs
        check_seen(store, manifest, [k for k in said if k not in attrs["fields"]], what="the metadata")
        merged = {**attrs["fields"], **said}
        ref = write_meta(
            store, slide, merged, mpp=attrs["mpp"], origin=attrs["mpp_origin"], mag=attrs.get("given_as_mag")
        )
        try:
            commit = store.commit(slide, [ref], replace=True, expect={ref.key: old.digest})
        except ConflictError:
            continue
        done = "written" if commit.added else "already there"
        return StageResult(
            slide=slide, stage="annotate", refs=(ref,), done=done, rows=len(said), report=Report({}, notes)
        )


def annotate_table(store: Store, path: str | Path | pd.DataFrame, *, by: str | None = None) -> list[StageResult]:
    """Add the columns of a clinical table to the metadata of the slides it names.

    An empty cell says nothing: what is stored stays (`annotate_meta` with an empty text erases).

    Parameters
    ----------
    path
        CSV or TSV with a header; all values are kept as text, "NA" too. Or such a table in memory, indexed by slide
        or with a column that names it; None, NaN, NA and NaT are empty cells.
    by
        The column that says whose row it is: ``slide`` or a metadata field that the slides have. By default
        ``slide``, else ``patient``.

    Returns
    -------
    list of StageResult
        One per slide that was changed; the report of the first counts rows that match no slide, and empty cells.

    Raises
    ------
    DataError
        No row matches a slide, or two rows name the same one.
    ConflictError
        Labels of a slide have a column of that name.
    """
    if isinstance(path, str | Path):
        table = read_table(path, by)
    else:
        table, path = as_table(path, by), "the table"
    key = str(table.index.name)
    rows = {str(k): {str(c): str(v) for c, v in row.items()} for k, row in table.to_dict("index").items()}
    owner_of: dict[str, str] = {}
    for slide in store.slides():
        fields = store.group(store.slide(slide).find("meta", "meta")).attrs["fields"]
        value = slide if key == "slide" else fields.get(key)
        if value is not None:
            owner_of[slide] = value
    matched = [s for s, value in owner_of.items() if value in rows]
    if not matched:
        first = ", ".join(list(rows)[:3])
        have = ", ".join(store.slides()[:3])
        raise DataError(f"{path}: no row matches a slide by '{key}' (rows {first}; slides {have})")
    said = {k: {c: v for c, v in row.items() if v} for k, row in rows.items()}
    for slide in matched:  # all of them before the first one changes
        there = store.slide(slide)
        known = store.header(there.find("meta", "meta"))["attrs"]["fields"]
        check_seen(store, there, said[owner_of[slide]].keys() - known.keys(), what="the metadata")
    results = [annotate_meta(store, s, said[owner_of[s]]) for s in matched]
    empty = sum(len(rows[owner_of[s]]) - len(said[owner_of[s]]) for s in matched)
    unused = [r for r in rows if r not in {owner_of[s] for s in matched}]
    counts = Report({
        "rows of no slide": len(unused), "slides without a row": len(store.slides()) - len(matched),
        "empty cells left as they were": empty,
    })  # fmt: skip
    first_result = results[0]
    results[0] = StageResult(
        slide=first_result.slide, stage="annotate", refs=first_result.refs, done=first_result.done,
        rows=first_result.rows, report=counts,
    )  # fmt: skip
    return results


def annotate_regions(
    store: Store, slide: str, path: str | Path, *, name: str | None = None, replace: bool = False
) -> StageResult:
    """Add annotated polygons (GeoJSON, level-0 pixels) to a slide as ``regions/<name>``.

    The report says what else was in the file, and was left out, and how many polygons lie off the image.

    Raises
    ------
    DataError
        The file cannot be read, or holds no polygon.
    ConflictError
        Other polygons have the name and `replace` is false, or labels have a column ``region_<name>``.
    """
    path = Path(path)
    name = check_slug(name, "regions name") if name is not None else regions_name(path, slide)
    manifest = store.slide(slide)
    check_seen(store, manifest, [f"{REGION}{name}"], what=f"the polygons '{name}'")
    annotations = read_annotations(path)
    notes = annotations.notes
    if (source := manifest.get("source", "image")) is not None:
        about = store.header(source)["attrs"]
        notes += annotations.off_image((about["width"], about["height"]))
    ref = write_regions(store, slide, name, path, annotations)
    commit = store.commit(slide, [ref], replace=replace)
    done = "written" if commit.added else "already there"
    report = Report({}, notes)
    return StageResult(
        slide=slide, stage="annotate", refs=(ref,), done=done, rows=store.group(ref).rows, report=report
    )  # fmt: skip


def annotate_obs(
    store: Store, slide: str, obs: str | Path | pd.DataFrame, *, name: str | None = None, points: str = "spots",
    replace: bool = False,
) -> StageResult:  # fmt: skip
    """Add a table of labels for the spots (or other points) of a slide as ``labels/<name>``.

    The table is a CSV or TSV, or a DataFrame indexed by spot (``adata.obs[["leiden"]]``), which needs a `name`.
    Columns that say what the store knows (where a spot is, the slide's metadata) are left out, and the report names
    them.

    Raises
    ------
    UsageError
        A column has a name of the slide's own columns, metadata, polygons or classifiers, and says something else.
    ConflictError
        Other labels have a column of that name, or the labels are there and `replace` is false.
    """
    path = Path(obs) if isinstance(obs, str | Path) else None
    if path is not None:
        name = name or path.name.split(".")[0]
    elif name is None:
        raise UsageError("labels from a DataFrame need a name, like name='leiden'")
    check_slug(name, "labels name")
    what = path or "the table"
    manifest = store.slide(slide)
    points_ref = manifest.find("points", points)
    the_points = read_points(store.group(points_ref))
    with naming(what):
        given, others = (read_obs_table(path), Report()) if path is not None else as_obs_table(obs, slide)
        table, report = join_obs(the_points, given, by=None if path is not None else "id")
    report = others.merged(report)
    fields = store.header(manifest.find("meta", "meta"))["attrs"]["fields"]
    table, known = without_known(table, the_points, slide, fields)
    columns = [str(c) for c in table.columns]
    if not columns:
        raise DataError(f"{what} has no column that the store does not know already; there is nothing to add")
    check_label_columns(store, manifest, name, columns, points=points)
    report = report.merged(known)
    if replace:
        report = report.merged(lost_columns(store, manifest, name, columns, points=points))
    ref = write_labels(store, slide, name, table, points_ref)
    commit = store.commit(slide, [ref], replace=replace)
    done = "written" if commit.added else "already there"
    return StageResult(slide=slide, stage="annotate", refs=(ref,), done=done, rows=len(table), report=report)
