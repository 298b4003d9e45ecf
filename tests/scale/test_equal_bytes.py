"""Workers leave the bytes of a serial run, however many there are and whoever began."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import histostore as hs
from histostore.errors import ConflictError, FormatError, SlideError, SpecMismatchError, StorageError, UsageError
from histostore.scale.kept import BackboneCall, Described
from histostore.scale.run import embed_slides, tile_slides, verify_store
from histostore.scale.runner import Runner
from histostore.scale.steps import embed_steps, predict_steps, run_here, tile_steps
from histostore.scale.task import Context, Task
from histostore.scale.versions import own_versions
from histostore.scale.work import describe, perform
from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
from histostore.stages.fit import load_head
from histostore.store.manifest import with_check
from histostore.store.verify import verify
from histostore.testing.crash import contents, receipted

if TYPE_CHECKING:
    from collections.abc import Callable

    type Copy = Callable[[Path], Path]

SPEC, PIXELS = TileSpec.at_spots(px=96), PixelSpec(codec="lossless", shard_tiles=8)
LAYOUT = EmbeddingSpec(shard_rows=16, chunk_rows=16)


def both(one: Path, other: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the sha256 of every committed file of both stores."""
    slides = hs.open(one).slides()
    assert slides == hs.open(other).slides()
    return tuple({f"{s}/{k}": v for s in slides for k, v in contents(p, s).items()} for p in (one, other))


def test_tile_embed_and_predict_leave_the_bytes_of_the_serial_run(
    ingested: Path, embedded: Path, headed: Path, copy_of: Copy, client: Any
) -> None:
    store = hs.open(copy_of(ingested))
    tiled = hs.pp.tile(store, SPEC, pixels=PIXELS, client=client)
    assert [(r.slide, r.done, r.rows) for r in tiled] == [("A1", "written", 41), ("B1", "written", 39)]
    assert hs.tl.embed(store, "testing", spec=LAYOUT, client=client)[0].done == "written"
    ours, theirs = both(Path(store.uri), embedded)
    assert ours == theirs
    assert [r.done for r in hs.pp.tile(store, SPEC, pixels=PIXELS, client=client)] == ["already there"] * 2
    assert [r.done for r in hs.tl.embed(store, "testing", spec=LAYOUT, client=client)] == ["already there"] * 2
    with_head, serial = hs.open(copy_of(headed)), hs.open(copy_of(headed))
    hs.tl.predict(serial, "h")
    assert [r.done for r in hs.tl.predict(with_head, "h", client=client)] == ["written", "written"]
    ours, theirs = both(Path(with_head.uri), Path(serial.uri))
    assert ours == theirs
    assert [r.done for r in hs.tl.predict(with_head, "h", client=client)] == ["already there"] * 2
    assert verify_store(client, with_head) == verify(with_head)


def test_a_grid_with_stain_and_tiles_read_from_the_slide_are_equal_too(
    ingested: Path, copy_of: Copy, client: Any
) -> None:
    stores = [hs.open(copy_of(ingested)) for _ in range(2)]
    grid = TileSpec.grid(px=96, mpp="native", stain="macenko")
    for store, how in zip(stores, ({}, {"client": client}), strict=True):
        hs.pp.tile(store, grid, pixels=PixelSpec(shard_tiles=16), **how)
        hs.pp.tile(store, SPEC, pixels=PixelSpec(codec="slide"), name="live", **how)
        hs.tl.embed(store, "testing", tiles="live", spec=LAYOUT, **how)
    ours, theirs = both(*(Path(s.uri) for s in stores))
    assert ours == theirs


