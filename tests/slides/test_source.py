"""A slide's digest is that of its bytes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from histostore.errors import SlideError
from histostore.slides.source import source_bytes, source_digest, source_files

if TYPE_CHECKING:
    from pathlib import Path


def test_one_file_has_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "a.svs").write_bytes(data)
    assert source_digest(tmp_path / "a.svs") == hashlib.sha256(data).hexdigest()
    assert source_bytes(tmp_path / "a.svs") == len(data)


def test_an_mrxs_is_its_file_and_its_folder_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").write_bytes(b"index")
    (tmp_path / "a").mkdir()
    for name in ("Data0001.dat", "Slidedat.ini", "Data0000.dat"):
        (tmp_path / "a" / name).write_bytes(name.encode())
    names = [p.name for p in source_files(tmp_path / "a.mrxs")]
    assert names == ["a.mrxs", "Data0000.dat", "Data0001.dat", "Slidedat.ini"]
    before = source_digest(tmp_path / "a.mrxs")
    assert source_bytes(tmp_path / "a.mrxs") == 5 + 12 * 3
    (tmp_path / "a" / "Data0001.dat").write_bytes(b"Data0001.daT")
    assert source_digest(tmp_path / "a.mrxs") != before


def test_moving_a_slide_does_not_change_its_digest(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "a").mkdir(parents=True)
        (tmp_path / folder / "a.mrxs").write_bytes(b"index")
        (tmp_path / folder / "a" / "Data0000.dat").write_bytes(b"pixels")
    assert source_digest(tmp_path / "one" / "a.mrxs") == source_digest(tmp_path / "two" / "a.mrxs")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        source_digest(tmp_path / "a.svs")
