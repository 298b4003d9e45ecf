"""One slide's share of a view: its rows and their columns, read when asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.content.calls import call_classes, call_probability
from histostore.content.regions import read_regions
from histostore.content.tables import counts_of, read_counts, read_labels, read_points
from histostore.errors import NotFoundError, near
from histostore.field_of_view import FieldOfView
from histostore.genes import GeneNames
from histostore.io.geojson import label_points
from histostore.protocols import TileStatus
from histostore.store.lineage import Told, left_behind, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.store.catalog_entries import Header
    from histostore.store.groups import Group
    from histostore.store.lineage import LeftBehind
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store
    from histostore.tables import Counts, Points

REGION, CALL, PROBABILITY = "region_", "call_", "p_"
"""Before the name of polygons: the class of those that a row lies in. Before a classifier's name: the class it calls,
and the probability of the positive (of several: of that) class."""
_ALWAYS = frozenset(("slide", "library_id", "x", "y", "x_um", "y_um", "barcode"))
_POINT_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col")
_TILE_COLUMNS = ("tile_id", "tissue")
_COUNT_COLUMNS = ("n_counts", "n_genes")
_ROW_COLUMNS = frozenset(("x", "y", "x_um", "y_um", "status", *_POINT_COLUMNS, *_TILE_COLUMNS, *_COUNT_COLUMNS))


@dataclass(slots=False)
class Part:
    """The rows that a view takes from one slide: tiles, or spots where there are no tiles. Pinned to one manifest."""

    store: Store
    manifest: Manifest
    tiles: Ref | None
    points: Ref
    embeddings: Mapping[str, Ref]
    """By backbone."""
    expression: Ref | None
    rows: NDArray[np.int64] | None = None
    """Selected rows, in order; None means all of them."""
    region_share: float | None = None
    """Share of a tile that an annotated polygon must cover to label it; None asks for the tile's centre."""
    headers: Mapping[str, Header] = field(default_factory=dict)
    """What a catalog knows of this manifest's groups, by ``kind/name``: these are not opened to learn it."""
    _groups: dict[str, Group] = field(default_factory=dict)

    @property
    def slide(self) -> str:
        """The slide's id."""
        return self.manifest.owner

    def group(self, ref: Ref) -> Group:
        """Open a group once."""
        if ref.key not in self._groups:
            self._groups[ref.key] = self.store.group(ref)
        return self._groups[ref.key]

    def attrs(self, ref: Ref) -> Mapping[str, Any]:
        """Return a group's attributes, without opening it where they are known."""
        known = self.headers.get(ref.key)
        return known.attrs if known is not None and known.attrs is not None else self.group(ref).attrs

    def why_not(self, ref: Ref) -> LeftBehind | None:
        """Return what to say of a group whose rows are of other tiles or points than those here; None where it fits."""
        return left_behind(ref, self.manifest, self._told)

    def rows_of(self, ref: Ref) -> str | None:
        """Return the digest of the group that a group's rows are of, without opening it where that is known."""
        known = self.headers.get(ref.key)
        return known.rows_of if known is not None else rows_of(self.group(ref).header)

    def _told(self, ref: Ref) -> Told:
        return Told(self.rows_of(ref), self.attrs(ref).get("points"))

    @cached_property
    def n_all(self) -> int:
        """Rows before any selection."""
        ref = self.tiles if self.tiles is not None else self.points
        return self.headers[ref.key].rows if ref.key in self.headers else self.group(ref).rows

    def __len__(self) -> int:
        return self.n_all if self.rows is None else len(self.rows)

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """The slide's metadata group: fields, mpp and its origin."""
        return self.attrs(self.manifest.find("meta", "meta"))

    @property
    def field(self) -> FieldOfView:
        """What its tiles show; nothing is told of spots without tiles."""
        return FieldOfView.of(self.attrs(self.tiles)) if self.tiles is not None else FieldOfView(None, None)

    @cached_property
    def the_points(self) -> Points:
        """The points that rows belong to."""
        return read_points(self.group(self.points))

    @cached_property
    def point_row(self) -> NDArray[np.int64]:
        """Row in `the_points` of every row, before selection."""
        if self.tiles is None:
            return np.arange(self.n_all, dtype=np.int64)
        return self.group(self.tiles).read("ids")[:, 2].astype(np.int64)

    @cached_property
    def counts(self) -> Counts | None:
        """The slide's count matrix."""
        return read_counts(self.group(self.expression)) if self.expression is not None else None

    @property
    def normalised(self) -> bool:
        """Whether what the slide has as counts was normalised before it came in."""
        return self.expression is not None and bool(self.attrs(self.expression)["normalised"])

    @cached_property
    def count_row(self) -> NDArray[np.int64]:
        """Row in `counts` of every row, joined by id; -1 where the spot has none."""
        return counts_of(self.point_row, self.the_points.ids, self.counts.ids if self.counts is not None else ())

    @cached_property
    def xy(self) -> NDArray[np.float64]:
        """``(n_all, 2)`` centres (x, y) in level-0 pixels."""
        if self.tiles is None:
            return self.the_points.xy
        return self.group(self.tiles).read("geometry")[:, :2]

    @cached_property
    def status(self) -> NDArray[np.uint8] | None:
        """Tile status of every row, where pixels or embeddings were made of these tiles."""
        for ref in (*self.embeddings.values(), self._pixels):
            if ref is not None:
                return self.group(ref).read("status")
        return None

    @property
    def _pixels(self) -> Ref | None:
        ref = self.manifest.get("pixels", self.tiles.name) if self.tiles is not None else None
        return ref if ref is not None and self.why_not(ref) is None else None

    def selected(self, keep: NDArray[np.int64]) -> Part:
        """Return some of the rows, by number among these; what was read already is shared, not read again."""
        other = self._twin()
        other.rows = keep if self.rows is None else self.rows[keep]
        return other

    def _twin(self) -> Part:
        other = object.__new__(Part)  # several times as fast as dataclasses.replace, and cohorts have thousands
        vars(other).update(vars(self))
        return other

    def forgotten(self) -> Part:
        """Return the same rows with no group open and none of their values kept."""
        other = self._twin()
        other._groups = {}
        for name in vars(self).keys() - _LIGHT:
            del vars(other)[name]
        return other

    def columns(self) -> list[str]:
        """Return the names of all columns, cheaply."""
        return list(self._columns)

    @cached_property
    def _columns(self) -> Mapping[str, None]:
        names = ["slide", *self.meta["fields"], "library_id", "x", "y", "x_um", "y_um", *_POINT_COLUMNS[:1]]
        points = self.group(self.points)
        names += [c for c in _POINT_COLUMNS[1:] if points.has(c)]
        if self.tiles is not None:
            names += [*_TILE_COLUMNS, *(["status"] if self.embeddings or self._pixels is not None else [])]
        if self.expression is not None:
            names += _COUNT_COLUMNS
        for ref in self._labels:
            names += self._columns_of(ref)
        names += [f"{REGION}{r.name}" for r in self.manifest.of_kind("regions")]
        for ref in self._called():
            names += self._columns_of(ref)
        return dict.fromkeys(names)

    def _called(self) -> list[Ref]:
        """Return the predictions of classifiers that are of these tiles."""
        return [r for r in self._named_called() if self.why_not(r) is None]

    def _named_called(self) -> list[Ref]:
        """Return the predictions of classifiers under this tile set's name, whatever tiles they are of."""
        if self.tiles is None:
            return []
        refs = [r for r in self.manifest.of_kind("predictions") if r.name.rpartition("/")[0] == self.tiles.name]
        return [r for r in refs if are_calls(self.attrs(r))]

    @cached_property
    def _labels(self) -> list[Ref]:
        """Return the labels that are of these points."""
        return [r for r in self._named_labels() if self.why_not(r) is None]

    def _named_labels(self) -> list[Ref]:
        """Return the labels of points of this name, whichever points these were."""
        return [r for r in self.manifest.of_kind("labels") if self.attrs(r)["points"] == self.points.name]

    @cached_property
    def left_behind(self) -> Mapping[str, LeftBehind]:
        """Columns that are not there, by name: what they would be read from is of other tiles or points than these."""
        said = [(r, self.why_not(r)) for r in (*self._named_labels(), *self._named_called())]
        return {name: why for ref, why in said if why is not None for name in self._columns_of(ref)}

    def _columns_of(self, ref: Ref) -> list[str]:
        if ref.kind == "labels":
            return label_columns(self.attrs(ref))
        return call_columns(ref.name)

    def measures(self, name: str) -> bool:
        """Whether a column is of labels that are numbers here: elsewhere it may be empty, or whole numbers."""
        return any(name in self.attrs(ref)["numeric_columns"] for ref in self._labels)

    @cached_property
    def gene_names(self) -> GeneNames:
        """What the columns of the counts can be called; empty where the slide has none."""
        return GeneNames((), ()) if self.counts is None else GeneNames(self.counts.gene_ids, self.counts.symbols)

    def has(self, name: str) -> bool:
        """Whether there is a column of that name, or else counts of a gene."""
        if name in _ALWAYS or name in self.meta["fields"]:
            return True  # without opening the points, which may have more
        return name in self._columns or name in self.gene_names

    def column(self, name: str) -> NDArray[Any]:
        """Return one column for the selected rows; the raw counts of a gene where no column has that name.

        Raises
        ------
        NotFoundError
            There is no such column, or it is `left_behind`; near names are suggested.
        UsageError
            It is a symbol that several genes have; their ids are named.
        """
        values = self._whole(name)
        if values.ndim == 0:
            # not numpy.full: that makes a text of its own for each row
            same = np.empty(len(self), dtype=values.dtype)
            same.fill(values.item())
            return same
        return values if self.rows is None else values[self.rows]

    def slide_value(self, name: str) -> Any:
        """Return a column that is one value on the whole slide, None for a missing one; ``...`` if rows may differ."""
        if name in ("slide", "library_id"):
            return self.slide
        if name in _ROW_COLUMNS or name.startswith((REGION, CALL, PROBABILITY)):
            return ...
        if any(name in label_columns(self.attrs(ref)) for ref in self._labels):
            return ...
        if name in self.meta["fields"]:
            return self.meta["fields"][name]
        return ... if self.expression is not None and name in self.gene_names else None

    def _whole(self, name: str) -> NDArray[Any]:  # one case per source of columns
        if name in ("slide", "library_id"):
            return np.array(self.slide, dtype=object)
        if name in ("x", "y"):
            return self.xy[:, "xy".index(name)]
        if name in ("x_um", "y_um"):
            return self.xy[:, "xy".index(name[0])] * float(self.meta["mpp"])
        if name == "barcode":
            return np.array(self.the_points.ids, dtype=object)[self.point_row]
        if name in _POINT_COLUMNS and (values := getattr(self.the_points, name)) is not None:
            return np.asarray(values)[self.point_row]
        if name == "tile_id" and self.tiles is not None:
            ids = self.group(self.tiles).read("ids")
            return np.array([f"{hi:016x}{lo:016x}" for hi, lo in ids[:, :2].tolist()], dtype=object)
        if name == "tissue" and self.tiles is not None:
            return self.group(self.tiles).read("geometry")[:, 4]
        if name == "status" and self.status is not None:
            return np.array([s.name.lower() for s in TileStatus], dtype=object)[self.status]
        if name in _COUNT_COLUMNS and self.counts is not None:
            matrix = self.counts.matrix
            sums = matrix.sum(axis=1) if name == "n_counts" else np.diff(matrix.indptr)
            return np.append(np.asarray(sums, dtype=np.float64).ravel(), np.nan)[self.count_row]
        for ref in self._labels:
            if name in label_columns(self.group(ref).attrs):
                return read_labels(self.group(ref))[name][self.point_row]
        for ref in self.manifest.of_kind("regions"):
            if name == f"{REGION}{ref.name}":
                return self._region_labels(ref)
        for ref in self._called():
            head, group = ref.name.rpartition("/")[2], self.group(ref)
            if name == f"{CALL}{head}":
                return call_classes(group.read("prediction"), group.attrs["genes"], group.attrs["threshold"])
            if name == f"{PROBABILITY}{head}":
                return call_probability(group.read("prediction"))
        if name in self.meta["fields"]:
            return np.array(self.meta["fields"][name], dtype=object)
        if self.counts is not None and name in self.gene_names:
            counted = self.counts.matrix[:, [self.gene_names.place(name)]].sum(axis=1)
            return np.append(np.asarray(counted, dtype=np.float64).ravel(), np.nan)[self.count_row]
        if name in self.left_behind:
            raise NotFoundError(f"no column '{name}' on slide '{self.slide}': {self.left_behind[name]}")
        known = self.columns()
        raise NotFoundError(
            f"no column '{name}' on slide '{self.slide}'{near(name, known)}; there are {', '.join(known)}"
        )

    def _region_labels(self, ref: Ref) -> NDArray[Any]:
        annotations = read_regions(self.group(ref))
        if self.region_share is None or self.tiles is None:
            return np.asarray(label_points(annotations, self.xy), dtype=object)
        edge0 = float(self.group(self.tiles).attrs["edge0"])
        labels = label_points(annotations, self.xy, edge0, rule="overlap", share=self.region_share)
        return np.asarray(labels, dtype=object)