def test_a_network_gives_equal_bytes_and_two_backbones_share_one_reading(
    tiled: Path, copy_of: Copy, client: Any
) -> None:
    stores = [hs.open(copy_of(tiled)) for _ in range(2)]
    names = ["efficientnet_lite0@random:1", "testing"]
    for store, how in zip(stores, ({}, {"client": client}), strict=True):
        done = hs.tl.embed(store, names, slides="A1", spec=LAYOUT, batch=8, **how)
        assert [r.refs[0].name for r in done] == ["spots/efficientnet_lite0-random1", "spots/testing"]
    assert contents(Path(stores[0].uri), "A1") == contents(Path(stores[1].uri), "A1")


def half_done(store: Path, shards: int) -> None:
    """Embed some shards of A1 in this process and die there."""
    opened = hs.open(store)
    context = Context(opened.uri, opened.uuid, str(store), own_versions())
    call = BackboneCall("testing")
    known: Described = perform(context, Task(describe, (call,), ""))
    steps = embed_steps(opened, "A1", [known], spec=LAYOUT)
    for task in next(steps)[:shards]:
        perform(context, task)
    steps.close()


def test_a_serial_run_goes_on_with_a_distributed_one_and_the_other_way_round(
    tiled: Path, embedded: Path, copy_of: Copy, client: Any
) -> None:
    expected = contents(embedded, "A1")
    for how in ({}, {"client": client}):
        store = copy_of(tiled)
        half_done(store, 2)
        kept = receipted(store, "A1")
        assert len(kept) == 2
        (result,) = hs.tl.embed(hs.open(store), "testing", slides="A1", spec=LAYOUT, **how)
        assert result.done == "resumed"
        assert contents(store, "A1") == expected
        assert receipted(store, "A1") == {}
        for path, stamp in kept.items():
            stat = (store / path).stat()
            assert (stat.st_ino, stat.st_mtime_ns, stat.st_size) == stamp, "a finished shard was written again"


def test_the_second_start_of_a_task_returns_the_receipt_of_the_first(tiled: Path, copy_of: Copy) -> None:
    store = hs.open(copy_of(tiled))
    context = Context(store.uri, store.uuid, "again", own_versions())
    known = perform(context, Task(describe, (BackboneCall("testing"),), ""))
    steps = embed_steps(store, "A1", [known], spec=LAYOUT)
    task = next(steps)[0]
    first, second = perform(context, task), perform(context, task)
    assert first.receipts == second.receipts
    assert second.seconds == {}
    steps.close()


def test_a_worker_that_comes_late_changes_nothing_of_a_sealed_group(ingested: Path, copy_of: Copy) -> None:
    store = hs.open(copy_of(ingested))
    context = Context(store.uri, store.uuid, "late", own_versions())
    late: list[Task] = []

    def do(task: Task) -> Any:
        late.append(task)
        return perform(context, task)

    run_here(tile_steps(store, "A1", SPEC, pixels=PIXELS), do)
    before = contents(Path(store.uri), "A1")
    with pytest.raises(ConflictError, match="no longer being written"):
        perform(context, late[-1])
    assert contents(Path(store.uri), "A1") == before
    assert verify(store).ok


def test_a_receipt_of_a_store_elsewhere_is_refused(ingested: Path, copy_of: Copy) -> None:
    store, other = hs.open(copy_of(ingested)), copy_of(ingested)
    with store.begin("A1", "predictions", "spots/x", spec={}, inputs={}) as writer:
        from histostore.store.arrays import ArraySpec
        from histostore.store.codecs import RAW

        writer.create("prediction", ArraySpec(shape=(4, 2), dtype="float32", chunk_rows=2, shard_rows=2, pipeline=RAW))
        made = writer.share()
        (other / made.prefix).mkdir(parents=True)
        (other / made.prefix / "ATTEMPT.json").write_text("{}")
        import numpy as np

        elsewhere = made.on(hs.open(other).files)
        receipt = elsewhere.write_rows("prediction", 0, np.zeros((2, 2), np.float32))
        with pytest.raises(StorageError, match="same path"):
            writer.accept(receipt)
        with pytest.raises(UsageError, match="holds 2 rows, got 1"):
            elsewhere.write_rows("prediction", 1, np.zeros((1, 2), np.float32))


