from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from histostore.errors import CorruptionError, StorageError
from histostore.fetch.catalog import Remote
from histostore.fetch.download import Limits, download

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(256)) * 4000


def remote(served: Any, *, data: bytes = DATA, **known: Any) -> Remote:
    served.files["/a.bin"] = data
    return Remote(path="a.bin", url=f"{served.url}/a.bin", **known)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_arrives_whole_and_leaves_nothing_else(served: Any, tmp_path: Path, quick: Limits) -> None:
    one = remote(served, sha256=sha256(DATA), size=len(DATA))
    got = download(one, one.url, tmp_path / "x" / "a.bin", limits=quick)
    assert (tmp_path / "x" / "a.bin").read_bytes() == DATA
    assert (got.sha256, got.size, got.tries) == (sha256(DATA), len(DATA), 1)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a.bin"]


def test_a_body_that_is_cut_is_gone_on_with_by_range(served: Any, tmp_path: Path, quick: Limits) -> None:
    one = remote(served, sha256=sha256(DATA))
    served.cuts = [100_000, 50_000]
    got = download(one, one.url, tmp_path / "a.bin", limits=quick)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert [r for _, r in served.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert got.resumed == 150_000


def test_a_call_that_gave_up_is_gone_on_with_by_the_next(served: Any, tmp_path: Path, quick: Limits) -> None:
    one = remote(served)
    served.cuts = [100_000, 0, 0, 0]
    with pytest.raises(StorageError, match=r"100,000 bytes are kept: run it again"):
        download(one, one.url, tmp_path / "a.bin", limits=quick)
    assert not (tmp_path / "a.bin").exists()
    assert download(one, one.url, tmp_path / "a.bin", limits=quick).resumed == 100_000
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_file_that_changed_meanwhile_is_not_spliced(served: Any, tmp_path: Path, quick: Limits) -> None:
    one = remote(served)
    served.cuts = [100_000, 0, 0, 0]
    with pytest.raises(StorageError):
        download(one, one.url, tmp_path / "a.bin", limits=quick)
    other = DATA[::-1]
    served.files["/a.bin"] = other
    assert download(one, one.url, tmp_path / "a.bin", limits=quick).resumed == 0
    assert (tmp_path / "a.bin").read_bytes() == other


@pytest.mark.parametrize("flaw", ["ranges", "validators"])
def test_without_ranges_or_validators_it_begins_again(served: Any, tmp_path: Path, quick: Limits, flaw: str) -> None:
    one = remote(served, sha256=sha256(DATA))
    setattr(served, flaw, False)
    served.cuts = [100_000]
    got = download(one, one.url, tmp_path / "a.bin", limits=quick)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert (got.resumed, got.tries) == (0, 2)


def test_a_range_that_is_not_the_one_asked_for_is_not_believed(served: Any, tmp_path: Path, quick: Limits) -> None:
    one = remote(served, sha256=sha256(DATA))
    served.cuts, served.lying_range = [100_000], True
    assert download(one, one.url, tmp_path / "a.bin", limits=quick).resumed == 0
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_server_in_trouble_is_asked_again_and_not_for_ever(served: Any, tmp_path: Path, quick: Limits) -> None:
    one = remote(served)
    served.statuses = [500, 503]
    assert download(one, one.url, tmp_path / "a.bin", limits=quick).tries == 3
    served.statuses = [500, 502, 503, 429]
    with pytest.raises(StorageError, match=r"the server says 503 .*; 3 tries, 0 bytes are kept"):
        download(one, one.url, tmp_path / "b.bin", limits=quick)


def test_a_file_that_is_not_there_is_not_asked_for_twice(served: Any, tmp_path: Path, quick: Limits) -> None:
    with pytest.raises(StorageError, match="the server says 404"):
        download(Remote(path="b", url=f"{served.url}/b"), f"{served.url}/b", tmp_path / "b", limits=quick)
    assert len(served.asked) == 1


def test_nobody_there_is_told_after_the_tries(tmp_path: Path, quick: Limits) -> None:
    url = "http://127.0.0.1:9/a.bin"
    with pytest.raises(StorageError, match=r"refused.*3 tries"):
        download(Remote(path="a", url=url), url, tmp_path / "a", limits=quick)


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size": 3}])
def test_what_is_not_what_the_catalogue_says_is_removed(
    served: Any, tmp_path: Path, quick: Limits, known: dict[str, Any]
) -> None:
    one = remote(served, **known)
    with pytest.raises(CorruptionError):
        download(one, one.url, tmp_path / "a.bin", limits=quick)
    assert not (tmp_path / "a.bin").exists()
    assert not (tmp_path / ".a.bin.part").exists()


def test_a_part_that_was_damaged_here_is_fetched_once_more_from_the_start(
    served: Any, tmp_path: Path, quick: Limits
) -> None:
    one = remote(served, sha256=sha256(DATA))
    served.cuts = [100_000, 0, 0, 0]
    with pytest.raises(StorageError):
        download(one, one.url, tmp_path / "a.bin", limits=quick)
    part = tmp_path / ".a.bin.part"
    part.write_bytes(b"x" + part.read_bytes()[1:])
    assert download(one, one.url, tmp_path / "a.bin", limits=quick).resumed == 0
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_part_longer_than_the_file_is_thrown_away(served: Any, tmp_path: Path, quick: Limits) -> None:
    one = remote(served)
    served.cuts = [100_000, 0, 0, 0]
    with pytest.raises(StorageError):
        download(one, one.url, tmp_path / "a.bin", limits=quick)
    (tmp_path / ".a.bin.part").write_bytes(DATA + b"more")
    download(one, one.url, tmp_path / "a.bin", limits=quick)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_disk_that_is_too_small_is_told_before_anything_comes(
    served: Any, tmp_path: Path, quick: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = remote(served)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(StorageError, match="10 free"):
        download(one, one.url, tmp_path / "a.bin", limits=quick)


def test_an_empty_file_is_a_file(served: Any, tmp_path: Path, quick: Limits) -> None:
    one = remote(served, data=b"")
    assert download(one, one.url, tmp_path / "a.bin", limits=quick).size == 0
    assert (tmp_path / "a.bin").read_bytes() == b""
