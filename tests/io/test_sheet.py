from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from histostore.errors import DataError
from histostore.io.sheet import BadRow, Sample, read_rows, read_sheet

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "a.counts.tsv", "a.spots.tsv", "obs.tsv"):
        (tmp_path / name).touch()
    (tmp_path / "outs").mkdir()
    return tmp_path


def _write(folder: Path, text: str) -> Path:
    path = folder / "samples.csv"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_sheet_and_other_columns_are_metadata(folder: Path) -> None:
    sheet = _write(
        folder,
        "slide,image,mpp,st_counts,st_spots,visium,patient,tss_code,age\n"
        "A,a.jpg,0.688,a.counts.tsv,a.spots.tsv,,C,NA,061\n"
        f"B,{folder / 'b.jpg'},,,,outs,D,,\n",
    )
    a, b = read_sheet(sheet)
    assert (a.slide, a.image, a.mpp, a.mag) == ("A", folder / "a.jpg", 0.688, None)
    assert (a.st_counts, a.st_spots) == (folder / "a.counts.tsv", folder / "a.spots.tsv")
    assert a.meta == {"patient": "C", "tss_code": "NA", "age": "061"}
    assert (b.image, b.mpp, b.visium) == (folder / "b.jpg", None, folder / "outs")
    assert b.meta == {"patient": "D"}


def test_real_sections_make_a_sheet(real_data: Path, tmp_path: Path) -> None:
    data = real_data / "her2st"
    rows = [f"{s}\t{data}/{s}.jpg\t{data}/{s}.counts.tsv.gz\t{data}/{s}.spots.tsv\tC" for s in ("C2", "C3", "C4", "C5")]
    path = tmp_path / "samples.tsv"
    path.write_text("slide\timage\tst_counts\tst_spots\tpatient\n" + "\n".join(rows))
    assert [sample.slide for sample in read_sheet(path)] == ["C2", "C3", "C4", "C5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("slide,patient\nA,C\n", "no column 'image'", id="no_image_column"),
        pytest.param("image\na.jpg\n", "no column 'slide'", id="no_slide_column"),
        pytest.param("slide,image,st_count\nA,a.jpg,\n", "'st_count': did you mean 'st_counts'", id="near_column"),
        pytest.param("Slide,image\nA,a.jpg\n", "'Slide': did you mean 'slide'", id="capital"),
        pytest.param("slide,image,\nA,a.jpg,\n", "a column has no name", id="unnamed_column"),
        pytest.param("slide,image\n", "holds 0 slides", id="no_slides"),
        pytest.param(
            "slide,image\nA,a.jpg\nA,b.jpg\n", r"line 3: slide 'A' is listed twice \(first on line 2", id="twice"
        ),
        pytest.param("slide,image\nA,no.jpg\n", "line 2 column 'image': .*no.jpg does not exist", id="no_file"),
        pytest.param("slide,image\nA,\n", "line 2 column 'image' is empty", id="empty_image"),
        pytest.param(
            "slide,image\n../A,a.jpg\n", "line 2 column 'slide': invalid slide name '../A'", id="path_in_name"
        ),
        pytest.param("slide,image\nA\x00B,a.jpg\n", "invalid slide name", id="nul_in_name"),
        pytest.param("slide,image\nA,a\x00.jpg\n", "a path cannot hold NUL", id="nul_in_path"),
        pytest.param(f"slide,image\n{'A' * 300},a.jpg\n", r"\(300 characters\)", id="long_name"),
        pytest.param("slide,image,mpp\nA,a.jpg,0\n", "'mpp': '0' is no positive number", id="zero_mpp"),
        pytest.param("slide,image,mpp\nA,a.jpg,nan\n", "'mpp': 'nan'", id="nan_mpp"),
        pytest.param("slide,image,mpp,mag\nA,a.jpg,0.5,20\n", "mpp or mag", id="mpp_and_mag"),
        pytest.param("slide,image,st_counts\nA,a.jpg,a.counts.tsv\n", "belong together", id="counts_alone"),
        pytest.param(
            "slide,image,visium,anndata\nA,a.jpg,outs,obs.tsv\n", "one assay, here are visium and anndata", id="assays"
        ),
        pytest.param(
            "slide,image,st_spots,points\nA,a.jpg,a.spots.tsv,obs.tsv\n",
            "here are st_spots and points",
            id="two_points",
        ),
        pytest.param("slide,image\nA,a.jpg\nB,b.jpg,9\n", "line 3 has 3 fields", id="extra_field"),
        pytest.param("slide,image\n,\n,\n", "holds 0 slides", id="blank_lines_alone"),
    ],
)
def test_bad_sheets_are_one_clear_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_sheet(_write(folder, text))
    assert "\n" not in str(caught.value)
    assert "samples.csv" in str(caught.value)


def test_blank_lines_of_a_spreadsheet_are_no_slides(folder: Path) -> None:
    sheet = _write(folder, "slide,image,mpp,patient\n,,,\nA,a.jpg,,C\n , ,,\n,,,\n,,,,,\n")
    assert [sample.slide for sample in read_sheet(sheet)] == ["A"]


def test_spots_alone_are_a_slide(folder: Path) -> None:
    (a,) = read_sheet(_write(folder, "slide,image,st_counts,st_spots\nA,a.jpg,,a.spots.tsv\n"))
    assert (a.st_counts, a.st_spots) == (None, folder / "a.spots.tsv")


def test_a_bad_line_is_handed_back_with_all_its_faults_between_the_good_ones(folder: Path) -> None:
    rows = read_rows(
        _write(folder, "slide,image,mpp,obs\nA,a.jpg,,\nM,no.jpg,x,gone.tsv\n,b.jpg,,\n../B,b.jpg,,\nB,b.jpg,1,\n")
    )
    assert [row.slide for row in rows] == ["A", "M", "line 4", "../B", "B"]
    assert [isinstance(row, Sample) for row in rows] == [True, False, False, False, True]
    bad = rows[1]
    assert isinstance(bad, BadRow)
    assert str(bad.error).startswith(f"{folder / 'samples.csv'} line 3 column 'image': ")
    for words in (
        "no.jpg does not exist",
        "column 'obs'",
        "gone.tsv does not exist",
        "column 'mpp': 'x' is no positive",
    ):
        assert words in str(bad.error)
    with pytest.raises(DataError, match=r"line 3 .*line 4 column 'slide'.*line 5 column 'slide'"):
        read_sheet(folder / "samples.csv")


def test_all_faults_of_the_sheet_are_one_message(folder: Path) -> None:
    twice = "".join(f"S{i},a.jpg,,\n" * 2 for i in range(12))
    sheet = _write(folder, "slide,image,Mpp,\n" + twice)
    with pytest.raises(DataError) as caught:
        read_rows(sheet)
    told = str(caught.value)
    assert told.startswith(f"{sheet} column 'Mpp': did you mean 'mpp'? rename it; : a column has no name")
    assert "line 3: slide 'S0' is listed twice (first on line 2)" in told
    assert told.count("listed twice") == 8
    assert told.endswith("; and 4 more")
