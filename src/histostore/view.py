"""A lazy cohort: rows over slides with embeddings, counts and labels joined by id.

Opening a view reads manifests and headers; rows are read when they are asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.blocks.slide_rows import SlideRows
from histostore.embedding_rows import EmbeddingRows, row_numbers
from histostore.errors import DataError, NotFoundError, UsageError, near
from histostore.genes import Listed, check_naming, join_genes, stack_counts
from histostore.ids import each_once
from histostore.opening import check_alike, left_out_text, open_parts, uncollected
from histostore.part import bounds_of, with_rows
from histostore.row_filter import passing, which
from histostore.store.catalog import known_slides
from histostore.tables import Report
from histostore.where import Where, as_numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized

    import dask.array as da
    import pandas as pd
    import xarray as xr
    from anndata import AnnData
    from numpy.typing import NDArray

    from histostore.genes import Genes
    from histostore.part import Part
    from histostore.store.catalog_entries import Known
    from histostore.store.store import Store


@dataclass(frozen=True, slots=True)
class View:
    """Rows of a cohort. Immutable: `select` and `where` return another one."""

    parts: tuple[Part, ...]
    backbones: tuple[str, ...]
    gene_join: str | tuple[str, ...]
    report: Report
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Slides that nobody named and that have no such embeddings, and what they are without."""

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __repr__(self) -> str:
        what = f", embeddings {', '.join(self.backbones)}" if self.backbones else ""
        left = f" ({len(self.left_out)} left out)" if self.left_out else ""
        return f"View of {len(self)} rows from {len(self.parts)} slides{left}{what}"

    def note(self) -> str | None:
        """Return a line about the slides that were left out, None where all are in."""
        return left_out_text(self.left_out, len(self.left_out) + len(self.parts)) if self.left_out else None

    @property
    def slides(self) -> tuple[str, ...]:
        """The slides, in order."""
        return tuple(p.slide for p in self.parts)

    def columns(self) -> list[str]:
        """Return the obs columns that any slide has."""
        return list(dict.fromkeys(c for p in self.parts for c in p.columns()))

    def column(self, name: str) -> NDArray[Any]:
        """Return one obs column, or the counts of a gene, over all rows; None or NaN on slides that have none such.

        Raises
        ------
        NotFoundError
            No slide has it.
        """
        known = [p.has(name) for p in self.parts]
        if not any(known):
            raise NotFoundError(f"no column '{name}' in any slide{self._near(name)}")
        found = [p.column(name) if k else None for p, k in zip(self.parts, known, strict=True)]
        if any(v is not None and v.dtype.kind == "f" for v in found):  # on others it may be empty, or whole
            found = [v if v is None else as_numbers(v) for v in found]
        kinds = {v.dtype.kind for v in found if v is not None}
        missing: Any = np.nan if kinds <= {"f", "i", "u"} else None
        whole = [v if v is not None else np.full(len(p), missing) for p, v in zip(self.parts, found, strict=True)]
        if len(kinds) > 1 and not kinds <= {"f", "i", "u"}:
            whole = [v.astype(object) for v in whole]
        return np.concatenate(whole) if whole else np.zeros(0)

    def _near(self, name: str) -> str:
        for part in self.parts:
            if name in part.left_behind:
                return f": slide '{part.slide}': {part.left_behind[name]}"
        columns = self.columns()
        genes = {g for p in self.parts for g in p.gene_names.symbols}
        more = f" and {len(genes):,} genes" if genes else ""
        return f"{near(name, [*columns, *genes])}; there are {', '.join(sorted(columns))}{more}"

    def where(self, text: str) -> View:
        """Return the rows that pass a filter on slide and tile columns and on counts of genes (`histostore.where`)."""
        condition = Where.parse(text)
        for name in condition.names:
            if not any(p.has(name) for p in self.parts):
                raise NotFoundError(f"where: no column '{name}'{self._near(name)}")
        parts = passing(self.parts, condition)
        left = len(self) - sum(map(len, parts))
        return replace(self, parts=tuple(parts), report=self.report.merged(Report({"rows left out by where": left})))

    def mask(self, text: str) -> NDArray[np.bool_]:
        """Return ``(n,)`` True where a row passes a filter (see `where`)."""
        out = [which(part, passed) for part, passed in zip(self.parts, self.where(text).parts, strict=True)]
        return np.concatenate(out) if out else np.zeros(0, dtype=bool)

    def of_slides(self, slides: str | Collection[str]) -> View:
        """Return the rows of some slides, in the order the view has them; one that it has not is a `NotFoundError`."""
        asked = {slides} if isinstance(slides, str) else set(slides)
        for slide in sorted(asked - {*self.slides}):
            raise NotFoundError(f"the view has no slide '{slide}'{near(slide, self.slides)}; it is a {self!r}")
        return replace(self, parts=tuple(p for p in self.parts if p.slide in asked))

    def select(self, rows: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> View:
        """Return some rows, by number or mask; within a slide the order given is kept, slides keep theirs.

        Errors as of `histostore.embedding_rows.row_numbers`.
        """
        rows = row_numbers(rows, len(self))
        bounds = bounds_of(self.parts)
        parts = [
            p.selected(rows[(rows >= a) & (rows < b)] - a)
            for p, a, b in zip(self.parts, bounds, bounds[1:], strict=False)
        ]
        return replace(self, parts=tuple(parts))

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the obs table, indexed by ``<slide>:<point>``."""
        import pandas as pd

        names = self.columns() if columns is None else [columns] if isinstance(columns, str) else list(columns)
        return pd.DataFrame({c: self.column(c) for c in names}, index=pd.Index(self.names(), dtype=object))

    def names(self) -> NDArray[Any]:
        """Return the row names ``<slide>:<point>``, unique over the cohort."""
        found = [np.char.add(f"{p.slide}:", p.column("barcode").astype(str)) for p in self.parts]
        return np.concatenate(found).astype(object) if found else np.zeros(0, dtype=object)

    def numpy(self, backbone: str | None = None, rows: NDArray[np.integer[Any]] | None = None) -> NDArray[Any]:
        """Return embeddings ``(n, d)`` in the type they are stored in; of some rows, in the order asked for."""
        source = self.lazy(backbone)
        return source[slice(None) if rows is None else row_numbers(rows, len(self))]

    def lazy(self, backbone: str | None = None) -> EmbeddingRows:
        """Return the embeddings as a row source ``(n, d)``: ``source[rows]`` reads those rows, nothing is kept."""
        return EmbeddingRows(self.parts, self.embedding_name(backbone))

    def forgotten(self) -> View:
        """Return the same rows with nothing read yet: ids, counts and columns that parts keep are let go of."""
        return replace(self, parts=tuple(p.forgotten() for p in self.parts))

    def batches(
        self, size: int, *, backbone: str | None = None, seed: int | None = None, epoch: int = 0
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Yield (row numbers, embeddings) batch by batch; shuffled by (seed, epoch) alone, in order without a seed.

        The arrays own their memory and are writable, so ``torch.from_numpy`` takes them as they are.
        """
        if size < 1:
            raise UsageError(f"size is {size}: a batch has at least one row")
        order = np.arange(len(self), dtype=np.int64)
        if seed is not None:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        source = self.lazy(backbone)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, source[rows]

    def counts(self) -> Genes:
        """Return the counts of all rows and the genes they are of, joined over slides.

        Raises
        ------
        DataError
            A row has no counts (`with_counts` leaves such rows out), or none can have.
        """
        if all(p.expression is None for p in self.parts):
            raise DataError(f"these rows of {', '.join(self.slides[:3])} have no counts: only tiles at spots have them")
        without = sum(int((p.count_row[_all(p)] < 0).sum()) for p in self.parts)
        if without:
            raise DataError(f"{without} of {len(self)} rows have no counts; take view.with_counts()")
        listed = [(p, p.counts) for p in with_rows(self.parts) if p.counts is not None]
        check_naming([Listed(p.slide, c.gene_ids, c.whole_transcriptome) for p, c in listed], self.gene_join)
        genes = join_genes([counts for _, counts in listed], self.gene_join)
        return stack_counts(genes, [(p.slide, counts, p.count_row[_all(p)]) for p, counts in listed])

    def with_counts(self) -> View:
        """Return the rows that have counts; how many were left out is in the report."""
        parts = tuple(map(_counted, self.parts))
        left = len(self) - sum(map(len, parts))
        report = self.report.merged(Report({"rows without counts": left})) if left else self.report
        return replace(self, parts=parts, report=report)

    def to_adata(self, *, images: bool = True, counts: bool | None = None, lazy: bool = False) -> AnnData:
        """Return a plain AnnData, as scanpy and squidpy expect it.

        ``X`` integer counts (CSR), ``obs`` with slide, patient, barcode, library_id and all labels,
        ``obsm["spatial"]`` centres (x, y) in full-resolution pixels, ``obsm["X_<backbone>"]`` embeddings, and
        ``uns["spatial"][slide]`` with the overview image and its scale factors.

        Parameters
        ----------
        images
            Put each slide's overview image into ``uns["spatial"]``.
        counts
            False for no X (all tiles, also those without counts); by default counts where the slides have them (the
            tiles of a grid have none), and rows without counts left out (counted in ``uns["histostore"]``).
        lazy
            ``X`` (`counts_dask`) and embeddings (`to_dask`) are dask arrays, read when they are computed; obs is in
            memory, less n_counts and n_genes. scanpy's ``pp.normalize_total``, ``pp.log1p`` and
            ``pp.highly_variable_genes`` take them.
        """
        from histostore.adata import build_adata

        if counts is None:
            asked = with_rows(self.parts)
            lacks = [p.slide for p in asked if p.expression is None]
            counts = len(lacks) < len(asked)
            if counts and lacks:
                lacking = ", ".join(lacks)
                raise DataError(f"slides {lacking} have no counts; choose slides, or pass counts=False")
        view = self.with_counts() if counts else self
        return build_adata(view, images=images, counts=counts, lazy=lazy)

    def to_dask(self, backbone: str | None = None) -> da.Array:
        """Return the embeddings as a dask array ``(n, d)`` in the type they are stored in.

        Chunks are the shards on disk; small ones, of as many slides as it takes, are one chunk of up to 16 MiB. Tasks
        hold the place of the store and the rows, no open file, so any scheduler runs them: workers open the store
        themselves. A row is NaN where its tile is unreadable.
        """
        from histostore.lazy import dask_embeddings

        return dask_embeddings(self, self.embedding_name(backbone))

    def counts_dask(self) -> Genes:
        """Return the counts as `counts` does, with a dask array of CSR blocks ``(n, g)`` as the matrix.

        int32, or float32 with explicit NaN where a targeted panel did not measure a gene.

        Raises
        ------
        DataError
            A row has no counts (`with_counts` leaves such rows out), or none can have.
        """
        from histostore.lazy import dask_counts

        return dask_counts(self)

    def to_xarray(
        self, backbone: str | None = None, *, expression: bool = False, columns: Sequence[str] | None = None
    ) -> xr.Dataset:
        """Return a dask-backed Dataset with the dimensions ``obs``, ``feature`` and, with `expression`, ``gene``.

        Parameters
        ----------
        backbone
            Which embeddings; a view that was opened without any gives counts alone.
        expression
            Add counts as ``expression (obs, gene)``, dense float32 in blocks of at most 32 MiB: what xarray's own
            functions take (for CSR see `counts_dask`). Rows without counts are an error, see `with_counts`.
        columns
            Obs columns to have as coordinates, all by default. They are read at once.
        """
        from histostore.lazy import build_dataset

        name = None if expression and backbone is None and not self.backbones else self.embedding_name(backbone)
        return build_dataset(self, name, expression=expression, columns=columns)

    def embedding_name(self, name: str | None = None) -> str:
        """Return the backbone that is meant: the only one where none is named.

        Raises
        ------
        NotFoundError
            The view has no such embeddings, or several and none is named.
        """
        if name is None and len(self.backbones) == 1:
            return self.backbones[0]
        if name not in self.backbones:
            have = ", ".join(self.backbones) or "none; open the view with backbone=…"
            raise NotFoundError(f"the view has no embeddings '{name}'; it has {have}")
        return name


def _all(part: Part) -> NDArray[np.int64] | slice:
    return slice(None) if part.rows is None else part.rows


def _counted(part: Part) -> Part:
    """Return the rows that have counts; the counts themselves are not read for that."""
    if part.expression is None:
        return part.selected(np.zeros(0, dtype=np.int64))
    rows = SlideRows.of(part).open(part.store)
    return part if rows.all_counted else part.selected(np.flatnonzero(rows.count_row >= 0))


def view(
    store: Store,
    *,
    backbone: str | Sequence[str] | None = None,
    tiles: str | None = None,
    slides: str | Iterable[str] | None = None,
    where: str | None = None,
    genes: str | Sequence[str] = "outer",
    region_share: float | None = None,
) -> View:
    """Open a cohort.

    Parameters
    ----------
    backbone
        Embeddings to join: one name or several (of the same tile set). None opens from counts alone.
    tiles
        Which tile set; may be left out where it is clear.
    slides
        Which slides, each once, in this order. By default all of them; those without the embeddings are left out then
        (see `View.left_out`).
    where
        A filter on slide and tile columns, like ``"patient != 'C' and n_counts >= 500"``.
    genes
        ``outer`` joins the genes of all slides (absent is 0 for whole-transcriptome assays, NaN for targeted
        panels), ``inner`` keeps those that all have; or a list of symbols or ids.
    region_share
        How annotated polygons label tiles (the columns ``region_<name>``): by the tile's centre, or, with a number in
        0-1, by the polygon class that covers at least that share of the tile.

    Raises
    ------
    NotFoundError
        A slide, tile set or embedding is not there; what there is, is listed.
    SpecMismatchError
        Embeddings are asked for, and tiles of two slides differ in size or resolution.
    """
    wanted = [backbone] if isinstance(backbone, str) else list(backbone or ())
    if isinstance(genes, str) and genes not in ("outer", "inner"):
        raise UsageError(f"genes is '{genes}', not 'outer', 'inner' or a list of genes")
    asked = None if slides is None else each_once(slides)
    with uncollected():
        opened = view_of(
            store, known_slides(store, asked), backbones=wanted, tiles=tiles, region_share=region_share,
            genes=genes if isinstance(genes, str) else tuple(genes), named=slides is not None,
        )  # fmt: skip
    opened = opened.where(where) if where is not None else opened
    if wanted:
        check_alike(opened.parts)
    return opened


def view_of(
    store: Store,
    known: Iterable[Known],
    *,
    backbones: Sequence[str],
    tiles: str | None,
    named: bool,
    genes: str | tuple[str, ...] = "outer",
    region_share: float | None = None,
) -> View:
    """Open slides whose manifests are known; whether their tiles are alike is left to `check_alike`.

    Parameters
    ----------
    known
        Manifests of the slides, with the headers that are known of them.
    named
        Each was asked for by name: one without the embeddings is an error, and not left out.
    backbones, tiles, genes, region_share
        As of `view`, whose errors these are too.
    """
    parts, left_out = open_parts(store, known, backbones=backbones, tiles=tiles, region_share=region_share, named=named)
    report = Report(dict(Counter(f"slides {reason}" for reason in left_out.values())))
    return View(parts, tuple(parts[0].embeddings), genes, report, left_out)


def refuse_none(rows: Sized, where: str | None) -> None:
    """Refuse to go on with no rows where it was a filter that kept none.

    Raises
    ------
    UsageError
        There is a filter and no row.
    """
    if where is not None and not len(rows):
        raise UsageError(f"where {where!r} keeps no row; check the values that it asks for")
