"""Slides behind a real server on this machine that answers range requests, or answers them badly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import SlideError
from histostore.slides import open_slide
from histostore.slides.http import HttpRanges, coalesce
from histostore.slides.ranges import BLOCK_BYTES, BlockedRanges, FileRanges, RangeFile
from histostore.testing.http import RangeServer, serving
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGE = synthetic_histology(900, 700, seed=8)[0]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    with serving(tmp_path) as server:
        yield server


def test_a_signed_address_that_expired_is_asked_for_again_and_never_told(server: RangeServer) -> None:
    (server.folder / "a.bin").write_bytes(bytes(range(256)) * 4000)
    server.lasts = 3
    ranges = HttpRanges(server.url("moved/a.bin"))
    found = [ranges.read_ranges([i], [4])[0] for i in range(8)]
    assert found == [bytes(range(i, i + 4)) for i in range(8)]
    server.failures, server.how = 99, 500
    with pytest.raises(SlideError) as told:
        ranges.read_ranges([0], [4])
    ranges.close()
    assert "signed" not in str(told.value)


@pytest.mark.parametrize("vendor", ["generic", "aperio"])
def test_a_slide_behind_http_is_the_slide(tmp_path: Path, server: RangeServer, vendor: str) -> None:
    path = write_pyramid_tiff(tmp_path / "a.svs", IMAGE, mpp=0.5, tile=64, levels=(1, 4), vendor=vendor)  # type: ignore[arg-type]
    xy0 = np.stack(np.meshgrid(np.arange(-20, 860, 60), np.arange(0, 660, 60)), axis=-1).reshape(-1, 2)
    with open_slide(path) as here, open_slide(server.url("a.svs"), workers=2) as there:
        assert (there.size_px, there.mpp, there.downsamples) == (here.size_px, here.mpp, here.downsamples)
        assert there.properties == here.properties
        assert there.uri == server.url("a.svs")
        server.asked.clear()
        for level in range(2):
            for mine, theirs in zip(
                here.read(xy0, px=60, level=level), there.read(xy0, px=60, level=level), strict=True
            ):
                assert np.array_equal(mine, theirs)
        # 165 tiles of 165 + 12 segments that lie side by side: a few requests, no byte twice
        assert len(server.asked) < 12
        assert sum(b - a for a, b in server.asked) <= path.stat().st_size
        assert np.array_equal(here.thumbnail(200), there.thumbnail(200))


def test_opening_fetches_tables_not_pixels(tmp_path: Path, server: RangeServer) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    path = write_pyramid_tiff(tmp_path / "a.tif", noise, tile=256, levels=(1, 4), quality=95)
    with open_slide(server.url("a.tif")):
        assert len(server.asked) < 12
        assert sum(b - a for a, b in server.asked) < 0.25 * path.stat().st_size


@pytest.mark.parametrize("how", [503, 429, 0], ids=["busy", "too_many", "hangs_up"])
def test_what_fails_in_passing_is_tried_again(tmp_path: Path, server: RangeServer, how: int) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 100)
    ranges = HttpRanges(server.url("a"))
    server.failures, server.how = 2, how
    assert ranges.read_ranges([300, 0, 25_590], [4, 2, 100]) == [
        bytes([44, 45, 46, 47]),
        b"\0\1",
        bytes(range(246, 256)),
    ]
    ranges.close()


def test_an_outage_is_an_error_and_no_unreadable_tile(tmp_path: Path, server: RangeServer) -> None:
    write_pyramid_tiff(tmp_path / "a.tif", IMAGE, tile=64, levels=(1,))
    with open_slide(server.url("a.tif"), workers=2) as slide:
        server.failures = 1000
        with pytest.raises(SlideError, match=r"could not be fetched in 4 tries \(status 503\)"):
            slide.read(np.array([[0, 0], [300, 300]]), px=64)


def test_a_file_that_changes_is_an_error(tmp_path: Path, server: RangeServer) -> None:
    write_pyramid_tiff(tmp_path / "a.tif", IMAGE, tile=64, levels=(1,))
    with open_slide(server.url("a.tif")) as slide:
        server.tag = '"two"'
        with pytest.raises(SlideError, match="changed while it was read"):
            slide.read(np.array([[0, 0]]), px=64)


def test_redirects_are_followed(tmp_path: Path, server: RangeServer) -> None:
    write_pyramid_tiff(tmp_path / "a.tif", IMAGE, tile=64, levels=(1,))
    with open_slide(server.url("moved/a.tif")) as slide:
        assert slide.size_px == (900, 700)


def test_what_cannot_be_read_by_range_is_one_clear_line(tmp_path: Path, server: RangeServer) -> None:
    write_pyramid_tiff(tmp_path / "a.tif", IMAGE, tile=64, levels=(1,))
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    (tmp_path / "empty.svs").write_bytes(b"")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:3000])
    said = {
        "b.tif": "answered 404",
        "a.jpg": "only TIFF and SVS are read by range",
        "empty.svs": "empty",
        "cut.tif": "truncated",
    }
    for name, says in said.items():
        with pytest.raises(SlideError, match=says) as caught:
            open_slide(server.url(name))
        assert server.url(name) in str(caught.value)
    server.knows_ranges = False
    with pytest.raises(SlideError, match="does not answer range requests"):
        open_slide(server.url("a.tif"))
    server.shutdown()
    server.server_close()
    with pytest.raises(SlideError, match="could not be fetched"):
        open_slide(server.url("a.tif"))


def test_pieces_are_coalesced_where_they_lie_close() -> None:
    offsets, lengths = [1000, 0, 105, 90, 400, 50], [10, 50, 10, 20, 0, 40]
    assert list(coalesce(offsets, lengths, gap=10, most=200)) == [(0, 115, [1, 5, 3, 2]), (1000, 1010, [0])]
    assert [r[:2] for r in coalesce(offsets, lengths, gap=10, most=100)] == [(0, 90), (90, 115), (1000, 1010)]
    assert list(coalesce([0, 100], [100, 5], gap=0, most=50)) == [(0, 100, [0]), (100, 105, [1])]


def test_blocks_give_the_bytes_of_the_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 3 * BLOCK_BYTES + 77, dtype=np.uint8).tobytes()
    (tmp_path / "a").write_bytes(data)
    whole = FileRanges(tmp_path / "a")
    file = RangeFile(BlockedRanges(whole), "a")
    assert file.read(5) == data[:5]
    file.seek(BLOCK_BYTES - 3)
    assert file.read(2 * BLOCK_BYTES) == data[BLOCK_BYTES - 3 : 3 * BLOCK_BYTES - 3]
    assert file.seek(-7, 2) == len(data) - 7
    assert file.read() == data[-7:]
    assert file.read(10) == b""
    whole.close()
