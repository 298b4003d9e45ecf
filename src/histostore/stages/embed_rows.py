"""The embeddings of a run of tiles: read, decode and forward overlap, and each tile is read once for all backbones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError
from histostore.protocols import TileStatus
from histostore.stages.pixels import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.progress import Stopwatch
    from histostore.protocols import Backbone
    from histostore.specs import BackboneSpec
    from histostore.stages.pixels import Block, TileSource


@dataclass(frozen=True, slots=True)
class Pass:
    """A backbone with the number of tiles of its forward passes."""

    backbone: Backbone
    batch: int


def embed_rows(
    source: TileSource,
    start: int,
    stop: int,
    passes: Sequence[Pass],
    *,
    read_batch: int,
    watch: Stopwatch,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> tuple[list[NDArray[np.float32]], NDArray[np.uint8]]:
    """Embed the tiles of rows [start, stop), which are one shard, with one or more backbones.

    Returns
    -------
    list of ndarray
        One ``(stop - start, dim)`` float32 per pass.
    ndarray
        ``(stop - start,)`` uint8 status of the tiles.
    """
    outs = [np.empty((stop - start, p.backbone.spec.dim), dtype=np.float32) for p in passes]
    statuses: list[NDArray[np.uint8]] = []
    cuts = [_Cut(p.batch) for p in passes]

    def blocks() -> Iterator[Block]:
        for a in range(start, stop, read_batch):
            with watch.timed("read and decode"):
                block = source.read(a, min(stop, a + read_batch))
            yield block

    def forward(made: Pass, part: NDArray[np.uint8], out: NDArray[np.float32], at: int) -> None:
        n = len(part)
        if n < made.batch:
            part = np.concatenate([part, np.zeros((made.batch - n, *part.shape[1:]), np.uint8)])
        with watch.timed("forward"):
            out[at : at + n] = made.backbone.embed(part)[:n]
        on_rows(n)

    for pixels, status in ahead(blocks()):
        statuses.append(status)
        for made, out, cut in zip(passes, outs, cuts, strict=True):
            for at, part in cut.feed(pixels):
                forward(made, part, out, at)
    for made, out, cut in zip(passes, outs, cuts, strict=True):
        for at, part in cut.rest():
            forward(made, part, out, at)
    return outs, np.concatenate(statuses)


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
