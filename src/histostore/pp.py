"""``hs.pp``: bring slides and features in, cut tiles, choose genes over a cohort."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from histostore.errors import UsageError, near
from histostore.inventory import chosen_slides
from histostore.io.sheet import Sample, read_sheet
from histostore.slides.remote import is_remote
from histostore.stages import annotate as _annotate
from histostore.stages.ingest import IngestSpec
from histostore.stages.ingest import ingest as _ingest
from histostore.stages.tile import tile as _tile
from histostore.stages.twins import Twins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from distributed import Client

    from histostore.progress import Progress
    from histostore.specs import PixelSpec, TileSpec
    from histostore.stages.result import StageResult
    from histostore.store.store import Store
    from histostore.view import View

__all__ = ["annotate", "gene_stats", "highly_variable_genes", "import_features", "ingest", "tile"]

_FILES = ("image", "st_counts", "st_spots", "visium", "anndata", "points", "obs", "geojson")


def ingest(
    store: Store,
    slide: str | None = None,
    *,
    sheet: str | Path | None = None,
    spec: IngestSpec | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **files: Any,
) -> list[StageResult]:
    """Bring in one slide, or all slides of a sample sheet.

    Parameters
    ----------
    slide
        Id of the slide; its files follow as keywords: `image` (or `image_folder`, a folder of images in class-named
        subfolders: each becomes a point with its folder as the label ``class``), and of `mpp`, `mag`, `st_counts`,
        `st_spots`, `visium`, `anndata`, `points`, `obs` and `geojson` those there are.
    sheet
        A CSV or TSV with the same names as columns instead, and any metadata columns. Unlike on the command line, a
        line of it that is no slide stops all, before any work.
    spec
        How strict to be.
    meta
        Metadata of the slide, like ``{"patient": "C"}``; kept as text, None and NaN are left out.

    Returns
    -------
    list of StageResult
        One per slide, in order.
    """
    if (sheet is None) == (slide is None):
        raise UsageError("give a slide with its image, or a sheet")
    known = [field.name for field in fields(Sample) if field.name not in ("slide", "meta")]
    for name in files.keys() - set(known):
        raise UsageError(f"ingest knows no '{name}'{near(name, known)}; it takes {', '.join(known)}")
    given = {k: v for k, v in files.items() if v is not None}
    if sheet is not None:
        if unheard := [*given, *(["meta"] if meta else [])]:
            raise UsageError(f"a sheet says what belongs to its slides: write {', '.join(unheard)} there")
        samples = read_sheet(sheet)
    else:
        samples = [_sample(str(slide), given, meta or {})]
    twins = Twins(store)
    return [_ingest(store, sample, spec, twins=twins, progress=progress) for sample in samples]


def _sample(slide: str, given: dict[str, Any], meta: Mapping[str, Any]) -> Sample:
    """Return a slide and its files as they were given by name."""
    if ("image" in given) == ("image_folder" in given):
        raise UsageError(f"slide '{slide}' needs its image, or an image_folder")
    if "image_folder" in given:
        given = given | {"image": given["image_folder"], "image_folder": True}
    for name in given.keys() & set(_FILES):
        if not isinstance(given[name], str | Path):
            raise UsageError(f"{name} is a path, and no {type(given[name]).__name__}; write it to a file first")
    paths: dict[str, Any] = {k: Path(v) if k in _FILES and not is_remote(v) else v for k, v in given.items()}
    return Sample(slide=slide, meta={str(k): v for k, v in meta.items()}, **paths)


def import_features(
    store: Store,
    path: str | Path,
    *,
    backbone: str,
    slide: str | None = None,
    image: str | Path | None = None,
    px: float | None = None,
    mpp: float | None = None,
    anchor: Literal["corner", "centre"] | None = None,
    tiles: str = "imported",
    allow_nan: bool = False,
    meta: Mapping[str, str] | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> list[StageResult]:
    """Bring in features that TRIDENT, CLAM, slide2vec or STAMP extracted, or Parquet: tiles and embeddings.

    A slide is called what its file is called, and may be new: it then needs no image, but its `mpp` must be known.
    Values are kept to the bit. The first slide that fails ends it; those before it are in, and are a no-op next time.

    Parameters
    ----------
    path
        A file, or a folder with one per slide.
    backbone
        What to call the embeddings.
    slide
        Only this one; a single file may then have any name.
    image
        The slide's image, or a folder of images that are called what their slides are.
    px
        Edge of a tile in level-0 pixels, if no file says it.
    mpp
        µm per level-0 pixel, if neither the store, the image nor the file says it.
    anchor
        What coordinates are of, if the file does not say it.
    tiles
        What to call the tile set, and its points.
    allow_nan
        Keep rows that are NaN in all columns, as unreadable tiles.
    meta
        Metadata of slides that are new, like ``{"cohort": "tcga"}``.
    replace
        Let the names move to these features, where they are taken by others.

    Returns
    -------
    list of StageResult
        One per slide, in order; notes say what stays unknown.

    Raises
    ------
    NotFoundError
        There is no such place, no features of `slide` in it, or no one image of a slide in the folder of images.
    UsageError
        `image` is one file for many slides.
    DataError
        Files of no known layout; rows with NaN or infinity; an edge or anchor that nobody says; tiles off the slide.
    SlideError
        The slide's mpp is unknown, or two sources contradict each other.
    ConflictError
        The names are taken by other tiles or features, and `replace` is false.
    """
    from histostore.exchange import finished, imports, lacks_images  # brings h5py
    from histostore.io.feature_files import find_features
    from histostore.stages.imported_tiles import ImportSpec

    spec = ImportSpec(
        backbone=backbone, tiles=tiles, anchor=anchor, allow_nan=allow_nan,
        px=float(px) if px is not None else None,  # 256 and 256.0 are the same tiles
        mpp=float(mpp) if mpp is not None else None,
    )  # fmt: skip
    found = find_features(path, slide)
    if lacks_images(found, image):
        raise UsageError(f"image is one file for {len(found)} slides: give slide, or a folder of images")
    return finished(imports(store, found, spec, image=image, meta=meta, replace=replace, progress=progress))


def annotate(
    store: Store,
    slide: str | None = None,
    *,
    table: str | Path | pd.DataFrame | None = None,
    geojson: str | Path | None = None,
    obs: str | Path | pd.DataFrame | None = None,
    review: str | Path | None = None,
    name: str | None = None,
    replace: bool = False,
    by: str | None = None,
    classes: Sequence[str] = (),
    min_match: float | None = None,
    **fields: Any,
) -> list[StageResult]:
    """Add what arrives later: metadata (`table` or keywords), polygons (`geojson`), labels per spot (`obs`).

    A table of tiles that `hs.tl.review` wrote and people filled in (`review`) becomes the obs column ``review``, or
    `name`, of all slides in it.

    Parameters
    ----------
    table
        CSV or TSV, or a DataFrame that is indexed by slide or has a column that names it.
    obs
        CSV or TSV, or a DataFrame indexed by spot, like ``adata.obs[["leiden"]]``, with a `name`: of a cohort's rows
        those of the slide are taken.
    fields
        Metadata of the slide. None, NaN and NA say nothing, as empty cells of a table do; an empty text erases.
    by
        Of a `table`: the column that says whose row it is, ``slide`` or a metadata field; by default ``slide``, else
        ``patient``.
    classes, min_match
        Of a `review`: the labels there may be (by default the classes of the heads it names), and the least share of
        its rows that must be in the store.

    Raises
    ------
    UsageError
        No slide is named where one must be, something is given beside a `table` or `review` that is of neither, or
        a label would hide what the slide has.
    ConflictError
        Other labels of the slide have a column of that name.
    """
    _check_alone(
        {"table": table, "review": review, "slide": slide, "geojson": geojson, "obs": obs, **fields},
        options={
            "by": (by, ["table"]), "classes": (classes or None, ["review"]), "min_match": (min_match, ["review"]),
            "name": (name, ["geojson", "obs", "review"]),
        },
    )  # fmt: skip
    for what, given in (("geojson", geojson), ("review", review)):
        if not isinstance(given, str | Path | None):
            raise UsageError(f"{what} is a path, and no {type(given).__name__}; write it to a file first")
    if table is not None:
        return _annotate.annotate_table(store, table, by=by)
    if review is not None:
        from histostore.stages.review_labels import MIN_MATCH, REVIEW, annotate_review

        return annotate_review(
            store, Path(review), name=name or REVIEW, classes=classes,
            min_match=MIN_MATCH if min_match is None else min_match, replace=replace,
        )  # fmt: skip
    if slide is None:
        raise UsageError("say which slide; only tables name their slides themselves")
    if geojson is None and obs is None and not fields:
        raise UsageError(f"nothing to add to slide '{slide}': give a table, geojson, obs, review or fields")
    done = []
    if geojson is not None:
        done.append(_annotate.annotate_regions(store, slide, geojson, name=name, replace=replace))
    if obs is not None:
        done.append(_annotate.annotate_obs(store, slide, obs, name=name, replace=replace))
    if fields:
        done.append(_annotate.annotate_meta(store, slide, fields))
    return done


def _check_alone(given: Mapping[str, Any], *, options: Mapping[str, tuple[Any, Sequence[str]]]) -> None:
    """Refuse what would go unheard: things beside a table or review, and options of one that is not there."""
    there = [name for name, value in given.items() if value is not None]
    alone = next((name for name in ("table", "review") if name in there), None)
    if alone is not None and len(there) > 1:
        others = ", ".join(name for name in there if name != alone)
        raise UsageError(f"a {alone} names its slides itself, and {others} would go unheard; annotate in two calls")
    for name, (value, of) in options.items():
        if value is not None and not set(of) & set(there):
            raise UsageError(f"{name} is of a {' or '.join(of)}: give {of[0]}=…")


def tile(
    store: Store,
    slides: str | Sequence[str] | TileSpec | None = None,
    spec: TileSpec | None = None,
    *,
    pixels: PixelSpec | None = None,
    name: str | None = None,
    replace: bool = False,
    read_threads: int = 1,
    client: Client | None = None,
    progress: Progress | None = None,
) -> list[StageResult]:
    """Cut tiles of one slide, some, or all: ``tile(store, "C2", spec)``, ``tile(store, spec)``.

    With the `client` of a dask cluster its workers do it, shard by shard, to the same bytes; a slide that fails does
    not stop the others, and its error is raised after they are done.
    """
    if spec is None and slides is not None and not isinstance(slides, str) and hasattr(slides, "default_name"):
        slides, spec = None, slides
    if spec is None or not hasattr(spec, "default_name"):
        raise UsageError("tile needs a TileSpec, like TileSpec.at_spots(px=224)")
    chosen = chosen_slides(store, slides)  # type: ignore[arg-type]
    how: dict[str, Any] = {"pixels": pixels, "name": name, "replace": replace, "read_threads": read_threads}
    if client is not None:
        from histostore.scale.run import collected, tile_slides  # brings dask.distributed

        return collected(tile_slides(client, store, chosen, spec, progress=progress, **how), chosen)
    return [_tile(store, s, spec, progress=progress, **how) for s in chosen]


def gene_stats(view: View, **options: Any) -> pd.DataFrame:
    """Return means and variances of all genes over all slides of a view, one pass, never all in memory.

    Options (`values`, `client`, `workers`) and columns as in `histostore.cohort.gene_stats.gene_stats`.
    """
    from histostore.cohort.gene_stats import gene_stats as run

    return run(view, **options)


def highly_variable_genes(view: View, *, n_top: int = 2000, **options: Any) -> pd.DataFrame:
    """Return scanpy's highly variable genes over all slides of a view, never all in memory.

    Options (`flavor`, `batch_key`, `client`, `workers`) and columns as in
    `histostore.cohort.variable_genes.highly_variable_genes`.
    """
    from histostore.cohort.variable_genes import highly_variable_genes as run

    return run(view, n_top=n_top, **options)
