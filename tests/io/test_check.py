from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from histostore.errors import DataError
from histostore.io.check import as_counts, check_csr, check_gene_ids, check_point_ids, check_xy, describe_counts
from histostore.tables import Counts


def test_whole_numbers_of_any_type_become_int32() -> None:
    for dtype in (np.uint8, np.int64, np.float32, np.float64):
        matrix, normalised = as_counts(np.array([[0, 7], [1, 0]], dtype=dtype), "m")
        assert matrix.dtype == np.int32
        assert matrix.toarray().tolist() == [[0, 7], [1, 0]]
        assert not normalised


def test_normalised_values_are_taken_only_when_allowed() -> None:
    log = np.log1p(np.arange(6.0).reshape(2, 3))
    matrix, normalised = as_counts(log, "m", allow_normalised=True)
    assert normalised
    assert matrix.dtype == np.float32
    whole, normalised = as_counts(np.eye(2), "m", allow_normalised=True)
    assert not normalised
    assert whole.dtype == np.int32


def test_the_callers_matrix_is_left_as_it_is() -> None:
    mine = sp.csr_array((np.array([1, 0]), np.array([1, 0]), np.array([0, 2])), shape=(1, 2))
    as_counts(mine, "m")
    assert mine.indices.tolist() == [1, 0]
    assert mine.nnz == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param([[1, -2], [0, -1]], "m: 2 counts are negative, the first at row 1", id="negative"),
        pytest.param([[1, 0], [0, 1.5]], r"1 of 2 values are not whole numbers \(1.5 at row 2\)", id="fractional"),
        pytest.param([[1, np.nan]], "1 values are NaN or infinite, the first at row 1", id="nan"),
        pytest.param([[0, 2.0**31]], "beyond int32", id="too_large"),
    ],
)
def test_values_that_are_no_counts_are_refused(values: list[list[float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_counts(np.array(values), "m")


def test_nan_is_refused_even_where_normalised_values_are_allowed() -> None:
    with pytest.raises(DataError, match="NaN"):
        as_counts(np.array([[0.5, np.inf]]), "m", allow_normalised=True)


@pytest.mark.parametrize(
    ("indices", "indptr", "message"),
    [
        pytest.param([0, 3], [0, 1, 2], "invalid CSR at row 1: column 3 of 3", id="index_too_large"),
        pytest.param([-1, 0], [0, 1, 2], "invalid CSR at row 0: column -1", id="index_negative"),
        pytest.param([0, 1], [0, 2, 1], "invalid CSR at row 1: indptr does not grow", id="indptr_falls"),
        pytest.param([0, 1], [0, 1, 3], "invalid CSR at row 1: indptr ends at 3", id="indptr_past_the_end"),
        pytest.param([0, 1], [0, 2], "indptr has 2 entries for 2 rows", id="indptr_short"),
    ],
)
def test_a_damaged_csr_names_its_row(indices: list[int], indptr: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_csr(np.ones(2), np.array(indices), np.array(indptr), (2, 3), "m")


def test_an_entry_stored_twice_is_refused() -> None:
    twice = sp.csr_array((np.array([1, 1]), np.array([0, 0]), np.array([0, 2])), shape=(1, 2))
    with pytest.raises(DataError, match="1 entries of the matrix are stored twice"):
        as_counts(twice, "m")


def test_repeated_and_unprintable_ids_are_refused() -> None:
    with pytest.raises(DataError, match="4 duplicate barcodes: 'a', 'b', 'c', …"):
        check_point_ids(["a", "b", "c", "d", "a", "b", "c", "d", "a"], "f")
    for bad in ("", "a\x00b", "a\nb", "x" * 300):
        with pytest.raises(DataError, match="id of row 2 is invalid"):
            check_point_ids(["ok", bad], "f")
    check_point_ids(["../x", "con"], "f")  # point ids are never paths
    with pytest.raises(DataError, match="1 duplicate gene ids: 'G1'"):
        check_gene_ids(["G1", "G2", "G1"], "f")
    with pytest.raises(DataError, match="gene 2 has no name"):
        check_gene_ids(["G1", ""], "f")


def test_coordinates_that_are_not_finite_list_their_rows() -> None:
    xy = np.zeros((5, 2))
    xy[[1, 4], [0, 1]] = np.nan, np.inf
    with pytest.raises(DataError, match=r"2 spots .* row 2 \('b'\), row 5 \('e'\)"):
        check_xy(xy, list("abcde"), "f")
    with pytest.raises(DataError, match=r"shape \(5, 2\), not \(4, 2\)"):
        check_xy(np.zeros((5, 2)), list("abcd"), "f")


def test_empty_spots_and_constant_genes_are_counted_and_kept() -> None:
    matrix = sp.csr_array(np.array([[1, 0, 2, 5], [1, 0, 3, 0], [1, 0, 3, 5]], dtype=np.int32))
    counts = Counts(ids=("a", "b", "c"), matrix=matrix, gene_ids=tuple("wxyz"), symbols=tuple("wxyz"))
    assert describe_counts(counts).counts == {"spots_without_counts": 0, "constant_genes": 2}
    empty = Counts(ids=("a",), matrix=sp.csr_array((1, 1), dtype=np.int32), gene_ids=("g",), symbols=("g",))
    report = describe_counts(empty)
    assert report.counts == {"spots_without_counts": 1, "constant_genes": 1}
    assert report.notes[0] == "1 spots have no counts at all"
