"""Bad files: each one clear line that names the file, the field and the limit; never a crash, never grey pixels."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from histostore.errors import SlideError
from histostore.slides import open_slide
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGE = synthetic_histology(600, 400, seed=3)[0]
TILE_WIDTH, TILE_HEIGHT, WIDTH, HEIGHT = 322, 323, 256, 257
ROWS_PER_STRIP, TILE_OFFSETS, COMPRESSION = 278, 324, 259


def tiled(path: Path, **options: Any) -> Path:
    return write_pyramid_tiff(path, IMAGE, tile=128, levels=(1, 2), mpp=0.5, **options)


def patched(path: Path, **tags: int) -> Path:
    """Overwrite the first value of tags (``t256=0``) of the first directory of a little-endian TIFF."""
    raw = bytearray(path.read_bytes())
    big = raw[2] == 43
    at = struct.unpack_from("<Q" if big else "<I", raw, 8 if big else 4)[0]
    count, head, width, value = (8, "<Q", 20, 12) if big else (2, "<H", 12, 8)
    (n,) = struct.unpack_from(head, raw, at)
    for i in range(n):
        entry = at + count + i * width
        tag, kind = struct.unpack_from("<HH", raw, entry)
        if f"t{tag}" in tags:
            wide = {3: "<H", 4: "<I", 16: "<Q"}[kind]
            wanted = tags[f"t{tag}"]
            if wanted >= 1 << (8 * struct.calcsize(wide)):
                raw[entry + 2 : entry + 4] = struct.pack("<H", 4)
                wide = "<I"
            (many,) = struct.unpack_from("<Q" if big else "<I", raw, entry + 4)
            where = entry + value
            if many * struct.calcsize(wide) > (8 if big else 4):
                (where,) = struct.unpack_from("<Q" if big else "<I", raw, where)
            struct.pack_into(wide, raw, where, wanted)
    path.write_bytes(raw)
    return path


def png_claiming(path: Path, width: int, height: int) -> Path:
    """Write a PNG whose header claims a size; all its pixels would be zero."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(400_000))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    return written(path, path.read_bytes()[: int(path.stat().st_size * share)])


def looped(path: Path) -> Path:
    """Let the last directory point back at the first."""
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[-1]
        raw = bytearray(path.read_bytes())
        at = last.offset
    (n,) = struct.unpack_from("<H", raw, at)
    struct.pack_into("<I", raw, at + 2 + 12 * n, first)
    return written(path, bytes(raw))


def plain(path: Path, image: Any, **options: Any) -> Path:
    tifffile.imwrite(path, image, metadata=None, **options)
    return path


def flipped(data: bytes, start: int, n: int) -> bytes:
    return data[:start] + bytes(255 - b for b in data[start : start + n]) + data[start + n :]


JPEG = imagecodecs.jpeg_encode(IMAGE, level=90)
PNG = imagecodecs.png_encode(IMAGE)
CMYK = imagecodecs.jpeg_encode(np.zeros((64, 64, 4), np.uint8), colorspace="CMYK", outcolorspace="CMYK")

