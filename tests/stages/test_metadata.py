"""Metadata without a value is no metadata, whether it comes by keyword, by sheet or in a table in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

MISSING = [
    pytest.param(None, id="None"),
    pytest.param(float("nan"), id="nan"),
    pytest.param(np.float32("nan"), id="float32 nan"),
    pytest.param(pd.NA, id="NA"),
    pytest.param(pd.NaT, id="NaT"),
]


@pytest.fixture
def store(ingested: Path, copy_of: Callable[[Path], Path]) -> hs.Store:
    return hs.open(copy_of(ingested))


def fields(store: hs.Store, slide: str) -> dict[str, str]:
    found: dict[str, str] = store.group(store.slide(slide).find("meta", "meta")).attrs["fields"]
    return dict(found)


@pytest.mark.parametrize("value", MISSING)
def test_a_keyword_without_a_value_leaves_what_is_stored_and_says_so(store: hs.Store, value: Any) -> None:
    before = fields(store, "A1")
    done = hs.pp.annotate(store, "A1", age=value, patient=value)[0]
    assert fields(store, "A1") == before
    assert (done.done, done.rows) == ("already there", 0)
    assert "'age' was given no value: left as it was (an empty text erases)" in done.report.notes
    hs.pp.annotate(store, "A1", age=value, grade=np.int64(2))
    assert fields(store, "A1") == {**before, "grade": "2"}


@pytest.mark.parametrize("value", MISSING)
def test_slides_of_unknown_patients_are_not_one_patient(store: hs.Store, cohort: Cohort, value: Any) -> None:
    for slide, of in zip(("N1", "N2"), cohort.slides, strict=True):
        told = hs.pp.ingest(store, slide, image=of.image, mpp=2.0, meta={"patient": value, "age": 51})[0]
        assert fields(store, slide) == {"age": "51"}
        assert "metadata 'patient' has no value: left out" in told.report.notes
    again = hs.pp.ingest(store, "N1", image=cohort.slides[0].image, mpp=2.0, meta={"patient": value, "age": 51})[0]
    assert again.done == "already there"
    assert not [n for n in again.report.notes if "not changed" in n]


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(pd.DataFrame({"slide": ["A1", "B1"], "grade": ["2", None], "age": [51, 60]}), id="column"),
        pytest.param(pd.DataFrame({"grade": ["2", np.nan], "age": [51, 60]}, index=["A1", "B1"]), id="index"),
        pytest.param(
            pd.DataFrame({"grade": ["2", pd.NA], "age": [51, 60]}, index=pd.Index(["A1", "B1"], name="slide")),
            id="named index",
        ),
    ],
)
def test_a_table_in_memory_is_taken_as_the_file_is(
    store: hs.Store, copy_of: Callable[[Path], Path], ingested: Path, tmp_path: Path, table: pd.DataFrame
) -> None:
    done = hs.pp.annotate(store, table=table)
    assert done[0].report.counts["empty cells left as they were"] == 1
    path, other = tmp_path / "t.csv", hs.open(copy_of(ingested))
    path.write_text("slide,grade,age\nA1,2,51\nB1,,60\n")
    hs.pp.annotate(other, table=path)
    assert fields(store, "A1") == fields(other, "A1")
    assert fields(store, "B1") == fields(other, "B1")
    assert "grade" not in fields(store, "B1")


def test_a_table_in_memory_is_joined_by_the_column_that_is_named(store: hs.Store) -> None:
    patient = fields(store, "B1")["patient"]
    hs.pp.annotate(store, table=pd.DataFrame({"site": ["north"]}, index=pd.Index([patient], name="patient")))
    hs.pp.annotate(store, table=pd.DataFrame({"patient": [patient], "ward": [7]}), by="patient")
    assert {"site": "north", "ward": "7"}.items() <= fields(store, "B1").items()
    assert "site" not in fields(store, "A1")


@pytest.mark.parametrize(
    ("table", "error", "said"),
    [
        pytest.param({"A1": {"z": 1}}, UsageError, "a table is a CSV or TSV file, or a DataFrame; got dict", id="dict"),
        pytest.param(pd.DataFrame({"z": [1]}), DataError, "the table: no row matches a slide by 'slide'", id="range"),
        pytest.param(pd.DataFrame({"z": [1, 2]}, index=["A1", "A1"]), DataError, "on more than one row", id="twice"),
        pytest.param(pd.DataFrame({"slide": [None], "z": [1]}), DataError, "'slide' is empty on row 1", id="empty key"),
        pytest.param(pd.DataFrame(), DataError, "the table holds 0 rows", id="no rows"),
    ],
)
def test_a_table_that_names_no_slide_is_refused_in_one_line(
    store: hs.Store, table: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as told:
        hs.pp.annotate(store, table=table)
    assert "\n" not in str(told.value)
