"""Random rows of an embedding array: ours beside a numpy memory map (the limit) and stock zarr (the peer).

Interleaved rounds on one array of 60,000 x 1,024 float32; prints ratios to the limit. Exits 1 when the median gather is
slower than 2x the memory map.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr

from histostore.store.arrays import ArrayReader, ArraySpec, chunk_rows, encode_shard
from histostore.store.codecs import RAW
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, DIM, GATHER, ROUNDS, GATE = 60_000, 1_024, 4_096, 7, 2.0


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> int:
    """Print one line per measure: ratio to the memory map, median (min-max) of the rounds."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((ROWS, DIM), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        files = LocalFiles(folder)
        spec = ArraySpec(
            shape=values.shape, dtype="float32", chunk_rows=256, shard_rows=2048, pipeline=RAW, fill_value="NaN"
        )
        files.put("a/zarr.json", spec.to_zarr_json())
        begun = time.perf_counter()
        for shard in range(spec.n_shards):
            start, stop = spec.shard_range(shard)
            chunks = [RAW.encode(c) for c in chunk_rows(spec, values[start:stop])]
            files.put(f"a/{spec.key(shard)}", *encode_shard(spec, chunks))
        write = time.perf_counter() - begun
        saved = seconds(lambda: np.save(Path(folder) / "a.npy", values))
        mapped = np.load(Path(folder) / "a.npy", mmap_mode="r")
        ours = ArrayReader.open(files, "a")
        first = seconds(lambda: ours.read())
        stock = zarr.open_array(Path(folder) / "a", mode="r")
        ratios: dict[str, list[float]] = {"gather": [], "gather, stock zarr": [], "full read": []}
        for _ in range(ROUNDS):
            rows = np.sort(rng.integers(0, ROWS, GATHER))
            limit = seconds(lambda rows=rows: mapped[rows])
            ratios["gather"].append(seconds(lambda rows=rows: ours.read(rows)) / limit)
            ratios["gather, stock zarr"].append(seconds(lambda rows=rows: stock.oindex[rows]) / limit)
            whole = seconds(lambda: np.array(mapped))
            ratios["full read"].append(seconds(lambda: ours.read()) / whole)
        assert np.array_equal(ours.read(rows), mapped[rows])
    for name, found in ratios.items():
        print(f"{name:<22} {np.median(found):6.2f}x the memory map ({min(found):.2f}-{max(found):.2f})")
    print(f"write with fsync and checksums {write / saved:.2f}x np.save; first read, verifying, {first:.2f} s")
    reached = float(np.median(ratios["gather"])) <= GATE
    print(f"gate gather <= {GATE}x: {'reached' if reached else 'missed'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
