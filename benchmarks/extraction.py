"""Tiles of 224 px out of a large JPEG pyramid: ours beside the bare decoder (the limit) and the peers.

    python -m benchmarks.extraction                      # 27,648 x 19,456 px, the real sections or synthetic tissue
    python -m benchmarks.extraction --slide FILE.svs     # a slide of one's own

The limit decodes every compressed segment that the tiles touch once, from memory, in as many threads, each into the
same memory over and over, and makes no tile. Beside it the same with what no reader does without: bytes read from the
file and every piece copied into its tile, by a plan made beforehand, nothing checked, nothing kept. Peers read with
handles of their own per thread, in the same order; those that are not installed are said to be missing
(`--need-peers` makes that a failure). Interleaved rounds, slides open beforehand, tiles not kept; pixels are compared
with openslide's first. Prints ratios, median (lowest-highest) of the rounds, by wall and by processor time, and exits 1
when a median misses its gate.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import openslide
import tifffile

from benchmarks.memory import write_slide
from histostore.slides import open_slide
from histostore.slides.decode import buffer_for
from histostore.slides.segments import Grid, plan_pieces
from histostore.specs import MaskSpec, TileSpec
from histostore.stages.pixels import FORESEEN_TILES
from histostore.tiles.mask import tissue_mask
from histostore.tiles.plan import plan_tiles
from histostore.tiles.read import Foreseeing, read_tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    type Run = Callable[[], object]
    type Peer = Callable[[Path, NDArray[np.int64], int, int, ExitStack], Run]

SIZE = (27_648, 19_456)
GATES = {"limit": 0.85, "openslide": 4.0, "fastslide": 2.0, "lazyslide": 4.0}
"""How many times as fast as these ours is to be, at the least."""


def halves(n: int, threads: int) -> list[range]:
    """Return one run of 0 … n - 1 per thread."""
    cuts = np.linspace(0, n, threads + 1).astype(int).tolist()
    return [range(a, b) for a, b in pairwise(cuts)]


def threaded(n: int, threads: int, pool: ThreadPoolExecutor, one: Callable[[int, int], object]) -> Run:
    """Return what calls ``one(thread, i)`` for all i, a run of them per thread."""

    def work(thread: int, part: range) -> None:
        for i in part:
            one(thread, i)

    def run() -> None:
        list(pool.map(work, range(threads), halves(n, threads)))

    return run


def limit(path: Path, xy0: NDArray[np.int64], px: int, threads: int, stack: ExitStack) -> Run:
    """Decode the unique segments of level 0 from memory."""
    with tifffile.TiffFile(path) as file, path.open("rb") as raw:
        page: Any = file.pages.first
        width, height = page.tilewidth, page.tilelength
        across = -(-page.imagewidth // width)
        wanted = {
            row * across + column
            for x, y in xy0.tolist()
            for row in range(y // height, (y + px - 1) // height + 1)
            for column in range(x // width, (x + px - 1) // width + 1)
        }
        stored = [os.pread(raw.fileno(), page.databytecounts[i], page.dataoffsets[i]) for i in sorted(wanted)]
        tables, colours = page.jpegtables, {2: "RGB", 6: "YCBCR"}[int(page.photometric)]
    pool = stack.enter_context(ThreadPoolExecutor(threads))

    # into memory of their own, placed as libjpeg-turbo is fastest (numpy's is 15-40 % slower in some processes)
    out = [buffer_for((height, width)) for _ in range(threads)]

    def one(thread: int, i: int) -> None:
        imagecodecs.jpeg8_decode(stored[i], tables=tables, colorspace=colours, outcolorspace="RGB", out=out[thread])

    return threaded(len(stored), threads, pool, one)


def decode_and_copy(path: Path, xy0: NDArray[np.int64], px: int, threads: int, stack: ExitStack) -> Run:
    """Read, decode and copy the unique segments into tiles that are there already."""
    file = stack.enter_context(tifffile.TiffFile(path))
    raw = stack.enter_context(path.open("rb"))
    page: Any = file.pages.first
    size, edge = (page.imagewidth, page.imagelength), (page.tilewidth, page.tilelength)
    pieces = plan_pieces(Grid(size, edge), xy0, px)
    tables, colours = page.jpegtables, {2: "RGB", 6: "YCBCR"}[int(page.photometric)]
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    out = [buffer_for((edge[1], edge[0])) for _ in range(threads)]
    tiles, segments = np.zeros((len(xy0), px, px, 3), np.uint8), list(pieces)

    def one(thread: int, i: int) -> None:
        segment, image = segments[i], out[thread]
        data = os.pread(raw.fileno(), page.databytecounts[segment], page.dataoffsets[segment])
        imagecodecs.jpeg8_decode(data, tables=tables, colorspace=colours, outcolorspace="RGB", out=image)
        for tile, y0, y1, x0, x1, v0, v1, u0, u1 in pieces[segment]:
            tiles[tile, y0:y1, x0:x1] = image[v0:v1, u0:u1]

    return threaded(len(segments), threads, pool, one)


def ours(path: Path, xy0: NDArray[np.int64], px: int, threads: int, stack: ExitStack, batch: int) -> Run:
    """Read batches in the order of the plan, as stages do; a run leaves nothing that the next one begins with."""
    slide = stack.enter_context(open_slide(path, workers=threads))
    if not isinstance(slide, Foreseeing):
        msg = f"{path}: read by {slide.reader}, not by segment"
        raise SystemExit(msg)

    def run() -> None:
        for start in range(0, len(xy0), batch):
            slide.expect(xy0[start + batch : start + batch + FORESEEN_TILES], px=px)
            slide.read(xy0[start : start + batch], px=px)

    return run


def by_openslide(path: Path, xy0: NDArray[np.int64], px: int, threads: int, stack: ExitStack) -> Run:
    slides = [stack.enter_context(openslide.OpenSlide(path)) for _ in range(threads)]
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    corners = xy0.tolist()

    def one(thread: int, i: int) -> None:
        np.asarray(slides[thread].read_region(tuple(corners[i]), 0, (px, px)).convert("RGB"))

    return threaded(len(corners), threads, pool, one)


def by_fastslide(path: Path, xy0: NDArray[np.int64], px: int, threads: int, stack: ExitStack) -> Run:
    fastslide = importlib.import_module("fastslide")
    slides = [fastslide.FastSlide.from_file_path(str(path)) for _ in range(threads)]
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    corners = xy0.tolist()

    def one(thread: int, i: int) -> None:
        np.asarray(slides[thread].read_region(tuple(corners[i]), 0, (px, px)).numpy())

    return threaded(len(corners), threads, pool, one)


def by_tiffslide(path: Path, xy0: NDArray[np.int64], px: int, threads: int, stack: ExitStack) -> Run:
    tiffslide = importlib.import_module("tiffslide")
    slides = [stack.enter_context(tiffslide.TiffSlide(path)) for _ in range(threads)]
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    corners = xy0.tolist()

    def one(thread: int, i: int) -> None:
        slides[thread].read_region(tuple(corners[i]), 0, (px, px), as_array=True)

    return threaded(len(corners), threads, pool, one)


def by_lazyslide(path: Path, xy0: NDArray[np.int64], px: int, threads: int, stack: ExitStack) -> Run:
    """LazySlide's data set of the same tiles (its own feature extraction reads it from one thread)."""
    importlib.import_module("lazyslide")
    wsidata = importlib.import_module("wsidata")
    add_tiles = importlib.import_module("wsidata.io").add_tiles
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    wsi = wsidata.open_wsi(str(path), store=None)
    add_tiles(wsi, "tiles", xy0, wsidata.TileSpec.from_wsidata(wsi, tile_px=px), np.zeros(len(xy0), np.int64))
    images = wsi.ds.tile_images()
    return threaded(len(xy0), threads, pool, lambda _thread, i: images[i])


