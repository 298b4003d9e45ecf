"""The matrices 10x Genomics writes: mtx folders and h5 files, genes x barcodes on disk."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import h5py
import scipy.io
import scipy.sparse as sp

from histostore.errors import DataError
from histostore.io.check import (
    as_counts,
    check_csr,
    check_gene_ids,
    check_not_empty,
    check_point_ids,
    first_few,
)
from histostore.io.delimited import first_file, read_bytes, read_text
from histostore.tables import Counts

if TYPE_CHECKING:
    from pathlib import Path


def read_10x(source: Path, *, whole_transcriptome: bool = True, allow_normalised: bool = False) -> Counts:
    """Read one 10x matrix: a folder of mtx, barcodes and features (or genes), or an h5 file (version 2 or 3).

    Gene ids are the accessions, symbols stand beside them and may repeat.

    Raises
    ------
    DataError
        Files that are absent, damaged or of different sizes; repeated barcodes or gene ids; values that are no counts.
    """
    matrix, barcodes, ids, symbols, types = _read_h5(source) if source.suffix == ".h5" else _read_mtx(source)
    check_not_empty(barcodes, "spots", source)
    check_not_empty(ids, "genes", source)
    check_point_ids(barcodes, source)
    check_gene_ids(ids, source)
    values, normalised = as_counts(matrix, source, allow_normalised=allow_normalised)
    return Counts(
        ids=tuple(barcodes),
        matrix=values,
        gene_ids=tuple(ids),
        symbols=tuple(symbols),
        feature_types=tuple(types) if types else None,
        whole_transcriptome=whole_transcriptome,
        normalised=normalised,
    )


type _Matrix = tuple[sp.csr_array, list[str], list[str], list[str], list[str]]


def _read_mtx(folder: Path) -> _Matrix:
    files = {
        "barcodes": first_file(folder, ("barcodes.tsv.gz", "barcodes.tsv")),
        "features": first_file(folder, ("features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv")),
        "matrix": first_file(folder, ("matrix.mtx.gz", "matrix.mtx")),
    }
    missing = [name for name, path in files.items() if path is None]
    if missing:
        msg = f"{folder} has no {' or '.join(missing)} file"
        raise DataError(msg)
    barcodes = [line.strip() for line in _lines(files["barcodes"])]
    features = [line.split("\t") for line in _lines(files["features"])]
    if any(len(feature) < 2 for feature in features):
        msg = f"{files['features']}: each line needs an id and a symbol, tab-separated"
        raise DataError(msg)
    path = files["matrix"]
    content = read_bytes(str(path))
    try:
        entries = int(scipy.io.mminfo(io.BytesIO(content))[2])
        if entries > len(content):
            msg = f"{path} claims {entries} entries in {len(content)} bytes; it is cut, copy it again"
            raise DataError(msg)
        coo = scipy.io.mmread(io.BytesIO(content), spmatrix=False)
    except DataError:
        raise
    except (ValueError, OverflowError) as error:
        msg = f"{path} is no valid MatrixMarket file: {error}"
        raise DataError(msg) from None
    if coo.shape != (len(features), len(barcodes)):
        msg = f"{path} is {coo.shape[0]} x {coo.shape[1]}, for {len(features)} features and {len(barcodes)} barcodes"
        raise DataError(msg)
    if not sp.issparse(coo):
        msg = f"{path} is a dense MatrixMarket array, not Space Ranger's coordinate form"
        raise DataError(msg)
    matrix = sp.csr_array(coo.T.tocsr())
    if matrix.nnz != coo.nnz:
        msg = f"{path}: {coo.nnz - matrix.nnz} entries of the matrix are stored twice"
        raise DataError(msg)
    types = [feature[2] for feature in features] if all(len(feature) > 2 for feature in features) else []
    return matrix, barcodes, [f[0] for f in features], [f[1] for f in features], types


def _lines(path: Path | None) -> list[str]:
    return [line for line in read_text(str(path)).replace("\r\n", "\n").split("\n") if line]


def _read_h5(path: Path) -> _Matrix:
    try:
        with h5py.File(path, "r") as file:
            group, is_v3 = _matrix_group(file, path)
            n_genes, n_spots = (int(n) for n in group["shape"][:])
            data, indices, indptr = (group[name][:] for name in ("data", "indices", "indptr"))
            barcodes = _texts(group["barcodes"])
            features = group["features"] if is_v3 else group
            ids = _texts(features["id" if is_v3 else "genes"])
            symbols = _texts(features["name" if is_v3 else "gene_names"])
            types = _texts(features["feature_type"]) if is_v3 and "feature_type" in features else []
    except (OSError, KeyError, RuntimeError) as error:
        msg = f"{path} is no 10x matrix file: {error}"
        raise DataError(msg) from None
    if (n_genes, n_spots) != (len(ids), len(barcodes)) or len(symbols) != len(ids):
        msg = f"{path} is {n_genes} x {n_spots}, for {len(ids)} features and {len(barcodes)} barcodes"
        raise DataError(msg)
    # 10x stores genes x spots by columns: the same parts are spots x genes by rows
    check_csr(data, indices, indptr, (n_spots, n_genes), path)
    return sp.csr_array((data, indices, indptr), shape=(n_spots, n_genes)), barcodes, ids, symbols, types


def _matrix_group(file: h5py.File, path: Path) -> tuple[h5py.Group, bool]:
    if "matrix" in file:
        return file["matrix"], True
    groups = [name for name in file if isinstance(file[name], h5py.Group) and "genes" in file[name]]
    if len(groups) == 1:
        return file[groups[0]], False
    msg = f"{path} holds {len(groups)} matrices ({first_few(file) or 'nothing'}), not one"
    raise DataError(msg)


def _texts(dataset: h5py.Dataset) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in dataset[:]]
