"""Rows of an embedding array: ours beside a numpy memory map (the limit), zarr-python, AnnData, HDF5 and Lance on disk.

    python -m benchmarks.rows

60,000 x 1,024 float32, 256 rows a chunk, 2,048 a shard, raw with crc32c, written as `embed` writes them. Interleaved
rounds, files in the page cache; prints ratios, median (lowest-highest) of the rounds, and exits 1 when a median misses
its gate. Writing is compared with `numpy.save` as it is, which hands the bytes to the page cache: ours has checksums,
sha256 and an fsync of every shard. All write new files, as one that is overwritten finds its pages in memory. HDF5
holds one row a chunk, as TRIDENT writes it, and 256; Lance (of the `bench` group) its own layout.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import tempfile
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import zarr

from benchmarks._rounds import Gates, faster, interleaved, slower
from histostore.specs import EmbeddingSpec
from histostore.store.arrays import ArrayReader, ArraySpec
from histostore.store.batches import batches
from histostore.store.codecs import RAW
from histostore.store.store import create_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROWS, DIM, GATHER = 60_000, 1_024, 4_096
MOST = {"gather, sorted": 1.5, "first touch": 1.3, "full read": 1.3, "write": 2.0}
"""How many times as long as the limit ours may take."""
LEAST_ANNDATA = 30.0
"""How many times as fast as a gather from an AnnData's obsm ours is to be."""


def write_ours(folder: Path, values: NDArray[np.float32]) -> ArrayReader:
    """Write rows as the stage does."""
    store, layout = create_store(folder), EmbeddingSpec(dtype="float32")
    spec = ArraySpec(
        shape=values.shape, dtype="float32", chunk_rows=layout.chunk_rows, shard_rows=layout.shard_rows, pipeline=RAW,
        fill_value="NaN", dims=("tile", "feature"),
    )  # fmt: skip
    with store.begin("S", "embeddings", "e", spec={}, inputs={}) as writer:
        writer.create("embedding", spec)
        for shard in range(spec.n_shards):
            start, stop = spec.shard_range(shard)
            writer.write_rows("embedding", shard, values[start:stop])
        writer.put_array("status", np.zeros(len(values), np.uint8))
        ref = writer.seal(rows=len(values))
    return store.group(ref).array("embedding")


def drawn(run: Callable[[NDArray[np.int64]], object], *, ordered: bool) -> Callable[[], object]:
    """Return a gather of random rows; every contestant draws the same ones."""
    rounds = count()

    def work() -> None:
        rows = np.random.default_rng([5, next(rounds)]).integers(0, ROWS, GATHER)
        run(np.sort(rows) if ordered else rows)

    return work


def saved(path: Path, values: NDArray[np.float32], *, sync: bool) -> None:
    """Save with numpy, and wait for the disk or not."""
    with path.open("wb") as file:
        np.save(file, values)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def by_hdf5(path: Path, values: NDArray[np.float32], chunk_rows: int) -> Callable[[NDArray[np.int64]], object]:
    """Write an HDF5 file and return its gather of sorted rows."""
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=values, chunks=(chunk_rows, values.shape[1]))
    features: Any = h5py.File(path)["features"]
    return lambda ids: features[np.unique(ids)]


def by_lance(path: Path, values: NDArray[np.float32]) -> Callable[[NDArray[np.int64]], object]:
    """Write a Lance dataset of vectors and return its gather."""
    lance, arrow = importlib.import_module("lance"), importlib.import_module("pyarrow")
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1)), values.shape[1])
    dataset = lance.write_dataset(arrow.table({"features": vectors}), str(path))
    return lambda ids: dataset.take(ids)["features"].combine_chunks().flatten().to_numpy()


