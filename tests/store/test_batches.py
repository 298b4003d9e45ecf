"""Batches of rows: every row once, in an order that depends on (seed, epoch) alone, with bounded memory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import imagecodecs.zarr
import numpy as np
import pytest
import zarr

from histostore.errors import CorruptionError, UsageError
from histostore.store.arrays import ArrayReader, ArraySpec, chunk_rows, encode_shard
from histostore.store.batches import batches, row_order
from histostore.store.codecs import RAW, ZSTD_U8, jpeg
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from histostore.store.codecs import Buffer, Pipeline

imagecodecs.zarr.register_codecs(verbose=False)


class Distant(LocalFiles):
    """Files of which nothing can be mapped; remembers what was asked of them."""

    asked: list[tuple[str, list[tuple[int, int]]]]

    def map(self, key: str) -> memoryview | None:
        if self.size(key) is None:
            raise FileNotFoundError(key)
        return None

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        self.asked.append((key, list(ranges)))
        return super().read_ranges(key, ranges)


@pytest.fixture
def tiles(tmp_path: Path) -> Callable[..., tuple[Any, ArrayReader]]:
    """Write 50 tiles in shards of 16, and return what zarr-python reads of them, and a reader."""

    def write(pipeline: Pipeline, *, distant: bool = False) -> tuple[Any, ArrayReader]:
        values = (np.indices((50, 16, 16, 3)).sum(axis=0) * 3 % 251).astype(np.uint8)
        spec = ArraySpec(shape=values.shape, dtype="uint8", chunk_rows=1, shard_rows=16, pipeline=pipeline)
        files = LocalFiles(tmp_path)
        files.put("a/zarr.json", spec.to_zarr_json())
        for shard in range(spec.n_shards):
            start, stop = spec.shard_range(shard)
            chunks = [pipeline.encode(c) for c in chunk_rows(spec, values[start:stop])]
            files.put(f"a/{spec.key(shard)}", *encode_shard(spec, chunks))
        if distant:
            files = Distant(tmp_path)
            files.asked = []
        return zarr.open_array(tmp_path / "a", mode="r")[:], ArrayReader.open(files, "a")

    return write


@pytest.mark.parametrize("distant", [False, True], ids=["mapped", "ranges"])
@pytest.mark.parametrize("pipeline", [jpeg(95), ZSTD_U8, RAW], ids=["jpeg", "zstd", "raw"])
def test_batches_hold_what_zarr_python_reads(tiles: Any, pipeline: Pipeline, distant: bool) -> None:
    theirs, reader = tiles(pipeline, distant=distant)
    in_order = list(batches(reader, 7))
    assert [len(ids) for ids, _ in in_order] == [7] * 7 + [1]
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in in_order]), np.arange(50))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in in_order]), theirs)
    for ids, rows in batches(reader, 8, seed=3, epoch=1, threads=3, ahead=2):
        np.testing.assert_array_equal(rows, theirs[ids])
    chosen = np.array([49, 0, 0, 17, 16])
    ((ids, rows),) = batches(reader, 10, rows=chosen, ahead=0)
    np.testing.assert_array_equal(ids, chosen)
    np.testing.assert_array_equal(rows, theirs[chosen])


def test_the_order_depends_on_seed_and_epoch_alone(tiles: Any) -> None:
    _, reader = tiles(ZSTD_U8)

    def order(size: int, **how: Any) -> list[int]:
        return [i for ids, _ in batches(reader, size, **how) for i in ids.tolist()]

    once = order(8, seed=1, epoch=2)
    assert sorted(once) == list(range(50))
    assert once == order(64, seed=1, epoch=2, threads=1, ahead=0) == row_order(50, seed=1, epoch=2).tolist()
    assert once != order(8, seed=1, epoch=3) != order(8, seed=2, epoch=2)
    rows = np.arange(10, 30)
    assert sorted(order(8, seed=1, rows=rows)) == rows.tolist()


def test_neighbours_are_fetched_in_one_range_and_an_index_once(tiles: Any) -> None:
    theirs, reader = tiles(ZSTD_U8, distant=True)
    files = reader.files
    np.testing.assert_array_equal(reader.read(slice(0, 8)), theirs[:8])
    assert [len(ranges) for _, ranges in files.asked] == [1, 1], "the index, and eight tiles"
    files.asked.clear()
    np.testing.assert_array_equal(reader.read(np.array([15, 2, 9])), theirs[[15, 2, 9]])
    assert len(files.asked) == 1
    assert sum(size for _, size in files.asked[0][1]) < files.size("a/c/0/0/0/0")


@pytest.mark.parametrize("distant", [False, True], ids=["mapped", "ranges"])
@pytest.mark.parametrize("pipeline", [jpeg(95), ZSTD_U8, RAW], ids=["jpeg", "zstd", "raw"])
def test_a_flipped_bit_is_found_whatever_reads_it(tiles: Any, pipeline: Pipeline, distant: bool) -> None:
    _, reader = tiles(pipeline, distant=distant)
    path = reader.files.root / "a" / "c" / "1" / "0" / "0" / "0"
    damaged = bytearray(path.read_bytes())
    damaged[50] ^= 1
    path.write_bytes(damaged)
    reader.read(slice(0, 16))
    with pytest.raises(CorruptionError, match="checksum"):
        list(batches(reader, 8, seed=0))
    reader.read(slice(17, 50))
    path.unlink()
    fresh = ArrayReader.open(reader.files, "a")
    with pytest.raises(CorruptionError, match="is missing"):
        fresh.read(np.array([20]))


def test_a_checksum_is_compared_once_where_the_file_is_mapped(tiles: Any) -> None:
    for pipeline in (ZSTD_U8, RAW):
        _, reader = tiles(pipeline)
        reader.read(slice(0, 3))
        at = reader.files.root / "a" / "c" / "0" / "0" / "0" / "0"
        begin = int(reader._shards[0].index[1].sum()) - 4
        with at.open("r+b") as file:
            file.seek(begin)
            file.write(b"\0\0\0\0")
        reader.read(np.array([1]))
        reader.release()
        reader.read(np.array([1]))
        with pytest.raises(CorruptionError, match="checksum"):
            ArrayReader.open(reader.files, "a").read(np.array([1]))


def test_rows_are_read_into_the_callers_own_memory(tiles: Any) -> None:
    for pipeline in (jpeg(95), ZSTD_U8, RAW):
        theirs, reader = tiles(pipeline)
        out = np.zeros((4, 16, 16, 3), np.uint8)
        rows = np.array([3, 30, 3, 0])
        assert reader.read(rows, out=out) is out
        np.testing.assert_array_equal(out, theirs[rows])
        for wrong in (out[:3], out.astype(np.int8), np.zeros((4, 16, 3, 16), np.uint8).swapaxes(2, 3)):
            with pytest.raises(UsageError, match="out is"):
                reader.read(rows, out=wrong)


def test_a_reader_gives_mapped_memory_back_as_it_goes_on(tiles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, reader = tiles(ZSTD_U8)
    monkeypatch.setattr("histostore.store.arrays.RELEASE_BYTES", 500)
    np.testing.assert_array_equal(reader.read(), theirs)
    assert reader._touched <= 500


def test_leaving_batches_early_ends_their_threads(tiles: Any) -> None:
    import threading

    _, reader = tiles(jpeg(95))
    loop = batches(reader, 2, seed=0)
    next(loop)
    loop.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("histostore-rows")]
    for how in ({"size": 0}, {"size": 2, "threads": 0}, {"size": 2, "ahead": -1}):
        with pytest.raises(UsageError, match="at least"):
            next(batches(reader, **how))
    with pytest.raises(IndexError):
        list(batches(reader, 4, rows=np.array([50])))


def test_raw_rows_of_every_width_and_order_are_gathered(tmp_path: Path) -> None:
    """Rows of whole words and of odd bytes; few and many rows of a chunk; sorted, scattered, repeated."""
    rng = np.random.default_rng(0)
    for dtype, width in (("float32", 5), ("float16", 3), ("float64", 2), ("uint8", 7)):
        values = rng.integers(0, 99, (700, width)).astype(dtype)
        fill: Any = "NaN" if values.dtype.kind == "f" else 0
        spec = ArraySpec(shape=values.shape, dtype=dtype, chunk_rows=32, shard_rows=96, pipeline=RAW, fill_value=fill)
        files = LocalFiles(tmp_path / dtype, make=True)
        files.put("a/zarr.json", spec.to_zarr_json())
        for shard in range(spec.n_shards):
            start, stop = spec.shard_range(shard)
            chunks = [RAW.encode(c) for c in chunk_rows(spec, values[start:stop])]
            files.put(f"a/{spec.key(shard)}", *encode_shard(spec, chunks))
        reader = ArrayReader.open(files, "a")
        for n in (1, 9, 300, 2000):
            rows = rng.integers(0, 700, n)
            for asked in (rows, np.sort(rows), np.unique(rows)[::-1]):
                np.testing.assert_array_equal(reader.read(asked), values[asked])
        for cut in (slice(None), slice(31, 33), slice(5, 600), slice(None, None, 3), slice(9, None, -2)):
            np.testing.assert_array_equal(reader.read(cut), values[cut])
    assert sys.byteorder == "little"


def test_raw_chunks_in_another_order_are_read_all_the_same(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(12, 2)
    spec = ArraySpec(shape=(12, 2), dtype="float32", chunk_rows=4, shard_rows=12, pipeline=RAW, fill_value="NaN")
    files = LocalFiles(tmp_path)
    files.put("a/zarr.json", spec.to_zarr_json())
    *chunks, index, _ = encode_shard(spec, [RAW.encode(c) for c in chunk_rows(spec, values)])
    turned = np.frombuffer(index, "<u8").reshape(-1, 2)[::-1].tobytes()
    from histostore.store.codecs import crc32c

    files.put("a/c/0/0", *reversed(chunks), turned, crc32c(turned).to_bytes(4, "little"))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], values)
    reader = ArrayReader.open(files, "a")
    np.testing.assert_array_equal(reader.read(), values)
    np.testing.assert_array_equal(reader.read(np.array([11, 0, 5])), values[[11, 0, 5]])