PEERS: dict[str, Peer] = {
    "openslide": by_openslide,
    "fastslide": by_fastslide,
    "tiffslide": by_tiffslide,
    "lazyslide": by_lazyslide,
}


def timed(run: Run) -> tuple[float, float]:
    """Return wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(path: Path, xy0: NDArray[np.int64], px: int) -> int:
    """Return how many of 200 tiles differ from openslide's."""
    some = xy0[:: max(1, len(xy0) // 200)]
    with open_slide(path, workers=2) as slide, openslide.OpenSlide(path) as theirs:
        pixels, _ = slide.read(some, px=px)
        wanted = [np.asarray(theirs.read_region(tuple(xy), 0, (px, px)))[..., :3] for xy in some.tolist()]
    return sum(not np.array_equal(a, b) for a, b in zip(pixels, wanted, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, help="a JPEG-tiled TIFF or SVS; default: one is made")
    parser.add_argument("--real", type=Path, default=os.environ.get("HISTOSTORE_REAL_DATA"))
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tiles", type=int, default=2000, help="at most so many")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--need-peers", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = args.slide or Path(folder) / "big.tif"
        if args.slide is None:
            write_slide(path, tuple(args.size), Path(args.real) / "her2st" if args.real else None)
        return measure(path, args, stack)


def measure(path: Path, args: argparse.Namespace, stack: ExitStack) -> int:
    with open_slide(path) as slide:
        mpp = slide.mpp or 0.5
        mask = tissue_mask(slide, MaskSpec(), mpp=mpp)
        plan = plan_tiles(
            TileSpec.grid(px=args.px, mpp="native", min_tissue=0.2),
            mask=mask,
            source_digest="benchmark",
            size_px=slide.size_px,
            slide_mpp=mpp,
            downsamples=slide.downsamples,
        )
        print(f"slide    {slide.size_px[0]:,} x {slide.size_px[1]:,} px, {slide.reader}")
    xy0 = plan.xy0[: args.tiles].astype(np.int64)
    print(f"tiles    {len(xy0):,} of {args.px} px with tissue, {args.threads} threads, batches of {args.batch}")
    differing = compare(path, xy0, args.px)
    print(f"pixels   {differing} of about 200 tiles differ from openslide's")

    pool = stack.enter_context(ThreadPoolExecutor(args.threads))

    told = stack.enter_context(open_slide(path, workers=args.threads))

    def with_status() -> None:
        for start in range(0, len(xy0), args.batch):
            then = plan.xy0[: len(xy0)][start + args.batch : start + args.batch + FORESEEN_TILES]
            read_tiles(told, plan.read, plan.xy0[: len(xy0)][start : start + args.batch], then=then, pool=pool)

    common = (path, xy0, args.px, args.threads, stack)
    runs: dict[str, Run] = {"limit": limit(*common), "decode and copy, bare": decode_and_copy(*common)}
    runs["ours"] = ours(*common, args.batch)
    runs["ours, blank tiles told"] = with_status
    missing = []
    for name, make in PEERS.items():
        try:
            runs[name] = make(*common)
        except ImportError:
            missing.append(name)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            found[name].append(timed(run))
    return report(found, len(xy0), missing, differing, args.need_peers)


def report(
    found: dict[str, list[tuple[float, float]]], n: int, missing: list[str], differing: int, need_peers: bool
) -> int:
    """Print one line per run; return 1 when a gate is missed."""
    short = [f"{differing} tiles differ"] if differing else []
    for name, times in found.items():
        wall = np.array([w for w, _ in times])
        ratio = wall / np.array([w for w, _ in found["ours"]])
        cpu = np.array([c for _, c in times]) / np.array([c for _, c in found["ours"]])
        print(
            f"{name:<24} {n / np.median(wall):7,.0f} tiles/s   ours is {np.median(ratio):5.2f}x "
            f"({ratio.min():.2f}-{ratio.max():.2f}), by processor time {np.median(cpu):5.2f}x "
            f"({cpu.min():.2f}-{cpu.max():.2f})"
        )
        if name in GATES and np.median(ratio) < GATES[name]:
            short.append(f"{np.median(ratio):.2f}x {name}, not {GATES[name]}x")
    if missing:
        print(f"not installed: {', '.join(missing)} (pip install --group bench)")
        short += [f"no {name}" for name in missing if need_peers]
    print(f"gates {GATES}: {'missed: ' + '; '.join(short) if short else 'reached'}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
