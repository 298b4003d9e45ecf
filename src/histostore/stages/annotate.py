"""Labels and metadata that arrive later: new versions of small groups, nothing rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histostore.content.regions import write_regions
from histostore.content.tables import read_points, write_labels
from histostore.errors import ConflictError, DataError
from histostore.ids import check_slug
from histostore.io.obs import join_obs, read_obs_table, read_table
from histostore.stages.ingest import naming, regions_name, write_meta
from histostore.stages.result import StageResult
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.store import Store


def annotate_meta(store: Store, slide: str, fields: Mapping[str, str]) -> StageResult:
    """Set metadata fields of one slide: a new version of its ``meta`` group.

    A change that another process commits meanwhile is kept: ours is applied on top of it.
    """
    while True:
        manifest = store.slide(slide)
        old = manifest.find("meta", "meta")
        attrs = store.group(old).attrs
        merged = {**attrs["fields"], **{k: str(v) for k, v in fields.items()}}
        ref = write_meta(
            store, slide, merged, mpp=attrs["mpp"], origin=attrs["mpp_origin"], mag=attrs.get("given_as_mag")
        )
        try:
            commit = store.commit(slide, [ref], replace=True, expect={ref.key: old.digest})
        except ConflictError:
            continue
        done = "written" if commit.added else "already there"
        return StageResult(slide=slide, stage="annotate", refs=(ref,), done=done, rows=len(fields))


def annotate_table(store: Store, path: str | Path, *, by: str | None = None) -> list[StageResult]:
    """Add the columns of a clinical table to the metadata of the slides it names.

    An empty cell says nothing: what is stored stays (`annotate_meta` with an empty text erases).

    Parameters
    ----------
    path
        CSV or TSV with a header; all values are kept as text, "NA" too.
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
    """
    table = read_table(path, by)
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
    """Add annotated polygons (GeoJSON, level-0 pixels) to a slide as ``regions/<name>``."""
    path = Path(path)
    name = check_slug(name, "regions name") if name is not None else regions_name(path, slide)
    store.slide(slide)
    ref = write_regions(store, slide, name, path)
    commit = store.commit(slide, [ref], replace=replace)
    done = "written" if commit.added else "already there"
    return StageResult(slide=slide, stage="annotate", refs=(ref,), done=done, rows=store.group(ref).rows)


def annotate_obs(
    store: Store, slide: str, path: str | Path, *, name: str | None = None, points: str = "spots", replace: bool = False
) -> StageResult:
    """Add a table of labels for the spots (or other points) of a slide as ``labels/<name>``."""
    path = Path(path)
    name = check_slug(name or path.name.split(".")[0], "labels name")
    points_ref = store.slide(slide).find("points", points)
    with naming(path):
        table, report = join_obs(read_points(store.group(points_ref)), read_obs_table(path))
    ref = write_labels(store, slide, name, table, points_ref)
    commit = store.commit(slide, [ref], replace=replace)
    done = "written" if commit.added else "already there"
    return StageResult(slide=slide, stage="annotate", refs=(ref,), done=done, rows=len(table), report=report)
