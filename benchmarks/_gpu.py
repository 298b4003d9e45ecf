"""The parts of `benchmarks.gpu`. Each runs in a process of its own, prints what it finds and keeps it as JSON."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import histostore as hs
from benchmarks.memory import write_slide
from histostore.backbones import load_backbone
from histostore.backbones.batch import choose_batch
from histostore.backbones.difference import compare_engines, probe_tiles
from histostore.backbones.overlap import begin
from histostore.index.ann import AnnIndex
from histostore.index.build import build
from histostore.index.engine import which_faiss
from histostore.index.exact import ExactIndex
from histostore.index.spec import IndexSpec
from histostore.specs import PixelSpec
from histostore.stages.pixels import StoredTiles
from histostore.stages.profile import Profile
from histostore.store.codecs import jpeg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

DIM, K, PX = 512, 10, 224
NETWORKS = {"vit": ("timm/vit_large_patch16_224@random:0", 0.9), "resnet": ("resnet50@random:0", 0.7)}
"""And the share of the bare forward pass that the whole way from the tile store must reach."""
SMALL = "timm/resnet10t@random:0"
"""Instead of both where the script itself is tried on a CPU."""
BATCHES = (64, 128, 256, 512, 1024)
ROWS_AGREE, RECALL, COSINE = 0.99, 0.9, 0.99
"""Least: answers of FAISS alike on both devices, recall@10, cosine of a row in bfloat16 to the CPU's."""


def cores() -> int:
    """Return the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(slots=True)
class Notes:
    """What one part found: printed at once, and written after every line so that a part that is killed keeps it."""

    part: str
    folder: Path
    device: Any = "cuda"
    tiles: int = 24_576
    rows: int = 1_000_000
    rounds: int = 5
    found: dict[str, Any] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Where it is written."""
        return self.folder / f"{self.part}.json"

    @property
    def threads(self) -> int:
        """Threads that decode."""
        return min(16, cores())

    @property
    def least_s(self) -> float:
        """Seconds that a rate is measured for; on a CPU there is nothing to be learnt."""
        return 0.0 if str(self.device) == "cpu" else 1.0

    def say(self, text: str, **figures: Any) -> None:
        """Print a line, and keep its figures."""
        sys.stdout.write(f"{self.part:<9} {text}\n")
        sys.stdout.flush()
        self.found |= figures
        self.write()

    def gate(self, what: str, value: float, least: float) -> None:
        """Print a figure beside the least that it must be; on a CPU there is none."""
        gated = str(self.device) != "cpu"
        verdict = "" if not gated else f" (gate {least:g}: {'reached' if value >= least else 'MISSED'})"
        if gated and not value >= least:
            self.missed.append(f"{self.part}: {what} {value:.3f}, not {least:g}")
        self.say(f"{what} {value:.3f}{verdict}", **{what: value})

    def write(self) -> None:
        """Write everything."""
        self.path.write_text(json.dumps({"found": self.found, "missed": self.missed}, indent=1))

    def other(self, part: str) -> dict[str, Any]:
        """Return what another part found; nothing where it did not run."""
        path = self.folder / f"{part}.json"
        return dict(json.loads(path.read_text())["found"]) if path.exists() else {}

    def wait(self) -> None:
        """Wait for the device."""
        if str(self.device) != "cpu":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], rounds: int) -> float:
        """Return the median time of a call, the device waited for."""
        took = []
        for _ in range(rounds):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            took.append(time.perf_counter() - begun)
        return statistics.median(took)


