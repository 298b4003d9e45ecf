"""Stored tiles: ours beside the bare decoder (the limit), zarr-python, tensorstore and zarrs, on the same stores.

    python -m benchmarks.tiles                  # tiles of the real sections (HISTOSTORE_REAL_DATA), else synthetic ones
    python -m benchmarks.tiles --quality        # also what JPEG does to embeddings (needs EfficientNet-Lite0)

1,536 tiles of 224 px, one a chunk, 512 a shard, with crc32c, as JPEG q95 4:4:4 and as zstd. The limit decodes the very
same chunks from memory into memory that is there already, in as many threads. Interleaved rounds of random batches of
64; every reader's pixels are compared first. The bytes of a tile are those of a store of the whole sections: of a grid,
which falls on the blocks of the sections' own JPEG, and at spots, which do not. Prints ratios, median (lowest-highest)
of the rounds, and exits 1 when a median misses its gate. Peers that are not installed are said to be missing
(`--need-peers` makes that a failure).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import imagecodecs.zarr
import numpy as np
import zarr

import histostore as hs
from benchmarks._rounds import Gates, faster, interleaved
from histostore.slides import open_slide
from histostore.specs import MaskSpec, PixelSpec, TileSpec
from histostore.stages.pixels import PixelJob, pixel_array, write_status
from histostore.store.batches import batches
from histostore.store.store import create_store
from histostore.tiles.mask import tissue_mask
from histostore.tiles.plan import plan_tiles
from histostore.tiles.read import read_tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from histostore.store.arrays import ArrayReader

    type Run = Callable[[], object]

PX, TILES, SHARD, BATCH, PER_ROUND = 224, 1536, 512, 64, 4
MPP = 0.688
SECTIONS = ("C2", "C3", "C4", "C5")
ENDINGS = {"image": "jpg", "st_counts": "counts.tsv.gz", "st_spots": "spots.tsv"}
GATES = {
    "jpeg": {"limit": 0.75, "oindex": 2.5, "z[i]": 8.0, "sequential": 2.5, "write": 2.0},
    "lossless": {"limit": 0.5, "oindex": 4.0, "z[i]": 8.0, "sequential": 2.5, "write": 2.0, "tensorstore": 0.95},
}
"""How many times as fast as these ours is to be, at the least."""
MOST_KB = 17.0
"""Of a JPEG tile of the real sections, headers and index included."""
COSINE_MEDIAN, COSINE_WORST = 0.999, 0.99


def real_tiles(folder: Path) -> NDArray[np.uint8]:
    """Return tiles on tissue of the four sections: a grid with half a tile between neighbours."""
    found = []
    for section in SECTIONS:
        with open_slide(folder / "her2st" / f"{section}.jpg") as slide:
            mask = tissue_mask(slide, MaskSpec(), mpp=MPP)
            plan = plan_tiles(
                TileSpec.grid(px=PX, mpp="native", overlap=0.5, min_tissue=0.5), mask=mask, source_digest="benchmark",
                size_px=slide.size_px, slide_mpp=MPP, downsamples=slide.downsamples,
            )  # fmt: skip
            chosen = np.linspace(0, len(plan.xy0) - 1, TILES // 4).astype(int)
            found.append(read_tiles(slide, plan.read, plan.xy0[chosen])[0])
    return np.concatenate(found)


def synthetic_tiles() -> NDArray[np.uint8]:
    """Return tiles of drawn tissue."""
    from histostore.testing.slides import synthetic_histology

    side = 32 * PX
    image, _ = synthetic_histology(side, side * 3 // 2, seed=0, tissue_share=1.0)
    return np.ascontiguousarray(image.reshape(48, PX, 32, PX, 3).swapaxes(1, 2).reshape(-1, PX, PX, 3)[:TILES])


@dataclass
class InMemory:
    """Tiles as a source that costs nothing to read."""

    tiles: NDArray[np.uint8]

    def read(self, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return self.tiles[start:stop], np.zeros(stop - start, np.uint8)


def write_ours(folder: Path, tiles: NDArray[np.uint8], codec: Any, threads: int) -> ArrayReader:
    """Write tiles as the stage does: receipts, sha256 and fsync included."""
    store = create_store(folder)
    spec = pixel_array(PixelSpec(codec=codec, shard_tiles=SHARD), len(tiles), PX)
    source: Any = InMemory(tiles)
    with store.begin("S", "pixels", "grid", spec={}, inputs={}) as writer:
        writer.create("pixels", spec)
        job = PixelJob(writer, spec, source, BATCH, threads)
        job.write(job.pending())
        write_status(writer, "pixels", spec)
        ref = writer.seal(rows=len(tiles))
    return store.group(ref).array("pixels")


def write_theirs(folder: Path, tiles: NDArray[np.uint8], codec: str) -> None:
    """Write the same array with zarr-python, whole shards at a time."""
    crc = zarr.codecs.Crc32cCodec()
    layout: dict[str, Any] = {"compressors": [zarr.codecs.ZstdCodec(level=1), crc]}
    if codec == "jpeg":
        layout = {"serializer": imagecodecs.zarr.Jpeg(level=95, subsampling="444", optimize=True), "compressors": [crc]}
    array = zarr.create_array(
        folder, shape=tiles.shape, dtype="u1", chunks=(1, *tiles.shape[1:]), shards=(SHARD, *tiles.shape[1:]), **layout
    )
    for start in range(0, len(tiles), SHARD):
        array[start : start + SHARD] = tiles[start : start + SHARD]


def limit(reader: ArrayReader, codec: str, threads: int, pool: ThreadPoolExecutor) -> Callable[[Any], None]:
    """Return what decodes the chunks of some rows from memory."""
    per = reader.spec.chunks_per_shard
    stored = [bytes(reader._shard(i // per).chunks(reader.files, [i % per])[0][:-4]) for i in range(len(reader))]
    shape = (PX, PX, 3) if codec == "jpeg" else (PX * PX * 3,)
    places = [np.empty(shape, np.uint8) for _ in range(threads)]

    def part(thread: int, ids: NDArray[np.int64]) -> None:
        image = places[thread]
        for i in ids.tolist():
            if codec == "jpeg":
                imagecodecs.jpeg_decode(stored[i], out=image)
            else:
                imagecodecs.zstd_decode(stored[i], out=image)

    def run(ids: NDArray[np.int64]) -> None:
        cuts = np.linspace(0, len(ids), threads + 1).astype(int).tolist()
        list(pool.map(part, range(threads), [ids[a:b] for a, b in pairwise(cuts)]))

    return run


def by_tensorstore(path: str, pool_bytes: int) -> Any:
    """Open the same store with tensorstore; its cache holds shard indexes, not tiles."""
    tensorstore: Any = importlib.import_module("tensorstore")
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": pool_bytes}})
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    return tensorstore.open(spec, context=context, open=True, recheck_cached_data=False).result()


def drawn(run: Callable[[Any], object]) -> Run:
    """Return a run over the next random batches; every contestant draws the same ones."""
    rounds = count()

    def work() -> None:
        rng = np.random.default_rng([7, next(rounds)])
        for _ in range(PER_ROUND):
            run(rng.integers(0, TILES, BATCH))

    return work


def compare(folder: Path, tiles: NDArray[np.uint8], codec: str, args: argparse.Namespace, gates: Gates) -> None:
    """Measure one codec."""
    print(f"{codec}:")
    reader = write_ours(folder / f"{codec}-0", tiles, codec, args.threads)
    path = f"{reader.files.uri}/{reader.prefix}"
    theirs = zarr.open_array(path, mode="r")
    rows = np.random.default_rng(1).integers(0, TILES, BATCH)
    expected = theirs.oindex[rows]
    with ThreadPoolExecutor(args.threads) as pool:
        assert np.array_equal(reader.read(rows, pool=pool), expected)
        assert np.array_equal(reader.read(pool=pool), theirs[:])
        if codec == "lossless":
            assert np.array_equal(reader.read(), tiles)
        bare = limit(reader, codec, args.threads, pool)
        cases: dict[str, Run] = {
            "limit": drawn(bare),
            "ours": drawn(lambda ids: reader.read(ids, pool=pool)),
            "oindex": drawn(lambda ids: theirs.oindex[ids]),
            "z[i]": drawn(lambda ids: [theirs[i] for i in ids.tolist()]),
        }
        if codec == "lossless" and importlib.util.find_spec("tensorstore"):
            peer = by_tensorstore(path, 4 << 20)
            assert np.array_equal(peer[rows].read().result(), expected)
            cases["tensorstore"] = drawn(lambda ids: peer[ids].read().result())
        elif codec == "lossless":
            print("  tensorstore is not installed (group bench)")
            gates.missed += ["tensorstore (not installed)"] if args.need_peers else []
        times = interleaved(cases, args.rounds)
        speed = {n: PER_ROUND * BATCH / np.median([wall for wall, _ in times[n]]) for n in ("ours", "limit")}
        print(f"  random batches of {BATCH}: ours {speed['ours']:,.0f} tiles/s, limit {speed['limit']:,.0f}")
        for name, gate in GATES[codec].items():
            if name in times:
                gates.ratio(f"{codec}: random, speed over {name}", faster(times, "ours", name), least=gate)
        sequential(reader, theirs, codec, args, gates, path)
    writing(folder, tiles, codec, args, gates)
    if codec == "jpeg":
        sizes = [reader._shard(s).index[:, 1].sum() for s in range(reader.spec.n_shards)]
        gates.value("jpeg: KB per tile of these", float(sum(sizes)) / len(tiles) / 1000, "KB")
        if args.real:
            for what, (kb, n) in stored_kb(folder / "sections", Path(args.real)).items():
                most = MOST_KB if what == "grid" else None
                gates.value(f"jpeg: KB per tile as stored, {n:,} of {what}", kb, "KB", most=most)
                gates.value(f"jpeg: the same in KiB, {what}", kb * 1000 / 1024, "KiB")


def stored_kb(folder: Path, real: Path) -> dict[str, tuple[float, int]]:
    """Store tiles of the four sections as `tile --px 224` does; return KB per tile on disk, and tiles."""
    store = hs.create(folder)
    for section in SECTIONS:
        files = {name: real / "her2st" / f"{section}.{end}" for name, end in ENDINGS.items()}
        hs.pp.ingest(store, section, mpp=MPP, **files)
    found = {}
    for what, spec in {"grid": TileSpec.grid(px=PX), "spots": TileSpec.at_spots(px=PX)}.items():
        tiled = hs.pp.tile(store, spec)
        size = sum(sum(n for n, _ in store.group(t.refs[-1]).header["files"].values()) for t in tiled)
        rows = sum(t.rows for t in tiled)
        found[what] = size / rows / 1000, rows
    return found


def sequential(reader: ArrayReader, theirs: Any, codec: str, args: argparse.Namespace, gates: Gates, path: str) -> None:
    """Read everything in order, and shuffled, in batches."""

    def through(**how: Any) -> None:
        for _ in batches(reader, BATCH, threads=args.threads, **how):
            pass

    def slices(array: Any) -> None:
        for start in range(0, TILES, BATCH):
            array[start : start + BATCH]

    epoch = count()
    cases: dict[str, Run] = {
        "ours": through,
        "ours, shuffled": lambda: through(seed=0, epoch=next(epoch)),
        "zarr": lambda: slices(theirs),
    }
    if codec == "lossless" and importlib.util.find_spec("zarrs"):
        importlib.import_module("zarrs")

        def by_zarrs() -> None:
            with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
                slices(zarr.open_array(path, mode="r"))

        cases["zarrs"] = by_zarrs
    times = interleaved(cases, max(3, args.rounds // 2))
    gates.ratio(
        f"{codec}: sequential, speed over zarr", faster(times, "ours", "zarr"), least=GATES[codec]["sequential"]
    )
    gates.ratio(f"{codec}: shuffled epoch, speed over zarr in order", faster(times, "ours, shuffled", "zarr"))
    if "zarrs" in times:
        gates.ratio(f"{codec}: sequential, speed over zarrs", faster(times, "ours", "zarrs"))


def writing(folder: Path, tiles: NDArray[np.uint8], codec: str, args: argparse.Namespace, gates: Gates) -> None:
    """Write everything anew."""
    number = count(1)
    cases: dict[str, Run] = {
        "ours": lambda: write_ours(folder / f"{codec}-{next(number)}", tiles, codec, args.threads),
        "zarr": lambda: write_theirs(folder / f"{codec}-zarr-{next(number)}", tiles, codec),
    }
    times = interleaved(cases, max(3, args.rounds // 2))
    gates.ratio(f"{codec}: writing, speed over zarr", faster(times, "ours", "zarr"), least=GATES[codec]["write"])


def quality(tiles: NDArray[np.uint8], gates: Gates, n: int = 256) -> None:
    """Compare embeddings of tiles with those of the same tiles after JPEG."""
    from histostore.backbones.load import load_backbone

    backbone = load_backbone("efficientnet_lite0")
    some = tiles[:: len(tiles) // n][:n]
    stored = np.stack([imagecodecs.jpeg_decode(imagecodecs.jpeg_encode(t, level=95, subsampling="444")) for t in some])
    one, other = (np.concatenate([backbone.embed(x[i : i + 32]) for i in range(0, n, 32)]) for x in (some, stored))
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    gates.value("jpeg: cosine of embeddings, median", float(np.median(cosine)), "", least=COSINE_MEDIAN)
    gates.value("jpeg: cosine of embeddings, worst", float(cosine.min()), "", least=COSINE_WORST)


def main() -> int:
    """Print a line per claim; return 1 when one of them is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=os.environ.get("HISTOSTORE_REAL_DATA"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--codec", choices=sorted(GATES), action="append")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--need-peers", action="store_true")
    args = parser.parse_args()
    imagecodecs.zarr.register_codecs(verbose=False)
    tiles = real_tiles(Path(args.real)) if args.real else synthetic_tiles()
    print(
        f"{len(tiles):,} {'real' if args.real else 'synthetic'} tiles, {args.threads} threads, zarr {zarr.__version__}"
    )
    gates = Gates()
    with tempfile.TemporaryDirectory() as folder:
        for codec in args.codec or ("jpeg", "lossless"):
            compare(Path(folder), tiles, codec, args, gates)
    if args.quality:
        quality(tiles, gates)
    return gates.end()


if __name__ == "__main__":
    sys.exit(main())