def test_another_store_at_the_same_path_is_refused(ingested: Path, copy_of: Copy) -> None:
    store = hs.open(copy_of(ingested))
    context = Context(store.uri, "0" * 32, "other", own_versions())
    with pytest.raises(SpecMismatchError, match="another one on this worker"):
        perform(context, Task(describe, (BackboneCall("testing"),), ""))


def test_a_failing_slide_does_not_stop_the_others(cohort: Any, tmp_path: Path, cli: Any, client: Any) -> None:
    folder = Path(shutil.copytree(cohort.folder, tmp_path / "files"))
    cli("init", tmp_path / "store")
    cli("ingest", tmp_path / "store", "--sheet", folder / cohort.sheet.name)
    image = next(folder.glob("A1.jp*g"))
    image.write_bytes(image.read_bytes()[:20_000])
    store = hs.open(tmp_path / "store")
    outcomes = dict(tile_slides(client, store, store.slides(), SPEC, pixels=PIXELS))
    assert isinstance(outcomes["A1"], SlideError)
    assert outcomes["B1"][0].done == "written"
    with pytest.raises(SlideError) as failed:
        hs.pp.tile(store, SPEC, pixels=PIXELS, client=client)
    assert "1 of 2 slides failed: A1" in failed.value.__notes__[0]
    image.write_bytes((cohort.folder / image.name).read_bytes())
    assert [r.done for r in hs.pp.tile(store, SPEC, pixels=PIXELS, client=client)] == ["written", "already there"]


def test_errors_of_the_call_are_those_of_the_serial_run(tiled: Path, copy_of: Copy, client: Any) -> None:
    store = hs.open(copy_of(tiled))
    with pytest.raises(ConflictError, match="another spec"):
        hs.pp.tile(store, TileSpec.at_spots(px=64), client=client)
    with pytest.raises(hs.HistostoreError, match="no_such_model"):
        list(embed_slides(client, store, ["A1"], [BackboneCall("no_such_model")]))
    with pytest.raises(UsageError, match="by name"):
        hs.tl.embed(store, object(), client=client)
    with pytest.raises(UsageError, match="none of the 2 workers offers one"):
        Runner(client, store, gpu=True)


def test_a_head_that_is_fitted_again_meanwhile_is_not_taken_for_the_one_asked_for(
    headed: Path, copy_of: Copy, cli: Any
) -> None:
    path = copy_of(headed)
    store = hs.open(path)
    fitted, group = load_head(store, "h")
    steps = predict_steps(store, "A1", "h", fitted, group)
    (task,) = next(steps)
    cli(
        "fit",
        path,
        "--genes",
        "top-mean:3",
        "--backbone",
        "testing",
        "--split",
        "leave-one-out:patient",
        "--save",
        "h",
        "--replace",
    )
    with pytest.raises(SpecMismatchError, match="fitted again meanwhile"):
        perform(Context(store.uri, store.uuid, str(path), own_versions()), task)
    steps.close()
    assert store.slide("A1").of_kind("predictions") == []


def test_workers_find_out_that_a_newer_histostore_has_taken_the_store_over(
    ingested: Path, copy_of: Copy, client: Any
) -> None:
    store = hs.open(copy_of(ingested))
    path = Path(store.uri) / "STORE.json"
    header = json.loads(path.read_bytes())
    path.write_text(json.dumps(with_check({k: v for k, v in header.items() if k != "check"} | {"format": "2.0"})))
    before = sorted(p for p in Path(store.uri).rglob("*") if p.is_file())
    with pytest.raises(FormatError, match=r"is of format 2\.0; this histostore reads up to 1\.x") as caught:
        hs.pp.tile(store, SPEC, pixels=PIXELS, client=client)
    assert caught.value.__notes__[0].startswith("2 of 2 slides failed")
    assert sorted(p for p in Path(store.uri).rglob("*") if p.is_file()) == before
