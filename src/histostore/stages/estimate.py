"""What a stage would take: tiles, bytes and time, from its plan and a short measured probe. Writes nothing.

The time is that of the probe, scaled: low and high are its fastest and its slowest part. What the probe does not see
is not in it: fsync, a disk that slows down under load, a file that is cold in one place and cached in another.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.stages.embed import begin_embedding, tile_source
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
    from histostore.stages.pixels import TileSource
    from histostore.store.arrays import ArraySpec
    from histostore.store.store import Store

PARTS = 5
"""A probe is so many parts, spread evenly over the slide, after one that is not counted."""
TILES_PER_PART = 16
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
    """Tiles that were read for it; 0 where the group is there already and nothing is to be done."""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; spreads are [low, middle, high]."""
        return {
            "slide": self.slide, "stage": self.stage, "what": self.what, "tiles": self.tiles,
            "bytes": self.bytes.to_json(), "seconds": self.seconds.to_json(), "probed": self.probed, "note": self.note,
        }  # fmt: skip


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
) -> Estimate:
    """Plan the tiles of a slide and read and encode a few of them.

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
    begun = time.perf_counter()
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
        source = stack.enter_context(SlideTiles(image, plan.read, plan.xy0, made.stain, read_threads))
        layout = pixel_array(todo.pixels, n, plan.read.out_px)
        sizes: list[float] = []

        def encode(start: int, stop: int) -> None:
            tiles, _ = source.read(start, stop)
            sizes.append(sum(len(layout.pipeline.encode(tile[None])) for tile in tiles) / len(tiles))

        seconds, probed = _probe(encode, n, TILES_PER_PART)
    index = 16.0 * n  # offset and length of every tile in its shard
    return Estimate(
        slide=slide, stage="tile", what=todo.name, tiles=n, bytes=_spread(sizes[1:] or sizes).times(n, fixed + index),
        seconds=seconds.times(n, planning), probed=probed,
    )  # fmt: skip


def estimate_embedding(
    store: Store,
    slide: str,
    backbones: Sequence[Backbone],
    *,
    tiles: str | None = None,
    spec: EmbeddingSpec | None = None,
    batch: int | None = None,
    read_threads: int = 1,
    replace: bool = False,
    allow_mpp: bool = False,
) -> list[Estimate]:
    """Read and embed a few batches of a slide's tiles with each backbone, as its engine would cut them.

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
    found = []
    with ExitStack() as stack:
        source: TileSource | None = None
        for backbone in backbones:
            name = embedding.name(backbone.spec)
            done = embedding.already(store, backbone.spec, replace=replace, allow_mpp=allow_mpp)
            if done is not None:
                found.append(_already(slide, "embed", name, done.rows))
                continue
            if source is None:
                source = tile_source(store, embedding, read_threads, stack)
            n, each = source.n_rows, embedding.batch_of(backbone.engine())
            layout = embedding.layout(backbone.spec, n)
            passes = sum(-(-(stop - start) // each) for start, stop in map(layout.shard_range, range(layout.n_shards)))
            seconds, probed = _probe_backbone(source, backbone, each, passes)
            size = float(_array_bytes(layout) + n + _HEADER_BYTES)
            found.append(
                Estimate(
                    slide=slide, stage="embed", what=name, tiles=n, bytes=Spread(low=size, middle=size, high=size),
                    seconds=seconds, probed=probed,
                )
            )  # fmt: skip
    return found


def _probe_backbone(source: TileSource, backbone: Backbone, batch: int, passes: int) -> tuple[Spread, int]:
    """Return the seconds of all tiles, of the slower of reading and `passes` forward passes; and the tiles tried."""
    read: list[float] = []
    forward: list[float] = []

    def one(start: int, stop: int) -> None:
        begun = time.perf_counter()
        tiles, _ = source.read(start, stop)
        read.append((time.perf_counter() - begun) / len(tiles) * source.n_rows)
        padded = np.zeros((batch, *tiles.shape[1:]), np.uint8)
        padded[: len(tiles)] = tiles
        begun = time.perf_counter()
        backbone.embed(padded)
        forward.append((time.perf_counter() - begun) * passes)

    _, probed = _probe(one, source.n_rows, batch)
    ways = [_spread(times[1:] or times) for times in (read, forward)]
    return max(ways, key=lambda way: way.middle), probed


def _probe(work: Callable[[int, int], None], n: int, size: int) -> tuple[Spread, int]:
    """Do a few rows here and there; return seconds per row and how many rows were done."""
    parts = max(1, min(PARTS, n // size))
    starts = np.linspace(0, max(0, n - size), parts, dtype=int).tolist()
    work(0, min(size, n))  # opens, loads and warms what the first call does
    times, probed = [], min(size, n)
    for start in dict.fromkeys(starts):
        stop = min(n, start + size)
        begun = time.perf_counter()
        work(start, stop)
        times.append((time.perf_counter() - begun) / (stop - start))
        probed += stop - start
    return _spread(times), probed


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
