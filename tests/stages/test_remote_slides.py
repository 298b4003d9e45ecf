"""Slides that stay where they are, behind http and in a bucket: ingested, tiled and checked as local ones are."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import numpy as np
import pytest

import histostore as hs
from histostore.cli.main import main
from histostore.errors import SlideError, UsageError
from histostore.slides.objects import ObjectRanges
from histostore.testing.http import RangeServer, serving
from histostore.testing.s3 import running_s3
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from histostore.store.manifest import Ref

SPEC = hs.TileSpec.grid(px=64, mpp="native", min_tissue=0.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    folder = tmp_path / "www"
    folder.mkdir()
    image = synthetic_histology(640, 512, seed=5)[0]
    write_pyramid_tiff(folder / "a.tif", image, mpp=0.5, tile=64, levels=(1, 4))
    with serving(folder) as server:
        yield server


def pixels(store: hs.Store, slide: str) -> Ref:
    return store.slide(slide).find("pixels", None)


def test_a_slide_behind_http_is_ingested_and_tiled_as_the_file_is(tmp_path: Path, server: RangeServer) -> None:
    here, there = hs.create(tmp_path / "here"), hs.create(tmp_path / "there")
    file = server.folder / "a.tif"
    hs.pp.ingest(here, "a", image=file)
    hs.pp.ingest(there, "a", image=server.url("a.tif"))
    about = there.group(there.slide("a").find("source", "image")).attrs
    assert about["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (about["uri"], about["filename"], about["bytes"]) == (server.url("a.tif"), "a.tif", file.stat().st_size)
    hs.pp.tile(here, SPEC)
    hs.pp.tile(there, SPEC)
    mine, theirs = pixels(here, "a"), pixels(there, "a")
    assert mine.digest == theirs.digest
    assert np.array_equal(here.group(mine).read("pixels"), there.group(theirs).read("pixels"))


def test_a_slide_in_a_bucket_is_read_in_place(
    tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_s3(tmp_path / "server") as s3:
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
        from histostore.store.objects import open_objects

        folder = f"s3://{s3.bucket}/slides-{secrets.token_hex(3)}"
        open_objects(folder).put("a.tif", (server.folder / "a.tif").read_bytes())
        store = hs.create(tmp_path / "store")
        hs.pp.ingest(store, "a", image=f"{folder}/a.tif")
        hs.pp.tile(store, SPEC)
        assert store.group(pixels(store, "a")).rows > 0
        assert store.group(store.slide("a").find("source", "image")).attrs["version"]


def test_another_version_of_the_same_bytes_is_the_slide_and_other_bytes_are_not(
    tmp_path: Path, server: RangeServer
) -> None:
    store = hs.create(tmp_path / "store")
    hs.pp.ingest(store, "a", image=server.url("a.tif"))
    server.tag = '"two"'
    hs.pp.tile(store, SPEC)
    data = bytearray((server.folder / "a.tif").read_bytes())
    data[-1] ^= 1
    (server.folder / "a.tif").write_bytes(data)
    server.tag = '"three"'
    with pytest.raises(SlideError, match="its bytes differ"):
        hs.pp.tile(store, hs.TileSpec.grid(px=32, mpp="native", min_tissue=0.0), name="small")
    (server.folder / "a.tif").unlink()
    with pytest.raises(SlideError, match="404"):
        hs.pp.tile(store, hs.TileSpec.grid(px=32, mpp="native", min_tissue=0.0), name="small")


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_s3(tmp_path / "server") as s3:
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HISTOSTORE_CACHE", str(tmp_path / "cache"))
        from histostore.store.objects import open_objects

        files = open_objects(f"s3://{s3.bucket}/x")
        files.put("a.bin", b"A" * 3_000_000)
        ranges = ObjectRanges(f"s3://{s3.bucket}/x/a.bin")
        assert ranges.read_ranges([0], [4]) == [b"AAAA"]
        files.put("a.bin", b"B" * 3_000_000)
        with pytest.raises(SlideError, match="changed while it was read"):
            ranges.read_ranges([100], [4])


def test_a_sheet_may_name_addresses(tmp_path: Path, server: RangeServer) -> None:
    store = hs.create(tmp_path / "store")
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(f"slide,image,patient\na,{server.url('a.tif')},P1\n")
    hs.pp.ingest(store, sheet=sheet)
    assert store.slides() == ["a"]
    assert main(["ingest", str(tmp_path / "store"), "--slide", "b", "--image", server.url("a.tif")]) == 0
    assert store.slides() == ["a", "b"]


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@127.0.0.1/a.tif",
        "https://x.org/a.tif?X-Amz-Signature=hunter2",
        "s3://k:hunter2@b/a.tif",
        "https://x.org/a.tif?pwd=hunter2",
        "https://x.org/a.tif#token=hunter2",
        "https://x.org/a.tif;code=hunter2",
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_repeated(tmp_path: Path, address: str) -> None:
    store = hs.create(tmp_path / "store")
    with pytest.raises(UsageError) as told:
        hs.pp.ingest(store, "a", image=address)
    assert "hunter2" not in str(told.value)
    assert store.slides() == []


def test_a_folder_of_images_must_be_here(tmp_path: Path, server: RangeServer) -> None:
    store = hs.create(tmp_path / "store")
    with pytest.raises(UsageError, match="must lie on this machine"):
        hs.pp.ingest(store, "a", image_folder=server.url("a.tif"))
