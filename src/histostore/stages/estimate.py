"""What a stage would take: tiles, bytes and time, from its plan and a short measured probe. Writes nothing.

The time is that of the probe, scaled: low and high are its fastest and its slowest part. Of many slides the first few
are probed, and the others taken to be like them. What the probe does not see is not in it: fsync, a disk that slows
down under load, a file that is cold in one place and cached in another.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.backbones.batch import CPU_BATCH
from histostore.stages.embed import begin_embedding, threads_beside, tile_source
from histostore.stages.pixels import SlideTiles, pixel_array
from histostore.stages.result import StageResult
from histostore.stages.source import open_source
from histostore.stages.tile import begin_tiling
from histostore.stages.tile_plan import lay_out
from histostore.store.arrays import chunk_rows, small_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from histostore.protocols import Backbone
    from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
    from histostore.store.arrays import ArraySpec
    from histostore.store.store import Store

PARTS = 5
"""A probe is so many parts, spread evenly over the slide, after one that is not counted."""
TILES_PER_PART = 16
PROBED_SLIDES = 3
BUDGET_S = 10.0
"""Of all probes of a run together, about: what was begun is ended, and each has one part at least."""
_READING = 0.3
"""Share of the budget for reading, where networks are probed too."""
_BATCH = defaultdict(lambda: CPU_BATCH, cuda=256)
"""Tiles per forward pass by device, where none is asked for: on CUDA about what a run would choose."""
_HEADER_BYTES = 4096
"""Of one group, with the metadata of its arrays; about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure with the lowest and highest that the parts of a probe give."""

    low: float
    middle: float
    high: float

    def times(self, n: float, plus: float = 0.0) -> Spread:
        """Return it scaled, and shifted."""
        return Spread(low=self.low * n + plus, middle=self.middle * n + plus, high=self.high * n + plus)

    def to_json(self) -> list[float]:
        """Return low, middle and high."""
        return [self.low, self.middle, self.high]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one stage would take on one slide."""

    slide: str
    stage: str
    what: str
    """The tile set, or the backbone."""
    tiles: int
    bytes: Spread
    seconds: Spread
    probed: int
    """Tiles that were read for it; 0 where it follows from slides before it, or nothing is to be done."""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; spreads are [low, middle, high]."""
        return {
            "slide": self.slide, "stage": self.stage, "what": self.what, "tiles": self.tiles,
            "bytes": self.bytes.to_json(), "seconds": self.seconds.to_json(), "probed": self.probed, "note": self.note,
        }  # fmt: skip


@dataclass(slots=True)
class Probes:
    """What was measured in one run: give the same one for every slide, and the first few are measured for all."""

    reading: dict[tuple[str, int], list[list[float]]] = field(default_factory=dict)
    """Seconds per tile of the parts of each slide, by how tiles are kept and their px."""
    forward: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)
    """Seconds per forward pass, by the backbone's digest, the tiles' px and the batch."""
    sizes: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    """Encoded bytes per tile."""

    def wants(self, key: tuple[str, int]) -> bool:
        """Whether reading is still to be measured."""
        return len(self.reading.get(key, ())) < PROBED_SLIDES

    def read(self, key: tuple[str, int], read: Callable[[int, int], object], n: int, size: int, share: float) -> int:
        """Measure reading on one more slide; return how many tiles were read."""
        times, probed = _probe(read, n, size, share * BUDGET_S / PROBED_SLIDES)
        self.reading.setdefault(key, []).append(times)
        return probed

    def seconds_of_reading(self, key: tuple[str, int], *, own: bool) -> Spread:
        """Return seconds per tile of the slide that was measured last, or of all of them."""
        found = self.reading[key]
        return _spread(found[-1] if own else [t for of in found for t in of])

    def seconds_of_pass(self, backbone: Backbone, px: int, batch: int, share: float) -> Spread:
        """Return seconds of a forward pass, measured the first time."""
        key = (backbone.spec.digest, px, batch)
        if key not in self.forward:
            blank = np.zeros((batch, px, px, 3), np.uint8)
            times, _ = _probe(lambda *_: backbone.embed(blank), PARTS, 1, share * BUDGET_S)
            self.forward[key] = times
        return _spread(self.forward[key])


NOTHING = Spread(low=0.0, middle=0.0, high=0.0)


def estimate_tiling(
    store: Store,
    slide: str,
    spec: TileSpec,
    *,
    pixels: PixelSpec | None = None,
    name: str | None = None,
    replace: bool = False,
    read_threads: int = 1,
    probes: Probes | None = None,
) -> Estimate:
    """Plan the tiles of a slide and read and encode a few of them; of slides after the first few only the plan.

    Give the same `probes` for every slide of a run.

    Raises
    ------
    DataError
        No tile would be left; the counts say why.
    ConflictError
        The name is taken by another spec.
    """
    todo = begin_tiling(store, slide, spec, pixels=pixels, name=name, replace=replace)
    if isinstance(todo, StageResult):
        what = todo.refs[0].name
        return _already(slide, "tile", what, todo.rows)
    begun, probes = time.perf_counter(), probes or Probes()
    with ExitStack() as stack:
        image = stack.enter_context(open_source(store, todo.manifest, workers=read_threads))
        made = lay_out(store, spec, todo.inputs, image)
        plan, n = made.plan, len(made.plan)
        planning = time.perf_counter() - begun
        fixed = sum(map(_encoded_bytes, made.tables().values()), n + 2 * _HEADER_BYTES)
        if todo.pixels.codec == "slide":
            table = Spread(low=fixed, middle=fixed, high=fixed)
            spent = Spread(low=planning, middle=planning, high=planning)
            return Estimate(
                slide=slide, stage="tile", what=todo.name, tiles=n, bytes=table, seconds=spent, probed=0,
                note="pixels stay in the slide",
            )  # fmt: skip
        key = (todo.pixels.codec, plan.read.out_px)
        own, probed = probes.wants(key), 0
        if own:
            source = stack.enter_context(SlideTiles(image, plan.read, plan.xy0, made.stain, read_threads))
            layout = pixel_array(todo.pixels, n, plan.read.out_px)
            sizes: list[float] = []

            def encode(start: int, stop: int) -> None:
                tiles, _ = source.read(start, stop)
                sizes.append(sum(len(layout.pipeline.encode(tile[None])) for tile in tiles) / len(tiles))

            probed = probes.read(key, encode, n, TILES_PER_PART, 1.0)
            probes.sizes.setdefault(key, []).extend(sizes[1:] or sizes)
    index = 16.0 * n  # offset and length of every tile in its shard
    size = _spread(sizes[1:] or sizes) if own else _spread(probes.sizes[key])
    return Estimate(
        slide=slide, stage="tile", what=todo.name, tiles=n, bytes=size.times(n, fixed + index),
        seconds=probes.seconds_of_reading(key, own=own).times(n, planning), probed=probed, note=_how(own),
    )  # fmt: skip


def estimate_embedding(
    store: Store,
    slide: str,
    backbones: Sequence[Backbone],
    *,
    tiles: str | None = None,
    spec: EmbeddingSpec | None = None,
    batch: int | None = None,
    read_threads: int | None = None,
    replace: bool = False,
    allow_mpp: bool = False,
    probes: Probes | None = None,
) -> list[Estimate]:
    """Read a few batches of a slide's tiles, and let each backbone embed a few, as its engine would cut them.

    Give the same `probes` for every slide of a run: a backbone is then measured once, and reading on the first few.
    Reading overlaps with the forward pass, so the longer of the two is the time.

    Returns
    -------
    list of Estimate
        One per backbone, in order. Bytes are exact but for headers.

    Raises
    ------
    SpecMismatchError
        The tiles' mpp is not what the backbone declares.
    ConflictError
        The name is taken by another backbone, layout or other pixels.
    """
    embedding = begin_embedding(store, slide, tiles=tiles, spec=spec, batch=batch)
    found, probes = [], probes or Probes()
    with ExitStack() as stack:
        tiles_group = store.group(embedding.tiles)
        n, px = tiles_group.rows, int(tiles_group.attrs["out_px"])
        key, probed = ("slide" if embedding.pixels is None else "stored", px), 0
        for backbone in backbones:
            name = embedding.name(backbone.spec)
            done = embedding.already(store, backbone.spec, replace=replace, allow_mpp=allow_mpp)
            if done is not None:
                found.append(_already(slide, "embed", name, done.rows))
                continue
            each = batch or _BATCH[str(backbone.engine().get("device", "cpu")).split(":")[0]]
            if probes.wants(key) and not probed:
                source = tile_source(store, embedding, read_threads or threads_beside(backbones), stack)
                probed = probes.read(key, source.read, n, each, _READING)
            layout = embedding.layout(backbone.spec, n)
            passes = sum(-(-(stop - start) // each) for start, stop in map(layout.shard_range, range(layout.n_shards)))
            ways = (
                probes.seconds_of_reading(key, own=probed > 0).times(n),
                probes.seconds_of_pass(backbone, px, each, (1 - _READING) / len(backbones)).times(passes),
            )
            size = float(_array_bytes(layout) + n + _HEADER_BYTES)
            found.append(
                Estimate(
                    slide=slide, stage="embed", what=name, tiles=n, bytes=Spread(low=size, middle=size, high=size),
                    seconds=max(ways, key=lambda way: way.middle), probed=probed, note=_how(probed > 0),
                )
            )  # fmt: skip
    return found


def _how(own: bool) -> str:
    return "" if own else "by proportion"


def _probe(work: Callable[[int, int], object], n: int, size: int, budget_s: float) -> tuple[list[float], int]:
    """Do a few rows here and there; return seconds per row of each part, and how many rows were done.

    The first part opens, loads and warms what the first call does: it counts where there is no time for another.
    """
    starts = np.linspace(0, max(0, n - size), max(1, min(PARTS, n // size)), dtype=int).tolist()
    times: list[float] = []
    probed, begun = 0, time.perf_counter()
    for start in (0, *dict.fromkeys(starts)):
        stop, then = min(n, start + size), time.perf_counter()
        if times and then - begun + times[-1] * (stop - start) > budget_s:
            break
        work(start, stop)
        times.append((time.perf_counter() - then) / (stop - start))
        probed += stop - start
    return times[1:] or times, probed


def _spread(values: Sequence[float]) -> Spread:
    return Spread(low=min(values), middle=statistics.fmean(values), high=max(values))


def _array_bytes(spec: ArraySpec) -> int:
    """Return the bytes of all shards of an array whose chunks are not compressed."""
    chunk = spec.chunk_rows * int(np.prod(spec.row_shape)) * np.dtype(spec.dtype).itemsize + 4
    index = 16 * spec.chunks_per_shard + 4
    return sum(spec.chunks_in(shard) * chunk + index for shard in range(spec.n_shards))


def _encoded_bytes(values: NDArray[Any]) -> int:
    spec = small_array(values, dims=(), attrs={})
    return sum(len(spec.pipeline.encode(chunk)) for chunk in chunk_rows(spec, values))


def _already(slide: str, stage: str, what: str, rows: int) -> Estimate:
    return Estimate(
        slide=slide, stage=stage, what=what, tiles=rows, bytes=NOTHING, seconds=NOTHING, probed=0, note="already there"
    )  # fmt: skip
