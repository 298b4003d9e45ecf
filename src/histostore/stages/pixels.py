"""Where tiles' pixels come from: a stored group, or the slide itself; and the writing of the one from the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from histostore.progress import Stopwatch
from histostore.protocols import TileStatus
from histostore.stages.overlap import ahead, behind, one_later
from histostore.store.arrays import ArrayReader, ArraySpec
from histostore.store.codecs import ZSTD_U8, jpeg
from histostore.tiles.read import read_tiles
from histostore.units import ReadPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from histostore.protocols import Slide
    from histostore.specs import PixelSpec
    from histostore.store.groups import Group, GroupWriter
    from histostore.tiles.stain import StainFit

type Block = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pixels ``(k, px, px, 3)`` and status ``(k,)``."""

type Begun = tuple[int, NDArray[np.uint8], list[Future[list[bytes]]]]
"""Shard and status of a batch whose tiles are being encoded."""

SHARD_BYTES = 64 << 20
"""Most decoded bytes that one shard of pixels stands for, unless the spec says otherwise."""

MAX_SHARD_TILES = 1024

RUNS_PER_THREAD = 4
"""Into which a batch is cut to be encoded."""

FORESEEN_TILES = 1024
"""Tiles that a slide is told of beforehand: more than a row of them, which it shares segments with."""


class TileSource(Protocol):
    """Pixels of the tiles of one slide, by row."""

    n_rows: int
    decoder: str
    """Library that turns bytes into pixels, for the engine's record."""

    def read(self, start: int, stop: int) -> Block:
        """Return the tiles of rows [start, stop)."""
        ...


