"""What Loupe Browser imports: barcodes and groups."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import DataError, UsageError
from histostore.io.loupe import binned, write_loupe

if TYPE_CHECKING:
    from pathlib import Path

BARCODES = ["AAACAAGTATCTCCCA-1", "AAACACCAATAACTGC-1", "AAACAGAGCGACTCCT-1"]


def test_a_column_of_barcodes_and_one_per_grouping(tmp_path: Path) -> None:
    groups = {"tumour": ["yes", None, "no, not"], "ERBB2": ["1: 0 to 1", None, None]}
    path = write_loupe(tmp_path / "a.csv", BARCODES, groups)
    assert path.read_bytes().startswith(b"Barcode,tumour,ERBB2\nAAACAAGTATCTCCCA-1,yes,1: 0 to 1\n")
    rows = list(csv.reader(path.read_text().splitlines()))
    assert rows[1:] == [[BARCODES[0], "yes", "1: 0 to 1"], [BARCODES[2], "no, not", ""]]


def test_barcodes_of_visium_hd_are_10x_barcodes_too(tmp_path: Path) -> None:
    write_loupe(tmp_path / "a.csv", ["s_008um_00269_00526-1"], {"x": ["a"]})


@pytest.mark.parametrize(
    ("barcodes", "groups", "error"),
    [
        (["25x13", *BARCODES[1:]], {"x": ["a"] * 3}, DataError),
        ([BARCODES[0]] * 3, {"x": ["a"] * 3}, DataError),
        (BARCODES, {}, UsageError),
        (BARCODES, {"x": ["a"]}, UsageError),
    ],
    ids=["not 10x", "twice", "no groups", "too few"],
)
def test_what_loupe_could_not_use_is_refused(tmp_path, barcodes, groups, error) -> None:
    with pytest.raises(error):
        write_loupe(tmp_path / "a.csv", barcodes, groups)
    assert not list(tmp_path.iterdir())


def test_numbers_become_bins_of_equal_count_that_sort_by_value() -> None:
    values = np.random.default_rng(0).permutation(np.arange(100.0))
    names = np.array(binned(values, 5))
    kinds, counts = np.unique(names, return_counts=True)
    assert kinds[0] == "1: 0 to 19"
    assert counts.tolist() == [20] * 5
    order = names[np.argsort(values)]
    assert sorted(order) == order.tolist()


def test_equal_numbers_share_a_bin_and_what_is_missing_has_none() -> None:
    assert binned(np.array([0, 0, 0, 0, 0, 0, 0, 0, np.nan, 7.5]), 5)[-2:] == [None, "2: 7.5 to 7.5"]
    assert set(binned(np.zeros(4))) == {"1: 0 to 0"}
    assert binned(np.full(2, np.nan)) == [None, None]
