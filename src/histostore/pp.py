"""``hs.pp``: bring slides in, cut tiles, choose genes over a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import UsageError
from histostore.io.sheet import Sample, read_sheet
from histostore.slides.remote import is_remote
from histostore.stages import annotate as _annotate
from histostore.stages.ingest import IngestSpec
from histostore.stages.ingest import ingest as _ingest
from histostore.stages.tile import tile as _tile
from histostore.stages.twins import Twins

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from distributed import Client

    from histostore.progress import Progress
    from histostore.specs import PixelSpec, TileSpec
    from histostore.stages.result import StageResult
    from histostore.store.store import Store
    from histostore.view import View

__all__ = ["annotate", "gene_stats", "highly_variable_genes", "ingest", "tile"]

_FILES = ("image", "st_counts", "st_spots", "visium", "anndata", "points", "obs", "geojson")


def ingest(
    store: Store,
    slide: str | None = None,
    *,
    sheet: str | Path | None = None,
    spec: IngestSpec | None = None,
    meta: dict[str, str] | None = None,
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
        Metadata of the slide, like ``{"patient": "C"}``.

    Returns
    -------
    list of StageResult
        One per slide, in order.
    """
    if (sheet is None) == (slide is None):
        raise UsageError("give a slide with its image, or a sheet")
    if sheet is not None:
        samples = read_sheet(sheet)
    else:
        if files.get("image_folder") is not None:
            files |= {"image": files["image_folder"], "image_folder": True}
        given = {k: v for k, v in files.items() if v is not None}
        paths: dict[str, Any] = {k: Path(v) if k in _FILES and not is_remote(v) else v for k, v in given.items()}
        samples = [Sample(slide=str(slide), meta=meta or {}, **paths)]
    twins = Twins(store)
    return [_ingest(store, sample, spec, twins=twins, progress=progress) for sample in samples]


def annotate(
    store: Store,
    slide: str | None = None,
    *,
    table: str | Path | None = None,
    geojson: str | Path | None = None,
    obs: str | Path | None = None,
    review: str | Path | None = None,
    name: str | None = None,
    replace: bool = False,
    **fields: str,
) -> list[StageResult]:
    """Add what arrives later: metadata (`table` or keywords), polygons (`geojson`), labels per spot (`obs`).

    A table of tiles that `hs.tl.review` wrote and people filled in (`review`) becomes the obs column ``review``, or
    `name`, of all slides in it.
    """
    if table is not None:
        return _annotate.annotate_table(store, table)
    if review is not None:
        from histostore.stages.review_labels import REVIEW, annotate_review

        return annotate_review(store, Path(review), name=name or REVIEW, replace=replace)
    if slide is None:
        raise UsageError("say which slide; only tables name their slides themselves")
    done = []
    if geojson is not None:
        done.append(_annotate.annotate_regions(store, slide, geojson, name=name, replace=replace))
    if obs is not None:
        done.append(_annotate.annotate_obs(store, slide, obs, name=name, replace=replace))
    if fields:
        done.append(_annotate.annotate_meta(store, slide, fields))
    return done


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
    if spec is None:
        raise UsageError("tile needs a TileSpec, like TileSpec.at_spots(px=224)")
    chosen = [slides] if isinstance(slides, str) else list(slides or store.slides())  # type: ignore[arg-type]
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
    """Return scanpy's highly variable genes over all slides of a view, one pass, never all in memory.

    Options (`flavor`, `batch_key`, `client`, `workers`) and columns as in
    `histostore.cohort.variable_genes.highly_variable_genes`.
    """
    from histostore.cohort.variable_genes import highly_variable_genes as run

    return run(view, n_top=n_top, **options)
