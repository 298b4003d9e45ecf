"""The store's own methods say and do what the commands of their names do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import histostore as hs
from histostore.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def place(embedded: Path, copy_of: Callable[[Path], Path]) -> Path:
    return copy_of(embedded)


def flip_a_byte(place: Path, slide: str) -> None:
    shard = next(p for p in place.glob(f"slides/{slide}/embeddings/*/*/zarr/embedding/c/**/*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0xFF
    shard.write_bytes(data)


def test_info_is_what_the_command_tells(embedded: Path, cli: Callable[..., Any]) -> None:
    store = hs.open(embedded)
    assert store.info() == json.loads(cli("info", embedded, "--json").stdout)
    assert [of["slide"] for of in store.info()["slides"]] == ["A1", "B1"]
    one = store.info("A1")
    assert one == json.loads(cli("info", embedded, "--slide", "A1", "--json").stdout)
    assert one["groups"]["tiles/spots"]["rows"] == len(store.view(slides=["A1"], tiles="spots"))
    with pytest.raises(NotFoundError, match="no slide 'A11'"):
        store.info("A11")


def test_damage_is_reported_put_aside_and_made_again(place: Path) -> None:
    store = hs.open(place)
    assert store.verify().ok
    before = store.view(backbone="testing").numpy()
    flip_a_byte(place, "A1")
    found = store.verify()
    assert {p.owner for p in found.errors} == {"A1"}
    assert store.verify(slides="B1").ok
    assert store.verify(deep=False).ok
    done = store.repair()
    assert done.commands == ("embed",)
    hs.tl.embed(store, "testing", tiles="spots", spec=hs.EmbeddingSpec(shard_rows=16, chunk_rows=16))
    np.testing.assert_array_equal(store.view(backbone="testing").numpy(), before)
    assert store.verify().ok
    assert store.repair().redo == ()


def test_gc_lists_and_removes_only_when_told(place: Path) -> None:
    store = hs.open(place)
    store.delete_slide("A1")
    plan = store.gc(grace_h=0)
    assert {item.owner for item in plan.items} == {"A1"}
    assert store.gc(run=True, grace_h=0).files == 0
    assert (place / "slides" / "A1").exists()
    gone = store.gc(run=True, grace_h=0, erase=True)
    assert gone.files == plan.files > 0
    assert store.verify().ok
    assert store.slides() == ["B1"]


def test_gc_keeps_as_many_versions_as_it_is_told(place: Path) -> None:
    store = hs.open(place)
    for grade in "1234":
        hs.pp.annotate(store, "A1", grade=grade)
    newest = store.slide("A1").number
    assert not store.gc(grace_h=0).items
    store.gc(run=True, grace_h=0, keep=2)
    assert [n for n in range(1, newest + 1) if store.files.size(f"manifests/A1/{n:08d}.json") is not None] == [
        newest - 1,
        newest,
    ]


def test_gc_refuses_what_cannot_be_meant(embedded: Path) -> None:
    store = hs.open(embedded)
    with pytest.raises(UsageError, match="give run=True"):
        store.gc(erase=True)
    with pytest.raises(UsageError, match="keep_last is 0"):
        store.gc(keep=0)
    with pytest.raises(UsageError, match="grace is -3600"):
        store.gc(grace_h=-1)
