"""The building commands as people meet them: sheets with faults, spots alone, twins, one error for many slides."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from histostore.stages.predict import read_prediction
from histostore.store.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort


@pytest.fixture
def empty(tmp_path: Path, call: Any) -> Path:
    assert call("init", tmp_path / "S").code == 0
    return tmp_path / "S"


@pytest.fixture
def store(built: Path, copy_of: Callable[[Path], Path]) -> Path:
    return copy_of(built)


def test_a_bad_line_of_a_sheet_is_one_line_and_the_others_are_ingested(
    empty: Path, cohort: Cohort, tmp_path: Path, call: Any
) -> None:
    a1, b1 = cohort.slides
    sheet = tmp_path / "miss.csv"
    sheet.write_text(
        f"slide,image,mpp,patient\nA1,{a1.image},2,A\nM1,gone.jpg,x,M\n../x,{a1.image},2,M\nB1,{b1.image},2,B\n,,,\n"
    )
    told = call("ingest", empty, "--sheet", sheet)
    assert told.code == 3
    assert open_store(empty).slides() == ["A1", "B1"]
    assert len(told.errors) == 2
    assert "error: M1: " in told.errors[0]
    assert "gone.jpg does not exist" in told.errors[0]
    assert "'x' is no positive number" in told.errors[0]
    assert "2 of 4 slides failed: M1, ../x; 2 done" in told.err
    told = call("ingest", empty, "--sheet", sheet, "--json")
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line.get("slide") or line["error"]["exit_code"] for line in lines] == ["A1", 3, 3, "B1"]


def test_a_sheet_that_is_wrong_as_a_whole_brings_nothing_in(
    empty: Path, cohort: Cohort, tmp_path: Path, call: Any
) -> None:
    image = cohort.slides[0].image
    sheet = tmp_path / "twice.csv"
    sheet.write_text(f"slide,image,MPP\nA1,{image},2\nA1,{image},2\nB1,{image},2\n")
    told = call("ingest", empty, "--sheet", sheet)
    assert (told.code, len(told.errors)) == (3, 1)
    assert "did you mean 'mpp'" in told.errors[0]
    assert "line 3: slide 'A1' is listed twice" in told.errors[0]
    assert open_store(empty).slides() == []


def test_spots_without_counts_are_tiled_embedded_and_predicted(store: Path, cohort: Cohort, call: Any) -> None:
    a1 = cohort.slides[0]
    told = call("ingest", store, "--slide", "N1", "--image", a1.image, "--mpp", 2, "--st-spots", a1.spots)
    assert told.code == 0, told.err
    assert f"N1: ingest written, {len(a1.spot_ids)} rows" in told.out
    opened = open_store(store)
    assert {"points/spots"} == {k for k in opened.slide("N1").entries if k.startswith(("points/", "expression/"))}
    px = opened.header(opened.slide("A1").find("tiles", "spots"))["spec"]["px"]
    for argv in (
        ("tile", store, "--slides", "N1", "--at", "spots", "--px", px, "--codec", "lossless"),
        ("embed", store, "--slides", "N1", "--backbone", "testing"),
        ("predict", store, "--slides", "A1,N1", "--head", "ridge-testing"),
    ):
        told = call(*argv)
        assert told.code == 0, told.err
    found = open_store(store)
    mine, theirs = (read_prediction(found, s, "ridge-testing").values for s in ("N1", "A1"))
    assert (mine == theirs).all(), "the same image, whether or not its counts are known"
    # the counts may come later
    told = call("ingest", store, "--slide", "N1", "--image", a1.image, "--mpp", 2, "--st-spots", a1.spots,
                "--st-counts", a1.counts)  # fmt: skip
    assert told.code == 0, told.err
    assert "expression/counts" in open_store(store).slide("N1").entries


def test_one_section_under_two_ids_is_said(ingested: Path, copy_of: Any, cohort: Cohort, call: Any) -> None:
    store, a1 = copy_of(ingested), cohort.slides[0]
    argv = ("ingest", store, "--image", a1.image, "--st-counts", a1.counts, "--st-spots", a1.spots)
    told = call(*argv, "--slide", "M2", "--json")
    notes = json.loads(told.out)["report"]["notes"]
    image = "M2 has the image of A1 (same bytes): is it one section?"
    assert told.code == 0
    assert image in notes
    assert image in told.err.splitlines()
    assert "M2 has the counts of A1 (same values): is it one section?" in notes


def test_an_empty_cell_of_a_clinical_table_erases_nothing(
    ingested: Path, copy_of: Any, tmp_path: Path, cli: Any
) -> None:
    store = copy_of(ingested)
    cli("annotate", store, "--slide", "B1", "--set", "grade=2")
    table = tmp_path / "clinical.csv"
    table.write_text("slide,grade,site\nA1,,north\nB1,,\n")
    out = cli("annotate", store, "--table", table).stdout
    assert "3 empty cells left as they were" in out
    assert "B1: annotate already there, 0 rows" in out
    fields = {s: open_store(store).group(open_store(store).slide(s).find("meta")).attrs["fields"] for s in ("A1", "B1")}
    assert fields["B1"]["grade"] == "2"
    assert "site" not in fields["B1"]
    assert "grade" not in fields["A1"]
    assert fields["A1"]["site"] == "north"
    cli("annotate", store, "--slide", "B1", "--set", "grade=")
    opened = open_store(store)
    assert opened.group(opened.slide("B1").find("meta")).attrs["fields"]["grade"] == "", "erased on purpose"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        pytest.param(("predict", "--head", "nope"), "no head 'nope'", id="head"),
        pytest.param(("tile", "--at", "spot", "--px", "64"), "slides has points 'spot'; did you mean 'spots'", id="at"),
        pytest.param(("tile", "--at", "nope", "--px", "64", "--dry-run"), "there are spots", id="at_of_a_dry_run"),
        pytest.param(("tile", "--at", "spots", "--um", "1", "--name", "t"), "a tile of 1 µm is", id="um"),
        pytest.param(
            ("tile", "--grid", "--px", "64", "--region", "x"), "regions 'x'; there are annotations", id="region"
        ),
        pytest.param(
            ("embed", "--backbone", "testing", "--tiles", "grid"), "tiles 'grid'; there are spots", id="tiles"
        ),
    ],
)
def test_what_is_wrong_with_the_call_is_said_once(
    argv: tuple[str, ...], says: str, tiled: Path, copy_of: Any, call: Any
) -> None:
    store = copy_of(tiled)
    told = call(argv[0], store, *argv[1:])
    assert told.code == 2
    assert len(told.errors) == 1, told.err
    assert says in told.errors[0]


def test_slides_that_lack_what_others_have_are_told_one_by_one(store: Path, call: Any) -> None:
    told = call("tile", store, "--slides", "A1", "--grid", "--px", "256", "--name", "grid")
    assert told.code == 0, told.err
    told = call("embed", store, "--backbone", "testing", "--tiles", "grid")
    assert told.code == 2
    assert "A1: embed written" in told.out
    assert len(told.errors) == 1
    assert "B1: slide 'B1' has no tiles 'grid'; it has spots" in told.errors[0]
