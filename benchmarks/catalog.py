"""A store of 10,000 slides and two million tiles, answered from the catalog: open, list, filter, follow a commit.

    python -m benchmarks.catalog [--slides 10000] [--tiles 200] [--store DIR]

Each figure stands beside what the same answer takes from the manifests alone, and beside the bare look at all folders
of manifests, without which nothing can be known to be fresh. Files are in the page cache; the store is made without
fsync, with counts of 100 genes, and kept where `--store` says, for other benchmarks. Exits 1 when a gate is missed; the
gates hold for the full size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import histostore as hs
from benchmarks._cohort_store import BACKBONE, Shape, build, fields_of, slide_name, write_meta
from benchmarks._rounds import Gates, faster, interleaved, seconds, slower
from histostore.store import catalog
from histostore.store.catalog import look, slides_where

OPEN_S, WHERE_S, FEW = 1.0, 0.2, 10**9
FILTER = "patient != 'P00003' and organ == 'kidney'"
GENES, DIM = 100, 32


def main() -> int:
    """Print a line per claim; return 1 when one of them is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=Path, help="make the store here and keep it; or take the one that is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.store or Path(folder) / "cohort"
        if not path.exists():
            took = seconds(lambda: build(path, args.slides, Shape(tiles=args.tiles, dim=DIM, genes=GENES)))
            print(f"{args.slides:,} slides of {args.tiles:,} tiles, made in {took:.0f} s", flush=True)
        return measure(path, args.rounds)


def measure(path: Path, rounds: int) -> int:
    """Measure a store that is there."""
    gates, store = Gates(), hs.open(path)
    time.sleep(3)  # what was just written is settled after two seconds
    rebuild = seconds(lambda: look(store, contents=True, rebuild=True))
    kept = look(store, contents=True)
    assert kept.dump() == look(store, contents=True, rebuild=True).dump()
    view = store.view(backbone=BACKBONE)

    def bare() -> int:
        with os.scandir(path / "manifests") as found:
            return sum(entry.stat().st_mtime_ns > 0 for entry in found)

    def from_manifests() -> list[str]:
        kept, catalog.LEAST_OWNERS = catalog.LEAST_OWNERS, FEW
        try:
            return store.slides()
        finally:
            catalog.LEAST_OWNERS = kept

    turn = iter(range(10**6))

    def follow() -> None:
        """Commit new metadata of one slide, and list."""
        number = next(turn)
        fields = {**fields_of(number), "turn": f"{time.time_ns()}"}
        store.commit(slide_name(number), [write_meta(store, slide_name(number), fields)], replace=True)
        assert look(store).owners[slide_name(number)]["fields"] == fields

    def command(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    times = interleaved(
        {
            "bare": bare,
            "slides": store.slides,
            "manifests": from_manifests,
            "view": lambda: hs.open(path).view(backbone=BACKBONE),
            "where of a view": lambda: view.where(FILTER),
            "where of the store": lambda: slides_where(store, FILTER),
            "follow": follow,
            "python": lambda: command("-c", "pass"),
            "info": lambda: command("-m", "histostore", "info", str(path)),
        },
        rounds,
    )
    assert {p.slide for p in view.where(FILTER).parts if len(p)} == set(slides_where(store, FILTER))
    middle = {name: float(np.median([wall for wall, _ in found])) for name, found in times.items()}
    cpu = {name: float(np.median([used for _, used in found])) for name, found in times.items()}
    print(f"{len(view.slides):,} slides, {len(view):,} tiles; the catalog has {catalog_bytes(path) / 1e6:.0f} MB")
    gates.value("open the store and a view of all", middle["view"], "s", most=OPEN_S, note=f"(cpu {cpu['view']:.2f})")
    gates.value("filter that view by slide", middle["where of a view"], "s", most=WHERE_S)
    gates.value("filter the store's slides", middle["where of the store"], "s", most=WHERE_S)
    gates.value("info, the command", middle["info"], "s", note=f"(python -c pass {middle['python']:.2f} s)")
    gates.value("rebuild from the manifests", rebuild, "s")
    gates.value("list slides after one commit (with it)", middle["follow"], "s")
    gates.ratio("list slides, speed over the manifests", faster(times, "slides", "manifests"))
    gates.ratio("list slides, over the bare look at folders", slower(times, "slides", "bare"))
    return gates.end()


def catalog_bytes(path: Path) -> int:
    """Return the size of the file."""
    return (path / catalog.NAME).stat().st_size


if __name__ == "__main__":
    sys.exit(main())
