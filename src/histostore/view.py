"""A lazy cohort: rows over slides with embeddings, counts and labels joined by id.

Opening a view reads manifests and headers; rows are read when they are asked for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.blocks.slide_rows import SlideRows
from histostore.errors import DataError, NotFoundError, UsageError, near
from histostore.genes import join_genes, stack_counts
from histostore.heads.rows import RowSource
from histostore.part import Part
from histostore.store.catalog import known_slides
from histostore.tables import Report
from histostore.where import Where

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import dask.array as da
    import pandas as pd
    import xarray as xr
    from anndata import AnnData
    from numpy.typing import NDArray

    from histostore.genes import Genes
    from histostore.store.catalog_entries import Known
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store

RELEASE_BYTES = 1 << 28
"""Pages of embeddings that a process keeps mapped while it reads on: 256 MiB of what was asked for."""

SPOTS = "spots"
"""The points that a slide's counts are of."""


@dataclass(frozen=True, slots=True)
class View:
    """Rows of a cohort. Immutable: `select` and `where` return another one."""

    parts: tuple[Part, ...]
    backbones: tuple[str, ...]
    gene_join: str | tuple[str, ...]
    report: Report

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __repr__(self) -> str:
        what = f", embeddings {', '.join(self.backbones)}" if self.backbones else ""
        return f"View of {len(self)} rows from {len(self.parts)} slides{what}"

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
        kinds = {v.dtype.kind for v in found if v is not None}
        missing: Any = np.nan if kinds <= {"f", "i", "u"} else None
        whole = [v if v is not None else np.full(len(p), missing) for p, v in zip(self.parts, found, strict=True)]
        if len(kinds) > 1 and not kinds <= {"f", "i", "u"}:
            whole = [v.astype(object) for v in whole]
        return np.concatenate(whole) if whole else np.zeros(0)

    def _near(self, name: str) -> str:
        columns = self.columns()
        genes = {g for p in self.parts for g in p.genes}
        more = f" and {len(genes):,} genes" if genes else ""
        return f"{near(name, [*columns, *genes])}; there are {', '.join(sorted(columns))}{more}"

    def where(self, text: str) -> View:
        """Return the rows that pass a filter on slide and tile columns and on counts of genes (`histostore.where`)."""
        condition = Where.parse(text)
        for name in condition.names:
            if not any(p.has(name) for p in self.parts):
                raise NotFoundError(f"where: no column '{name}'{self._near(name)}")
        of_slides = _slide_columns(self.parts, condition.names)
        if of_slides is not None:
            passed = condition.mask(len(self.parts), of_slides.__getitem__)
            none = np.zeros(0, dtype=np.int64)
            parts = [p if whole else _selected(p, none) for p, whole in zip(self.parts, passed.tolist(), strict=True)]
        else:
            parts = [_passing(part, condition) for part in self.parts]
        left = len(self) - sum(map(len, parts))
        return replace(self, parts=tuple(parts), report=self.report.merged(Report({"rows left out by where": left})))

    def mask(self, text: str) -> NDArray[np.bool_]:
        """Return ``(n,)`` True where a row passes a filter (see `where`)."""
        out = []
        for part, passed in zip(self.parts, self.where(text).parts, strict=True):
            mine = np.arange(part.n_all) if part.rows is None else part.rows
            out.append(np.isin(mine, passed.rows) if passed.rows is not None else np.ones(len(mine), dtype=bool))
        return np.concatenate(out) if out else np.zeros(0, dtype=bool)

    def of_slides(self, slides: Collection[str]) -> View:
        """Return the rows of some slides, in the order the view has them."""
        return replace(self, parts=tuple(p for p in self.parts if p.slide in slides))

    def select(self, rows: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> View:
        """Return some rows, by number or mask; within a slide the order given is kept, slides keep theirs."""
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else np.asarray(rows)
        bounds = np.cumsum([0, *map(len, self.parts)])
        parts = [
            _selected(p, rows[(rows >= a) & (rows < b)] - a)
            for p, a, b in zip(self.parts, bounds, bounds[1:], strict=False)
        ]
        return replace(self, parts=tuple(parts))

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the obs table, indexed by ``<slide>:<point>``."""
        import pandas as pd

        names = list(columns) if columns is not None else self.columns()
        return pd.DataFrame({c: self.column(c) for c in names}, index=pd.Index(self.names(), dtype=object))

    def names(self) -> NDArray[Any]:
        """Return the row names ``<slide>:<point>``, unique over the cohort."""
        found = [np.char.add(f"{p.slide}:", p.column("barcode").astype(str)) for p in self.parts]
        return np.concatenate(found).astype(object) if found else np.zeros(0, dtype=object)

    def numpy(self, backbone: str | None = None, rows: NDArray[np.integer[Any]] | None = None) -> NDArray[Any]:
        """Return embeddings ``(n, d)`` in the type they are stored in; of some rows, in the order asked for."""
        source = self.lazy(backbone)
        return source[slice(None) if rows is None else np.asarray(rows, dtype=np.int64)]

    def lazy(self, backbone: str | None = None) -> ViewRows:
        """Return the embeddings as a row source ``(n, d)``: ``source[rows]`` reads those rows, nothing is kept."""
        return ViewRows(self, self.embedding_name(backbone))

    def forgotten(self) -> View:
        """Return the same rows with nothing read yet: ids, counts and columns that parts keep are let go of."""
        return replace(self, parts=tuple(replace(p, _groups={}) for p in self.parts))

    def batches(
        self, size: int, *, backbone: str | None = None, seed: int | None = None, epoch: int = 0
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Yield (row numbers, embeddings) batch by batch; shuffled by (seed, epoch) alone, in order without a seed.

        The arrays own their memory and are writable, so ``torch.from_numpy`` takes them as they are.
        """
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
        genes = join_genes([p.counts for p in self.parts if p.counts is not None], self.gene_join)
        return stack_counts(
            genes, [(p.slide, p.counts, p.count_row[_all(p)]) for p in self.parts if p.counts is not None]
        )

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

        has = [p.expression is not None for p in self.parts]
        if counts is None:
            counts = any(has)
            if counts and not all(has):
                lacking = ", ".join(p.slide for p, h in zip(self.parts, has, strict=True) if not h)
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


class ViewRows(RowSource):
    """Embeddings of a view, read when asked for; the memory of what was read is given back as it goes on."""

    def __init__(self, view: View, backbone: str) -> None:
        self._readers = [p.group(p.embeddings[backbone]).array("embedding") for p in view.parts]
        self._chosen = [p.rows for p in view.parts]
        self._bounds = np.cumsum([0, *map(len, view.parts)])
        self._width = int(view.parts[0].group(view.parts[0].embeddings[backbone]).attrs["dim"])
        self._read = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return int(self._bounds[-1]), self._width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type that the embeddings are stored in."""
        return self._readers[0].dtype

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        n, bounds = len(self), self._bounds
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(n)
            out = np.empty((max(0, stop - start), self._width), dtype=self.dtype)
            for at, (first, last) in enumerate(itertools.pairwise(bounds)):
                a, b = max(start, first), min(stop, last)
                if a < b:
                    self._fill(out, slice(a - start, b - start), at, slice(a - first, b - first))
            return out
        if len(rows) and (rows.min() < 0 or rows.max() >= n):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a view of {n}")
        out = np.empty((len(rows), self._width), dtype=self.dtype)
        part_of = np.searchsorted(bounds, rows, side="right") - 1
        for at in np.unique(part_of):
            mine = np.flatnonzero(part_of == at)
            self._fill(out, mine, int(at), rows[mine] - bounds[at])
        return out

    def _fill(self, out: NDArray[Any], places: Any, at: int, local: Any) -> None:
        """Read rows of one slide into their places, and let go of old pages from time to time."""
        chosen = self._chosen[at]
        out[places] = self._readers[at].read(local if chosen is None else chosen[local])
        self._read += len(out[places]) * self._width * out.itemsize
        if self._read > RELEASE_BYTES:
            self._read = 0
            for reader in self._readers:
                reader.release()


def _all(part: Part) -> NDArray[np.int64] | slice:
    return slice(None) if part.rows is None else part.rows


def _counted(part: Part) -> Part:
    """Return the rows that have counts; the counts themselves are not read for that."""
    if part.expression is None:
        return _selected(part, np.zeros(0, dtype=np.int64))
    rows = SlideRows.of(part).open(part.store)
    return part if rows.all_counted else _selected(part, np.flatnonzero(rows.count_row >= 0))


def _slide_columns(parts: Sequence[Part], names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    """Return one value per slide of each column; None where a column is not of slides as a whole."""
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        values = np.empty(len(parts), dtype=object)
        for at, part in enumerate(parts):
            values[at] = part.slide_value(name)
            if values[at] is ...:
                return None
        found[name] = values
    return found


def _passing(part: Part, condition: Where) -> Part:
    def column(name: str) -> NDArray[Any]:
        return part.column(name) if part.has(name) else np.full(len(part), None)

    return _selected(part, np.flatnonzero(condition.mask(len(part), column)))


def _selected(part: Part, keep: NDArray[np.int64]) -> Part:
    rows = keep if part.rows is None else part.rows[keep]
    other = replace(part, rows=rows)
    for name, value in vars(part).items():  # what was read already is shared, not read again
        if name not in ("rows",):
            vars(other)[name] = value
    return other


def view(
    store: Store,
    *,
    backbone: str | Sequence[str] | None = None,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
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
        Which slides, in this order; all of them by default.
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
    """
    wanted = [backbone] if isinstance(backbone, str) else list(backbone or ())
    if isinstance(genes, str) and genes not in ("outer", "inner"):
        raise UsageError(f"genes is '{genes}', not 'outer', 'inner' or a list of genes")
    known = known_slides(store, slides)
    if not known:
        raise NotFoundError(f"no slides in {store.uri}; ingest one first")
    if region_share is not None and not 0 < region_share <= 1:
        raise UsageError(f"region_share is {region_share}, outside 0-1")
    parts = tuple(_part(store, slide, wanted, tiles, region_share) for slide in known)
    names = tuple(parts[0].embeddings)
    _same_backbones(parts, names)
    join = genes if isinstance(genes, str) else tuple(genes)
    opened = View(parts, names, join, Report())
    return opened.where(where) if where is not None else opened


def _part(store: Store, known: Known, wanted: list[str], tiles: str | None, region_share: float | None) -> Part:
    manifest, headers = known
    embeddings: dict[str, Ref] = {}
    for name in wanted:
        ref = _embedding(manifest, name, tiles)
        tiles, _, short = ref.name.rpartition("/")
        embeddings[short] = ref
    tiles_ref = manifest.find("tiles", tiles) if tiles is not None else None
    points = SPOTS
    if tiles_ref is not None:
        about = headers.get(tiles_ref.key)
        attrs = about.attrs if about is not None and about.attrs is not None else store.group(tiles_ref).attrs
        points = str(attrs["points"])
    return Part(
        store=store,
        manifest=manifest,
        tiles=tiles_ref,
        points=manifest.find("points", points),
        embeddings=embeddings,
        # counts are of the assay's own spots: the id of a grid cell ("7x12") may be that of a spot elsewhere
        expression=manifest.get("expression", "counts") if points == SPOTS else None,
        region_share=region_share,
        headers=headers,
    )


def _embedding(manifest: Manifest, backbone: str, tiles: str | None) -> Ref:
    refs = manifest.of_kind("embeddings")
    hits = [r for r in refs if r.name == backbone or r.name.rpartition("/")[2] == backbone]
    if tiles is not None:
        hits = [r for r in hits if r.name.rpartition("/")[0] == tiles]
    if len(hits) == 1:
        return hits[0]
    names = [r.name for r in refs]
    if hits:
        sets = ", ".join(sorted(r.name.rpartition("/")[0] for r in hits))
        raise NotFoundError(
            f"slide '{manifest.owner}' has '{backbone}' on several tile sets: give tiles, one of {sets}"
        )
    have = f"it has {', '.join(names)}" if names else "it has none; run embed"
    raise NotFoundError(f"slide '{manifest.owner}' has no embeddings '{backbone}'{near(backbone, names)}; {have}")


def _same_backbones(parts: Sequence[Part], names: Sequence[str]) -> None:
    for name in names:
        digests: Mapping[str, str] = {p.slide: p.attrs(p.embeddings[name])["backbone_digest"] for p in parts}
        if len(set(digests.values())) > 1:
            listed = ", ".join(f"{s} {d[:8]}" for s, d in digests.items())
            raise DataError(f"'{name}' is not the same backbone on all slides ({listed}); embed them again with one")
