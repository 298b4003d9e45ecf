"""Search and extraction on a CUDA device: checked against the CPU, and beside the bare forward pass.

    python -m benchmarks.gpu [--rows 1000000] [--tiles 4096] [--rounds 3]

Prints one line per figure; exits 1 where an answer differs or a gate is missed, and says so where there is no device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import histostore as hs
from histostore.backbones import load_backbone
from histostore.index.ann import AnnIndex
from histostore.index.build import build
from histostore.index.engine import which_faiss
from histostore.index.exact import ExactIndex
from histostore.index.spec import IndexSpec

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, K = 512, 10
NETWORKS = (("timm/vit_large_patch16_224@random:0", 0.9), ("resnet50@random:0", 0.7))
"""And the share of the bare forward pass that the whole way from the tile store must reach."""
BATCHES = (64, 128, 256, 512)


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median time of a call, the device waited for."""
    took = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def search(rows: int, rounds: int) -> bool:
    """Compare exact search (and FAISS's, where it has a GPU) on both devices."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(256, DIM)).astype(np.float32)
    values = centres[rng.integers(0, 256, rows)] + 0.3 * rng.normal(size=(rows, DIM)).astype(np.float32)
    queries = values[rng.integers(0, rows, 256)] + 0.05 * rng.normal(size=(256, DIM)).astype(np.float32)
    devices: tuple[Any, ...] = ("cpu", "cuda")
    indexes = {device: ExactIndex(values, device=device) for device in devices}
    found = {device: index.search(queries, K) for device, index in indexes.items()}
    same = bool((found["cpu"][0] == found["cuda"][0]).all())
    took = {device: seconds(partial(index.search, queries, K), rounds) for device, index in indexes.items()}
    say(f"exact {rows:,} x {DIM}: cuda {took['cuda'] * 1e3:.0f} ms, cpu {took['cpu'] * 1e3:.0f} ms, "
        f"answers {'equal' if same else 'DIFFER'}")  # fmt: skip
    faiss = which_faiss()
    if not faiss.gpus:
        say(f"FAISS {faiss.version}: built without a GPU; its own search was not measured")
        return same
    made = build(values, IndexSpec(kind="ivf-flat", metric="cosine"), device="cuda")
    index = made.index
    assert isinstance(index, AnnIndex)
    near = index.search(queries, K)[0]
    recall = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(near, found["cpu"][0], strict=True)]))
    say(f"FAISS GPU {index.tuning}: recall@{K} {recall:.3f}, {seconds(lambda: index.search(queries, K), rounds):.4f} s")
    return same and recall >= 0.9


def embedding(tiles: int, rounds: int) -> bool:
    """Compare embedding from the tile store with the bare forward pass at its best batch."""
    reached = True
    for name, gate in NETWORKS:
        backbone: Any = load_backbone(name, device="cuda", precision="bfloat16")
        pixels = np.random.default_rng(0).integers(0, 255, (max(BATCHES), 224, 224, 3), dtype=np.uint8)
        rates = {}
        for batch in BATCHES:
            forward = partial(backbone.forward, backbone.prepare(backbone.upload(pixels[:batch]).float()))
            with torch.inference_mode():
                forward()
                rates[batch] = batch / seconds(forward, rounds)
        best = max(rates, key=lambda b: rates[b])
        with tempfile.TemporaryDirectory() as folder:
            store = tile_store(Path(folder), tiles)
            begun = time.perf_counter()
            result = hs.tl.embed(store, backbone, batch=best, workers=8)[0]
            spent = time.perf_counter() - begun
        share = result.rows / spent / rates[best]
        reached &= share >= gate
        say(f"{name}: bare forward {rates[best]:,.0f} tiles/s at batch {best}, from the tile store "
            f"{result.rows / spent:,.0f}: {share:.2f} of it (gate {gate})")  # fmt: skip
    return reached


def tile_store(folder: Path, tiles: int) -> hs.Store:
    """Return a store with so many stored JPEG tiles of 224 px."""
    from histostore.testing.cohort import write_cohort

    edge = int(np.ceil(np.sqrt(tiles))) * 112
    cohort = write_cohort(folder / "cohort", n_patients=1, slides_per_patient=1, px=max(2000, edge), genes=20)
    store = hs.create(folder / "store")
    hs.pp.ingest(store, sheet=cohort.sheet)
    spec = hs.TileSpec.grid(px=224, overlap=0.5, min_tissue=0.0, edge="pad", max_tiles=tiles)
    hs.pp.tile(store, spec, workers=8)
    return store


def say(text: str) -> None:
    """Print one line now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run both parts, where there is a device."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tiles", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        say("no CUDA device here: nothing was measured")
        return 0
    say(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}")
    return 0 if search(args.rows, args.rounds) & embedding(args.tiles, args.rounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
