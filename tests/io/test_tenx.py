from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from histostore.errors import DataError
from histostore.io.tenx import read_10x

if TYPE_CHECKING:
    from pathlib import Path


def test_the_older_genes_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "genes.tsv").write_text("G1\tA\nG2\tB\n")
    (tmp_path / "barcodes.tsv").write_text("b1\nb2\nb3\n")
    (tmp_path / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n%c\n2 3 2\n1 1 4\n2 3 5\n")
    counts = read_10x(tmp_path)
    assert counts.ids == ("b1", "b2", "b3")
    assert counts.matrix.toarray().tolist() == [[4, 0], [0, 0], [0, 5]]
    assert counts.feature_types is None


def test_the_older_h5_has_its_matrix_under_the_genome(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        group["data"], group["indices"], group["indptr"] = np.array([4, 5]), np.array([0, 1]), np.array([0, 1, 1, 2])
        group["shape"] = np.array([2, 3])
        group["barcodes"] = np.array([b"b1", b"b2", b"b3"])
        group["genes"], group["gene_names"] = np.array([b"G1", b"G2"]), np.array([b"A", b"B"])
    counts = read_10x(path)
    assert counts.matrix.toarray().tolist() == [[4, 0], [0, 0], [0, 5]]
    assert counts.symbols == ("A", "B")


def test_an_h5_with_wild_indices_is_refused_before_it_is_used(tmp_path: Path, write_visium) -> None:
    outs = write_visium(tmp_path, form="h5")
    path = outs / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "a") as file:
        file["matrix/indices"][3] = 1_000_000
    with pytest.raises(DataError, match="invalid CSR at row 2: column 1000000 of 4"):
        read_10x(path)


def test_a_cut_mtx_is_refused(tmp_path: Path, write_visium) -> None:
    folder = write_visium(tmp_path) / "filtered_feature_bc_matrix"
    packed = (folder / "matrix.mtx.gz").read_bytes()
    (folder / "matrix.mtx.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="damaged or truncated gzip"):
        read_10x(folder)
    lines = gzip.decompress(packed).splitlines(keepends=True)
    (folder / "matrix.mtx.gz").write_bytes(b"".join(lines[:-2]))
    with pytest.raises(DataError, match="no valid MatrixMarket"):
        read_10x(folder)