@dataclass(slots=True)
class StoredTiles:
    """Tiles decoded from a committed pixels group."""

    group: Group
    threads: int = 1
    n_rows: int = 0
    decoder: str = ""
    _pixels: ArrayReader = field(init=False)
    _status: NDArray[np.uint8] = field(init=False)
    _pool: ThreadPoolExecutor | None = field(init=False, default=None)
    _shard: int = 0

    def __post_init__(self) -> None:
        self._pixels = self.group.array("pixels")
        self._status = self.group.read("status")
        self.n_rows = len(self._pixels)
        self.decoder = decoder_version()
        if self.threads > 1:
            self._pool = ThreadPoolExecutor(self.threads)

    def read(self, start: int, stop: int) -> Block:
        """Return the tiles of rows [start, stop)."""
        if (shard := start // self._pixels.spec.shard_rows) != self._shard:
            # a reader keeps the shards it has mapped: over a whole slide these would be all its bytes
            self._pixels, self._shard = self.group.array("pixels"), shard
        return self._pixels.read(slice(start, stop), pool=self._pool), self._status[start:stop]


@dataclass(slots=True)
class SlideTiles:
    """Tiles read from the slide, which plans and decodes with its own threads. Use it with ``with``."""

    slide: Slide
    plan: ReadPlan
    xy0: NDArray[np.float64]
    """``(n, 2)`` top-left corners in level-0 pixels."""
    stain: StainFit | None = None
    workers: int = 1
    """Threads for what follows decoding: resampling, the blank test, stain."""
    n_rows: int = 0
    decoder: str = ""
    _pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self.n_rows = len(self.xy0)
        self.decoder = self.slide.reader
        self._pool = ThreadPoolExecutor(self.workers) if self.workers > 1 else None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def read(self, start: int, stop: int) -> Block:
        """Return the tiles of rows [start, stop)."""
        then = self.xy0[stop : stop + FORESEEN_TILES]
        return read_tiles(self.slide, self.plan, self.xy0[start:stop], then=then, stain=self.stain, pool=self._pool)


@dataclass(slots=True)
class PixelJob:
    """An attempt at a pixels group, filled shard by shard from the slide.

    It is a `TileSource` too: rows are written first where they are not yet, then decoded as stored, so tiles can be
    embedded in the pass that writes them.
    """

    writer: GroupWriter
    spec: ArraySpec
    source: SlideTiles
    read_batch: int
    threads: int = 1
    watch: Stopwatch = field(default_factory=Stopwatch)
    on_rows: Callable[[int], None] = field(default=lambda _n: None)
    n_rows: int = 0
    decoder: str = ""
    _stored: tuple[int, ArrayReader] | None = None

    def __post_init__(self) -> None:
        self.n_rows = self.spec.n_rows
        self.decoder = decoder_version()

    def pending(self) -> list[int]:
        """Return the shards still to be written."""
        return self.writer.pending("pixels")

    def write(self, shards: Sequence[int]) -> None:
        """Read, encode and write some shards; a shard is written while the next one is encoded."""

        def put(made: EncodedShard) -> None:
            with self.watch.timed("write"):
                self.writer.write_shard("pixels", made.shard, made.chunks, note={"status": made.status.tolist()})

        encoded = encode_shards(
            self.source, self.spec, shards, read_batch=self.read_batch, threads=self.threads, watch=self.watch
        )
        with behind(self.watch) as later, closing(encoded):
            for made in encoded:
                later(partial(put, made))
                self.on_rows(len(made.status))

    def read(self, start: int, stop: int) -> Block:
        """Return the tiles of rows [start, stop) as stored, writing their shards first if need be."""
        first, last = start // self.spec.shard_rows, (stop - 1) // self.spec.shard_rows
        self.write([s for s in range(first, last + 1) if self.writer.receipt("pixels", s) is None])
        if self._stored is None or self._stored[0] != first:  # older shards are let go: see StoredTiles
            self._stored = first, ArrayReader.open(self.writer.files, self.writer.array_prefix("pixels"))
        begun = first * self.spec.shard_rows
        status = statuses(self.writer, "pixels", range(first, last + 1))[start - begun : stop - begun]
        return self._stored[1].read(slice(start, stop)), status


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The tiles of one shard as they are stored."""

    shard: int
    chunks: list[bytes]
    """One per tile."""
    status: NDArray[np.uint8]
    """``(rows of the shard,)`` uint8."""


def encode_shards(
    source: TileSource, spec: ArraySpec, shards: Sequence[int], *, read_batch: int, threads: int, watch: Stopwatch
) -> Generator[EncodedShard]:
    """Read the tiles of some shards and encode them; reading goes ahead of encoding, across shards too."""

    def batches() -> Iterator[tuple[int, Block]]:
        for shard in shards:
            start, stop = spec.shard_range(shard)
            for first in range(start, stop, read_batch):
                with watch.timed("read"):
                    block = source.read(first, min(stop, first + read_batch))
                yield shard, block

    def encode(tiles: NDArray[np.uint8]) -> list[bytes]:
        return [spec.pipeline.encode(tile) for tile in tiles]

    def begun(
        read: Iterable[tuple[int, Block]],
    ) -> Iterator[tuple[int, NDArray[np.uint8], list[Future[list[bytes]]]]]:
        for shard, (pixels, status) in read:
            # a task for each tile would take a tenth as long as its encoding
            runs = np.array_split(pixels[:, None], min(len(pixels), RUNS_PER_THREAD * threads))
            yield shard, status, [pool.submit(encode, run) for run in runs]

    with ThreadPoolExecutor(threads) as pool, closing(ahead(batches())) as read:
        for shard, made in groupby(one_later(begun(read)), key=itemgetter(0)):
            chunks: list[bytes] = []
            found: list[NDArray[np.uint8]] = []
            for _, status, runs in made:
                with watch.timed("encode"):
                    chunks.extend(chunk for run in runs for chunk in run.result())
                found.append(status)
            yield EncodedShard(shard, chunks, np.concatenate(found))


def encode_tiles(
    source: TileSource, spec: ArraySpec, shard: int, *, read_batch: int, threads: int, watch: Stopwatch
) -> EncodedShard:
    """Read the tiles of one shard and encode them."""
    (made,) = encode_shards(source, spec, [shard], read_batch=read_batch, threads=threads, watch=watch)
    return made


def statuses(writer: GroupWriter, name: str, shards: Iterable[int]) -> NDArray[np.uint8]:
    """Return the status of the rows of some finished shards, from their receipts."""
    notes = [(writer.receipt(name, s) or {})["note"]["status"] for s in shards]
    return np.array([value for note in notes for value in note], dtype=np.uint8)


def write_status(writer: GroupWriter, name: str, spec: ArraySpec) -> dict[str, int]:
    """Write the status of every row of an array whose shards are all there; return its counts."""
    status = statuses(writer, name, range(spec.n_shards))
    writer.put_array("status", status, dims=("tile",))
    return status_counts(status)


def pixel_array(spec: PixelSpec, n_tiles: int, px: int) -> ArraySpec:
    """Return the layout of a pixels array: one tile per chunk, whole shards of at most 64 MiB decoded."""
    fitting = max(1, SHARD_BYTES * (4 if spec.codec == "jpeg" else 1) // (px * px * 3))
    shard = spec.shard_tiles or min(MAX_SHARD_TILES, 1 << (fitting.bit_length() - 1))
    return ArraySpec(
        shape=(n_tiles, px, px, 3),
        dtype="uint8",
        chunk_rows=1,
        shard_rows=shard,
        pipeline=jpeg(spec.quality or 95) if spec.codec == "jpeg" else ZSTD_U8,
        dims=("tile", "y", "x", "c"),
    )


def status_counts(status: NDArray[np.uint8]) -> dict[str, int]:
    """Return how many tiles have each status, by its name in lower case."""
    return {s.name.lower(): int((status == s).sum()) for s in TileStatus}


def decoder_version() -> str:
    """Return the library that decodes stored tiles, with its version."""
    import imagecodecs

    return f"imagecodecs {imagecodecs.__version__}"


def plan_of(attrs: Mapping[str, Any]) -> ReadPlan:
    """Return the read plan that a tiles group records."""
    return ReadPlan(**{k: attrs[k] for k in ("level", "read_px", "out_px", "downsample", "resample", "mpp")})
