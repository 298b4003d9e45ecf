from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.report.tables import format_value, page_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.35, "0.350"), (-0.1, "−0.100"), (0.0, "0.000"), (1e-6, "1.00e-06"), (12345.6789, "12\u2009345.679"),
        (7, "7"), (np.int64(1234567), "1\u2009234\u2009567"), (np.float32(0.5), "0.500"), (True, "yes"),
        (None, "–"), (float("nan"), "–"), (pd.NA, "–"), (pd.NaT, "–"), (float("-inf"), "−∞"), ("C2", "C2"),
    ],
)  # fmt: skip
def test_a_value_is_written_short_and_missing_is_a_dash(value, text):
    assert format_value(value) == text


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_an_index_that_only_counts_is_left_out():
    assert texts(page_table("t", pd.DataFrame({"a": ["x", "y"]}))) == [["x"], ["y"]]


def test_an_index_with_names_heads_the_rows():
    table = page_table("t", pd.DataFrame({"r": [0.5]}, index=pd.Index(["ridge"], name="method")))
    assert [c.text for c in table.head] == ["method", "r"]
    assert texts(table) == [["ridge", "0.500"]]
    assert [c.number for c in table.head] == [False, True]


def test_counts_with_a_gap_are_still_written_as_counts():
    assert texts(page_table("t", pd.DataFrame({"n": [3.0, np.nan, 1200.0]}))) == [["3"], ["–"], ["1\u2009200"]]


def test_scores_of_zero_and_one_stay_scores():
    assert texts(page_table("t", pd.DataFrame({"r": [0.0, 1.0]}))) == [["0.000"], ["1.000"]]


def test_several_levels_of_names_are_joined():
    frame = pd.DataFrame(
        {("ridge", "r"): [0.1]}, index=pd.MultiIndex.from_tuples([("C2", "A")], names=["slide", "gene"])
    )
    table = page_table("t", frame)
    assert [c.text for c in table.head] == ["slide / gene", "ridge / r"]
    assert texts(table) == [["C2 / A", "0.100"]]


def test_a_table_without_rows_keeps_its_head():
    table = page_table("t", pd.DataFrame({"a": [], "b": []}))
    assert ([c.text for c in table.head], table.rows) == (["a", "b"], ())


def test_columns_of_one_name_are_both_shown():
    frame = pd.DataFrame([[1, 2]], columns=["a", "a"])
    assert texts(page_table("t", frame)) == [["1", "2"]]