def measure(folder: Path, rounds: int, gates: Gates) -> None:
    """Compare everything on one array."""
    values = np.random.default_rng(0).standard_normal((ROWS, DIM), dtype=np.float32)
    number = count()
    times = interleaved(
        {
            "ours": lambda: write_ours(folder / f"w{next(number)}", values),
            "np.save": lambda: saved(folder / f"n{next(number)}.npy", values, sync=False),
            "np.save and fsync": lambda: saved(folder / f"s{next(number)}.npy", values, sync=True),
        },
        min(rounds, 3),
    )
    gates.ratio("write, over np.save", slower(times, "ours", "np.save"), most=MOST["write"])
    gates.ratio("write, over np.save and fsync", slower(times, "ours", "np.save and fsync"))
    ours = write_ours(folder / "ours", values)
    saved(folder / "a.npy", values, sync=False)
    mapped: Any = np.load(folder / "a.npy", mmap_mode="r")
    theirs = zarr.open_array(f"{ours.files.uri}/{ours.prefix}", mode="r")
    anndata.AnnData(obsm={"X_e": values}).write_zarr(folder / "adata.zarr")
    obsm: Any = zarr.open_group(folder / "adata.zarr", mode="r")["obsm/X_e"]
    rows = np.random.default_rng(1).integers(0, ROWS, GATHER)
    assert all(np.array_equal(found, values[rows]) for found in (ours.read(rows), theirs.oindex[rows]))
    assert np.array_equal(ours.read(), values)

    def untouched() -> ArrayReader:
        return ArrayReader.open(ours.files, ours.prefix)

    peers = {
        "HDF5, a row a chunk": by_hdf5(folder / "rows.h5", values, 1),
        "HDF5, 256 rows a chunk": by_hdf5(folder / "chunks.h5", values, 256),
    }
    if importlib.util.find_spec("lance"):
        peers["Lance"] = by_lance(folder / "a.lance", values)
    else:
        print("  Lance is not installed (group bench)")
    times = interleaved(
        {
            **{name: drawn(gather, ordered=True) for name, gather in peers.items()},
            "memmap": drawn(lambda ids: mapped[ids], ordered=True),
            "ours": drawn(ours.read, ordered=True),
            "memmap, unsorted": drawn(lambda ids: mapped[ids], ordered=False),
            "ours, unsorted": drawn(ours.read, ordered=False),
            "zarr": drawn(lambda ids: theirs.oindex[ids], ordered=True),
            "anndata": drawn(lambda ids: obsm.oindex[ids], ordered=True),
            "full memmap": lambda: np.array(mapped),
            "full ours": ours.read,
            "full ours, first": lambda: untouched().read(),
            "first touch": drawn(lambda ids: untouched().read(ids), ordered=True),
            "epoch": lambda: [None for _ in batches(ours, 256, seed=0, threads=1)],
        },
        rounds,
    )
    gates.ratio("gather, sorted, over memmap", slower(times, "ours", "memmap"), most=MOST["gather, sorted"])
    gates.ratio("gather, unsorted, over memmap", slower(times, "ours, unsorted", "memmap, unsorted"))
    gates.ratio("first gather, verifying, over a full read", slower(times, "first touch", "full memmap"),
                most=MOST["first touch"])  # fmt: skip
    gates.ratio("full read, over memmap", slower(times, "full ours", "full memmap"), most=MOST["full read"])
    gates.ratio("first full read, verifying, over memmap", slower(times, "full ours, first", "full memmap"))
    gates.ratio("shuffled epoch in batches of 256, over a full read", slower(times, "epoch", "full memmap"))
    gates.ratio("gather, speed over zarr-python", faster(times, "ours", "zarr"))
    gates.ratio("gather, speed over anndata's obsm", faster(times, "ours", "anndata"), least=LEAST_ANNDATA)
    for peer in peers:
        gates.ratio(f"gather, speed over {peer}", faster(times, "ours", peer))


def main() -> int:
    """Print a line per claim; return 1 when one of them is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(f"{ROWS:,} x {DIM:,} float32, zarr {zarr.__version__}, anndata {version('anndata')}")
    gates = Gates()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.rounds, gates)
    return gates.end()


if __name__ == "__main__":
    sys.exit(main())
