"""Blocks that were read from afar are kept within bounds, by several processes at once, and never believed blindly."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from histostore.errors import UsageError
from histostore.store.object_address import Address, endpoint, is_object_address, request_seconds
from histostore.store.object_ranges import coalesce, cut
from histostore.store.objects import open_objects
from histostore.store.read_cache import DEFAULT_BYTES, ReadCache


def held(cache: ReadCache) -> int:
    return sum(p.stat().st_size for p in cache.folder.rglob("*") if p.is_file())


def test_a_block_is_found_again_by_another_process_and_others_are_not(tmp_path: Path) -> None:
    cache = ReadCache(tmp_path / "cache", 1 << 20)
    cache.put("s3://b/x", 3, b"block")
    again = ReadCache(tmp_path / "cache", 1 << 20)
    assert again.get("s3://b/x", 3) == b"block"
    assert again.get("s3://b/x", 4) is None
    assert again.get("s3://b/y", 3) is None
    assert (again.hits, again.misses) == (1, 2)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in cache.folder.rglob("*") if p.is_file()} == {0o600}


def test_the_bound_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = ReadCache(tmp_path / "cache", 100_000)
    for n in range(40):
        cache.put("x", n, bytes(10_000))
        for path in cache.folder.glob("??/*"):  # all older by a minute
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 120))
        assert cache.get("x", 0) is not None
        assert held(cache) <= 100_000
    assert cache.get("x", 39) is not None
    assert cache.get("x", 5) is None
    cache.put("x", 99, bytes(200_000))
    assert cache.get("x", 99) is None


def test_many_writers_at_once_stay_within_the_bound_and_serve_no_wrong_byte(tmp_path: Path) -> None:
    def work(seed: int) -> None:
        cache = ReadCache(tmp_path / "cache", 200_000)
        for n in range(150):
            block = (n * 7 + seed) % 60
            data = bytes([block]) * 5000
            kept = cache.get("x", block)
            assert kept in (None, data)
            cache.put("x", block, data)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert held(ReadCache(tmp_path / "cache", 1)) <= 200_000 + 2 * 200_000 // 16


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_block_is_dropped(tmp_path: Path, damage: str) -> None:
    cache = ReadCache(tmp_path / "cache", 1 << 20)
    cache.put("x", 0, b"some block")
    (path,) = cache.folder.glob("??/*")
    data = path.read_bytes()
    path.write_bytes({"flip": b"?" + data[1:], "cut": data[:-3], "empty": b""}[damage])
    assert cache.get("x", 0) is None
    cache.put("x", 0, b"some block")
    assert cache.get("x", 0) == b"some block"


def test_a_folder_that_cannot_be_written_is_said_once_and_reads_go_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = ReadCache(tmp_path / "file" / "cache", 1 << 20)
    with pytest.warns(UserWarning, match="nothing is kept here"):
        cache.put("x", 0, b"block")
    cache.put("x", 0, b"block")
    assert cache.get("x", 0) is None


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("HISTOSTORE_CACHE", "HISTOSTORE_CACHE_BYTES"):
        monkeypatch.delenv(name, raising=False)
    cache = ReadCache.from_environment()
    assert cache is not None
    assert (cache.folder, cache.max_bytes) == (tmp_path / "histostore" / "objects", DEFAULT_BYTES)
    monkeypatch.setenv("HISTOSTORE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("HISTOSTORE_CACHE_BYTES", "12345")
    cache = ReadCache.from_environment()
    assert cache is not None
    assert (cache.folder, cache.max_bytes) == (tmp_path / "mine", 12345)
    monkeypatch.setenv("HISTOSTORE_CACHE_BYTES", "0")
    assert ReadCache.from_environment() is None
    for bad in ("-1", "2GB", "", "²"):
        monkeypatch.setenv("HISTOSTORE_CACHE_BYTES", bad)
        with pytest.raises(UsageError, match="whole number of bytes"):
            ReadCache.from_environment()


def test_an_address_names_service_bucket_and_prefix() -> None:
    assert Address.parse("s3://lab/her2st/v1/") == Address("s3", "lab", "her2st/v1")
    assert str(Address.parse("S3://lab/her2st/v1/")) == "s3://lab/her2st/v1"
    assert str(Address.parse("gs://lab")) == "gs://lab"
    assert is_object_address("az://container/x")
    assert not is_object_address("stores/her2st")
    assert not is_object_address(Path("stores/her2st"))
    with pytest.raises(UsageError, match="as text"):
        is_object_address(Path("s3://lab/her2st"))


@pytest.mark.parametrize(
    "bad",
    [
        "s3://KEY:hunter2@lab/x", "s3://lab/x?token=hunter2", "s3://lab/x#hunter2", "s3://", "s3:///x", "s3://a b/x",
        "s3://lab/../x", "s3://lab/a//b", "s3://lab/./x", "ftp://hunter2/x", "https://hunter2@host/x",
        "memory://hunter2",
    ],
)  # fmt: skip
def test_an_address_that_is_none_or_holds_a_key_is_refused_and_the_key_not_repeated(bad: str) -> None:
    with pytest.raises(UsageError) as caught:
        Address.parse(bad)
    assert "hunter2" not in str(caught.value)


def test_plain_http_is_refused_unless_asked_for_and_keys_in_an_endpoint_always(monkeypatch: pytest.MonkeyPatch) -> None:
    address = Address.parse("s3://lab/x")
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    with pytest.raises(UsageError, match="AWS_ALLOW_HTTP=true"):
        open_objects("s3://lab/x")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert endpoint(address) == "http://127.0.0.1:9000"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:hunter2@host")
    with pytest.raises(UsageError, match="must hold no keys") as caught:
        open_objects("s3://lab/x")
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("HISTOSTORE_OBJECT_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="give seconds"):
        request_seconds()


def test_settings_that_no_client_can_be_made_of_are_said_without_what_they_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "hunter2 is no base64 ???")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "lab")
    (tmp_path / "key.json").write_text('{"private_key": "hunter2"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    for address in ("az://box/x", "gs://lab/x"):
        with pytest.raises(UsageError, match="settings in the environment cannot be used") as caught:
            open_objects(address)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__context__ is None


def test_pieces_close_together_are_one_request_and_large_ones_several() -> None:
    pieces, owner = cut([(100, 10), (0, 25), (500, 0)], 10)
    assert pieces == [(100, 10), (0, 10), (10, 10), (20, 5)]
    assert owner == [0, 1, 1, 1]
    assert list(coalesce(pieces, gap=5, most=20)) == [(0, 20, [1, 2]), (20, 25, [3]), (100, 110, [0])]
    assert list(coalesce(pieces, gap=100, most=1000)) == [(0, 110, [1, 2, 3, 0])]
