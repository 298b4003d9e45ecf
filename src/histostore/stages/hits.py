"""Answers of a search: a table of tiles, and what can be made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.errors import NotFoundError, UsageError
from histostore.part import bounds_of, by_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from histostore.index.spec import Metric
    from histostore.stages.queries import Query
    from histostore.view import View


@dataclass(frozen=True, slots=True)
class Hits:
    """The answer to one query, or to several."""

    table: pd.DataFrame
    """One line per hit by obs name, best first: rank, distance, slide, barcode, x_um, y_um and asked columns; of
    several queries also `query`, and the answers one after the other."""
    rows: NDArray[np.int64]
    """Rows of `view`, in the order of the table."""
    view: View
    query: str
    metric: Metric = "cosine"
    single: tuple[View, int] | None = None
    """The query's own view and row, for a query by one spot."""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        tables: Sequence[pd.DataFrame],
        rows: NDArray[np.int64],
        view: View,
        query: Query,
        metric: Metric,
        notes: tuple[str, ...],
    ) -> Hits:
        """Put the answers to one or more queries together."""
        one = query.single is not None and len(query.labels) == 1 and not query.together
        single = (query.single[0], int(query.single[1][0])) if one and query.single is not None else None
        table = tables[0] if len(tables) == 1 else pd.concat(tables)
        return cls(table, rows, view, query.label, metric, single, notes)

    def query_tile(self) -> NDArray[np.uint8]:
        """Return the query's pixels ``(px, px, 3)``, for a query by one spot."""
        if self.single is None:
            raise UsageError("only a query by slide and spot has a stored tile")
        tile: NDArray[np.uint8] = tiles_of(self.single[0], np.array([self.single[1]]))[0]
        return tile

    def tiles(self) -> NDArray[np.uint8]:
        """Return the hits' pixels ``(k, px, px, 3)`` uint8 RGB as stored."""
        return tiles_of(self.view, self.rows)

    def to_adata(self, *, images: bool = False) -> AnnData:
        """Return the hits as AnnData, in their order: counts where the slides have them, embeddings, positions.

        ``obs`` holds rank and distance beside the view's columns; a tile that answers several queries is there once.
        """
        first = ~self.table.index.duplicated()
        chosen = self.view.select(np.sort(self.rows[first]))
        counts = all(p.expression is not None for p in chosen.parts if len(p))
        adata = chosen.to_adata(images=images, counts=counts)
        names = [n for n in self.table.index[first] if n in set(adata.obs_names)]
        adata = adata[names].copy()
        for column in ("rank", "distance"):
            adata.obs[column] = self.table.loc[first, column].reindex(names).to_numpy()
        return adata

    def expression(self, genes: Sequence[str]) -> pd.DataFrame:
        """Return what the hits express, as a prediction with spread: log1p counts per 10,000, mean, sd and n per gene.

        A hit without counts, or of a slide whose values were normalised before they came in, is left out, and so n
        tells.
        """
        total = counts_at(self.view, "n_counts", self.rows)
        lines = {}
        for gene in genes:
            counts = counts_at(self.view, gene, self.rows)
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log1p(np.where(total > 0, counts / total * 1e4, np.nan))
            known = values[np.isfinite(values)]
            lines[gene] = {
                "mean": float(known.mean()) if len(known) else np.nan,
                "sd": float(known.std(ddof=1)) if len(known) > 1 else np.nan,
                "n": len(known),
            }
        return pd.DataFrame.from_dict(lines, orient="index")


def hit_table(
    view: View, rows: NDArray[np.int64], distance: NDArray[np.float32], columns: Sequence[str], query: str | None
) -> pd.DataFrame:
    """Return the lines of one answer."""
    shown: dict[str, Any] = {} if query is None else {"query": query}
    shown |= {"rank": np.arange(1, len(rows) + 1), "distance": distance}
    shown |= {name: column_at(view, name, rows) for name in ("slide", "barcode", "x_um", "y_um", *columns)}
    names = [f"{slide}:{spot}" for slide, spot in zip(shown["slide"], shown["barcode"], strict=True)]
    return pd.DataFrame(shown, index=pd.Index(names, dtype=object, name="tile"))


def column_at(view: View, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return one column of some rows, in their order; other slides than theirs are not read.

    Raises
    ------
    NotFoundError
        No slide of the view has it.
    """
    chosen = list(by_part(bounds_of(view.parts), rows))
    parts = tuple(view.parts[at].selected(local) for at, _, local in chosen)
    if any(p.has(name) for p in parts):
        values = replace(view, parts=parts).column(name)
        if values.dtype.kind in "Of":
            out = np.empty_like(values)
            out[np.concatenate([mine for _, mine, _ in chosen])] = values
            return out
    # whole numbers are floats where other slides have none, and a name that these lack may be of others
    return view.column(name)[rows]


def counts_at(view: View, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the counts of a gene (or ``n_counts``) of some rows; NaN without any, or where they came in normalised.

    Errors as of `column_at`.
    """
    counts = column_at(view, name, rows).astype(np.float64)
    for at, mine, _ in by_part(bounds_of(view.parts), rows):
        if view.parts[at].normalised:
            counts[mine] = np.nan
    return counts


def tiles_of(chosen: View, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the stored pixels of some rows of a view, in their order.

    Raises
    ------
    NotFoundError
        The tiles' pixels were not stored (codec ``slide``).
    """
    out: dict[int, NDArray[np.uint8]] = {}
    for at, mine, local in by_part(bounds_of(chosen.parts), rows):
        part = chosen.parts[at]
        name = part.tiles.name if part.tiles is not None else None
        ref = part.manifest.get("pixels", name) if name is not None else None
        if ref is None:
            raise NotFoundError(f"the pixels of tiles '{name}' of slide '{part.slide}' are not stored (codec slide)")
        tiles = part.group(ref).array("pixels").read(local if part.rows is None else part.rows[local])
        out.update(zip(mine.tolist(), tiles, strict=True))
    return np.stack([out[i] for i in range(len(rows))]) if out else np.zeros((0, 0, 0, 3), dtype=np.uint8)
