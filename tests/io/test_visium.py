from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import AlignmentError, DataError
from histostore.io.align import align
from histostore.io.mpp import SPOT_DIAMETER_UM, mpp_from_pitch
from histostore.io.visium import read_visium

if TYPE_CHECKING:
    from pathlib import Path


def test_the_real_folder_gives_50_spots_of_which_22_in_tissue(real_data: Path) -> None:
    points, counts, extras = read_visium(real_data / "visium_mini" / "outs")
    assert len(points) == 50
    assert points.in_tissue is not None
    assert points.in_tissue.sum() == 22
    assert (points.assay, points.pitch_um, points.spot_um) == ("visium", 100.0, 55.0)
    i = points.ids.index("AAACAAGTATCTCCCA-1")
    assert points.xy[i].tolist() == [8230, 7237]  # (x, y): the file has rows first
    assert counts.matrix.shape == (50, 50)
    assert counts.matrix.sum() > 0
    assert (counts.gene_ids[0], counts.symbols[0]) == ("ENSMUSG00000051951", "Xkr4")
    assert counts.feature_types is not None
    assert set(counts.feature_types) == {"Gene Expression"}
    assert (extras.matrix, extras.filtered) == ("raw_feature_bc_matrix", False)
    assert extras.hires is None
    assert extras.lowres is not None
    rows, report = align(points, counts)
    assert report.counts["matched"] == 50
    assert [counts.ids[r] for r in rows] == list(points.ids)


def test_the_real_spot_diameter_stands_for_65_um(real_data: Path) -> None:
    points, _, extras = read_visium(real_data / "visium_mini" / "outs")
    assert extras.spot_diameter_px is not None
    assert mpp_from_pitch(points) == pytest.approx(SPOT_DIAMETER_UM / extras.spot_diameter_px, rel=0.01)


@pytest.mark.parametrize("form", ["mtx", "h5"])
@pytest.mark.parametrize("positions", ["csv", "list", "parquet"])
def test_all_forms_of_a_folder_read_alike(tmp_path: Path, write_visium, form: str, positions: str) -> None:
    points, counts, extras = read_visium(write_visium(tmp_path, form=form, positions=positions))
    assert len(points) == 6
    assert points.xy[1].tolist() == [300 + 2 * 69, 500]
    assert counts.matrix.toarray()[2].tolist() == [4, 5, 0, 0]
    assert counts.gene_ids == ("ENSG1", "ENSG2", "ENSG3", "ENSG4")
    assert counts.symbols == ("A", "B", "B", "C")
    assert extras.filtered
    assert mpp_from_pitch(points) == pytest.approx(100 / 138)


def test_filtered_is_read_before_raw_unless_told(tmp_path: Path, write_visium) -> None:
    write_visium(tmp_path, kind="raw", form="h5")
    write_visium(tmp_path, kind="filtered", counts=np.ones((6, 4), dtype=int))
    _, counts, extras = read_visium(tmp_path)
    assert extras.filtered
    assert counts.matrix.sum() == 24
    _, counts, extras = read_visium(tmp_path, matrix="raw")
    assert not extras.filtered
    assert extras.matrix == "raw_feature_bc_matrix.h5"


def test_filtered_counts_of_another_slide_are_refused(tmp_path: Path, write_visium) -> None:
    # all slides share their barcodes, so only the tissue tells
    outs = write_visium(tmp_path, in_tissue=(1, 0, 1, 0, 1, 1))
    with pytest.raises(AlignmentError, match="2 of 6 filtered barcodes are off tissue"):
        read_visium(outs)


