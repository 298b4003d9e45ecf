from __future__ import annotations

import gzip
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import DataError
from histostore.io.st import read_spots, read_st, read_st_counts, spot_id

if TYPE_CHECKING:
    from pathlib import Path

SPOTS = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n3\t1\t3.01\t0.98\t870.5\t291.5\t1\n2\t5\t2\t5\t580\t1458\t0\n"


@pytest.mark.parametrize(
    ("section", "spots", "rows", "genes"),
    [("C2", 187, 187, 15706), ("C3", 182, 180, 15821), ("C4", 187, 184, 15842), ("C5", 183, 181, 15721)],
)
def test_real_sections_are_read_whole(real_data: Path, section: str, spots: int, rows: int, genes: int) -> None:
    folder = real_data / "her2st"
    points, counts = read_st(folder / f"{section}.counts.tsv.gz", folder / f"{section}.spots.tsv")
    assert (len(points), len(counts), len(counts.gene_ids)) == (spots, rows, genes)
    assert (points.assay, points.pitch_um, points.spot_um) == ("st-v1", 200.0, 100.0)
    assert set(counts.ids) <= set(points.ids)
    assert counts.matrix.dtype == np.int32
    assert points.in_tissue is not None
    assert points.in_tissue.all()


def test_real_counts_equal_a_plain_parse(real_data: Path) -> None:
    path = real_data / "her2st" / "C3.counts.tsv.gz"
    counts = read_st_counts(path)
    with gzip.open(path, "rt") as file:
        header = file.readline().rstrip("\n").split("\t")[1:]
        rows = [line.rstrip("\n").split("\t") for line in file]
    assert counts.gene_ids == tuple(header)
    assert counts.ids == tuple(row[0] for row in rows)
    for i in (0, 77, len(rows) - 1):
        assert counts.matrix[[i]].toarray()[0].tolist() == [int(v) for v in rows[i][1:]]


def test_a_real_section_parses_in_well_under_half_a_second(real_data: Path) -> None:
    path = real_data / "her2st" / "C2.counts.tsv.gz"
    times = []
    for _ in range(5):
        start = time.process_time()  # what others do on the machine does not count
        read_st_counts(path)
        times.append(time.process_time() - start)
    assert min(times) < 0.5


def test_columns_come_before_rows_in_a_spots_name(tmp_path: Path) -> None:
    path = tmp_path / "s.tsv"
    path.write_text(SPOTS)
    points = read_spots(path)
    assert points.ids == ("3x1", "2x5")
    assert points.array_col is not None
    assert points.array_row is not None
    assert points.array_col.tolist() == [3, 2]
    assert points.array_row.tolist() == [1, 5]
    assert points.xy.tolist() == [[870.5, 291.5], [580, 1458]]
    assert points.in_tissue is not None
    assert points.in_tissue.tolist() == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(",X,Y\n3x1,870.5,291.5\n2x5,580,1458\n", id="unnamed_index_capital_xy"),
        pytest.param("index,x,y\n3x1,870.5,291.5\n2x5,580,1458\n", id="named_index"),
        pytest.param(
            "x\ty\tpixel_x\tpixel_y\n3.02\t0.97\t870.5\t291.5\n1.98\t5.1\t580\t1458\n", id="positions_off_grid"
        ),
    ],
)
def test_older_spot_files_give_the_same_points(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    points = read_spots(path)
    assert points.ids == ("3x1", "2x5")
    assert points.xy.tolist() == [[870.5, 291.5], [580, 1458]]
    assert points.in_tissue is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\tA\tB\n3x1\t1\t0\n2x5\t0\t2\n", id="tab_with_corner"),
        pytest.param("A\tB\n3x1\t1\t0\n2x5\t0\t2", id="header_of_R_and_no_last_newline"),
        pytest.param("spot,A,B\r\n3x1,1,0\r\n2x5,0,2\r\n", id="csv_crlf"),
        pytest.param('"","A","B"\n"3x1",1,0\n"2x5",0,2\n', id="quoted_csv"),
        pytest.param("\tA\tB\n3.04x0.96\t1.0\t0.0\n2.0x5.1\t0\t2.0\n", id="floats_that_are_whole"),
    ],
)
def test_forms_of_a_counts_file_give_the_same_counts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.tsv"
    path.write_bytes(text.encode())
    counts = read_st_counts(path)
    assert counts.ids == ("3x1", "2x5")
    assert counts.gene_ids == ("A", "B")
    assert counts.matrix.toarray().tolist() == [[1, 0], [0, 2]]
    assert counts.matrix.dtype == np.int32


def test_a_position_is_rounded_half_up() -> None:
    assert spot_id(24.5, 12.4999) == "25x12"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("\tA\tB\n", "holds 0 spots", id="no_spots"),
        pytest.param("\n3x1\n", "genes", id="no_genes"),
        pytest.param("\tA\tB\n3x1\t1\t-1\n", "1 counts are negative", id="negative"),
        pytest.param("\tA\tB\n3x1\t0.7\t1\n", "not raw counts.*allow_normalised", id="fractional"),
        pytest.param("\tA\tB\n3x1\t1\tNA\n", "row 1 gene 2: 'NA' is no number", id="text"),
        pytest.param("\tA\tB\n3x1\t1\t\n", "row 1 gene 2: '' is no number", id="empty_value"),
        pytest.param("\tA\tB\n3x1\t1\tnan\n", "NaN or infinite", id="nan"),
        pytest.param("\tA\tB\n3x1\t1\n", r"row 1 \('3x1'\) has 1 values for 2 genes", id="short_row"),
        pytest.param("\tA\tB\n3x1\t1\t1\n3x1\t1\t1\n", "1 duplicate barcodes: '3x1'", id="duplicate_spot"),
        pytest.param("\tA\tA\n3x1\t1\t1\n", "1 duplicate gene ids: 'A'", id="duplicate_gene"),
        pytest.param("\t3x1\t2x5\nA\t1\t1\nB\t1\t1\n", "genes x spots.*transpose", id="transposed"),
        pytest.param("\tA\tB\nhello\t1\t1\n", "no array position like 25x13: 'hello'", id="not_a_position"),
    ],
)
def test_bad_counts_files_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_st_counts(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("x\ty\tpixel_x\tpixel_y\n", "holds 0 spots", id="no_spots"),
        pytest.param("a\tb\n1\t2\n", "no ST spot file", id="other_columns"),
        pytest.param("x\ty\tpixel_x\tpixel_y\n1\t2\tnan\t3\n", r"column 'pixel_x': .* line 2 \('nan'\)", id="nan"),
        pytest.param("x\ty\tpixel_x\tpixel_y\n1\t2\t3\t3\n1.2\t2\t3\t3\n", "1 duplicate barcodes: '1x2'", id="twice"),
        pytest.param("x\ty\tpixel_x\tpixel_y\tselected\n1\t2\t3\t3\t7\n", "7 is neither 0 nor 1", id="selected"),
        pytest.param("id,x,y\nhello,1,2\n", "no array position like 25x13: 'hello'", id="names"),
    ],
)
def test_bad_spot_files_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_spots(path)
    assert "\n" not in str(caught.value)


def test_normalised_counts_come_in_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_text("\tA\tB\n3x1\t0.5\t0\n")
    counts = read_st_counts(path, allow_normalised=True)
    assert counts.normalised
    assert counts.matrix.toarray().tolist() == [[0.5, 0]]
