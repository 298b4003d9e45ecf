"""A store of 1,000 slides and ten million tiles: `info`, opening a view, and a filter on one tile column.

    python -m benchmarks.cohort [--slides 1000] [--tiles 10000]

The store is made without fsync. The bare read is the arrays that hold the column, of all slides, read whole. Files are
in the page cache. Exits 1 when a gate is missed; the gates hold for the full size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import histostore as hs
from benchmarks._rounds import Gates, faster, interleaved, seconds, slower
from histostore.content.tables import write_points
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.tables import Points

if TYPE_CHECKING:
    from collections.abc import Iterator

    from histostore.store.store import Store

INFO_S, VIEW_S, WHERE_S, WHERE_OVER_BARE = 1.0, 2.0, 10.0, 3.0
COLUMNS = ("cx", "cy", "x0", "y0", "tissue"), ("tile_id_hi", "tile_id_lo", "point")


@contextmanager
def without_fsync() -> Iterator[None]:
    """Make files fast; a benchmark's store need not survive a power cut."""
    kept = os.fsync
    os.fsync = lambda _fd: None
    try:
        yield
    finally:
        os.fsync = kept


def add_slide(store: Store, number: int, n: int) -> None:
    """Commit meta, points, tiles and (narrow) embeddings of one slide."""
    slide, rng = f"S{number:05d}", np.random.default_rng(number)
    side = int(np.ceil(np.sqrt(n)))
    cell = np.stack(np.divmod(np.arange(n), side), axis=1)
    xy = cell * 224.0 + 112
    refs = []
    fields = {"patient": f"P{number // 2}"}
    with store.begin(slide, "meta", "meta", spec={"fields": fields}, inputs={}) as writer:
        refs.append(writer.seal(rows=1, attrs={"fields": fields, "mpp": 0.5, "mpp_origin": "given"}))
    ids = tuple(f"{x}x{y}" for x, y in cell.tolist())
    refs.append(write_points(store, slide, "grid", Points(ids=ids, xy=xy, assay="grid")))
    geometry = np.column_stack([xy, xy - 112, rng.random(n)])
    idents = np.column_stack([rng.integers(0, 2**63, (n, 2)), np.arange(n)]).astype(np.uint64)
    with store.begin(slide, "tiles", "grid", spec={"px": 224}, inputs={"n": number}) as writer:
        writer.put_array("geometry", geometry, dims=("tile", "column"), attrs={"columns": list(COLUMNS[0])})
        writer.put_array("ids", idents, dims=("tile", "column"), attrs={"columns": list(COLUMNS[1])})
        attrs = {"points": "grid", "level": 0, "read_px": 224, "out_px": 224, "downsample": 1.0, "edge0": 224.0,
                 "resample": "none", "mpp": 0.5, "left_out": {}, "notes": [], "mask_downsample": 1.0}  # fmt: skip
        refs.append(writer.seal(rows=n, attrs=attrs))
    spec = ArraySpec(shape=(n, 4), dtype="float16", chunk_rows=256, shard_rows=2048, pipeline=RAW, fill_value="NaN")
    with store.begin(slide, "embeddings", "grid/toy", spec={}, inputs={"n": number}) as writer:
        writer.create("embedding", spec)
        for shard in range(spec.n_shards):
            start, stop = spec.shard_range(shard)
            writer.write_rows("embedding", shard, np.zeros((stop - start, 4), np.float16))
        writer.put_array("status", np.zeros(n, np.uint8), dims=("tile",))
        attrs = {"tiles": "grid", "backbone": {"name": "toy"}, "backbone_digest": "0" * 64, "dim": 4, "status": {}}
        refs.append(writer.seal(rows=n, attrs=attrs))
    store.commit(slide, refs)


def main() -> int:
    """Print a line per claim; return 1 when one of them is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--tiles", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path, help="make the store here and keep it; or take the one that is there")
    args = parser.parse_args()
    gates = Gates()
    with tempfile.TemporaryDirectory() as folder:
        path = args.store or Path(folder) / "cohort"
        if not path.exists():
            store = hs.create(path)
            with without_fsync():
                took = seconds(lambda: [add_slide(store, i, args.tiles) for i in range(args.slides)])
            print(f"{args.slides:,} slides of {args.tiles:,} tiles, made in {took:.0f} s", flush=True)
        store = hs.open(path)

        def command(*words: str) -> None:
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

        def bare() -> int:
            groups = (store.group(store.slide(slide).find("tiles")) for slide in store.slides())
            return sum(int((g.read("geometry")[:, 4] > 0.5).sum()) for g in groups)

        times = interleaved(
            {
                "python": lambda: command("-c", "pass"),
                "info": lambda: command("-m", "histostore", "info", str(path)),
                "view": lambda: store.view(backbone="toy"),
                "where": lambda: store.view(backbone="toy").where("tissue > 0.5"),
                "bare": bare,
            },
            args.rounds,
        )
        view = store.view(backbone="toy")
        assert len(view.where("tissue > 0.5")) == bare()
        print(f"view of {len(view):,} rows from {len(view.slides):,} slides")
    middle = {name: float(np.median([wall for wall, _ in found])) for name, found in times.items()}
    gates.value(
        "info, the command", middle["info"], "s", most=INFO_S, note=f"(python -c pass {middle['python']:.2f} s)"
    )
    gates.value("open a view", middle["view"], "s", most=VIEW_S)
    gates.value("open it and filter on a tile column", middle["where"], "s", most=WHERE_S)
    gates.ratio("open and filter, over the bare read", slower(times, "where", "bare"), most=WHERE_OVER_BARE)
    gates.ratio("open a view, speed over the bare read", faster(times, "view", "bare"))
    return gates.end()


if __name__ == "__main__":
    sys.exit(main())
