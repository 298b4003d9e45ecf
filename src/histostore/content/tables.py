"""Points, counts and labels as groups: written from the readers' values, read back as the same values."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from histostore.errors import CorruptionError, UsageError
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import ZSTD
from histostore.tables import Counts, Points

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.store.groups import Group, GroupWriter
    from histostore.store.manifest import Ref
    from histostore.store.store import Store

OWN_COLUMNS = frozenset(
    (
        *("slide", "library_id", "barcode", "tile_id", "x", "y", "x_um", "y_um", "in_tissue", "array_row", "array_col"),
        *("tissue", "status", "n_counts", "n_genes"),
    )
)
"""Columns that a slide has by itself: nothing that comes in may be called so, because it would never be seen."""

_VALUES_PER_CHUNK = 1 << 18
_FRAME = {"encoding-type": "dataframe", "encoding-version": "0.2.0"}
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_STRINGS = {"encoding-type": "string-array", "encoding-version": "0.2.0"}


def content_digest(*parts: NDArray[Any] | Sequence[str] | None) -> str:
    """Return the sha256 of arrays and lists of text, in order; the identity of values that come from a file."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).data)
        else:
            for text in part or ("",):
                encoded = text.encode()
                sha.update(len(encoded).to_bytes(4, "little") + encoded)
    return sha.hexdigest()


def write_points(store: Store, slide: str, name: str, points: Points) -> Ref:
    """Seal the group of some points; the caller commits it."""
    inputs = {
        "content": content_digest(
            points.ids, points.xy, points.in_tissue, points.array_row, points.array_col
        )
    }  # fmt: skip
    spec = {"assay": points.assay, "pitch_um": points.pitch_um, "spot_um": points.spot_um}
    with store.begin(slide, "points", name, spec=spec, inputs=inputs) as writer:
        if writer.sealed is None:
            writer.put_array("ids", points.ids, dims=("point",))
            writer.put_array("xy", points.xy, dims=("point", "axis"))
            for optional in ("in_tissue", "array_row", "array_col"):
                if (values := getattr(points, optional)) is not None:
                    writer.put_array(optional, values, dims=("point",))
        return writer.seal(rows=len(points), attrs=spec)


def read_points(group: Group) -> Points:
    """Return the points of a group."""

    def optional(name: str) -> NDArray[Any] | None:
        return group.read(name) if group.has(name) else None

    attrs = group.attrs
    return Points(
        ids=tuple(group.read("ids")),
        xy=group.read("xy"),
        in_tissue=optional("in_tissue"),
        array_row=optional("array_row"),
        array_col=optional("array_col"),
        assay=attrs["assay"],
        pitch_um=attrs.get("pitch_um"),
        spot_um=attrs.get("spot_um"),
    )