BAD: list[Any] = [
    pytest.param("a.svs", lambda p: written(p, b""), "empty \\(0 bytes\\)", id="empty"),
    pytest.param("a.svs", lambda p: written(p, b"slide,barcode\n" * 50), "not a slide, it begins with", id="text"),
    pytest.param("a.svs", lambda p: written(p, b"II"), "not a slide", id="two_bytes"),
    pytest.param("a.svs", lambda p: p, "no such file", id="missing"),
    pytest.param("a", lambda p: (p.mkdir(), p)[1], "a folder", id="folder"),
    pytest.param("a.jpg", lambda p: written(p, JPEG[: len(JPEG) // 2]), "truncated JPEG", id="jpeg_cut"),
    pytest.param("a.jpg", lambda p: written(p, JPEG[:100]), "truncated JPEG", id="jpeg_header_cut"),
    pytest.param("a.jpg", lambda p: written(p, flipped(JPEG, 2, 100)), "JPEG", id="jpeg_header_damaged"),
    pytest.param("a.jpg", lambda p: written(p, CMYK), "CMYK", id="jpeg_cmyk"),
    pytest.param("a.png", lambda p: written(p, PNG[: len(PNG) // 2]), "truncated PNG", id="png_cut"),
    pytest.param("a.png", lambda p: written(p, PNG[:20]), "truncated PNG", id="png_header_cut"),
    pytest.param("a.png", lambda p: written(p, flipped(PNG, 9000, 30)), "damaged PNG", id="png_damaged"),
    pytest.param("a.png", lambda p: png_claiming(p, 20_000, 20_000), "limit is 268,435,456", id="png_bomb"),
    pytest.param("a.png", lambda p: png_claiming(p, 2**31 - 1, 1), "limit is", id="png_2e9_pixels"),
    pytest.param("a.png", lambda p: png_claiming(p, 0, 10), "empty image", id="png_empty"),
    pytest.param("a.png", lambda p: png_claiming(p, 4000, 4000), "damaged PNG", id="png_too_few_pixels"),
    pytest.param("a.tif", lambda p: cut(tiled(p), 0.5), "truncated", id="tiff_cut"),
    pytest.param("a.tif", lambda p: cut(tiled(p), 0.9), "truncated", id="tiff_cut_late"),
    pytest.param("a.svs", lambda p: cut(tiled(p, vendor="aperio"), 0.5), "truncated", id="svs_cut"),
    pytest.param("a.tif", lambda p: written(p, tiled(p).read_bytes()[:100]), "truncated", id="tiff_100_bytes"),
    pytest.param("a.tif", lambda p: written(p, b"II*\0\0\0\0\0"), "no directory", id="tiff_without_image"),
    pytest.param("a.tif", lambda p: patched(tiled(p), t322=0), "tile size is 0 x 128", id="tile_0"),
    pytest.param("a.tif", lambda p: patched(tiled(p), t322=2**30, t323=2**30), "tile size is 1,073", id="tile_2**30"),
    pytest.param("a.tif", lambda p: patched(tiled(p), t322=2**16, t323=2**16), "tile size", id="tile_2**16"),
    pytest.param("a.tif", lambda p: patched(tiled(p), t256=0, t257=0), "0 x 0 px, an empty image", id="0_x_0"),
    pytest.param("a.tif", lambda p: patched(tiled(p), t256=50_000, t257=40_000), "lists 20", id="2e9_in_small_file"),
    pytest.param(
        "a.tif",
        lambda p: patched(tiled(p), t256=2_000_000_000, t257=2_000_000_000),
        "limit is 68,719,476,736",
        id="2e9_x_2e9",
    ),
    pytest.param(
        "a.tif",
        lambda p: patched(tiled(p), t256=40_960, t257=32_768, t322=8192, t323=8192),
        "1,342,177,280 pixels in .* per byte",
        id="too_few_bytes",
    ),
    pytest.param("a.tif", lambda p: patched(tiled(p), t324=10**9), "truncated.*tile 0 ends at byte", id="tile_outside"),
    pytest.param("a.tif", lambda p: looped(tiled(p)), "form a loop", id="directory_loop"),
    pytest.param("a.tif", lambda p: patched(tiled(p), t259=9999), "9999", id="unknown_compression"),
    pytest.param(
        "a.tif",
        lambda p: patched(
            plain(p, IMAGE, photometric="rgb", compression="lzw", rowsperstrip=400),
            t256=60_000,
            t257=60_000,
            t278=60_000,
        ),
        "one compressed strip claims",
        id="strip_bomb",
    ),
    pytest.param(
        "a.tif",
        lambda p: patched(plain(p, IMAGE, photometric="rgb", rowsperstrip=8), t278=0),
        "rows per strip is 0",
        id="strip_0",
    ),
    pytest.param("a.tif", lambda p: plain(p, IMAGE.astype(np.uint16)), "uint16, only uint8", id="16_bit"),
    pytest.param("a.tif", lambda p: plain(p, IMAGE[..., 0].astype(np.float32)), "float32, only uint8", id="float"),
    pytest.param(
        "a.tif", lambda p: plain(p, np.zeros((5, 64, 64), np.uint8), photometric="minisblack"), "axes", id="stack"
    ),
    pytest.param(
        "a.tif",
        lambda p: plain(
            p, IMAGE, photometric="rgb", tile=(128, 128), resolution=(20_000, 30_000), resolutionunit="CENTIMETER"
        ),
        "not square",
        id="oblong_pixels",
    ),
    pytest.param(
        "a.tif",
        lambda p: plain(p, IMAGE, photometric="rgb", resolution=(20_000, 30_000), resolutionunit="CENTIMETER"),
        "not square",
        id="oblong_pixels_stripped",
    ),
]


@pytest.mark.parametrize(("name", "make", "says"), BAD)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, name: str, make: Callable[[Path], Path], says: str) -> None:
    path = make(tmp_path / name)
    with pytest.raises(SlideError, match=says) as caught:
        open_slide(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text


def test_the_limit_on_pixels_can_be_set(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jpg", JPEG)
    with pytest.raises(SlideError, match=r"240,000 pixels, the limit is 100,000; raise max_pixels"):
        open_slide(path, max_pixels=100_000)
    with pytest.raises(SlideError, match=r"the limit is 100,000"):
        open_slide(tiled(tmp_path / "a.tif"), max_pixels=100_000)
    open_slide(path, max_pixels=240_000).close()


def test_mutated_headers_end_in_an_error_or_a_slide(tmp_path: Path) -> None:
    """Openslide never sees what its own checks would abort on: this process survives 300 damaged headers."""
    whole = tiled(tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        spans = [(page.offset, page.offset + 2 + 12 * len(page.tags)) for page in file.pages]
    rng = np.random.default_rng(5)
    path, refusals = tmp_path / "b.tif", []
    for _ in range(300):
        raw = bytearray(whole)
        low, high = spans[rng.integers(len(spans))]
        for at in rng.integers(low, high, 3):
            raw[at] = rng.integers(256)
        path.write_bytes(raw)
        try:
            with open_slide(path) as slide:
                _, status = slide.read(np.array([[0, 0], [300, 200]]), px=64)
                assert status.shape == (2,)
        except SlideError as error:
            refusals.append(str(error))
    assert 0 < len(refusals) < 300
    assert not any("\n" in text for text in refusals)
