"""Small files of each kind, written by the test that reads them."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp

if TYPE_CHECKING:
    from pathlib import Path

BARCODES = tuple(f"ACGT{i:04d}-1" for i in range(6))
GENES = (("ENSG1", "A"), ("ENSG2", "B"), ("ENSG3", "B"), ("ENSG4", "C"))
"""Two genes share a symbol, as in real 10x files."""

COUNTS = np.array([[1, 0, 2, 0], [0, 0, 0, 3], [4, 5, 0, 0], [0, 1, 0, 1], [2, 2, 2, 2], [0, 0, 0, 0]], dtype=np.int32)


class WriteVisium(Protocol):
    def __call__(self, folder: Path, **options: Any) -> Path: ...


def _positions(barcodes: tuple[str, ...], in_tissue: tuple[int, ...]) -> list[tuple[Any, ...]]:
    # a patch of the hexagonal array, 138 px to the 100 µm
    places = [(row, 2 * i + row % 2) for row in range(2) for i in range(3)]
    return [
        (barcode, inside, row, col, 500.0 + row * 138 * np.sqrt(3) / 2, 300.0 + col * 69.0)
        for barcode, inside, (row, col) in zip(barcodes, in_tissue, places, strict=True)
    ]


@pytest.fixture
def write_visium() -> WriteVisium:
    def write(
        folder: Path,
        *,
        kind: str = "filtered",
        form: str = "mtx",
        positions: str = "csv",
        barcodes: tuple[str, ...] = BARCODES,
        genes: tuple[tuple[str, str], ...] = GENES,
        counts: np.ndarray = COUNTS,
        in_tissue: tuple[int, ...] = (1, 1, 1, 1, 1, 1),
    ) -> Path:
        spatial = folder / "spatial"
        spatial.mkdir(parents=True, exist_ok=True)
        rows = _positions(BARCODES, in_tissue)
        names = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
        if positions == "parquet":
            table = pytest.importorskip("pyarrow").table(
                dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            )
            pytest.importorskip("pyarrow.parquet").write_table(table, spatial / "tissue_positions.parquet")
        else:
            text = "".join(",".join(map(str, row)) + "\n" for row in rows)
            name = "tissue_positions.csv" if positions == "csv" else "tissue_positions_list.csv"
            (spatial / name).write_text((",".join(names) + "\n" if positions == "csv" else "") + text)
        factors = {"spot_diameter_fullres": 138 * 0.65, "tissue_hires_scalef": 0.2}
        (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
        base = folder / f"{kind}_feature_bc_matrix"
        (_write_h5 if form == "h5" else _write_mtx)(base, barcodes, genes, counts)
        return folder

    return write


def _write_mtx(base: Path, barcodes: tuple[str, ...], genes: tuple[tuple[str, str], ...], counts: np.ndarray) -> None:
    base.mkdir()
    with gzip.open(base / "barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{barcode}\n" for barcode in barcodes)
    with gzip.open(base / "features.tsv.gz", "wt") as file:
        file.writelines(f"{gene}\t{symbol}\tGene Expression\n" for gene, symbol in genes)
    with gzip.open(base / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_array(counts.T))


def _write_h5(base: Path, barcodes: tuple[str, ...], genes: tuple[tuple[str, str], ...], counts: np.ndarray) -> None:
    csc = sp.csc_array(counts.T)
    with h5py.File(base.with_name(base.name + ".h5"), "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(csc, name)
        group["shape"] = np.array(csc.shape)
        group["barcodes"] = np.array(barcodes, dtype="S")
        features = group.create_group("features")
        features["id"] = np.array([gene for gene, _ in genes], dtype="S")
        features["name"] = np.array([symbol for _, symbol in genes], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")