def test_bins_of_visium_hd_are_a_square_array_of_their_own_size(tmp_path: Path, write_visium) -> None:
    outs = write_visium(tmp_path, kind="raw")
    lines = ["barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"]
    lines += [f"s_008um_{r:05d}_{c:05d}-1,1,{r},{c},{10 + 29.2 * r},{5 + 29.2 * c}" for r in range(4) for c in range(4)]
    (tmp_path / "spatial" / "tissue_positions.csv").write_text("\n".join(lines) + "\n")
    factors = {"spot_diameter_fullres": 29.2, "bin_size_um": 8.0, "microns_per_pixel": 8 / 29.2}
    (tmp_path / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    points, _, extras = read_visium(outs)
    assert (points.assay, points.pitch_um) == ("visium-hd", 8.0)
    assert mpp_from_pitch(points) == pytest.approx(extras.mpp)
    assert extras.spot_diameter_px is None


@pytest.mark.parametrize("form", ["mtx", "h5"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"barcodes": ("a", "b", "c", "d", "a", "e")}, "1 duplicate barcodes: 'a'", id="barcodes"),
        pytest.param(
            {"genes": (("G", "A"), ("G", "B"), ("H", "C"), ("I", "D"))}, "1 duplicate gene ids: 'G'", id="genes"
        ),
        pytest.param({"counts": np.full((6, 4), -1)}, "24 counts are negative", id="negative"),
        pytest.param({"counts": np.full((6, 4), 0.5)}, "not raw counts", id="fractional"),
        pytest.param({"barcodes": ("a", "b")}, "for 4 features and 2 barcodes", id="sizes"),
        pytest.param({"barcodes": (), "counts": np.zeros((0, 4), dtype=int)}, "holds 0 spots", id="no_spots"),
    ],
)
def test_bad_matrices_are_one_clear_line(tmp_path: Path, write_visium, form: str, options: dict, message: str) -> None:
    outs = write_visium(tmp_path, form=form, **options)
    with pytest.raises(DataError, match=message) as caught:
        read_visium(outs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param("spatial/tissue_positions.csv", None, "holds none of", id="no_positions"),
        pytest.param("spatial/tissue_positions.csv", "a,1,0,0,nan,5\n", r"line 1 \('nan'\)", id="nan"),
        pytest.param("spatial/tissue_positions.csv", "a,1,0,0,5\n", "line 1 has 5 fields", id="fields"),
        pytest.param("spatial/tissue_positions.csv", "a,1,0,0,5,5\na,1,0,1,5,5\n", "1 duplicate barcodes", id="twice"),
        pytest.param("spatial/tissue_positions.csv", "a,2,0,0,5,5\n", "in_tissue is 2", id="in_tissue"),
        pytest.param("spatial/scalefactors_json.json", '{"spot_diameter_fullres": 0}', "not a positive", id="zero"),
        pytest.param("spatial/scalefactors_json.json", '{"spot', "no JSON", id="cut_json"),
        pytest.param("filtered_feature_bc_matrix/matrix.mtx.gz", None, "has no matrix file", id="no_matrix"),
        pytest.param("filtered_feature_bc_matrix/matrix.mtx.gz", "hello", "no valid MatrixMarket", id="no_mtx"),
        pytest.param(
            "filtered_feature_bc_matrix/matrix.mtx.gz",
            "%%MatrixMarket matrix coordinate integer general\n4 6 1\n5 1 1\n",
            "no valid MatrixMarket",
            id="index_out_of_range",
        ),
        pytest.param(
            "filtered_feature_bc_matrix/matrix.mtx.gz",
            "%%MatrixMarket matrix coordinate integer general\n4 6 99999999999999\n1 1 1\n",
            "claims 99999999999999 entries",
            id="lying_size",
        ),
        pytest.param(
            "filtered_feature_bc_matrix/matrix.mtx.gz",
            "%%MatrixMarket matrix coordinate integer general\n4 6 2\n1 1 1\n1 1 1\n",
            "1 entries of the matrix are stored twice",
            id="entry_twice",
        ),
    ],
)
def test_bad_files_are_one_clear_line(
    tmp_path: Path, write_visium, file: str, content: str | None, message: str
) -> None:
    outs = write_visium(tmp_path)
    (outs / file).unlink()
    if content is not None:
        (outs / file).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_visium(outs)
    assert "\n" not in str(caught.value)


def test_a_folder_without_matrix_and_no_folder_are_refused(tmp_path: Path, write_visium) -> None:
    outs = write_visium(tmp_path)
    with pytest.raises(DataError, match="holds no raw_feature_bc_matrix"):
        read_visium(outs, matrix="raw")
    with pytest.raises(DataError, match="is no folder"):
        read_visium(outs / "nowhere")
    (outs / "filtered_feature_bc_matrix.h5").write_text("hello")
    with pytest.raises(DataError, match="no 10x matrix file"):
        read_visium(outs)
