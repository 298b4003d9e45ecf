"""Any AnnData with ``obsm["spatial"]``: h5ad or zarr, read element by element."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.io import read_elem

from histostore.errors import DataError
from histostore.io.check import (
    as_counts,
    check_csr,
    check_gene_ids,
    check_not_empty,
    check_point_ids,
    check_xy,
    first_few,
    is_whole,
)
from histostore.io.obs import measured_or_text
from histostore.io.visium import PITCH_UM, SPOT_UM
from histostore.tables import Counts, Points, Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id")
_SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol", "feature_name")


class ObsTable(NamedTuple):
    """What a file says of its spots beside where they are."""

    columns: pd.DataFrame
    """One row per spot, in the file's order: float64 (NaN is missing) or text (NA is missing)."""
    exported: bool
    """histostore wrote the file."""


def read_anndata(
    path: str | Path, *, layer: str | None = None, allow_normalised: bool = False, whole_transcriptome: bool = True
) -> tuple[Points, Counts, Report]:
    """Read the spots and counts of one slide from an AnnData file.

    Only obs, var, ``obsm["spatial"]`` and one matrix are read. Counts are `layer` if given, else ``X``; where ``X``
    is not whole numbers and ``layers["counts"]`` is there, that is taken and the report says so.

    Parameters
    ----------
    path
        ``.h5ad`` file or zarr folder.
    layer
        ``"X"`` or a name in layers.
    allow_normalised
        Take values that are not counts (then ``X`` is taken although a counts layer is there).
    whole_transcriptome
        False for targeted panels, where an absent gene was not measured.

    Returns
    -------
    points
        obs_names, with ``obsm["spatial"]`` taken as (x, y) level-0 pixels.
    counts
        The same rows. Gene ids are ``var["gene_ids"]`` where there is such a column, else var_names.
    report
        Which matrix was taken and why.

    Raises
    ------
    DataError
        No spatial coordinates, another number of rows, a damaged matrix, values that are not counts, or several
        slides in one file.
    """
    path = Path(path)
    root = _open(path)
    try:
        obs, var = _element(root, "obs"), _element(root, "var")
        _check_one_library(root, path)
        points = _points(root, obs, path)
        matrix, source, notes = _choose(root, (len(obs), len(var)), path, layer, allow_normalised)
    except DataError:
        raise
    except (KeyError, OSError, ValueError, RuntimeError) as error:
        msg = f"{path} is no AnnData file, or damaged: {str(error).splitlines()[0]}"
        raise DataError(msg) from None
    finally:
        if isinstance(root, h5py.File):
            root.close()
    values, normalised = as_counts(matrix, f"{path} {source}", allow_normalised=allow_normalised)
    gene_ids, symbols = _genes(var)
    check_not_empty(gene_ids, "genes", path)
    check_gene_ids(gene_ids, path)
    counts = Counts(
        ids=points.ids,
        matrix=values,
        gene_ids=gene_ids,
        symbols=symbols,
        feature_types=tuple(map(str, var["feature_types"])) if "feature_types" in var else None,
        whole_transcriptome=whole_transcriptome,
        normalised=normalised,
    )
    return points, counts, Report({"spots": len(points), "genes": len(gene_ids)}, tuple(notes))


def read_obs(path: str | Path) -> ObsTable:
    """Read the obs columns of an AnnData file: numbers as they are, all else (categories, truth values) as text.

    Raises
    ------
    DataError
        It is no AnnData file, or damaged.
    """
    path = Path(path)
    root = _open(path)
    try:
        obs = _element(root, "obs")
        exported = "histostore" in _keys(root, "uns")
    except (KeyError, OSError, ValueError, RuntimeError) as error:
        msg = f"{path} is no AnnData file, or damaged: {str(error).splitlines()[0]}"
        raise DataError(msg) from None
    finally:
        if isinstance(root, h5py.File):
            root.close()
    columns = {str(name): measured_or_text(column) for name, column in obs.items()}
    return ObsTable(pd.DataFrame(columns, index=obs.index.astype(str)), exported)


def _open(path: Path) -> Any:
    try:
        if path.is_dir():
            return zarr.open_group(path, mode="r")
        return h5py.File(path, "r")
    except FileNotFoundError:
        reason = "no zarr group" if path.exists() else "does not exist"
    except (OSError, ValueError) as error:
        reason = f"no h5ad or zarr file ({str(error).splitlines()[0]})"
    msg = f"{path}: {reason}; give an .h5ad file or a zarr folder of AnnData"
    raise DataError(msg)


def _element(root: Any, key: str) -> Any:
    """Read one element; `Any`, because what it is the file decides."""
    return read_elem(root[key])


def _keys(root: Any, group: str) -> list[str]:
    return sorted(root[group].keys()) if group in root else []


def _check_one_library(root: Any, path: Path) -> None:
    libraries = _keys(root, "uns/spatial")
    if len(libraries) > 1:
        msg = f"{path} holds {len(libraries)} slides ({first_few(libraries)}); write one file per slide"
        raise DataError(msg)


