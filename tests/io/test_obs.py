from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from histostore.errors import AlignmentError, DataError, UsageError
from histostore.io.obs import join_obs, read_obs_table, read_points, read_table
from histostore.io.st import read_spots
from histostore.tables import Points

if TYPE_CHECKING:
    from pathlib import Path

POINTS = Points(
    ids=("1x2", "3x4", "5x6"),
    xy=np.array([[100.25, 200.5], [300.0, 400.0], [500.0, 600.0]]),
    array_col=np.array([1, 3, 5], dtype=np.int32),
    array_row=np.array([2, 4, 6], dtype=np.int32),
)


def _table(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, dtype="str")


@pytest.mark.parametrize(("section", "rows"), [("C2", 185), ("C3", 179), ("C4", 184), ("C5", 179)])
def test_real_clusters_join_by_array_position(real_data: Path, section: str, rows: int) -> None:
    points = read_spots(real_data / "her2st" / f"{section}.spots.tsv")
    table = read_obs_table(real_data / "her2st" / f"{section}.clusters.tsv.gz")
    frame, report = join_obs(points, table)
    assert list(frame.index) == list(points.ids)
    assert report.counts == {"matched": rows, "only_in_points": len(points) - rows, "only_in_table": len(table) - rows}
    assert frame["label"].notna().sum() == rows
    assert set(frame["label"].dropna()) <= set("0123456")
    # the table repeats the pixels of the spot: the join is right where they agree
    there = frame["label"].notna().to_numpy()
    pixels = frame.loc[there, ["pixel_x", "pixel_y"]].astype(float).to_numpy()
    assert np.abs(pixels - points.xy[there]).max() < 0.01
    by_pixel, _ = join_obs(points, table, by="pixel")
    assert by_pixel["label"].equals(frame["label"])


@pytest.mark.parametrize(
    ("table", "used"),
    [
        pytest.param(_table(barcode=["5x6", "1x2", "3x4"], label=["c", "a", "b"]), "'barcode'", id="by_id"),
        pytest.param(
            _table(**{"": ["5x6", "1x2", "3x4"]}, label=["c", "a", "b"]), "the column without a name", id="by_row_names"
        ),
        pytest.param(_table(x=["5", "1", "3"], y=["6", "2", "4"], label=["c", "a", "b"]), "'x', 'y'", id="by_array"),
        pytest.param(
            _table(array_row=["6", "2", "4"], array_col=["5", "1", "3"], label=["c", "a", "b"]),
            "'array_col', 'array_row'",
            id="by_visium_array",
        ),
        pytest.param(
            _table(pixel_x=["500", "100", "300.4"], pixel_y=["600", "201", "400"], label=["c", "a", "b"]),
            "'pixel_x', 'pixel_y'",
            id="by_rounded_pixels",
        ),
        pytest.param(
            _table(x=["500", "100", "300"], y=["600", "200", "400"], label=["c", "a", "b"]), "'x', 'y'", id="xy_pixels"
        ),
    ],
)
def test_a_table_is_joined_by_what_identifies_its_rows(table: pd.DataFrame, used: str) -> None:
    frame, report = join_obs(POINTS, table)
    assert frame["label"].tolist() == ["a", "b", "c"]
    assert list(frame.columns) == ["label"]
    assert report.notes == (f"table joined by {used}: 3 of 3 rows",)


def test_a_point_without_a_row_is_missing_and_counted() -> None:
    frame, report = join_obs(POINTS, _table(id=["3x4"], label=["NA"]))
    assert frame["label"].isna().tolist() == [True, False, True]
    assert frame["label"].iloc[1] == "NA"
    assert report.counts == {"matched": 1, "only_in_points": 2, "only_in_table": 0}


def test_rows_that_fit_nothing_or_the_same_spot_are_refused() -> None:
    with pytest.raises(
        AlignmentError, match=r"1 of 2 rows of the table have a spot, at least 90% must \(best by 'id'\)"
    ):
        join_obs(POINTS, _table(id=["3x4", "9x9"], label=["a", "b"]))
    assert join_obs(POINTS, _table(id=["3x4", "9x9"]), min_match=0.5)[1].counts["only_in_table"] == 1
    with pytest.raises(AlignmentError, match=r"1 spots have more than one row.*'3x4'"):
        join_obs(POINTS, _table(id=["3x4", "3x4"], label=["a", "b"]))
    with pytest.raises(AlignmentError, match=r"0 of 1 rows .* \(columns are 'label'\)"):
        join_obs(POINTS, _table(label=["a"]))
    with pytest.raises(UsageError, match="by is 'name'"):
        join_obs(POINTS, _table(label=["a"]), by="name")  # type: ignore[arg-type]


def test_the_real_clinical_table_keeps_na_as_text(real_data: Path) -> None:
    frame = read_table(real_data / "tcga_brca" / "mki67_by_slide.csv", key="file_name")
    assert len(frame) == 1133
    assert frame.index.name == "file_name"
    assert frame["MKI67_tpm_unst"].notna().all()
    assert not frame.isna().to_numpy().any()
    assert frame.loc[:, "tss_code"].str.len().eq(2).all()


def test_a_clinical_table_is_keyed_by_slide_or_patient(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("patient,age\nA,NA\nB,61\n")
    assert read_table(path).loc["A", "age"] == "NA"
    assert read_table(path, key="age").index.tolist() == ["NA", "61"]
    for text, message in [
        ("patient,age\nA,1\nA,2\n", "1 values on more than one row: 'A'"),
        ("patient,age\n,1\n", "'patient' is empty on row 1"),
        ("case,age\nA,1\n", "no column 'slide' or patient"),
        ("patient,age\n", "holds 0 rows"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_table(path)


def test_given_points_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,x,y\np1,10.5,20\np2,30,40\n")
    points = read_points(path)
    assert points.ids == ("p1", "p2")
    assert points.xy.tolist() == [[10.5, 20], [30, 40]]
    assert points.assay == "points"
    for text, message in [
        ("id,x\na,1\n", "no column 'y'"),
        ("id,x,y\n", "holds 0 points"),
        ("id,x,y\na,1,2\na,3,4\n", "1 duplicate barcodes: 'a'"),
        ("id,x,y\na,1,inf\n", r"line 2 \('inf'\)"),
        ("id,x,y\na\x00,1,2\n", "control character"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_points(path)


def test_a_table_that_joins_by_nothing_says_which_columns_it_has() -> None:
    table = pd.DataFrame({"": ["p", "q", "r"], "label": ["a", "b", "c"]}, dtype="str")
    with pytest.raises(AlignmentError, match=r"0 of 3 rows .* \(columns are '\(one without a name\)', 'label'\)"):
        join_obs(POINTS, table)
