"""A dry run says what a stage would take, near to what it takes, and writes nothing."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from histostore.backbones import load_backbone
from histostore.errors import ConflictError, NotFoundError
from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
from histostore.stages import estimate
from histostore.stages.embed import embed
from histostore.stages.estimate import PROBED_SLIDES, Probes, estimate_embedding, estimate_tiling
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


def test_of_many_slides_the_first_few_are_measured_and_a_network_once(
    tiled: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, backbone = open_store(copy_of(tiled)), load_backbone("testing")
    for number in range(PROBED_SLIDES + 1):
        slide = f"T{number}"
        shutil.copytree(Path(store.uri) / "slides" / "A1", Path(store.uri) / "slides" / slide)
        store.commit(slide, [replace(r, owner=slide) for r in store.slide("A1").entries.values()])
    slides = [f"T{n}" for n in range(PROBED_SLIDES + 1)]
    passes: list[int] = []
    real = type(backbone).embed
    monkeypatch.setattr(type(backbone), "embed", lambda self, tiles: passes.append(len(tiles)) or real(self, tiles))
    probes = Probes()
    told = [estimate_embedding(store, slide, [backbone], batch=16, probes=probes)[0] for slide in slides]
    assert [t.probed > 0 for t in told] == [True] * PROBED_SLIDES + [False]
    assert told[-1].note == "by proportion"
    assert 2 <= len(passes) <= 6
    assert told[-1].bytes == told[0].bytes
    assert 0 < told[-1].seconds.low <= told[-1].seconds.middle <= told[-1].seconds.high
    probes = Probes()
    cut = [estimate_tiling(store, slide, GRID, probes=probes) for slide in slides]
    assert [t.probed > 0 for t in cut] == [True] * PROBED_SLIDES + [False]
    assert cut[-1].tiles == cut[0].tiles
    assert cut[-1].bytes.middle == pytest.approx(cut[0].bytes.middle, rel=0.05)


def test_a_slow_network_is_measured_no_longer_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, probes = load_backbone("testing"), Probes()
    calls: list[int] = []
    monkeypatch.setattr(estimate, "BUDGET_S", 0.1)
    monkeypatch.setattr(type(backbone), "embed", lambda _, tiles: calls.append(len(tiles)) or time.sleep(0.08))
    for _ in range(3):
        assert probes.seconds_of_pass(backbone, 32, 4, 1.0).middle == pytest.approx(0.08, rel=0.5)
    assert calls == [4]
