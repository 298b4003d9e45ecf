"""Tiles to embeddings, shard after shard: read, decode, forward and write overlap, one read serves all backbones."""

from __future__ import annotations

from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.backbones.overlap import begin, in_flight
from histostore.errors import DataError
from histostore.protocols import TileStatus
from histostore.stages.overlap import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.backbones.overlap import Waiting
    from histostore.progress import Stopwatch
    from histostore.protocols import Backbone
    from histostore.specs import BackboneSpec
    from histostore.stages.pixels import TileSource


@dataclass(frozen=True, slots=True)
class Pass:
    """A backbone with the number of tiles of its forward passes."""

    backbone: Backbone
    batch: int


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows [start, stop) of one shard, and who embeds them."""

    start: int
    stop: int
    passes: Sequence[Pass]


@dataclass(frozen=True, slots=True)
class EmbeddedShard:
    """A shard whose rows are there."""

    shard: Shard
    rows: list[NDArray[np.float32]]
    """One ``(stop - start, dim)`` float32 per pass."""
    status: NDArray[np.uint8]
    """``(stop - start,)`` uint8 `TileStatus`."""


def embed_shards(
    source: TileSource,
    shards: Iterable[Shard],
    *,
    read_batch: int,
    watch: Stopwatch,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Generator[EmbeddedShard]:
    """Embed shard after shard without a pause in between: yield each as soon as its last forward pass is done.

    A thread reads, decodes and cuts batches ahead, two of them beyond the one at hand; forward passes run as many at a
    time as keep the device busy. While the caller writes a shard, the next one goes on with what was begun.

    Parameters
    ----------
    watch
        Gets the seconds of ``read and decode``, of ``forward`` (the device at work) and of ``waiting for tiles``.
    on_rows
        Told the number of tiles after each forward pass.
    """
    flight = _Flight(watch, on_rows)
    # closed at once when something fails: the caller closes the slide that its thread reads
    with closing(ahead(_batches(source, shards, read_batch, watch))) as items:
        while True:
            with watch.timed("waiting for tiles"):
                item = next(items, None)
            if item is None:
                break
            yield from flight.take(item)
        yield from flight.land()


def checked_rows(
    spec: BackboneSpec, rows: NDArray[np.float32], status: NDArray[np.uint8], dtype: str, *, slide: str, start: int
) -> NDArray[Any]:
    """Return rows as they are stored: in `dtype`, NaN where the tile is unreadable.

    Raises
    ------
    DataError
        A readable tile has a value that is not finite; `start` is the first row's number, to name it.
    """
    with np.errstate(over="ignore"):  # a value beyond float16 becomes inf, and is refused below
        values = rows.astype(dtype)
    unreadable = status == TileStatus.UNREADABLE
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1) & ~unreadable)
    if len(bad):
        named = ", ".join(str(start + r) for r in bad[:5])
        raise DataError(
            f"backbone '{spec.name}' gave values that are not finite as {dtype} for "
            f"{len(bad)} readable tiles of slide '{slide}' (rows {named}); use --dtype float32"
        )
    values[unreadable] = np.nan
    return values


@dataclass(slots=True)
class _Cut:
    """Cuts blocks of any size into batches of one size, counted from the start of the shard."""

    size: int
    at: int = 0
    held: list[NDArray[np.uint8]] = field(default_factory=list)

    def feed(self, block: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Take a block; yield (first row, batch) for every batch that is full."""
        self.held.append(block)
        if sum(map(len, self.held)) < self.size:
            return
        joined = np.concatenate(self.held) if len(self.held) > 1 else self.held[0]
        whole = len(joined) // self.size * self.size
        for first in range(0, whole, self.size):
            yield self.at, joined[first : first + self.size]
            self.at += self.size
        self.held = [joined[whole:]] if whole < len(joined) else []

    def rest(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield what is left, fewer than a batch."""
        if self.held:
            yield self.at, np.concatenate(self.held)
            self.held = []


@dataclass(frozen=True, slots=True)
class _Batch:
    """Tiles of one forward pass, and which rows of their shard they are."""

    shard: _Open
    number: int
    """Which pass."""
    first: int
    rows: int
    tiles: NDArray[np.uint8]
    """With rows of zeros at the end where the shard has fewer than a batch."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A shard at work; as an item of a queue, the end of it."""

    shard: Shard
    outs: list[NDArray[np.float32]]
    statuses: list[NDArray[np.uint8]] = field(default_factory=list)


def _batches(
    source: TileSource, shards: Iterable[Shard], read_batch: int, watch: Stopwatch
) -> Iterator[_Batch | _Open]:
    """Read the tiles of all shards once; yield batches, and each shard after its last."""
    for shard in shards:
        n = shard.stop - shard.start
        at_work = _Open(shard, [np.empty((n, p.backbone.spec.dim), np.float32) for p in shard.passes])
        cuts = [_Cut(p.batch) for p in shard.passes]
        for start in range(shard.start, shard.stop, read_batch):
            with watch.timed("read and decode"):
                pixels, status = source.read(start, min(shard.stop, start + read_batch))
            at_work.statuses.append(status)
            for number, cut in enumerate(cuts):
                for first, part in cut.feed(pixels):
                    yield _Batch(at_work, number, first, len(part), part)
        for number, (cut, made) in enumerate(zip(cuts, shard.passes, strict=True)):
            for first, part in cut.rest():
                yield _Batch(at_work, number, first, len(part), _filled(part, made))
        yield at_work


def _filled(part: NDArray[np.uint8], made: Pass) -> NDArray[np.uint8]:
    """Fill the last batch of a shard up, unless the backbone's bits do not depend on the batch."""
    lacking = made.batch - len(part)
    if made.backbone.engine().get("part"):
        return part
    return np.concatenate([part, np.zeros((lacking, *part.shape[1:]), np.uint8)])


@dataclass(slots=True)
class _Flight:
    """Forward passes that were begun, in order, with the ends of their shards between them."""

    watch: Stopwatch
    on_rows: Callable[[int], None]
    begun: deque[tuple[_Batch, Waiting] | _Open] = field(default_factory=deque)
    count: Counter[int] = field(default_factory=Counter)
    """Of each backbone, by its identity."""

    def take(self, item: _Batch | _Open) -> Iterator[EmbeddedShard]:
        """Begin a batch, after waiting for older ones where there are enough; yield shards that got complete."""
        if isinstance(item, _Open):
            self.begun.append(item)
            return
        made = item.shard.shard.passes[item.number]
        most = in_flight(made.backbone, made.batch)
        while self.count[id(made.backbone)] >= most:
            yield from self._land_one()
        self.begun.append((item, begin(made.backbone, item.tiles)))
        self.count[id(made.backbone)] += 1

    def land(self) -> Iterator[EmbeddedShard]:
        """Wait for everything."""
        while self.begun:
            yield from self._land_one()

    def _land_one(self) -> Iterator[EmbeddedShard]:
        first = self.begun.popleft()
        if isinstance(first, _Open):
            yield EmbeddedShard(first.shard, first.outs, np.concatenate(first.statuses))
            return
        item, waiting = first
        found = waiting()
        item.shard.outs[item.number][item.first : item.first + item.rows] = found.rows[: item.rows]
        self.count[id(item.shard.shard.passes[item.number].backbone)] -= 1
        self.watch.add("forward", found.seconds)
        self.on_rows(item.rows)
        if self.begun and isinstance(self.begun[0], _Open):  # not kept until the next batch wants in
            yield from self._land_one()
