"""What may change a value, and what may not: batches, workers, order, passes and codecs."""

from __future__ import annotations

import gzip
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.backbones import load_backbone
from histostore.specs import PixelSpec, TileSpec
from histostore.stages.embed import embed
from histostore.stages.tile import tile
from histostore.store.store import open_store
from histostore.testing.crash import contents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.protocols import Backbone
    from histostore.testing.cohort import Cohort

SLIDE = "A1"
READS = [(1, 1), (7, 1), (64, 1), (1, 2), (7, 2), (64, 2)]


def embedding(store: Path, backbone: Backbone, **options: Any) -> np.ndarray:
    """Embed the spots of a copy of a store and return what was stored."""
    opened = open_store(store)
    ref = embed(opened, SLIDE, [backbone], **options)[0].refs[0]
    return opened.group(ref).read("embedding")


def by_id(store: Path) -> pd.DataFrame:
    """Everything that a view knows of its rows, and digests of their embeddings and counts, by obs name."""
    rows = hs.open(store).view(backbone="testing", slides=[SLIDE])
    table = rows.obs()
    table["embedding"] = [hashlib.sha256(v.tobytes()).hexdigest() for v in rows.numpy()]
    adata = rows.to_adata(images=False)
    genes = adata.to_df().sort_index(axis=1)
    table["counts"] = [tuple(v) for v in genes.to_numpy()]
    return table.sort_index()


@pytest.fixture(scope="module")
def testing_bytes(embedded: Path) -> dict[str, str]:
    return contents(embedded, SLIDE, keys=["embeddings/spots/testing"])


@pytest.mark.parametrize(("read_batch", "workers"), READS)
def test_read_batch_and_workers_change_no_byte(
    read_batch: int, workers: int, tiled: Path, testing_bytes: dict[str, str], copy_of: Callable[[Path], Path], cli: Any
) -> None:
    store = copy_of(tiled)
    how = ("--read-batch", read_batch, "--read-threads", workers)
    cli("embed", store, "--slides", SLIDE, "--backbone", "testing", "--shard-rows", 16, *how)
    assert contents(store, SLIDE, keys=["embeddings/spots/testing"]) == testing_bytes


@pytest.mark.parametrize(("read_batch", "workers"), [(1, 2), (7, 1)])
def test_tiles_are_the_same_bytes_with_any_read_batch_and_workers(
    read_batch: int, workers: int, ingested: Path, tiled: Path, copy_of: Callable[[Path], Path], cli: Any
) -> None:
    store = copy_of(ingested)
    how = ("--read-batch", read_batch, "--read-threads", workers)
    cli("tile", store, "--at", "spots", "--px", 96, "--codec", "lossless", "--shard-tiles", 8, *how)
    for slide in ("A1", "B1"):
        assert contents(store, slide) == contents(tiled, slide)


def test_a_network_gives_the_same_bytes_with_any_read_batch_workers_threads_and_batch(
    tiled: Path, copy_of: Callable[[Path], Path]
) -> None:
    """On the CPU: parts of 16 tiles are forwarded on one thread each, so threads and batch change nothing either."""
    one = load_backbone("efficientnet_lite0", device="cpu", threads=1)
    whole = embedding(copy_of(tiled), one, batch=8)
    assert len(whole) >= 35
    again = embedding(copy_of(tiled), one, batch=8, read_batch=7, read_threads=2)
    assert again.tobytes() == whole.tobytes()
    two = load_backbone("efficientnet_lite0", device="cpu", threads=2)
    for other in (embedding(copy_of(tiled), two, batch=32), embedding(copy_of(tiled), one, batch=5)):
        assert other.tobytes() == whole.tobytes()


def test_the_order_of_spots_in_the_file_changes_nothing_but_the_order_of_rows(
    cohort: Cohort, embedded: Path, tmp_path: Path, cli: Any
) -> None:
    slide = cohort.slides[0]
    rng = np.random.default_rng(1)
    paths = {}
    for name, source in (("spots", slide.spots), ("counts", slide.counts), ("obs", slide.obs)):
        lines = source.read_bytes() if source.suffix != ".gz" else gzip.decompress(source.read_bytes())
        head, *rest = lines.decode().splitlines()
        paths[name] = tmp_path / f"{name}.tsv"
        paths[name].write_text("\n".join([head, *(rest[i] for i in rng.permutation(len(rest)))]) + "\n")
    store = tmp_path / "store"
    cli("init", store)
    cli(
        "ingest", store, "--slide", SLIDE, "--image", slide.image, "--mpp", 2, "--st-counts", paths["counts"],
        "--st-spots", paths["spots"], "--obs", paths["obs"], "--geojson", slide.geojson,
        "--meta", "patient=A", "--meta", "centre=north",
    )  # fmt: skip
    cli("tile", store, "--at", "spots", "--px", 96, "--codec", "lossless", "--shard-tiles", 8)
    cli("embed", store, "--backbone", "testing", "--shard-rows", 16)
    shuffled, straight = by_id(store), by_id(embedded)
    assert list(hs.open(store).view(slides=[SLIDE]).names()) != list(hs.open(embedded).view(slides=[SLIDE]).names())
    pd.testing.assert_frame_equal(shuffled, straight, check_like=True)


def test_one_pass_gives_the_bytes_of_separate_steps(cohort: Cohort, tmp_path: Path, cli: Any) -> None:
    for name in ("pass", "steps"):
        cli("init", tmp_path / name)
    done = cli("ingest", tmp_path / "pass", "--sheet", cohort.sheet, "--embed", "testing", "--px", 96, "--json")
    assert done.stdout.count('"done": "written"') >= 4
    cli("ingest", tmp_path / "steps", "--sheet", cohort.sheet)
    cli("tile", tmp_path / "steps", "--at", "spots", "--px", 96)
    cli("embed", tmp_path / "steps", "--backbone", "testing")
    for slide in ("A1", "B1"):
        assert contents(tmp_path / "pass", slide) == contents(tmp_path / "steps", slide)
    again = cli("ingest", tmp_path / "pass", "--sheet", cohort.sheet, "--embed", "testing", "--px", 96, "--json")
    assert again.stdout.count('"done": "already there"') == len(again.stdout.splitlines()) == 6


def test_two_backbones_from_one_decode_equal_two_runs(tiled: Path, copy_of: Callable[[Path], Path]) -> None:
    backbones = [load_backbone("testing"), load_backbone("testing", dihedral=True)]
    together, apart = copy_of(tiled), copy_of(tiled)
    assert len(embed(open_store(together), SLIDE, backbones, batch=5)) == 2
    for backbone in backbones:
        embed(open_store(apart), SLIDE, [backbone], batch=5)
    assert contents(together, SLIDE) == contents(apart, SLIDE)


def test_tiles_that_are_not_copied_embed_as_lossless_ones(ingested: Path, copy_of: Callable[[Path], Path]) -> None:
    store = open_store(copy_of(ingested))
    backbone, found = load_backbone("testing"), {}
    for slide in ("A1", "B1"):
        for codec in ("slide", "lossless"):
            tile(store, slide, TileSpec.at_spots(px=96), pixels=PixelSpec(codec=codec), name=codec)
            ref = embed(store, slide, [backbone], tiles=codec)[0].refs[0]
            found[codec] = store.group(ref).read("embedding")
        assert store.slide(slide).get("pixels", "slide") is None
        assert np.array_equal(found["slide"], found["lossless"])
