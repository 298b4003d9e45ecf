"""Filters: what they mean, what they refuse, and that they are never run as code."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.errors import HistostoreError, NotFoundError, UsageError
from histostore.where import MAX_CHARS, Field, Where, lookup_in

if TYPE_CHECKING:
    from pathlib import Path

TABLE = pd.DataFrame(
    {
        "patient": ["A", "A", "B", "C", "C", "D"],
        "cluster": ["1", "2", "3", "2", "10", ""],
        "n_counts": [0, 499, 500, 501, 10_000, 3],
        "tissue": [0.0, 0.25, 0.5, 1.0, float("nan"), -1.5],
        "in_tissue": [True, False, True, True, False, True],
        "site of biopsy": ["left", "right", "left", "left", "right", "it's"],
    }
)
COLUMNS: dict[str, Any] = {
    name: TABLE[name].to_numpy(dtype=object if TABLE[name].dtype.kind not in "ifb" else None) for name in TABLE
}


def rows(text: str) -> list[int]:
    return np.flatnonzero(Where.parse(text).mask(len(TABLE), lookup_in(COLUMNS))).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("patient == 'A'", [0, 1]),
        ("patient != 'A'", [2, 3, 4, 5]),
        ('patient == "A" or patient == "D"', [0, 1, 5]),
        ("patient in ['A', 'D']", [0, 1, 5]),
        ("patient not in ('A', 'D')", [2, 3, 4]),
        ("patient in []", []),
        ("patient not in []", [0, 1, 2, 3, 4, 5]),
        ("n_counts >= 500", [2, 3, 4]),
        ("500 <= n_counts", [2, 3, 4]),
        ("499 < n_counts <= 501", [2, 3]),
        ("0 < tissue < 1", [1, 2]),
        ("tissue == 0.5", [2]),
        ("tissue > -2", [0, 1, 2, 3, 5]),
        ("in_tissue", [0, 2, 3, 5]),
        ("not in_tissue", [1, 4]),
        ("in_tissue == true", [0, 2, 3, 5]),
        ("in_tissue == False", [1, 4]),
        ("not (patient == 'A' or n_counts > 500)", [2, 5]),
        ("patient != 'C' and (cluster in ['2', '3'] or not in_tissue)", [1, 2]),
        ("`site of biopsy` == 'right'", [1, 4]),
        ('`site of biopsy` == "it\'s"', [5]),
        ("true", [0, 1, 2, 3, 4, 5]),
        ("not true", []),
        ("  patient\n == 'A'  ", [0, 1]),
        ("cluster == ''", [5]),
        ("cluster > '2'", [2]),
    ],
)
def test_a_filter_means_what_it_says(text: str, expected: list[int]) -> None:
    assert rows(text) == expected


def test_the_names_of_a_filter_are_its_columns() -> None:
    assert Where.parse("patient == 'A' and (`site of biopsy` != 'x' or not in_tissue) and true").names == (
        "patient",
        "site of biopsy",
        "in_tissue",
    )
    assert Where.parse("patient == '`n_counts`'").names == ("patient",), "a backquote in quoted text is text"


def test_a_mask_is_an_own_array_of_bools() -> None:
    for text in ("true", "in_tissue", "n_counts > 3"):
        mask = Where.parse(text).mask(len(TABLE), lookup_in(COLUMNS))
        assert mask.dtype == np.bool_
        assert mask.shape == (len(TABLE),)
        mask[:] = False
    assert COLUMNS["in_tissue"].any()


def test_a_missing_value_equals_nothing() -> None:
    columns = {"grade": np.array(["1", None, "2"], dtype=object), "age": np.array([1.0, np.nan, 3.0])}

    def found(text: str) -> list[bool]:
        return Where.parse(text).mask(3, lookup_in(columns)).tolist()

    assert found("grade == '1'") == [True, False, False]
    assert found("grade in ['1', '2']") == [True, False, True]
    assert found("grade != '1'") == [False, True, True]
    assert found("grade >= '1'") == [True, False, True]
    assert found("age < 5") == [True, False, True]
    columns["gone"] = np.full(3, None)
    assert found("gone == '1' or gone > 3 or gone") == [False, False, False]
    assert found("gone != '1' and not gone") == [True, True, True]
    assert found("age == age") == [True, False, True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("patient ==", "cannot be read"),
        ("n_counts >= 500 and patient = 'A'", "cannot be read at character 29"),
        ("patient = 'A'", "cannot be read"),
        ("patient == 'A'; import os", "cannot be read"),
        ("patient == 'A", "cannot be read"),
        ("`patient == 'A'", "cannot be read"),
        ("patient == 'A' & in_tissue", "not allowed"),
        ("n_counts + 1 > 2", "binop is not allowed"),
        ("n_counts ** 99999999 > 2", "binop is not allowed"),
        ("__import__('os').system('true')", "call is not allowed"),
        ("().__class__.__bases__", "attribute is not allowed"),
        ("patient.str.upper() == 'A'", "not allowed"),
        ("patient[0] == 'A'", "subscript is not allowed"),
        ("[p for p in patient]", "listcomp is not allowed"),
        ("lambda: 1", "lambda is not allowed"),
        ("(x := 1) == 1", "namedexpr is not allowed"),
        ("f'{patient}' == 'A'", "joinedstr is not allowed"),
        ("{'a': 1} == 1", "dict is not allowed"),
        ("{1, 2} == 1", "set is not allowed"),
        ("*patient", "cannot be read|not allowed"),
        ("patient is None", "not allowed"),
        ("patient == None", "None is not a number or quoted text"),
        ("patient == b'A'", "is not a number or quoted text"),
        ("n_counts == 1j", "is not a number or quoted text"),
        ("patient == ...", "is not a number or quoted text"),
        ("patient in 'A'", "'in' needs a list"),
        ("patient in cluster", "'in' needs a list"),
        ("patient == ['A']", "'in' needs a list|a list needs 'in'"),
        ("'A' if in_tissue else 'B'", "ifexp is not allowed"),
        ("~in_tissue", "not allowed"),
        ("'a'", "true or false"),
        ("n_counts", "true or false"),
        ("['A']", "not part of the language"),
        ("n_counts and in_tissue", "true or false"),
        ("not patient", "true or false"),
        ("-patient == 'A'", "-"),
        ("patient > 3", "compares"),
        ("n_counts < 'A'", "compares numbers with text"),
        ("cluster == 2", "compares text with numbers; text is written in quotes"),
        ("cluster in ['2', 3]", "compares text with numbers"),
        ("_quoted_0 == 1 and `site of biopsy` == 'x'", "compares"),
        ("not " * 60 + "in_tissue", "nesting this deep"),
        ("1" * 5000, "characters"),
        ("n_counts == " + "9" * 4000, "characters|cannot be read"),
        ("patient == 'A\0'", "cannot be read"),
        ("\ud800 == 1", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as told:
        rows(text)
    assert "\n" not in str(told.value)
    assert str(told.value).startswith("where")


@pytest.mark.parametrize("text", ["patiant == 'A'", "`site of biopsi` == 'x'"])
def test_an_unknown_column_is_told_with_near_names(text: str) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean '(patient|site of biopsy)'"):
        rows(text)


def test_long_filters_end_early() -> None:
    with pytest.raises(UsageError, match=f"{MAX_CHARS + 1} characters, at most {MAX_CHARS}"):
        Where.parse("a" * (MAX_CHARS + 1))


def test_a_field_is_numbers_beside_a_number_only_where_all_of_it_is() -> None:
    ages = Field("age", ["63", "51", " 100 ", "", None, "1e2"])
    stage = Field("stage at", ["1", "2", "IV", "1_0", "nan", None])
    columns = {f.name: f.column(np.array(f.texts, dtype=object)) for f in (ages, stage)}

    def found(text: str) -> list[int]:
        return np.flatnonzero(Where.parse(text).mask(6, lookup_in(columns))).tolist()

    assert found("age > 55") == [0, 2, 5]
    assert found("55 < age") == [0, 2, 5]
    assert found("age == 100") == [2, 5]
    assert found("age == '1e2'") == [5]
    assert found("age != '63'") == [1, 2, 3, 4, 5]
    assert found("`stage at` > 'H'") == [2, 4]
    with pytest.raises(UsageError, match=r"of 5 values of `stage at` 3 are no numbers, like 'IV'"):
        found("`stage at` == 1")
    for text in ("age >= '60'", "'60' <= age"):
        with pytest.raises(UsageError, match="age holds numbers: write"):
            found(text)


EVIL = (
    "__import__('pathlib').Path('{}').touch()",
    "open('{}', 'w')",
    "exec(\"open('{}', 'w')\")",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "patient == open('{}', 'w')",
    "patient in [open('{}', 'w')]",
    "f\"{{open('{}', 'w')}}\" == 'a'",
    "(lambda: open('{}', 'w'))()",
    "in_tissue or (yield)",
    "`open('{}', 'w')` == 1",
)


@pytest.mark.parametrize("text", EVIL)
def test_code_is_never_run(text: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    with pytest.raises((UsageError, NotFoundError)):
        rows(text.replace("{}", str(trap)).replace("{{", "{").replace("}}", "}"))
    assert not trap.exists()


def outcome(text: str, columns: dict[str, Any]) -> np.ndarray | HistostoreError:
    try:
        return Where.parse(text).mask(3, lookup_in(columns))
    except HistostoreError as error:
        return error


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("abn_patient 0123456789.'\"()[]{}<>=!&|~^+-*/%@,:;`\\\n"), max_size=60))
def test_any_text_is_a_filter_or_one_clear_error(text: str) -> None:
    columns = {"a": np.arange(3), "b": np.array(["x", "y", "z"], dtype=object), "n": np.array([True, False, True])}
    found = outcome(text, columns)
    if isinstance(found, HistostoreError):
        assert "\n" not in str(found)
    else:
        assert (found.shape, found.dtype) == ((3,), np.bool_)


PYTHON = st.sampled_from(
    ["a", "trap", "1", "'x'", "true", "[1]", "()", "trap()", "trap.a", "trap[0]", "a+1", "-a", "not a",
     "lambda: trap()",
     "[trap() for x in a]", "f'{trap()}'", "(y := trap())", "trap if a else a", "{trap()}", "a @ trap", "*trap"]
)  # fmt: skip
JOINS = st.sampled_from([" == ", " and ", " or ", " in ", " < ", " + ", " is ", ", ", " not in ", " | "])


class Trap:
    """Raises what no test expects when code touches it."""

    def _spring(self, *args: object) -> Any:
        raise AssertionError("the filter ran as code")

    __call__ = __getitem__ = __iter__ = __matmul__ = __add__ = __or__ = _spring


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(PYTHON, JOINS), min_size=1, max_size=4))
def test_python_in_a_filter_never_runs(parts: list[tuple[str, str]]) -> None:
    text = "".join(a + b for a, b in parts[:-1]) + parts[-1][0]
    columns: dict[str, Any] = {"a": np.arange(3), "trap": np.array([Trap(), Trap(), Trap()], dtype=object)}
    outcome(text, columns)


# --- against pandas

NUMBERS = ("n_counts", "tissue")
TEXTS = ("patient", "cluster")
OPERATORS = ("!=", "<", "<=", "==", ">", ">=")


def literal(value: Any) -> str:
    return repr(value)


numbers = st.one_of(st.integers(-10, 10_001), st.sampled_from([0.25, 0.5, 1.0, -1.5, 499.5]))
texts = st.sampled_from(["A", "B", "C", "1", "2", "10", "", "it's", 'say "x"', "`"])


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    column = draw(st.sampled_from((*NUMBERS, *TEXTS)))
    values = numbers if column in NUMBERS else texts
    kind = draw(st.sampled_from(["plain", "turned", "in", "chain"]))
    if kind == "in":
        listed = ", ".join(literal(v) for v in draw(st.lists(values, min_size=1, max_size=4)))
        return f"{column} {draw(st.sampled_from(['in', 'not in']))} [{listed}]"
    first, second = (draw(st.sampled_from(OPERATORS)) for _ in range(2))
    if kind == "chain" and column in NUMBERS:
        return f"{literal(draw(values))} {first} {column} {second} {literal(draw(values))}"
    if kind == "turned":
        return f"{literal(draw(values))} {first} {column}"
    return f"{column} {first} {literal(draw(values))}"


def _joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, st.sampled_from(["and", "or"]), inner)
    return st.one_of(pair.map(lambda p: f"({p[0]}) {p[1]} ({p[2]})"), inner.map(lambda e: f"not ({e})"))


expressions = st.recursive(st.one_of(comparisons(), st.just("in_tissue")), _joined, max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(expressions)
def test_a_filter_keeps_the_rows_that_pandas_keeps(text: str) -> None:
    expected = TABLE.query(text, engine="python").index.tolist()
    assert rows(text) == expected


@settings(max_examples=200, deadline=None)
@given(expressions)
def test_a_filter_keeps_the_rows_that_python_keeps(text: str) -> None:
    code = compile(ast.parse(text, mode="eval"), "filter", "eval")
    expected = [i for i, row in enumerate(TABLE.to_dict("records")) if eval(code, {}, dict(row))]
    assert rows(text) == expected