def _points(root: Any, obs: pd.DataFrame, path: Path) -> Points:
    if "spatial" not in _keys(root, "obsm"):
        found = first_few(_keys(root, "obsm"), 6) or "nothing"
        msg = f"{path} has no obsm['spatial']; obsm holds {found}"
        raise DataError(msg)
    ids = tuple(map(str, obs.index))
    check_not_empty(ids, "spots", path)
    check_point_ids(ids, path)
    xy = np.asarray(_element(root, "obsm/spatial"), dtype=np.float64)
    check_xy(xy, ids, f"{path} obsm['spatial']")
    row, column = _whole(obs, "array_row", path), _whole(obs, "array_col", path)
    # spots of Visium's hexagonal array have array_row + array_col even
    hexagonal = row is not None and column is not None and not ((row + column) % 2).any()
    visium = hexagonal and bool(_keys(root, "uns/spatial"))
    return Points(
        ids=ids,
        xy=xy,
        in_tissue=_flags(obs, "in_tissue", path),
        array_row=row,
        array_col=column,
        assay="visium" if visium else "points",
        pitch_um=PITCH_UM if visium else None,
        spot_um=SPOT_UM if visium else None,
    )


def _numbers(obs: pd.DataFrame, name: str, path: Path) -> NDArray[np.float64] | None:
    if name not in obs:
        return None
    try:
        values = obs[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        values = np.full(len(obs), np.nan)
    if not is_whole(values):
        msg = f"{path} obs['{name}'] is not whole numbers; mend or drop the column"
        raise DataError(msg)
    return values


def _whole(obs: pd.DataFrame, name: str, path: Path) -> NDArray[np.int32] | None:
    values = _numbers(obs, name, path)
    return None if values is None else values.astype(np.int32)


def _flags(obs: pd.DataFrame, name: str, path: Path) -> NDArray[np.bool_] | None:
    values = _numbers(obs, name, path)
    if values is not None and not np.isin(values, (0, 1)).all():
        msg = f"{path} obs['{name}'] holds other values than 0 and 1"
        raise DataError(msg)
    return None if values is None else values.astype(bool)


def _choose(
    root: Any, shape: tuple[int, int], path: Path, layer: str | None, allow_normalised: bool
) -> tuple[Any, str, list[str]]:
    layers = _keys(root, "layers")
    if layer not in (None, "X"):
        if layer not in layers:
            msg = f"{path} has no layer '{layer}'; it has X{', ' if layers else ''}{first_few(layers, 6)}"
            raise DataError(msg)
        return _matrix(root, f"layers/{layer}", shape, path), f"layers['{layer}']", [f"counts from layers['{layer}']"]
    if layer is None and "X" not in root and "counts" in layers:
        return _matrix(root, "layers/counts", shape, path), "layers['counts']", ["no X: counts from layers['counts']"]
    matrix = _matrix(root, "X", shape, path)
    data = matrix.data if sp.issparse(matrix) else matrix
    if layer is None and not allow_normalised and "counts" in layers and not (is_whole(data) and (data >= 0).all()):
        note = "X is not counts: counts from layers['counts']"
        return _matrix(root, "layers/counts", shape, path), "layers['counts']", [note]
    where = f"X (layers: {first_few(layers, 6)})" if layers else "X (no layers)"
    return matrix, where, ["counts from X"]


def _matrix(root: Any, key: str, shape: tuple[int, int], path: Path) -> Any:
    element = root[key]
    where = f"{path} {key}"
    kind = str(element.attrs.get("encoding-type", ""))
    if kind in ("csr_matrix", "csc_matrix"):
        data, indices, indptr = (np.asarray(element[name][:]) for name in ("data", "indices", "indptr"))
        stored = tuple(int(n) for n in element.attrs["shape"])
        _check_shape(stored, shape, where)
        # libraries take out-of-range indices as they are and read wild memory
        check_csr(data, indices, indptr, shape if kind == "csr_matrix" else shape[::-1], where)
        make = sp.csr_array if kind == "csr_matrix" else sp.csc_array
        return sp.csr_array(make((data, indices, indptr), shape=shape))
    matrix = _element(root, key)
    _check_shape(matrix.shape, shape, where)
    return matrix


def _check_shape(got: tuple[int, ...], wanted: tuple[int, int], where: str) -> None:
    if tuple(got) != wanted:
        msg = f"{where} has shape {tuple(got)}, for {wanted[0]} obs and {wanted[1]} var"
        raise DataError(msg)


def _genes(var: pd.DataFrame) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = tuple(map(str, var.index))
    for column in _present(var, _ID_COLUMNS):
        return tuple(map(str, var[column])), names
    for column in _present(var, _SYMBOL_COLUMNS):
        return names, tuple(map(str, var[column]))
    return names, names


def _present(var: pd.DataFrame, names: tuple[str, ...]) -> Iterator[str]:
    return (name for name in names if name in var)