def machine(notes: Notes) -> None:
    """Tell what this runs on, and the device's own limits: copies, and products in bfloat16."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    notes.say(f"{cores()} cores, {memory:.0f} GiB, torch {torch.__version__}, numpy {np.__version__}",
              cores=cores(), torch=torch.__version__)  # fmt: skip
    if notes.device == "cpu":
        return
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    name = torch.cuda.get_device_name(0)
    notes.say(f"{name}, {total:.0f} GiB ({free:.0f} free), CUDA {torch.version.cuda}, cuDNN "
              f"{torch.backends.cudnn.version()}", name=name, gib=total)  # fmt: skip
    host, there = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True), torch.empty(1 << 28, dtype=torch.uint8)
    on_device = there.random_().to("cuda")
    up = host.numel() / notes.seconds(lambda: on_device.copy_(host, non_blocking=True), 5) / 1e9
    pageable = host.numel() / notes.seconds(lambda: on_device.copy_(there), 5) / 1e9
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = 2 * 8192**3 / notes.seconds(lambda: a @ a, 10) / 1e12
    notes.say(f"to the device {up:.1f} GB/s pinned, {pageable:.1f} pageable; bfloat16 products {product:.0f} TFLOP/s",
              pinned_gb_s=up, pageable_gb_s=pageable, bfloat16_tflop_s=product)  # fmt: skip


def tiles(notes: Notes) -> None:
    """Make a slide, a store with its tiles as JPEG, and one whose tiles are left in the slide."""
    edge = int(np.ceil(np.sqrt(notes.tiles / 0.6))) * PX // 4 + PX  # tiles overlap, for a slide that is soon written
    image, begun = notes.folder / "slide.tif", time.perf_counter()
    write_slide(image, (edge, edge), None)
    notes.say(f"a slide of {edge:,} x {edge:,} px in {time.perf_counter() - begun:.0f} s")
    codecs: dict[Any, float] = {"jpeg": 0.75, "slide": 0.5}
    for codec, overlap in codecs.items():
        begun = time.perf_counter()
        store = hs.create(notes.folder / codec)
        hs.pp.ingest(store, slide="S", image=image)
        spec = hs.TileSpec.grid(px=PX, mpp="native", overlap=overlap, min_tissue=0.2, max_tiles=notes.tiles)
        (made,) = hs.pp.tile(store, spec=spec, pixels=PixelSpec(codec=codec), read_threads=notes.threads)
        took = time.perf_counter() - begun
        notes.say(f"{made.rows:,} tiles of {PX} px, pixels {codec}, in {took:.0f} s", **{f"{codec}_tiles": made.rows})


def network(notes: Notes) -> None:
    """Hold embedding from the tile store, and from the slide, against the bare forward pass at its best batch."""
    name, least = NETWORKS[notes.part] if notes.device != "cpu" else (SMALL, 0.0)
    backbone: Any = load_backbone(name, device=notes.device)
    best, rate = best_forward(notes, backbone)
    notes.say(f"{name}, {backbone.precision}: bare forward {rate:,.0f} tiles/s at batch {best}", batch=best, bare=rate)
    profile = embedded(notes, backbone, "slide", best)  # first: what is taken and chosen once is so before the rounds
    of = profile.rows / profile.wall / rate
    notes.say(f"from the slide {profile.rows / profile.wall:,.0f} tiles/s, {of:.2f} of the bare forward, device busy "
              f"{profile.share('forward'):.2f} of the time", from_slide=of)  # fmt: skip
    notes.say(profile.text().strip(), slide_profile=profile.to_json())
    n = int(notes.other("tiles")["jpeg_tiles"])
    shares, busy = [], []
    for _ in range(min(notes.rounds, max(1, int(40 * rate / n)))):
        now = forward_rate(notes, backbone, best) or rate
        profile = embedded(notes, backbone, "jpeg", best)
        shares.append(profile.rows / profile.wall / now)
        busy.append(profile.share("forward"))
        notes.say(f"from the tile store {profile.rows / profile.wall:,.0f} tiles/s, {shares[-1]:.2f} of the bare "
                  f"{now:,.0f}, device busy {busy[-1]:.2f} of the time", shares=shares, busy=busy)  # fmt: skip
    notes.say(profile.text().strip(), profile=profile.to_json())
    notes.gate("share of the bare forward", statistics.median(shares), least)
    notes.say(f"a run would choose batch {choose_batch(backbone, PX)}")


def best_forward(notes: Notes, backbone: Any) -> tuple[int, float]:
    """Return the batch whose bare forward pass is fastest, and its tiles per second."""
    rates: dict[int, float] = {}
    for batch in BATCHES if notes.device != "cpu" else (16,):
        rate = forward_rate(notes, backbone, batch)
        if rate is None:
            notes.say(f"batch {batch} does not fit")
            torch.cuda.empty_cache()
            break
        rates[batch] = rate
        notes.say(f"batch {batch}: {rate:,.0f} tiles/s", rates=rates)
    best = max(rates, key=lambda b: rates[b])
    return best, rates[best]


def forward_rate(notes: Notes, backbone: Any, batch: int) -> float | None:
    """Return tiles per second of passes back to back, pixels prepared on the device and rows left there."""
    pixels = np.random.default_rng(0).integers(0, 255, (batch, PX, PX, 3), dtype=np.uint8)
    try:
        with torch.inference_mode():
            forward = partial(backbone.forward, backbone.prepare(backbone.upload(pixels).float()))
            forward()
            passes = max(1, int(np.ceil(notes.least_s / notes.seconds(forward, 3))))
            return batch * passes / notes.seconds(lambda: [forward() for _ in range(passes)][:0], 1)
    except torch.OutOfMemoryError:
        return None


def embedded(notes: Notes, backbone: Any, codec: str, batch: int) -> Profile:
    """Embed the tiles of a copy of a store, for a second time would be a no-op; whole batches are read at a time."""
    copy = notes.folder / f"{notes.part}-{codec}"
    shutil.copytree(notes.folder / codec, copy, copy_function=os.link)  # the store never writes into a file
    begun = time.perf_counter()
    (made,) = hs.tl.embed(hs.open(copy), backbone, batch=batch, read_batch=batch, read_threads=notes.threads)
    profile = Profile(wall=time.perf_counter() - begun, rows=made.rows, busy=made.seconds)
    shutil.rmtree(copy)
    return profile


def decoding(notes: Notes) -> None:
    """Tell how many stored tiles a second the processors decode, and how many nvJPEG does."""
    store = hs.open(notes.folder / "jpeg")
    group = store.group(store.slide("S").find("pixels"))
    n, ours = min(4096, len(group.read("status"))), 0.0
    for threads in sorted({1, 2, 4, 8, notes.threads, 2 * notes.threads}):
        source = StoredTiles(group, threads=threads)
        begun = time.perf_counter()
        for start in range(0, n, 512):
            source.read(start, min(n, start + 512))
        rate = n / (time.perf_counter() - begun)
        ours = rate if threads == notes.threads else ours
        notes.say(f"imagecodecs {rate:,.0f} tiles/s in {threads} threads", **{f"threads_{threads}": rate})
    if notes.device == "cpu":
        return
    import torchvision

    pixels = source.read(0, min(n, 2048))[0]
    stored = [jpeg(95).encode(p[None])[:-4] for p in pixels]  # as they lie in the store, less the checksum
    blobs = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in stored]
    decode = partial(torchvision.io.decode_jpeg, mode="RGB", device="cuda")
    warnings.simplefilter("ignore")  # torchvision's decoders are to move to torchcodec
    decode(blobs[:16])
    theirs = len(blobs) / notes.seconds(lambda: decode(blobs), 3)
    host = torchvision.io.decode_jpeg(blobs[:64], mode="RGB")
    off = (torch.stack(decode(blobs[:64])).cpu().short() - torch.stack(host).short()).abs()
    notes.say(f"nvJPEG {theirs:,.0f} tiles/s; {(off > 0).float().mean():.1%} of values differ from libjpeg-turbo's, by "
              f"{off.max()} at most", nvjpeg=theirs)  # fmt: skip
    for part in NETWORKS:
        if bare := notes.other(part).get("bare"):
            notes.say(f"{part}: {source_of_tiles(ours, theirs, bare)}")


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


def vectors(n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return ``(n, DIM)`` rows in clusters, and ``(256, DIM)`` queries near some of them."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((256, DIM), dtype=np.float32)
    values = rng.standard_normal((n, DIM), dtype=np.float32)
    values *= 0.3
    values += centres[rng.integers(0, len(centres), n)]
    queries = values[rng.integers(0, n, 256)] + 0.05 * rng.standard_normal((256, DIM), dtype=np.float32)
    return values, queries.astype(np.float32)


def search(notes: Notes) -> None:
    """Hold exact search on the device against the CPU's: the same rows at the same distances."""
    values, queries = vectors(notes.rows)
    exact = {device: ExactIndex(values, device=device) for device in dict.fromkeys(("cpu", notes.device))}
    found = {device: index.search(queries, K) for device, index in exact.items()}
    took = {d: notes.seconds(partial(index.search, queries, K), notes.rounds) for d, index in exact.items()}
    times = ", ".join(f"{device} {1e3 * s:.0f} ms" for device, s in took.items())
    notes.say(f"exact, {len(values):,} x {DIM}, {len(queries)} queries: {times}", exact_s=took)
    same = [np.array_equal(a, b) for a, b in zip(found["cpu"], found[notes.device], strict=True)]
    notes.gate("exact answers as the CPU's", float(all(same)), 1.0)


