"""Arrays: byte-equal with zarr-python, rows in any order, and never a fill value for what is missing."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import imagecodecs.zarr
import numpy as np
import pytest
import zarr
import zarr.codecs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histostore.errors import CorruptionError, FormatError, UsageError
from histostore.store.arrays import ArrayReader, ArraySpec, chunk_rows, encode_shard, small_array
from histostore.store.codecs import RAW, STRINGS, ZSTD, ZSTD_U8, jpeg
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.store.codecs import Pipeline

imagecodecs.zarr.register_codecs(verbose=False)


def write(files: LocalFiles, prefix: str, spec: ArraySpec, values: Any) -> None:
    files.put(f"{prefix}/zarr.json", spec.to_zarr_json())
    for shard in range(spec.n_shards):
        start, stop = spec.shard_range(shard)
        chunks = [spec.pipeline.encode(c) for c in chunk_rows(spec, values[start:stop])]
        files.put(f"{prefix}/{spec.key(shard)}", *encode_shard(spec, chunks))


def spec_of(values: np.ndarray, pipeline: Pipeline, *, chunk: int, shard: int) -> ArraySpec:
    fill: Any = "NaN" if values.dtype.kind == "f" else (False if values.dtype.kind == "b" else 0)
    return ArraySpec(
        shape=values.shape, dtype=values.dtype.name, chunk_rows=chunk, shard_rows=shard, pipeline=pipeline,
        fill_value=fill,
    )  # fmt: skip


RNG = np.random.default_rng(0)
SMOOTH = np.indices((7, 16, 16, 3)).sum(axis=0).astype(np.uint8)
CASES = {
    "float16 raw": (RNG.normal(size=(23, 6)).astype(np.float16), RAW, 2, 4),
    "float32 raw, one shard": (RNG.normal(size=(5, 3)).astype(np.float32), RAW, 5, 5),
    "float64 zstd": (RNG.normal(size=(11, 2)), ZSTD, 3, 6),
    "uint64 zstd": (RNG.integers(0, 2**63, (9, 3)).astype(np.uint64), ZSTD, 4, 8),
    "int32 vector": (np.arange(100, dtype=np.int32), ZSTD, 16, 32),
    "bool": (RNG.random((9, 4)) > 0.5, ZSTD_U8, 2, 4),
    "pixels zstd": (SMOOTH, ZSTD_U8, 1, 4),
    "pixels jpeg": (SMOOTH, jpeg(95), 1, 4),
    "all zero": (np.zeros((8, 3), np.float32), RAW, 2, 4),
}


@pytest.mark.parametrize("case", CASES)
def test_files_are_byte_equal_with_those_of_zarr_python(tmp_path: Path, case: str) -> None:
    values, pipeline, chunk, shard = CASES[case]
    files, spec = LocalFiles(tmp_path), spec_of(values, pipeline, chunk=chunk, shard=shard)
    write(files, "ours", spec, values)
    (tmp_path / "theirs").mkdir()
    shutil.copy(tmp_path / "ours" / "zarr.json", tmp_path / "theirs" / "zarr.json")
    with zarr.config.set({"array.write_empty_chunks": True}):
        theirs = zarr.open_array(tmp_path / "theirs", mode="r+")
        theirs[:] = values
    keys = [spec.key(s) for s in range(spec.n_shards)]
    written = sorted(
        p.relative_to(tmp_path / "theirs").as_posix() for p in (tmp_path / "theirs" / "c").rglob("*") if p.is_file()
    )
    assert written == sorted(keys)
    for key in keys:
        assert files.get(f"ours/{key}") == files.get(f"theirs/{key}"), key
    ours = ArrayReader.open(files, "ours").read()
    np.testing.assert_array_equal(ours, zarr.open_array(tmp_path / "ours", mode="r")[:])
    if case != "pixels jpeg":
        np.testing.assert_array_equal(ours, values)
    else:
        assert np.abs(ours.astype(int) - values).max() <= 8


def test_strings_are_read_by_zarr_python_and_read_from_it(tmp_path: Path) -> None:
    texts = ["AAAC-1", "", "Zürich µ", "a\nb", "x" * 500, "日本", "nan"]
    files, spec = LocalFiles(tmp_path), small_array(texts, dims=("point",))
    write(files, "ours", spec, texts)
    assert zarr.open_array(tmp_path / "ours", mode="r")[:].tolist() == texts
    assert ArrayReader.open(files, "ours").read().tolist() == texts
    (tmp_path / "theirs").mkdir()
    shutil.copy(tmp_path / "ours" / "zarr.json", tmp_path / "theirs" / "zarr.json")
    zarr.open_array(tmp_path / "theirs", mode="r+")[:] = np.array(texts, dtype=object)
    assert files.get("theirs/c/0") == files.get("ours/c/0")
    assert ArrayReader.open(files, "theirs").read(np.array([2, 0, 2])).tolist() == ["Zürich µ", "AAAC-1", "Zürich µ"]


def test_strings_in_several_chunks_come_back_in_order(tmp_path: Path) -> None:
    texts = [f"spot-{i}" for i in range(11)]
    spec = ArraySpec(shape=(11,), dtype="string", chunk_rows=2, shard_rows=4, pipeline=STRINGS, fill_value="")
    files = LocalFiles(tmp_path)
    write(files, "a", spec, texts)
    assert ArrayReader.open(files, "a").read().tolist() == texts
    assert zarr.open_array(tmp_path / "a", mode="r")[:].tolist() == texts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_in_any_order_are_the_rows_asked_for(tmp_path: Path, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    chunk = data.draw(st.integers(1, 7))
    shard = chunk * data.draw(st.integers(1, 5))
    pipeline = data.draw(st.sampled_from([RAW, ZSTD]))
    values = np.arange(n * 3, dtype=np.float32).reshape(n, 3)
    files, spec = LocalFiles(tmp_path), spec_of(values, pipeline, chunk=chunk, shard=shard)
    write(files, "a", spec, values)
    reader = ArrayReader.open(files, "a")
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=60)), dtype=np.int64)
    np.testing.assert_array_equal(reader.read(rows), values[rows])
    start, stop = data.draw(st.integers(-n - 2, n + 2)), data.draw(st.integers(-n - 2, n + 2))
    np.testing.assert_array_equal(reader.read(slice(start, stop)), values[start:stop])
    size = data.draw(st.integers(1, n + 3))
    np.testing.assert_array_equal(np.concatenate([b for _, b in reader.blocks(size)]), values)


@pytest.mark.parametrize("case", ["pixels zstd", "pixels jpeg", "float64 zstd", "float16 raw"])
def test_threads_read_what_one_thread_reads(tmp_path: Path, case: str) -> None:
    values, pipeline, chunk, shard = CASES[case]
    files = LocalFiles(tmp_path)
    write(files, "a", spec_of(values, pipeline, chunk=chunk, shard=shard), values)
    reader, rows = ArrayReader.open(files, "a"), np.array([6, 0, 3, 3, 5])
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(ArrayReader.open(files, "a").read(rows, pool=pool), reader.read(rows))
        reads = list(pool.map(lambda _: reader.read(), range(16)))
    assert all((r == reads[0]).all() for r in reads)


def test_rows_belong_to_the_caller(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    files = LocalFiles(tmp_path)
    write(files, "a", spec_of(values, RAW, chunk=6, shard=6), values)
    reader = ArrayReader.open(files, "a")
    reader.read()[:] = -1
    np.testing.assert_array_equal(reader.read(), values)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (5, 0), (0, 0)], ids=str)
def test_an_array_without_elements_is_kept_and_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.zeros(shape)
    files, spec = LocalFiles(tmp_path), small_array(np.zeros(shape))
    write(files, "a", spec, values)
    assert spec.n_shards == 0
    reader = ArrayReader.open(files, "a")
    assert reader.read().shape == shape
    assert reader.read(np.arange(shape[0])).shape == shape
    assert zarr.open_array(tmp_path / "a", mode="r")[:].shape == shape
    write(files, "texts", small_array([]), [])
    assert ArrayReader.open(files, "texts").read().tolist() == []


def test_attributes_dimension_names_and_layout_survive(tmp_path: Path) -> None:
    spec = ArraySpec(
        shape=(7, 2), dtype="float32", chunk_rows=2, shard_rows=4, pipeline=RAW, fill_value="NaN",
        dims=("tile", "feature"),
        attrs=(("columns", ["a", "b"]),),
    )  # fmt: skip
    assert ArraySpec.from_zarr_json(spec.to_zarr_json(), where="x") == spec
    files = LocalFiles(tmp_path)
    write(files, "a", spec, np.zeros((7, 2), np.float32))
    theirs = zarr.open_array(tmp_path / "a", mode="r")
    assert theirs.metadata.dimension_names == ("tile", "feature")
    assert theirs.attrs["columns"] == ["a", "b"]
    assert theirs.shards == (4, 2)
    assert theirs.chunks == (2, 2)


def test_a_bad_question_is_refused(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    files = LocalFiles(tmp_path)
    write(files, "a", spec_of(values, RAW, chunk=2, shard=4), values)
    reader = ArrayReader.open(files, "a")
    for rows in ([6], [-1], [0, 2**40], np.array([2**63], np.uint64)):
        with pytest.raises(IndexError):
            reader.read(np.asarray(rows))
    for rows in (values[:, 0] > 3, np.array([0.5]), np.array([[0, 1]]), np.array(["0"])):
        with pytest.raises(UsageError, match="asked for by number"):
            reader.read(rows)
    assert reader.read(np.array([])).shape == (0, 2)


def test_rows_of_another_type_or_shape_are_not_written() -> None:
    spec = ArraySpec(shape=(4, 2), dtype="float32", chunk_rows=2, shard_rows=4, pipeline=RAW, fill_value="NaN")
    for rows in (np.zeros((4, 2), np.int32), np.zeros((4, 3), np.float32), np.zeros(4, np.float32), [[0.0, 0.0]]):
        with pytest.raises(UsageError, match="rows of this array are float32"):
            list(chunk_rows(spec, rows))
    for values in (
        np.array(["a"]),
        np.array([object()]),
        np.array(1.0),
        np.array(["2020"], "M8[D]"),
        np.zeros(2, complex),
    ):
        with pytest.raises(UsageError, match="is not stored"):
            small_array(values)


@pytest.mark.parametrize("case", ["float16 raw", "float64 zstd", "pixels jpeg"])
def test_a_missing_or_cut_shard_is_an_error_and_never_fill(tmp_path: Path, case: str) -> None:
    values, pipeline, chunk, shard = CASES[case]
    files, spec = LocalFiles(tmp_path), spec_of(values, pipeline, chunk=chunk, shard=shard)
    write(files, "a", spec, values)
    for number in range(spec.n_shards):
        key = f"a/{spec.key(number)}"
        whole = files.get(key)
        for length in (0, 3, len(whole) // 2, len(whole) - 1):
            files.put(key, whole[:length])
            with pytest.raises(CorruptionError, match="verify"):
                ArrayReader.open(files, "a").read()
        files.put(key, whole, b"\0")
        with pytest.raises(CorruptionError, match="index is cut or damaged"):
            ArrayReader.open(files, "a").read()
        files.delete(key)
        with pytest.raises(CorruptionError, match="is missing"):
            ArrayReader.open(files, "a").read()
        files.put(key, whole)
    ArrayReader.open(files, "a").read()
    files.delete("a/zarr.json")
    with pytest.raises(CorruptionError, match=r"zarr\.json is missing"):
        ArrayReader.open(files, "a")


def test_a_chunk_missing_in_a_shard_of_others_is_an_error_and_never_fill(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.float32).reshape(8, 2)
    spec = spec_of(values, RAW, chunk=2, shard=8)
    files = LocalFiles(tmp_path)
    chunks = [RAW.encode(c) for c in chunk_rows(spec, values)]
    files.put("a/zarr.json", spec.to_zarr_json())
    files.put("a/c/0/0", *encode_shard(spec, chunks[:3]))
    reader = ArrayReader.open(files, "a")
    np.testing.assert_array_equal(reader.read(slice(0, 6)), values[:6])
    with pytest.raises(CorruptionError, match="chunk 3 is missing"):
        reader.read(slice(0, 7))


def _changed(**changes: Any) -> bytes:
    spec = ArraySpec(shape=(4, 2), dtype="float32", chunk_rows=2, shard_rows=4, pipeline=RAW, fill_value="NaN")
    document = json.loads(spec.to_zarr_json())
    config = document["codecs"][0]["configuration"]
    for key, value in changes.items():
        (config if key in config else document)[key] = value
    return json.dumps(document).encode()


_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_BIG = {"name": "bytes", "configuration": {"endian": "big"}}


@pytest.mark.parametrize(
    ("document", "error", "says"),
    [
        (b"", CorruptionError, "not the description"),
        (b"{", CorruptionError, "not the description"),
        (b"[]", CorruptionError, "not the description"),
        (b"[" * 200_000, CorruptionError, "not the description"),
        (_changed(shape=None), CorruptionError, "not the description"),
        (_changed(codecs="x"), CorruptionError, "not the description"),
        (_changed(data_type="float66"), FormatError, "data type"),
        (_changed(data_type="object"), FormatError, "data type"),
        (_changed(data_type={"name": "numpy.datetime64"}), FormatError, "data type"),
        (_changed(data_type="string"), FormatError, "not an encoding"),
        (_changed(shape=[-4, 2]), FormatError, "not rows"),
        (_changed(shape=[]), FormatError, "not rows"),
        (_changed(shape=[4, 3]), FormatError, "not rows"),
        (_changed(chunk_shape=[0, 2]), FormatError, "not rows"),
        (_changed(chunk_shape=[2, 1]), FormatError, "not rows"),
        (_changed(chunk_shape=[3, 2]), FormatError, "whole chunks"),
        (_changed(index_location="start"), FormatError, "index"),
        (_changed(index_codecs=[_BYTES]), FormatError, "index"),
        (_changed(codecs=[_BYTES]), FormatError, "not an encoding"),
        (_changed(codecs=[_BIG, {"name": "crc32c"}]), FormatError, "endian"),
        (_changed(codecs=[_BYTES, {"name": "numcodecs.pickle"}]), FormatError, "'numcodecs.pickle' is not allowed"),
        (_changed(codecs=[_BYTES, {"name": "blosc"}, {"name": "crc32c"}]), FormatError, "'blosc' is not allowed"),
        (_changed(codecs=[{"name": "sharding_indexed"}, {"name": "crc32c"}]), FormatError, "not an encoding"),
    ],
)  # fmt: skip
def test_a_zarr_json_that_is_not_ours_is_refused(document: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ArraySpec.from_zarr_json(document, where="x")


def test_an_array_that_is_not_sharded_is_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=np.zeros((4, 2)), chunks=(2, 2), compressors=None)
    with pytest.raises(FormatError, match="not sharded"):
        ArrayReader.open(LocalFiles(tmp_path), "a")
