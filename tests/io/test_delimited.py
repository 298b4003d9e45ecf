from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from histostore.errors import DataError
from histostore.io.delimited import read_bytes, read_delimited

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        pytest.param("a\tb,c\n1\t2\n", ("a", "b,c"), id="tab_wins_over_comma"),
        pytest.param("a,b\n1,2\n", ("a", "b"), id="comma"),
        pytest.param("a;b\n1;2\n", ("a", "b"), id="semicolon"),
        pytest.param("\ufeffa,b\r\n1,2\r\n", ("a", "b"), id="byte_order_mark_and_crlf"),
        pytest.param("a\nr1,2\n".replace("a", "b"), ("", "b"), id="header_of_R_is_one_short"),
    ],
)
def test_the_delimiter_is_told_from_the_first_line(tmp_path: Path, text: str, columns: tuple[str, ...]) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    table = read_delimited(path)
    assert table.columns == columns
    assert len(table) == 1


def test_values_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('code,n\nNA,007\n"a, b",\n')
    assert read_delimited(path).rows == (("NA", "007"), ("a, b", ""))


def test_gzip_is_told_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(gzip.compress(b"a\n1\n"))
    assert read_delimited(path).column("a") == ["1"]


def test_numbers_that_are_none_are_listed_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x\n1\nnan\n\n1_0\ninf\n2e3\n")
    with pytest.raises(DataError, match=r"column 'x': 3 values .* line 3 \('nan'\), line 5 \('1_0'\), line 6"):
        read_delimited(path).floats("x")
    with pytest.raises(DataError, match=r"no column 'X'.*did you mean 'x'"):
        read_delimited(path).column("X")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "empty: a header line", id="empty"),
        pytest.param(b"a,b\n1,2\n3\n", "line 3 has 1 fields where the header has 2", id="short_row"),
        pytest.param(b"a,a\n1,2\n", "column names repeat: 'a'", id="repeated_column"),
        pytest.param(b"a\n\xff\xfe\n", "no UTF-8", id="not_text"),
        pytest.param(gzip.compress(b"a,b\n" + bytes(range(97, 120)) * 99)[:-20], "damaged or truncated", id="cut_gzip"),
        pytest.param(b'a,b\n"1,2\n', "line 2", id="open_quote"),
    ],
)
def test_a_table_that_is_none_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_delimited(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_absent_files_and_gzip_bombs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_bytes(tmp_path / "no.csv")
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(DataError, match="more than 1000 bytes"):
        read_bytes(bomb, max_bytes=1000)
