"""Search and extraction on a CUDA device: checked against the CPU, and beside the bare forward pass.

    python -m benchmarks.gpu [--rows 1000000] [--tiles 4096] [--rounds 3]

Prints one line per figure; exits 1 where an answer differs or a gate is missed, and says so where there is no device.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import torch
import torchvision

import histostore as hs
from histostore.backbones import load_backbone
from histostore.backbones.batch import choose_batch
from histostore.backbones.difference import compare_engines, probe_tiles
from histostore.index.ann import AnnIndex
from histostore.index.build import build
from histostore.index.engine import which_faiss
from histostore.index.exact import ExactIndex
from histostore.index.spec import IndexSpec
from histostore.specs import PixelSpec
from histostore.stages.pixels import StoredTiles
from histostore.stages.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, K = 512, 10
NETWORKS = (("timm/vit_large_patch16_224@random:0", 0.9), ("resnet50@random:0", 0.7))
"""And the share of the bare forward pass that the whole way from the tile store must reach."""
BATCHES = (64, 128, 256, 512)
READ_THREADS = min(16, os.cpu_count() or 1)


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
    """Compare embedding from the tile store and from the slide with the bare forward pass at its best batch."""
    reached = True
    with tempfile.TemporaryDirectory() as folder:
        stores = {codec: tile_store(Path(folder) / codec, tiles, codec) for codec in ("jpeg", "slide")}
        decoders = decoding(stores["jpeg"])
        for name, gate in NETWORKS:
            backbone: Any = load_backbone(name, device="cuda", precision="bfloat16")
            best, bare = bare_forward(backbone, rounds)
            say(f"{name}: bare forward {bare:,.0f} tiles/s at batch {best} (chosen for runs: "
                f"{choose_batch(backbone, 224)}), bfloat16")  # fmt: skip
            off = compare_engines(load_backbone(name, device="cpu"), backbone, probe_tiles(16, 224))
            say(f"{name}: bfloat16 here beside float32 on the CPU, which share a digest: {off.text()}")
            if decoders is not None:
                say(f"{name}: {source_of_tiles(*decoders, bare)}")
            for codec, store in stores.items():
                begun = time.perf_counter()
                result = hs.tl.embed(store, backbone, batch=best, read_batch=256, read_threads=READ_THREADS)[0]
                profile = Profile(wall=time.perf_counter() - begun, rows=result.rows, busy=result.seconds)
                share = profile.rows / profile.wall / bare
                where = "the tile store" if codec == "jpeg" else "the slide"
                note = f" (gate {gate})" if codec == "jpeg" else ""
                say(f"{name}: from {where} {share:.2f} of the bare forward{note}, "
                    f"device busy {profile.share('forward'):.2f} of the time")  # fmt: skip
                say(profile.text())
                if codec == "jpeg":
                    reached &= share >= gate
    return reached


def bare_forward(backbone: Any, rounds: int) -> tuple[int, float]:
    """Return the best batch and its tiles per second, pixels prepared on the device and rows left there."""
    rates: dict[int, float] = {}
    for batch in BATCHES:
        pixels = np.random.default_rng(0).integers(0, 255, (batch, 224, 224, 3), dtype=np.uint8)
        forward = partial(backbone.forward, backbone.prepare(backbone.upload(pixels).float()))
        with torch.inference_mode():
            forward()
            rates[batch] = batch / seconds(forward, rounds)
    best = max(rates, key=lambda b: rates[b])
    return best, rates[best]


def decoding(store: hs.Store) -> tuple[float, float] | None:
    """Return how many stored tiles a second the processors decode, and how many nvJPEG; None where it is not there."""
    manifest = store.slide(store.slides()[0])
    source = StoredTiles(store.group(manifest.find("pixels")), threads=READ_THREADS)
    n = min(2048, source.n_rows)
    begun = time.perf_counter()
    pixels, _ = source.read(0, n)
    ours = n / (time.perf_counter() - begun)
    blobs = [torch.frombuffer(bytearray(imagecodecs.jpeg8_encode(p, level=95, subsampling="444")), dtype=torch.uint8)
             for p in pixels]  # fmt: skip
    try:
        theirs = n / seconds(lambda: torchvision.io.decode_jpeg(blobs, device="cuda"), 3)
    except RuntimeError as error:
        say(
            f"decoding: imagecodecs {ours:,.0f} tiles/s in {READ_THREADS} threads; nvJPEG: {str(error).splitlines()[0]}"
        )
        return None
    wanted = np.stack([imagecodecs.jpeg8_decode(b.numpy().tobytes()) for b in blobs[:64]]).astype(np.int16)
    found = torch.stack(torchvision.io.decode_jpeg(blobs[:64], device="cuda")).permute(0, 2, 3, 1).cpu().numpy()
    off = np.abs(found - wanted)
    say(f"decoding: imagecodecs {ours:,.0f} tiles/s in {READ_THREADS} threads, nvJPEG {theirs:,.0f}; "
        f"{(off > 0).mean():.1%} of values differ, by {off.max()} at most")  # fmt: skip
    return ours, theirs


def source_of_tiles(ours: float, theirs: float, bare: float) -> str:
    """Say whether decoding on the device would make a run faster.

    The processors decode while the device computes. nvJPEG shares the device: at worst each tile takes the time of
    both, at best (an engine of its own, as from A100 on) they overlap too.

    Parameters
    ----------
    ours, theirs, bare
        Tiles per second: decoded by the processors, decoded by nvJPEG, and of the bare forward pass.
    """
    now, worst, best = min(ours, bare), 1 / (1 / theirs + 1 / bare), min(theirs, bare)
    verdict = "wins" if worst > now else "may win" if best > 1.05 * now else "does not win"
    return f"decoded by processors {now:,.0f} tiles/s, by nvJPEG {worst:,.0f} to {best:,.0f}: nvJPEG {verdict} here"


def tile_store(folder: Path, tiles: int, codec: Any) -> hs.Store:
    """Return a store with so many tiles of 224 px: stored as JPEG, or left in the slide."""
    from histostore.testing.cohort import write_cohort

    edge = int(np.ceil(np.sqrt(tiles))) * 112
    cohort = write_cohort(folder / "cohort", n_patients=1, slides_per_patient=1, px=max(2000, edge), genes=20)
    store = hs.create(folder / "store")
    hs.pp.ingest(store, sheet=cohort.sheet)
    spec = hs.TileSpec.grid(px=224, overlap=0.5, min_tissue=0.0, edge="pad", max_tiles=tiles)
    hs.pp.tile(store, spec, pixels=PixelSpec(codec=codec), read_threads=READ_THREADS)
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
