"""Several processes on one store, and names that are taken."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from histostore.store.store import open_store
from histostore.testing.crash import contents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SLIDE = "A1"
WRITTEN = {"written", "resumed"}
KEPT = {"already there", "kept another writer's"}


def both(command: list[str]) -> list[dict[str, Any]]:
    """Run a command twice at once; both must succeed."""
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    found = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found.append(json.loads(out))
    return found


def test_two_processes_that_embed_the_same_tiles_keep_one_result_and_both_say_so(
    tiled: Path, copy_of: Callable[[Path], Path], command: Callable[..., list[str]]
) -> None:
    store = copy_of(tiled)
    slow = ("--backbone", "testing?delay_ms=100", "--batch", "4", "--shard-rows", "4", "--slides", SLIDE, "--json")
    results = both(command("embed", store, *slow))
    assert sorted(r["done"] in WRITTEN for r in results) == [False, True], results
    assert any(r["done"] in KEPT for r in results)
    assert results[0]["groups"] == results[1]["groups"]
    assert any(key.startswith("embeddings/spots/testing:") for key in contents(store, SLIDE))


def test_two_processes_that_tile_the_same_spots_keep_one_result_and_both_say_so(
    ingested: Path, copy_of: Callable[[Path], Path], command: Callable[..., list[str]], tiled: Path
) -> None:
    store = copy_of(ingested)
    options = ("--at", "spots", "--px", "96", "--codec", "lossless", "--shard-tiles", "8")
    results = both(command("tile", store, *options, "--slides", SLIDE, "--json"))
    assert sorted(r["done"] in WRITTEN for r in results) == [False, True], results
    assert contents(store, SLIDE) == contents(tiled, SLIDE)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("tile", ("--at", "spots", "--px", 64, "--codec", "lossless")),
        ("tile", ("--at", "spots", "--px", 96, "--codec", "jpeg")),
        ("tile", ("--at", "spots", "--px", 96, "--codec", "slide")),
        ("embed", ("--backbone", "testing", "--dtype", "float32")),
        ("embed", ("--backbone", "testing", "--shard-rows", 64)),
    ],
)
def test_a_name_that_means_something_else_is_refused_before_anything_is_written(
    stage: str, options: tuple[Any, ...], embedded: Path, copy_of: Callable[[Path], Path], cli: Any
) -> None:
    store = copy_of(embedded)
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*")}
    done = cli(stage, store, *options, "--slides", SLIDE, code=3)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--replace" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*")} == before


def test_replace_moves_a_name_and_the_old_groups_stay_addressable(
    embedded: Path, copy_of: Callable[[Path], Path], cli: Any
) -> None:
    store = copy_of(embedded)
    old = open_store(store).slide(SLIDE)
    cli("tile", store, "--at", "spots", "--px", 96, "--codec", "slide", "--slides", SLIDE, "--replace")
    new = open_store(store).slide(SLIDE)
    assert new.get("pixels", "spots") is None
    assert new.find("tiles", "spots").digest == old.find("tiles", "spots").digest
    earlier = open_store(store).manifest(SLIDE, old.number)
    assert earlier.entries == old.entries
    pixels = open_store(store).group(earlier.find("pixels", "spots"))
    assert pixels.array("pixels").read().shape == (pixels.rows, 96, 96, 3)


def test_a_second_run_of_any_stage_writes_nothing(
    embedded: Path, copy_of: Callable[[Path], Path], cli: Any, cohort: Any
) -> None:
    store = copy_of(embedded)
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    for args in (
        ("tile", store, "--at", "spots", "--px", 96, "--codec", "lossless", "--shard-tiles", 8),
        ("embed", store, "--backbone", "testing", "--shard-rows", 16),
    ):
        done = cli(*args, "--json")
        assert [json.loads(line)["done"] for line in done.stdout.splitlines()] == ["already there"] * 2
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()} == before
    again = cli("ingest", store, "--sheet", cohort.sheet, "--json")
    assert [json.loads(line)["done"] for line in again.stdout.splitlines()] == ["already there"] * 2