def faiss(notes: Notes) -> None:
    """Hold FAISS's IVF indexes on the device against the same ones on the CPU, where there is a FAISS with a GPU."""
    there = which_faiss()
    notes.say(f"FAISS {there.version}, {there.gpus} GPUs {there.problem or ''}".strip(), faiss=there.version)
    if there.version is None or (not there.gpus and notes.device != "cpu"):
        notes.say("no FAISS that sees a GPU: its own search was not measured (install one: faiss-gpu, faiss-cuda)")
        return
    values, queries = vectors(notes.rows)
    truth = ExactIndex(values, device=notes.device).search(queries, K)[0]
    kinds: tuple[Any, ...] = ("ivf-flat", "ivf-sq8")
    for kind in kinds:
        begun = time.perf_counter()
        made = build(values, IndexSpec(kind=kind, metric="cosine"), device=notes.device)
        notes.say(f"{kind}: built in {time.perf_counter() - begun:.1f} s, {made.report.cells} cells, "
                  f"{made.report.effort} visited")  # fmt: skip
        index = made.index
        assert isinstance(index, AnnIndex)
        here = AnnIndex(index.index, index.tuning, vectors=index.vectors, device="cpu")
        near, wanted = index.search(queries, K)[0], here.search(queries, K)[0]
        took = [notes.seconds(partial(one.search, queries, K), notes.rounds) for one in (index, here)]
        notes.say(f"{kind}: {1e3 * took[0]:.1f} ms on {notes.device}, {1e3 * took[1]:.1f} ms on the CPU, "
                  f"{len(queries)} queries", **{f"{kind}_s": took})  # fmt: skip
        notes.gate(f"{kind}: answers as the CPU's", shared(near, wanted), ROWS_AGREE)
        notes.gate(f"{kind}: recall@{K}", shared(near, truth), RECALL)