_LIGHT = frozenset((*(f.name for f in fields(Part)), "n_all", "meta"))
"""What a part that has forgotten its rows still knows."""


def are_calls(attrs: Mapping[str, Any]) -> bool:
    """Whether predictions are a classifier's, tile by tile: what columns are made of."""
    return {"threshold", "per"} & set(attrs) == {"threshold"}


def call_columns(name: str) -> list[str]:
    """Return the columns that a classifier's predictions ``<tiles>/<head>`` are."""
    head = name.rpartition("/")[2]
    return [f"{prefix}{head}" for prefix in (CALL, PROBABILITY)]


def label_columns(attrs: Mapping[str, Any]) -> list[str]:
    """Return the columns that labels have, by the attributes of their group."""
    return [*attrs["numeric_columns"], *attrs["code_columns"]]


def with_rows(parts: Sequence[Part]) -> Sequence[Part]:
    """Return the parts that rows are left of; all of them where none are, so that an empty view has its columns."""
    return [part for part in parts if len(part)] or parts


def bounds_of(parts: Sequence[Part]) -> NDArray[np.int64]:
    """Return ``(p + 1,)`` where the rows of each part begin when all are in one line, and where the last ends."""
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def by_part(
    bounds: NDArray[np.int64], rows: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Sort some rows of all parts by the part that they are of.

    Yields
    ------
    tuple
        Number of a part; which of the rows are its; and their numbers within it.
    """
    part_of = np.searchsorted(bounds, rows, side="right") - 1
    for at in np.unique(part_of).tolist():
        mine = np.flatnonzero(part_of == at)
        yield at, mine, rows[mine] - bounds[at]
