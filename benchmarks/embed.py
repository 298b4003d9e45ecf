"""Tiles to embeddings on the CPU: end to end beside the bare forward pass, and beside LazySlide with the same network.

    python -m benchmarks.embed [--backbone efficientnet_lite0] [--tiles 256] [--many 1024] [--rounds 5] [--threads 2]

End to end is `hs.tl.embed` from a store of JPEG tiles to the committed group. The bare forward pass has the same
pixels decoded in memory and all of them at once. LazySlide extracts the features of the same tiles from the slide
they were cut from, with torch's eager network, its own data loader and no resizing; where it is not installed that is
said (`pip install --group bench`; `--need-peers` makes it a failure). OpenVINO likewise. Interleaved rounds; rows of
all of them are compared first. Prints ratios, median and range, and exits 1 when a median misses its gate.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import histostore as hs
from benchmarks._rounds import Gates, faster, interleaved
from benchmarks.memory import write_slide
from histostore.backbones import load_backbone
from histostore.backbones.difference import compare_engines
from histostore.errors import MissingDependencyError
from histostore.specs import EmbeddingSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from histostore.protocols import Backbone

OVERHEAD, EAGER, OPENVINO = 0.9, 1.3, 4.0
"""End to end as a share of the bare forward pass; how many times as fast as LazySlide, eager and with OpenVINO."""
FLOAT32 = EmbeddingSpec(dtype="float32", shard_rows=2048, chunk_rows=256)


class Stores:
    """Copies of one store with tiles and without embeddings, since a second `embed` would be a no-op."""

    def __init__(self, folder: Path, image: Path, tiles: int) -> None:
        self._folder, self._number = folder, 0
        folder.mkdir()
        store = hs.create(folder / "first")
        hs.pp.ingest(store, slide="S", image=image)
        spec = hs.TileSpec.grid(px=224, mpp="native", min_tissue=0.2, max_tiles=tiles)
        hs.pp.tile(store, spec)
        manifest = store.slide("S")
        self.xy0: NDArray[np.int64] = store.group(manifest.find("tiles")).read("geometry")[:, 2:4].astype(np.int64)
        self.pixels: NDArray[np.uint8] = store.group(manifest.find("pixels")).array("pixels").read(slice(None))

    def embed(self, backbone: Backbone) -> NDArray[np.float32]:
        """Embed the tiles of a new copy; return the rows as they are stored."""
        self._number += 1
        path = self._folder / str(self._number)
        shutil.copytree(self._folder / "first", path)  # some MB: milliseconds beside seconds
        store = hs.open(path)
        (result,) = hs.tl.embed(store, backbone, spec=FLOAT32)
        rows: NDArray[np.float32] = store.group(result.refs[0]).array("embedding").read(slice(None))
        shutil.rmtree(path)
        return rows


def lazyslide(image: Path, xy0: NDArray[np.int64], name: str) -> Callable[[], NDArray[np.float32]]:
    """Return what extracts the features of the same tiles with LazySlide and an eager network of its own."""
    tool = importlib.import_module("lazyslide")
    wsidata = importlib.import_module("wsidata")
    add_tiles = importlib.import_module("wsidata.io").add_tiles
    v2 = importlib.import_module("torchvision.transforms.v2")
    backbone: Any = load_backbone(name, device="cpu")
    network = backbone.network.to(memory_format=torch.contiguous_format)
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(backbone.spec.mean, backbone.spec.std)]
    )
    wsi = wsidata.open_wsi(str(image), store=None)
    add_tiles(wsi, "tiles", xy0, wsidata.TileSpec.from_wsidata(wsi, tile_px=224), np.zeros(len(xy0), np.int64))

    def run() -> NDArray[np.float32]:
        tool.tl.feature_extraction(
            wsi, network, model_name="same", transform=transform, device="cpu", batch_size=32, num_workers=0, pbar=False
        )
        return np.asarray(wsi["same_tiles"].X)

    return run


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the median cosine of rows."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.median((a * b).sum(1) / lengths))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--tiles", type=int, default=256)
    parser.add_argument("--many", type=int, default=1024, help="tiles with OpenVINO: seconds of work for it too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(14000, 10000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--real", type=Path, default=os.environ.get("HISTOSTORE_REAL_DATA"))
    parser.add_argument("--need-peers", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), args)


def measure(folder: Path, args: argparse.Namespace) -> int:
    image = folder / "slide.tif"
    write_slide(image, tuple(args.size), Path(args.real) / "her2st" if args.real else None)
    stores, many = (Stores(folder / str(n), image, n) for n in (args.tiles, args.many))
    threads = f"{args.threads} threads, torch {torch.__version__}"
    print(f"{len(stores.pixels):,} tiles ({len(many.pixels):,} with OpenVINO) of 224 px, {args.backbone}, {threads}")
    gates, missing = Gates(), []
    eager = load_backbone(args.backbone, device="cpu", threads=args.threads)
    cases: dict[str, Callable[[], object]] = {
        "eager, bare": partial(eager.embed, stores.pixels),
        "eager": partial(stores.embed, eager),
    }
    rows = stores.embed(eager)
    try:
        fast = load_backbone(args.backbone, threads=args.threads, engine="openvino")
        cases |= {"openvino, bare": partial(fast.embed, many.pixels), "openvino": partial(many.embed, fast)}
        print(f"  openvino beside eager: {compare_engines(eager, fast, stores.pixels[:64]).text()}")
    except MissingDependencyError:
        missing.append("openvino")
    try:
        cases["lazyslide"] = theirs = lazyslide(image, stores.xy0, args.backbone)
        # theirs are the slide's own pixels, ours went through a JPEG of quality 95
        gates.value("cosine of our rows and LazySlide's", cosine(rows, theirs()), "", least=0.995)
    except ImportError:
        missing.append("lazyslide")
    count = {name: len((many if name.startswith("openvino") else stores).pixels) for name in cases}
    found = {
        name: [(wall / count[name], cpu / count[name]) for wall, cpu in times]
        for name, times in interleaved(cases, args.rounds).items()
    }
    for name, times in found.items():
        print(f"  {name:<20} {1 / np.median([wall for wall, _ in times]):8.1f} tiles/s")
    for name, least in (("eager", EAGER), ("openvino", OPENVINO if args.backbone == "efficientnet_lite0" else None)):
        if name in cases:
            gates.ratio(
                f"{name}: end to end, of its bare forward", faster(found, name, f"{name}, bare"), least=OVERHEAD
            )
            if "lazyslide" in cases:
                gates.ratio(f"{name}: as fast as LazySlide", faster(found, name, "lazyslide"), least=least)
    if missing:
        print(f"  not installed, not measured: {', '.join(missing)}")
    return gates.end() or int(bool(missing) and args.need_peers)


if __name__ == "__main__":
    sys.exit(main())
