"""Peak memory of ingest, tile and embed on a large slide, beyond a process after one forward pass.

    python benchmarks/memory.py --real DIR         # 27,000 x 20,000 pyramidal TIFF made from the four real sections
    python benchmarks/memory.py --size 8000 8000 --backbone testing   # synthetic tissue, no torch

Every figure is VmHWM, the most resident memory the kernel has seen of a process (mapped files count), each of a
process of its own. Exits 1 when the stages took more than the limit beyond the forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LIMIT_MIB = 1024
MPP = 0.688
SECTIONS = ("C2", "C3", "C4", "C5")
STAGES = ("ingest", "tile", "embed")


def peak_mib() -> float:
    """Most memory this process has had resident, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def write_slide(path: Path, size: tuple[int, int], real: Path | None) -> None:
    """Write a pyramidal TIFF: the real sections side by side, or synthetic tissue repeated."""
    from histostore.testing.slides import write_pyramid_tiff

    write_pyramid_tiff(path, _sections(real, size) if real else repeated_tissue(), size_px=size, mpp=MPP)


def repeated_tissue() -> Callable[[int, int], NDArray[Any]]:
    """Return the rows of a canvas of at most 40,000 px across that synthetic tissue fills, over and over."""
    import numpy as np

    from histostore.testing.slides import synthetic_histology

    tile, _ = synthetic_histology(2000, 2000, seed=0, tissue_share=0.6)
    wide = np.concatenate([tile] * 20, axis=1)

    def rows(top: int, bottom: int) -> NDArray[Any]:
        return wide[np.arange(top, bottom) % len(tile)]

    return rows


def _sections(folder: Path, size: tuple[int, int]) -> Callable[[int, int], NDArray[Any]]:
    """Return the rows of a canvas that the sections fill from the top left, each in a third by a half of it."""
    import imagecodecs
    import numpy as np

    width, height = size
    with tempfile.TemporaryFile() as file:  # the mapping outlives it
        canvas = np.memmap(file, np.uint8, "w+", shape=(height, width, 3))
    canvas[:] = 240
    across, down = max(1, round(width / 9300)), max(1, round(height / 9950))
    for cell in range(across * down):
        image = imagecodecs.imread(folder / f"{SECTIONS[cell % 4]}.jpg")
        top, left = cell // across * (height // down), cell % across * (width // across)
        part = image[: height - top, : width - left]
        canvas[top : top + len(part), left : left + part.shape[1]] = part

    def rows(top: int, bottom: int) -> NDArray[Any]:
        return np.asarray(canvas[top:bottom])

    return rows


def forward(args: argparse.Namespace) -> dict[str, Any]:
    """One forward pass at the batch."""
    import numpy as np

    from histostore.backbones import load_backbone

    backbone = load_backbone(args.backbone)
    backbone.embed(np.full((args.batch, args.px, args.px, 3), 200, np.uint8))
    return {"peak_mib": peak_mib()}


def stages(args: argparse.Namespace) -> dict[str, Any]:
    """Ingest, tile and embed."""
    import histostore as hs
    from histostore.backbones import load_backbone
    from histostore.specs import PixelSpec, TileSpec

    store = hs.create(Path(args.folder) / f"store-{os.getpid()}")
    spec = TileSpec.grid(px=args.px, mpp="native", min_tissue=0.2)
    found: dict[str, Any] = {}

    def done(stage: str, begun: float) -> None:
        found[stage] = {"peak_mib": round(peak_mib(), 1), "seconds": round(time.perf_counter() - begun, 1)}
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    begun = time.perf_counter()
    hs.pp.ingest(store, "big", image=args.image)
    done("ingest", begun)
    begun = time.perf_counter()
    tiled = hs.pp.tile(store, "big", spec, pixels=PixelSpec(codec=args.codec, shard_tiles=args.shard_tiles))
    done("tile", begun)
    begun = time.perf_counter()
    hs.tl.embed(store, load_backbone(args.backbone), batch=args.batch)
    done("embed", begun)
    pixels = store.group(tiled[0].refs[-1])
    found |= {"tiles": tiled[0].rows, "pixel_mib": sum(n for n, _ in pixels.header["files"].values()) / 2**20}
    return found | {"peak_mib": max(found[stage]["peak_mib"] for stage in STAGES)}


def measure(size: tuple[int, int], sections: Path | None, **options: Any) -> dict[str, Any]:
    """Write a slide, take it through the stages in a process of its own, and return what that peaked at."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "big.tif"
        write_slide(image, size, sections)
        return in_a_process("stages", image=image, folder=folder, **options)


def in_a_process(part: str, **options: Any) -> dict[str, Any]:
    """Run `forward` or `stages` in a process of its own."""
    command = [sys.executable, __file__, "--part", part]
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, default=os.environ.get("HISTOSTORE_REAL_DATA"))
    parser.add_argument("--size", type=int, nargs=2, default=(27_000, 20_000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--codec", default="jpeg", choices=("jpeg", "lossless", "slide"))
    parser.add_argument("--shard-tiles", type=int, help="by default as many as `tile` takes")
    parser.add_argument("--limit", type=float, default=LIMIT_MIB, metavar="MIB")
    parser.add_argument("--synthetic", action="store_true", help="no real sections although they are there")
    parser.add_argument("--part", choices=("forward", "stages"), help=argparse.SUPPRESS)
    parser.add_argument("--image", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        print(json.dumps({"forward": forward, "stages": stages}[args.part](args)))
        return 0
    sections = None if args.synthetic or not args.real else Path(args.real) / "her2st"
    width, height = args.size
    options = {"backbone": args.backbone, "batch": args.batch, "px": args.px, "codec": args.codec}
    before = in_a_process("forward", **options)["peak_mib"]
    found = measure((width, height), sections, **options)
    beyond = found["peak_mib"] - before
    raw = width * height * 3 / 2**20
    what = "real sections" if sections else "synthetic"
    print(f"slide               {width:,} x {height:,} px ({raw:,.0f} MiB of pixels), {what}")
    print(f"tiles               {found['tiles']:,} of {args.px} px, {found['pixel_mib']:,.0f} MiB as {args.codec}")
    print(f"one forward pass    {before:,.0f} MiB ({args.backbone}, batch {args.batch})")
    for stage in STAGES:
        print(f"peak of {stage:<11} {found[stage]['peak_mib']:,.0f} MiB ({found[stage]['seconds']} s)")
    print(f"beyond the forward  {beyond:,.0f} MiB (limit {args.limit:,.0f})")
    return int(beyond > args.limit)


if __name__ == "__main__":
    sys.exit(main())
