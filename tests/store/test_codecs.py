"""Codecs: no code from a file, no bomb, and no changed bit goes unnoticed."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pytest

from histostore.errors import CorruptionError, FormatError, HistostoreError, UsageError
from histostore.store.codecs import RAW, STRINGS, ZSTD, ZSTD_U8, Pipeline, crc32c, jpeg
from histostore.store.store import open_store
from histostore.store.verify import verify

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from histostore.store.groups import GroupWriter
    from histostore.store.store import Store


def with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", crc32c(data))


@pytest.mark.parametrize("name", ["pickle", "numcodecs.pickle", "blosc", "numcodecs.zlib", "delta", "None", ""])
def test_a_codec_that_is_not_on_the_list_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="not allowed"):
        Pipeline.from_json([{"name": "vlen-utf8"}, {"name": name}, {"name": "crc32c"}], where="x")


def test_crc32c_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(memoryview(b"123456789")) == 0xE3069283


@pytest.mark.parametrize("count", [0, 1, 300])
def test_strings_round_trip(count: int) -> None:
    texts = [f"é{i}\0" for i in range(count)]
    data = STRINGS.encode(texts)
    assert STRINGS.decode(data, shape=(count,), dtype=np.dtype(object), where="x") == texts


@pytest.mark.parametrize("bad", [None, float("nan"), 3, b"bytes", "\ud800"], ids=repr)
def test_what_is_no_text_does_not_become_text(bad: Any) -> None:
    with pytest.raises(UsageError, match="text"):
        STRINGS.encode(["a", bad])


_BOMB = """if True:
    import resource, sys
    import imagecodecs, numpy as np
    from histostore.errors import CorruptionError
    from histostore.store.codecs import Pipeline, crc32c, jpeg
    import struct, zlib

    def bomb(kind):
        if kind == "jpeg":  # an honest image whose header claims 65,000 x 65,000
            small = bytes(imagecodecs.jpeg_encode(np.zeros((16, 16, 3), np.uint8), level=95))
            at = small.index(bytes([0xFF, 0xC0])) + 5
            return small[:at] + struct.pack(">HH", 65000, 65000) + small[at + 4:]
        if kind == "zstd":  # one frame of a GiB of zeros, made from one block repeated
            block, n = 128 << 10, 8192
            header = bytes.fromhex("28b52ffd") + bytes([0b10000000 | 0b00100000]) + struct.pack("<I", block * n)
            rle = lambda last: struct.pack("<I", last | (1 << 1) | (block << 3))[:3] + b"\\0"
            return header + rle(0) * (n - 1) + rle(1)
        packer = zlib.compressobj(1, wbits=31)
        return b"".join(packer.compress(bytes(1 << 20)) for _ in range(128)) + packer.flush()

    kind, dtype, mib = sys.argv[1:]
    data = bomb(kind)
    data += struct.pack("<I", crc32c(data))
    first = {"object": "vlen-utf8", "uint8": "imagecodecs_jpeg"}.get(dtype, "bytes")
    names = [first, "crc32c"] if kind == "jpeg" else [first, kind, "crc32c"]
    pipeline = Pipeline.from_json([{"name": n} for n in names], where="x")
    shape = (16, 16, 3) if kind == "jpeg" else (4, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        pipeline.decode(data, shape=shape, dtype=np.dtype(dtype), where="x")
    except CorruptionError as error:
        print("refused:", error)
    print(len(data), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(
    ("kind", "dtype", "mib"),
    [("zstd", "float32", 8), ("gzip", "float32", 8), ("jpeg", "uint8", 8), ("zstd", "object", 300)],
)
def test_a_decompression_bomb_is_refused_with_little_memory(
    python: Callable[..., subprocess.Popen], kind: str, dtype: str, mib: int
) -> None:
    out, err = python(_BOMB, kind, dtype, mib).communicate(timeout=60)
    assert out.startswith("refused:"), out + err
    assert "does not decode into" in out
    size, grew = map(float, out.splitlines()[-1].split())
    assert size < 2 << 20
    assert grew < mib, f"grew by {grew} MiB"


@pytest.mark.parametrize(
    ("pipeline", "data"),
    [
        (RAW, b"12345678"),
        (RAW, b""),
        (RAW, with_crc(b"1234567")),
        (ZSTD, with_crc(b"not zstd")),
        (ZSTD, with_crc(bytes(imagecodecs.zstd_encode(b"1234567")))),
        (Pipeline((("bytes", ()), ("gzip", ()), ("crc32c", ()))), with_crc(b"not gzip")),
        (Pipeline((("bytes", ()), ("gzip", ()), ("crc32c", ()))), with_crc(gzip.compress(b"12345678", mtime=0)[:-3])),
        (jpeg(95), with_crc(b"not jpeg")),
        (STRINGS, with_crc(bytes(imagecodecs.zstd_encode(b"\2\0\0\0\1\0\0\0a")))),
        (STRINGS, with_crc(bytes(imagecodecs.zstd_encode(b"\2\0\0\0\xff\xff\xff\xffa")))),
        (STRINGS, with_crc(bytes(imagecodecs.zstd_encode(b"\2\0\0\0\1\0\0\0\xff\0\0\0\0")))),
        (STRINGS, with_crc(bytes(imagecodecs.zstd_encode(b"\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")))),
        (STRINGS, with_crc(bytes(imagecodecs.zstd_encode(b"\2\0\0\0\0\0\0\0\0\0\0\0more")))),
    ],
)
def test_a_chunk_that_does_not_decode_is_corruption(pipeline: Pipeline, data: bytes) -> None:
    dtype = np.dtype(object) if pipeline is STRINGS else np.dtype("u1" if "jpeg" in str(pipeline) else "f4")
    shape = (16, 16, 3) if dtype == np.uint8 else (2,)
    with pytest.raises(CorruptionError):
        pipeline.decode(data, shape=shape, dtype=dtype, where="x")


def test_gzip_is_read_though_never_written() -> None:
    pipeline = Pipeline((("bytes", ()), ("gzip", (("level", 5),)), ("crc32c", ())))
    values = np.arange(8, dtype=np.float32)
    data = with_crc(zlib.compress(values.tobytes(), wbits=31))
    np.testing.assert_array_equal(pipeline.decode(data, shape=(8,), dtype=values.dtype, where="x"), values)
    np.testing.assert_array_equal(
        pipeline.decode(pipeline.encode(values), shape=(8,), dtype=values.dtype, where="x"), values
    )


def test_jpeg_keeps_all_chroma_and_zstd_keeps_every_bit() -> None:
    red_beside_blue = np.zeros((16, 16, 3), np.uint8)
    red_beside_blue[:, ::2, 0] = red_beside_blue[:, 1::2, 2] = 200
    shape = (1, 16, 16, 3)
    for pipeline, tolerance in ((jpeg(95), 25), (ZSTD_U8, 0)):
        data = pipeline.encode(red_beside_blue[None])
        out = pipeline.decode(data, shape=shape, dtype=np.dtype("u1"), where="x")
        assert np.abs(out[0].astype(int) - red_beside_blue).max() <= tolerance


def test_huffman_tables_of_a_tiles_own_save_bytes_and_change_no_pixel() -> None:
    rng = np.random.default_rng(0)
    tile = (rng.normal(0, 6, (1, 64, 64, 3)).cumsum(axis=1) + 150).clip(0, 255).astype(np.uint8)
    common = Pipeline((("imagecodecs_jpeg", (("level", 95), ("subsampling", "444"))), ("crc32c", ())))
    one, other = common.encode(tile), jpeg(95).encode(tile)
    assert len(other) < 0.95 * len(one)
    dtype = np.dtype("u1")
    assert np.array_equal(
        *(p.decode(d, shape=tile.shape, dtype=dtype, where="x") for p, d in ((common, one), (jpeg(95), other)))
    )


# ── bit flips ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_group(store: Store, ref: Any) -> Any:
    group = store.group(ref)
    values: dict[str, Any] = {"attrs": group.attrs, "rows": group.rows, "header": store.header(ref)}
    for name in group.header["files"]:
        if name.endswith("/zarr.json"):
            node = json.loads(group.bytes(name))
            array = name[len("zarr/") : -len("/zarr.json")]
            if node["node_type"] == "array":
                read = group.array(array).read()
                values[array] = read.tobytes() if read.dtype != object else read.tolist()
        elif not name.startswith("zarr/"):
            values[name] = group.bytes(name)
    return values


def readers_of(store: Store) -> dict[str, Callable[[Store], Any]]:
    """For every file of a store, what reads it."""
    found: dict[str, Callable[[Store], Any]] = {
        "STORE.json": lambda s: (open_store(s.uri).name, open_store(s.uri).uuid)
    }
    for owner in store.owners():
        for key, _, _ in store.files.walk(f"manifests/{owner}"):
            found[key] = lambda s, o=owner, n=int(key[-13:-5]): s.manifest(o, n)
            for ref in store.manifest(owner, int(key[-13:-5])).entries.values():
                for name, _, _ in store.files.walk(ref.prefix):
                    found[name] = lambda s, r=ref: read_group(s, r)
    return found


def flip(data: bytes, random_: random.Random) -> bytes:
    changed = bytearray(data)
    changed[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return bytes(changed)


def test_of_a_thousand_flipped_bits_in_all_kinds_of_file_none_goes_unnoticed(golden: Store) -> None:
    readers = readers_of(golden)
    assert len(readers) == sum(1 for _ in golden.files.walk(""))
    truth = {reader: reader(golden) for reader in readers.values()}
    rng, keys = random.Random(0), sorted(readers)
    silent, noticed = [], 0
    for turn in range(1000):
        key = keys[turn % len(keys)]
        whole = golden.files.get(key)
        (golden.files.root / key).write_bytes(flip(whole, rng))
        try:
            if readers[key](golden) != truth[readers[key]]:
                silent.append(key)
        except HistostoreError:
            noticed += 1
        (golden.files.root / key).write_bytes(whole)
    assert silent == []
    assert noticed == 1000


def test_deep_verify_notices_every_flipped_bit_and_names_the_file(golden: Store) -> None:
    assert verify(golden).problems == ()
    rng, keys = random.Random(1), sorted(readers_of(golden))
    for key in rng.sample(keys, len(keys)):
        whole = golden.files.get(key)
        (golden.files.root / key).write_bytes(flip(whole, rng))
        report = verify(golden)
        assert not report.ok, key
        assert key in {p.path for p in report.errors}, key
        (golden.files.root / key).write_bytes(whole)
    assert verify(golden).problems == ()


def test_flipped_bits_in_working_files_change_nothing_of_what_is_sealed(
    store: Store, vectors: np.ndarray, begin_vectors: Callable[..., GroupWriter]
) -> None:
    def fill(writer: GroupWriter, upto: int) -> None:
        for shard in writer.pending("embedding")[:upto]:
            writer.write_rows("embedding", shard, vectors[4 * shard : 4 * shard + 4], note={"status": [shard] * 4})

    def finish(writer: GroupWriter) -> dict[str, Any]:
        fill(writer, 6)
        notes = [writer.receipt("embedding", s)["note"] for s in range(6)]
        writer.put_array("status", np.zeros(23, np.uint8))
        ref = writer.seal(rows=23, attrs={"notes": notes})
        header = store.header(ref)
        del header["files"]["zarr/zarr.json"]  # names the digest, which is another one each time here
        return {k: v for k, v in header.items() if k not in ("attempt", "digest", "spec")}

    with begin_vectors(store, name="whole") as writer:
        truth = finish(writer)
    rng = random.Random(2)
    for turn in range(60):
        with begin_vectors(store, name=f"n{turn}") as writer:
            fill(writer, 4)
        folder = store.files.root / writer.prefix
        working = [*sorted(folder.glob("receipts/*")), folder / "ATTEMPT.json"]
        path = working[turn % len(working)]
        path.write_bytes(flip(path.read_bytes(), rng))
        with begin_vectors(store, name=f"n{turn}") as writer:
            assert finish(writer) == truth
