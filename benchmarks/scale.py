"""Worker processes: two beside one on tiling that is bound by decoding, and what dask costs beside direct calls.

    python -m benchmarks.scale                          # needs two free cores; some minutes
    python -m benchmarks.scale --rounds 5 --edge 32768

Slides whose pyramid lacks the resolution asked for: tiles are made at a quarter of that of level 0. Sixteen pixels are
decoded for each one that is encoded, so that one worker, whose threads read and encode side by side, keeps one core
busy. Rounds alternate; clusters are up and warm before they are timed. Overhead: the very tasks of one slide, each of
about a second, done one after the other in this process and by one worker. Prints ratios, median (lowest-highest) of
the rounds, and exits 1 when a median misses its gate.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._rounds import Gates, faster, interleaved, seconds, slower
from benchmarks.memory import repeated_tissue
from histostore.io.sheet import Sample
from histostore.scale.cluster import workers_here
from histostore.scale.kept import BackboneCall
from histostore.scale.run import embed_slides, tile_slides
from histostore.scale.steps import run_here, tile_steps
from histostore.scale.task import Context
from histostore.scale.versions import own_versions
from histostore.scale.work import perform
from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
from histostore.stages import tile as stages_tile
from histostore.stages.ingest import IngestSpec, ingest
from histostore.store.store import create_store, open_store
from histostore.testing.slides import write_pyramid_tiff

if TYPE_CHECKING:
    from collections.abc import Callable

TWO_WORKERS, OVERHEAD = 1.7, 1.10
PX, COARSER, WAITS, MPP = 224, 4, 8, 0.5
SHARD = 81
"""Tiles, of about a second."""
PIXELS = PixelSpec(codec="jpeg", shard_tiles=SHARD)


def prepared(folder: Path, slides: int, edge: int) -> Path:
    """Return a store of some ingested slides."""
    image = folder / "slide.svs"
    write_pyramid_tiff(
        image, repeated_tissue(), size_px=(edge, edge), mpp=MPP, levels=(1, 16), quality=90, vendor="aperio"
    )
    store = create_store(folder / "store")
    for i in range(slides):
        ingest(store, Sample(slide=f"S{i}", image=image), IngestSpec())
    return folder / "store"


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--edge", type=int, default=16_384, help="of a slide, in pixels")
    args = parser.parse_args()
    gates = Gates()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="histostore-scale-")))
        base, made = prepared(folder, args.slides, args.edge), itertools.count()
        spec = TileSpec.grid(px=PX, mpp=COARSER * MPP, min_tissue=0.0)
        one, two = (stack.enter_context(workers_here(n)) for n in (1, 2))

        def fresh() -> Any:
            return open_store(shutil.copytree(base, folder / f"run{next(made)}"))

        def on(client: Any) -> Callable[[], object]:
            return lambda: tile(client, fresh())

        def tile(client: Any, store: Any) -> None:
            for slide, outcome in tile_slides(client, store, store.slides(), spec, pixels=PIXELS):
                assert isinstance(outcome, list), f"{slide}: {outcome}"
            shutil.rmtree(store.uri)

        def directly() -> None:
            store = fresh()
            context = Context(store.uri, store.uuid, store.uri, own_versions())
            for slide in store.slides():
                run_here(tile_steps(store, slide, spec, pixels=PIXELS), lambda task: perform(context, task))
            shutil.rmtree(store.uri)

        n_tiles = (args.edge // (COARSER * PX)) ** 2
        shards = -(-n_tiles // SHARD)
        print(f"{args.slides} slides of {n_tiles:,} tiles in {shards} shards each, {os.cpu_count()} cores")
        times = interleaved({"two": on(two), "one": on(one), "direct": directly}, args.rounds)
        middle = sorted(took for took, _ in times["direct"])[args.rounds // 2]
        print(f"  a task takes {middle / (args.slides * shards):.2f} s")
        gates.ratio("tiling, two workers beside one", faster(times, "two", "one"), least=TWO_WORKERS)
        gates.ratio("tiling, one worker beside direct calls", slower(times, "one", "direct"), most=OVERHEAD)
        asleep(one, fresh(), gates, args.rounds)
    return gates.end()


def asleep(client: Any, store: Any, gates: Gates, rounds: int) -> None:
    """Print what a task costs that only waits one second: dask alone, whatever else the machine does."""
    stages_tile.tile(
        store, "S0", TileSpec.grid(px=PX, mpp="native", max_tiles=WAITS, min_tissue=0.0), pixels=PIXELS, name="few"
    )
    layout, call = EmbeddingSpec(shard_rows=1, chunk_rows=1), BackboneCall("testing?delay_ms=1000")
    found = []
    for _ in range(rounds):
        copy = open_store(shutil.copytree(store.uri, f"{store.uri}-asleep"))
        how: dict[str, Any] = {"tiles": "few", "spec": layout, "batch": 1}
        took = seconds(lambda copy=copy, how=how: list(embed_slides(client, copy, ["S0"], [call], **how)))
        found.append((took / WAITS, 1.0))
        shutil.rmtree(copy.uri)
    gates.ratio(f"{WAITS} waits of 1 s, one worker beside {WAITS} s", found, most=OVERHEAD)


if __name__ == "__main__":
    sys.exit(main())
