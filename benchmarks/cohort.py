"""A store of 1,000 slides and ten million tiles: `info`, opening a view, and a filter on one tile column.

    python -m benchmarks.cohort [--slides 1000] [--tiles 10000]

The store is made without fsync. The bare read is the arrays that hold the column, of all slides, read whole. Files are
in the page cache. Exits 1 when a gate is missed; the gates hold for the full size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import histostore as hs
from benchmarks._cohort_store import Shape, build
from benchmarks._rounds import Gates, faster, interleaved, seconds, slower

INFO_S, VIEW_S, WHERE_S, WHERE_OVER_BARE = 1.0, 2.0, 10.0, 3.0


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
            took = seconds(lambda: build(path, args.slides, Shape(tiles=args.tiles)))
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
