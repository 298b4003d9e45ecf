"""How time and memory grow: ten and a hundred times the tiles of one slide, ten and a hundred times the slides.

    python -m benchmarks.growth                    # 1,000 to 100,000 tiles of 64 px; 1 to 100 slides of 1,000
    python -m benchmarks.growth --most 10000       # a shorter run

Every size runs in a process of its own, smallest first, three rounds of the small ones (their median counts). Time is
processor time, which a busy machine disturbs less, per tile; memory is the most that was resident beyond what the
process had before. The exponent is the slope of log(time) over log(tiles) from the smallest size to the largest: 1 is
linear. Exits 1 when the time per tile grows by more than a tenth, or memory by more than a quarter and 64 MiB.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.memory import peak_mib

PX, EDGE = 64, 32
"""Edge of a tile, and tiles along the edge of the smallest slide: 1,024 tiles."""
STAGES = ("tile", "embed", "view", "gather", "search")
MOST_PER_TILE, MOST_MEMORY, MEMORY_SLACK_MIB = 1.1, 1.25, 64
GROWING = ("tile", "embed", "search")
"""Stages whose work is every tile's; opening a view and gathering 1,024 rows should grow by less."""


def run(folder: Path, tiles: int, slides: int) -> dict[str, Any]:
    """Take slides of so many tiles each through the stages; return seconds of the processor and peak memory."""
    import numpy as np

    import histostore as hs
    from benchmarks.memory import write_slide
    from histostore.backbones import load_backbone
    from histostore.index.exact import ExactIndex

    edge = round(math.sqrt(tiles)) * PX
    image = folder / "slide.tif"
    write_slide(image, (edge, edge), None)
    backbone = load_backbone("testing")
    store = hs.create(folder / "store")
    for number in range(slides):
        hs.pp.ingest(store, f"s{number}", image=image)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, took = peak_mib(), {}

    def timed(stage: str, work: Any) -> Any:
        begun = time.process_time()
        made = work()
        took[stage] = time.process_time() - begun
        return made

    spec = hs.TileSpec.grid(px=PX, mpp="native", min_tissue=0.0)
    n_tiles = sum(r.rows for r in timed("tile", lambda: hs.pp.tile(store, spec)))
    timed("embed", lambda: hs.tl.embed(store, backbone))
    view = timed("view", lambda: store.view(backbone="testing"))
    rows = np.random.default_rng(0).integers(0, n_tiles, 1024)
    timed("gather", lambda: view.numpy(rows=np.sort(rows)))
    values = view.numpy()
    timed("search", lambda: ExactIndex(values).search(values[:64].astype(np.float32), 10))
    return {"tiles": n_tiles, "slides": slides, "seconds": took, "peak_mib": peak_mib() - before}


def measured(tiles: int, slides: int, rounds: int) -> dict[str, Any]:
    """Run one size in processes of their own; return medians."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.growth", "--one", folder, str(tiles), str(slides)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found.append(json.loads(done.stdout))
    seconds = {stage: median(f["seconds"][stage] for f in found) for stage in STAGES}
    return {**found[0], "seconds": seconds, "peak_mib": median(f["peak_mib"] for f in found)}


def curve(what: str, sizes: list[dict[str, Any]]) -> list[str]:
    """Print one curve; return what it missed."""
    first, last = sizes[0], sizes[-1]
    growth = last["tiles"] / first["tiles"]
    print(f"{what}: {', '.join(f'{s["tiles"]:,}' for s in sizes)} tiles")
    missed = []
    for stage in STAGES:
        per_tile = [s["seconds"][stage] / s["tiles"] * 1e6 for s in sizes]
        exponent = math.log(last["seconds"][stage] / first["seconds"][stage]) / math.log(growth)
        ratio = per_tile[-1] / per_tile[0]
        good = stage not in GROWING or ratio <= MOST_PER_TILE
        verdict = ("reached" if good else "MISSED") if stage in GROWING else ""
        shown = "  ".join(f"{value:9.2f}" for value in per_tile)
        print(f"  {stage:<8} µs a tile {shown}   exponent {exponent:5.2f}   per tile {ratio:5.2f}x  {verdict}")
        if not good:
            missed.append(f"{what}: {stage} takes {ratio:.2f}x per tile")
    memory = [s["peak_mib"] for s in sizes]
    flat = memory[-1] <= max(memory[0] * MOST_MEMORY, memory[0] + MEMORY_SLACK_MIB)
    print(f"  memory   MiB       {'  '.join(f'{m:9.0f}' for m in memory)}   {'reached' if flat else 'MISSED'}")
    return missed if flat else [*missed, f"{what}: memory grows from {memory[0]:.0f} to {memory[-1]:.0f} MiB"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=100_000, help="tiles of the largest slide, and of all slides")
    parser.add_argument("--rounds", type=int, default=3, help="of the smaller sizes")
    parser.add_argument("--one", nargs=3, metavar=("DIR", "TILES", "SLIDES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(run(Path(args.one[0]), int(args.one[1]), int(args.one[2]))))
        return 0
    steps = [n for n in (1, 10, 100) if n * EDGE**2 <= args.most * 1.1]
    missed = curve("tiles of one slide", [measured(n * EDGE**2, 1, 1 if n == 100 else args.rounds) for n in steps])
    missed += curve("slides", [measured(EDGE**2, n, 1 if n == 100 else args.rounds) for n in steps])
    print("missed: " + "; ".join(missed) if missed else "all gates reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