def write_counts(store: Store, slide: str, name: str, counts: Counts) -> Ref:
    """Seal the group of a count matrix: an AnnData that ``anndata.read_zarr`` opens; the caller commits it."""
    matrix = counts.matrix
    parts = (matrix.indptr, matrix.indices, matrix.data)
    inputs = {"content": content_digest(counts.ids, counts.gene_ids, counts.symbols, *parts)}
    spec = {"whole_transcriptome": counts.whole_transcriptome, "normalised": counts.normalised}
    attrs = {**spec, "n_obs": matrix.shape[0], "n_genes": matrix.shape[1]}
    with store.begin(slide, "expression", name, spec=spec, inputs=inputs) as writer:
        if writer.sealed is None:
            writer.put_node("", {"encoding-type": "anndata", "encoding-version": "0.1.0"})
            shape = [int(n) for n in matrix.shape]
            writer.put_node("X", {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
            _write_long(writer, "X/indptr", matrix.indptr.astype(np.int64))
            _write_long(writer, "X/indices", matrix.indices.astype(np.int32))
            _write_long(writer, "X/data", matrix.data)
            writer.put_node("obs", {**_FRAME, "_index": "_index", "column-order": []})
            writer.put_array("obs/_index", counts.ids, attrs=_STRINGS)
            writer.put_node("var", {**_FRAME, "_index": "_index", "column-order": ["gene_ids", "symbols"]})
            writer.put_array("var/_index", counts.gene_ids, attrs=_STRINGS)
            writer.put_array("var/gene_ids", counts.gene_ids, attrs=_STRINGS)
            writer.put_array("var/symbols", counts.symbols, attrs=_STRINGS)
        return writer.seal(rows=len(counts), attrs=attrs)


def _write_long(writer: GroupWriter, name: str, values: NDArray[Any]) -> None:
    """Write a long vector in checked chunks, all in one shard (a slide's counts are a few MB)."""
    chunk = min(max(1, len(values)), _VALUES_PER_CHUNK)
    shard = chunk * max(1, -(-len(values) // chunk))
    spec = ArraySpec(
        shape=values.shape, dtype=values.dtype.name, chunk_rows=chunk, shard_rows=shard, pipeline=ZSTD,
        attrs=tuple(_ARRAY.items()),
    )  # fmt: skip
    writer.create(name, spec)
    for number in writer.pending(name):
        start, stop = spec.shard_range(number)
        writer.write_rows(name, number, values[start:stop])


def counts_of(
    points: NDArray[np.int64], ids: Sequence[str] | NDArray[Any], counted: Sequence[str] | NDArray[Any]
) -> NDArray[np.int64]:
    """Return ``(n,)`` the row in the counts of each of some points ``(n,)``, joined by id; -1 where it has none.

    `ids` are those of all points, `counted` those of the counts' rows.
    """
    row_of = {point: row for row, point in enumerate(counted)}
    return np.array([row_of.get(ids[p], -1) for p in points.tolist()], dtype=np.int64)


def read_counts(group: Group) -> Counts:
    """Return the count matrix of a group.

    Raises
    ------
    CorruptionError
        Its indices do not fit its shape.
    """
    shape = (int(group.attrs["n_obs"]), int(group.attrs["n_genes"]))
    data, indices, indptr = (group.read(f"X/{part}") for part in ("data", "indices", "indptr"))
    fits = len(indptr) == shape[0] + 1 and indptr[-1] == len(data) == len(indices)
    if not fits or (len(indices) and (indices.min() < 0 or indices.max() >= shape[1])):
        raise CorruptionError(f"{group.path}/X is no CSR matrix of {shape[0]} x {shape[1]}; run `histostore verify`")
    return Counts(
        ids=tuple(group.read("obs/_index")),
        matrix=sp.csr_array((data, indices, indptr), shape=shape),
        gene_ids=tuple(group.read("var/gene_ids")),
        symbols=tuple(group.read("var/symbols")),
        whole_transcriptome=bool(group.attrs["whole_transcriptome"]),
        normalised=bool(group.attrs["normalised"]),
    )


def check_label_names(slide: str, columns: Iterable[str]) -> None:
    """Refuse labels that would never be seen.

    Raises
    ------
    UsageError
        Columns have names of `OWN_COLUMNS`, or none.
    """
    own = [c for c in columns if c in OWN_COLUMNS or not c.strip()]
    if own:
        said = ", ".join(map(repr, own))
        raise UsageError(f"slide '{slide}': label columns {said} have names of histostore's own; rename or drop them")


def write_labels(store: Store, slide: str, name: str, table: pd.DataFrame, points: Ref) -> Ref:
    """Seal the group of obs columns for the points of one group; the caller commits it.

    Parameters
    ----------
    table
        One row per point, in the points' order. Numeric columns are kept as float64 (NaN is missing), all others
        as categories of text (missing stays missing).
    points
        The points group the rows belong to.

    Raises
    ------
    UsageError
        A column has a name of `OWN_COLUMNS`, or none.
    """
    check_label_names(slide, map(str, table.columns))
    measures = {c: _as_measure(table[c]) for c in table.columns}
    numeric = [c for c in table.columns if measures[c] is not None]
    other = [c for c in table.columns if c not in numeric]
    categories: dict[str, list[str]] = {}
    codes = np.full((len(table), len(other)), -1, dtype=np.int32)
    for at, column in enumerate(other):
        text = table[column].astype("string")
        present = text.notna().to_numpy()
        names, inverse = np.unique(text[present].to_numpy(dtype=object).astype(str), return_inverse=True)
        codes[present, at] = inverse
        categories[str(column)] = [str(n) for n in names]
    values = np.column_stack([measures[c] for c in numeric]) if numeric else np.zeros((len(table), 0))  # type: ignore[misc]
    spec = {"columns": [str(c) for c in table.columns]}
    flat = [f"{column}={value}" for column, known in categories.items() for value in known]
    inputs = {"points": points.digest, "content": content_digest(values, codes, flat)}
    attrs = {
        "points": points.name,
        "numeric_columns": [str(c) for c in numeric],
        "code_columns": [str(c) for c in other],
        "categories": categories,
    }
    with store.begin(slide, "labels", name, spec=spec, inputs=inputs) as writer:
        if writer.sealed is None:
            writer.put_array("numeric", values, dims=("point", "numeric_column"))
            writer.put_array("codes", codes, dims=("point", "code_column"))
        return writer.seal(rows=len(table), attrs=attrs)


def _as_measure(column: pd.Series[Any]) -> NDArray[np.float64] | None:
    """Return a column as numbers where it measures something: whole numbers in text are names of classes."""
    if column.dtype.kind in "iuf":
        return column.to_numpy(dtype=np.float64)
    present = [str(v) for v in column[column.notna()] if str(v).strip()]
    try:
        numbers = [float(v) for v in present]
    except ValueError:
        return None
    if not numbers or all(v.lstrip("+-").isdigit() for v in present):
        return None
    return np.array([float(v) if isinstance(v, str) and v.strip() else np.nan for v in column], dtype=np.float64)


def read_labels(group: Group) -> dict[str, NDArray[Any]]:
    """Return the columns of a labels group: float64, or object arrays of str with None for missing."""
    columns: dict[str, NDArray[Any]] = {}
    values, codes = group.read("numeric"), group.read("codes")
    for at, name in enumerate(group.attrs["numeric_columns"]):
        columns[name] = values[:, at]
    for at, name in enumerate(group.attrs["code_columns"]):
        known = np.array([*group.attrs["categories"][name], None], dtype=object)
        columns[name] = known[codes[:, at]]
    return columns
