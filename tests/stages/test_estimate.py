"""A dry run says what a stage would take, near to what it takes, and writes nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from histostore.backbones import load_backbone
from histostore.errors import ConflictError, NotFoundError
from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
from histostore.stages.embed import embed
from histostore.stages.estimate import estimate_embedding, estimate_tiling
from histostore.stages.tile import tile
from histostore.store.store import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.store.manifest import Ref

GRID = TileSpec.grid(px=96)


def tree(store: Store) -> dict[str, str]:
    """Return the sha256 of every file, by path, and the folders."""
    root = Path(store.uri)
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(root.rglob("*"))
    }


def taken(store: Store, *refs: Ref) -> int:
    return sum(size for ref in refs for _, size, _ in store.files.walk(ref.prefix))


@pytest.mark.parametrize("codec", ["jpeg", "lossless", "slide"])
def test_tiles_and_bytes_are_those_that_tiling_then_makes(
    ingested: Path, copy_of: Callable[[Path], Path], codec: str
) -> None:
    store = open_store(copy_of(ingested))
    pixels, before = PixelSpec(codec=codec), tree(store)  # type: ignore[arg-type]
    told = estimate_tiling(store, "A1", GRID, pixels=pixels)
    assert tree(store) == before
    done = tile(store, "A1", GRID, pixels=pixels)
    real = taken(store, *(r for r in done.refs if r.kind != "points"))
    print(f"{codec}: {told.bytes.middle / real:.2f} of the bytes, {told.seconds.middle:.3f} s")
    assert told.tiles == done.rows
    assert told.bytes.middle == pytest.approx(real, rel=0.15, abs=6000)
    assert told.bytes.low <= told.bytes.middle <= told.bytes.high
    assert 0 < told.seconds.low <= told.seconds.middle <= told.seconds.high
    assert told.probed == 0 if codec == "slide" else 16 <= told.probed <= 6 * 16


def test_what_is_there_already_takes_nothing_and_what_conflicts_is_refused(
    ingested: Path, copy_of: Callable[[Path], Path]
) -> None:
    store = open_store(copy_of(ingested))
    tile(store, "A1", GRID, name="mine")
    told = estimate_tiling(store, "A1", GRID, name="mine")
    assert (told.note, told.seconds.high, told.bytes.high, told.probed) == ("already there", 0, 0, 0)
    with pytest.raises(ConflictError):
        estimate_tiling(store, "A1", TileSpec.grid(px=128), name="mine")
    with pytest.raises(NotFoundError):
        estimate_tiling(store, "nope", GRID)


@pytest.mark.parametrize("spec", [EmbeddingSpec(), EmbeddingSpec(dtype="float32", shard_rows=32, chunk_rows=16)])
def test_bytes_of_embeddings_are_known_before(
    tiled: Path, copy_of: Callable[[Path], Path], spec: EmbeddingSpec
) -> None:
    store, backbone = open_store(copy_of(tiled)), load_backbone("testing")
    before = tree(store)
    (told,) = estimate_embedding(store, "A1", [backbone], spec=spec, batch=16)
    assert tree(store) == before
    (done,) = embed(store, "A1", [backbone], spec=spec, batch=16)
    real = taken(store, *done.refs)
    assert told.tiles == done.rows
    assert told.bytes.middle == pytest.approx(real, abs=6000)
    assert told.bytes.low == told.bytes.high
    assert 0 < told.seconds.low <= told.seconds.middle <= told.seconds.high
    (again,) = estimate_embedding(store, "A1", [backbone], spec=spec, batch=16)
    assert (again.note, again.bytes.high) == ("already there", 0)