def shared(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """Return the share of the wanted neighbours ``(q, k)`` that were found."""
    return float((wanted[:, :, None] == found[:, None, :]).any(axis=2).mean())


def agree(notes: Notes) -> None:
    """Tell how far rows of the device are from the CPU's, whose digest they share."""
    resnet, vit = NETWORKS["resnet"][0], NETWORKS["vit"][0]
    cases: list[tuple[str, Any]] = [(resnet, "float32"), (resnet, "auto"), (vit, "auto")]
    if notes.device == "cpu":
        cases = [(SMALL, "auto")]
    for name, precision in cases:
        reference: Any = load_backbone(name, device="cpu")
        other: Any = load_backbone(name, device=notes.device, precision=precision)
        off = compare_engines(reference, other, probe_tiles(16, PX))
        notes.say(f"{name} in {other.precision} beside the CPU's float32: {off.text()}")
        notes.gate(f"{name} in {other.precision}: worst cosine", off.cosine_min, COSINE)


def compiled(notes: Notes) -> None:
    """Tell what `torch.compile` costs at first and gains afterwards, for the smaller network."""
    name = NETWORKS["resnet"][0] if notes.device != "cpu" else SMALL
    batch = int(notes.other("resnet").get("batch", 256)) if notes.device != "cpu" else 16
    pixels = np.random.default_rng(0).integers(0, 255, (batch, PX, PX, 3), dtype=np.uint8)
    rates, rows = {}, {}
    for backend in (None, "inductor") if notes.device != "cpu" else (None, "eager"):
        backbone: Any = load_backbone(name, device=notes.device, compile_with=backend)
        begun = time.perf_counter()
        rows[backend] = begin(backbone, pixels)().rows
        first, passes = time.perf_counter() - begun, 24 if notes.device != "cpu" else 2
        begun, at_work = time.perf_counter(), [begin(backbone, pixels)]
        for _ in range(passes - 1):
            at_work.append(begin(backbone, pixels))
            at_work.pop(0)()
        at_work.pop()()
        rates[str(backend)] = passes * batch / (time.perf_counter() - begun)
        notes.say(f"{name}, compiled with {backend}: first pass {first:.1f} s, then {rates[str(backend)]:,.0f} tiles/s",
                  rates=rates)  # fmt: skip
    a, b = rows.values()
    notes.say(f"largest difference of a value {np.abs(a - b).max():.1e}, of {np.abs(a).max():.1e}")


PARTS: dict[str, Callable[[Notes], None]] = {
    "machine": machine,
    "tiles": tiles,
    "vit": network,
    "resnet": network,
    "decoding": decoding,
    "search": search,
    "faiss": faiss,
    "agree": agree,
    "compile": compiled,
}
