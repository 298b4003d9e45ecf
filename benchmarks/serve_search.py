"""A search of many slides by the server, whose snapshot keeps its view open, beside one that opens the store's.

    python -m benchmarks.serve_search [--slides 10000] [--tiles 200] [--store DIR]

Both look at all manifests first, so that each sees what was committed before it; answers are compared. The search is of
one patient's tiles: what it takes beyond finding and naming them is opening. Exits 1 when a gate is missed; the gates
hold for 1,000 slides or more. A store given by `--store` is read and not written to.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import histostore as hs
from benchmarks._cohort_store import BACKBONE, Shape, build
from benchmarks._rounds import Gates, faster, interleaved, seconds
from histostore.serve.snapshot import Watched
from histostore.store.catalog import look

if TYPE_CHECKING:
    import pandas as pd

    from histostore.view import View

GENES, DIM = 100, 32
OPENING, SEARCH = 3.0, 1.5


def main() -> int:
    """Print a line per claim; return 1 when one of them is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=Path, help="a store that is there (of `benchmarks.catalog --store`)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.store or Path(folder) / "cohort"
        if args.store is None:
            took = seconds(lambda: build(path, args.slides, Shape(tiles=args.tiles, dim=DIM, genes=GENES)))
            print(f"{args.slides:,} slides of {args.tiles:,} tiles, made in {took:.0f} s", flush=True)
            look(hs.open(path), contents=True)
            time.sleep(3)  # what was just written is settled after two seconds
        return measure(path, args.rounds)


def measure(path: Path, rounds: int) -> int:
    """Measure a store that is there."""
    gates, store = Gates(), hs.open(path)
    watched = Watched(store, refresh_s=3600)
    print(f"  the first snapshot of {len(store.slides()):,} slides: {seconds(watched.snapshot):.2f} s")
    last = store.view(backbone=BACKBONE).parts[-1]
    vector = np.random.default_rng(0).standard_normal(DIM)
    asked = {"vector": vector, "k": 10, "columns": ["patient", "tile_id"]}
    asked["where"] = f"patient == '{last.meta['fields']['patient']}'"

    def rows() -> View:
        return watched.snapshot(now=True).rows(backbone=BACKBONE, tiles=None, slides=None)

    def searched() -> pd.DataFrame:
        return hs.tl.search(watched.snapshot(), rows=rows(), **asked).table

    true = hs.tl.search(store, backbone=BACKBONE, **asked).table
    assert searched().equals(true)
    cases = {
        "opened": lambda: store.view(backbone=BACKBONE),
        "kept": rows,
        "search, opened": lambda: hs.tl.search(store, backbone=BACKBONE, **asked),
        "search, kept": searched,
    }
    times = interleaved(cases, rounds)
    for name, found in times.items():
        gates.value(name, float(np.median([wall for wall, _ in found])), "s")
    gates.ratio("a view that is kept open, over opening it", faster(times, "kept", "opened"), least=OPENING)
    gates.ratio("a search in it", faster(times, "search, kept", "search, opened"), least=SEARCH)
    return gates.end()


if __name__ == "__main__":
    sys.exit(main())
