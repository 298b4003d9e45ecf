"""The state that requests read: commits are seen by the next search, and a view of a state is opened once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from histostore.errors import CorruptionError, NotFoundError
from histostore.serve import snapshot
from histostore.serve.limits import Limits
from histostore.serve.snapshot import Watched
from histostore.store import catalog, catalog_scan
from histostore.store.groups import Group
from histostore.store.store import create_store, open_store
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.store.store import Store

ALL = {"backbone": "testing", "tiles": None, "slides": None}


@pytest.fixture(params=["manifests", "catalog"])
def store(
    request: pytest.FixtureRequest, embedded: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Store:
    """Return a store of one's own, read from its manifests or, as large ones are, from the catalog."""
    path = copy_of(embedded)
    if request.param == "catalog":
        monkeypatch.setattr(catalog, "LEAST_OWNERS", 2)
        monkeypatch.setattr(catalog_scan, "SETTLED_NS", 1)
    return open_store(path)


def add(store: Store, slide: str) -> None:
    """Commit a slide that is as A1 is."""
    shutil.copytree(Path(store.uri) / "slides" / "A1", Path(store.uri) / "slides" / slide)
    store.commit(slide, [replace(r, owner=slide) for r in store.manifest("A1").entries.values()])


def test_a_commit_between_two_searches_is_seen_by_the_second(store: Store, serve: Callable[..., Any]) -> None:
    with serve(Path(store.uri), limits=Limits(refresh_s=3600)) as client:

        def found() -> set[str]:
            return {h["slide"] for h in client.search(query={"vector": vector}, k=1000).json()["hits"]}

        vector = view(store, backbone="testing").numpy()[0].tolist()
        assert found() == {"A1", "B1"}
        add(store, "C1")
        assert found() == {"A1", "B1", "C1"}
        store.delete_slide("B1")
        assert found() == {"A1", "C1"}
        assert client.search(query={"slide": "B1", "spot": "1x1"}).status == 404


def test_the_view_of_a_state_is_opened_once_and_keeps_nothing_that_a_search_read(store: Store) -> None:
    watched = Watched(store, refresh_s=3600)
    now = watched.snapshot()
    first = now.rows(**ALL)
    plain = view(store, backbone="testing")
    assert first.slides == plain.slides
    assert np.array_equal(first.numpy(), plain.numpy(), equal_nan=True)
    assert first.obs().equals(plain.obs())
    again = now.rows(**ALL)
    assert again.parts[0].embeddings is first.parts[0].embeddings
    assert not {"the_points", "counts", "xy"} & vars(again.parts[0]).keys()
    assert not again.parts[0]._groups
    add(store, "C1")
    assert now.rows(**ALL).slides == ("A1", "B1")
    later = watched.snapshot(now=True)
    assert later.rows(**ALL).slides == ("A1", "B1", "C1")
    assert later.manifests["A1"] is now.manifests["A1"]
    store.delete_slide("A1")
    assert watched.snapshot(now=True).slides() == ["B1", "C1"]


def test_an_answer_says_which_slides_have_no_embeddings_yet(store: Store, serve: Callable[..., Any]) -> None:
    there = [replace(r, owner="C1") for r in store.manifest("A1").entries.values() if r.kind != "embeddings"]
    shutil.copytree(Path(store.uri) / "slides" / "A1", Path(store.uri) / "slides" / "C1")
    store.commit("C1", there)
    vector = view(store, backbone="testing").numpy()[0].tolist()
    with serve(Path(store.uri)) as client:
        answer = client.search(query={"vector": vector}, k=3).json()
        assert answer["notes"] == ["left out 1 of 3 slides without embeddings of testing: C1"]
        assert client.search(query={"vector": vector}, k=3, slides=["A1"]).json()["notes"] == []
        assert client.search(query={"vector": vector}, k=3, slides=["C1"]).status == 404


def test_only_some_views_stay_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "VIEWS", 2)
    now = Watched(store, refresh_s=3600).snapshot()
    for slides in (None, ["A1"], ["B1"], ["B1", "A1"]):
        assert now.rows(backbone=None, tiles=None, slides=slides).slides == tuple(slides or ("A1", "B1"))
    assert [which[2] for which in now._views] == [("B1",), ("B1", "A1")]
    with pytest.raises(NotFoundError, match="no embeddings 'other'"):
        now.rows(backbone="other", tiles=None, slides=None)
    with pytest.raises(NotFoundError, match="no slide 'Z9'"):
        now.rows(backbone=None, tiles=None, slides=["Z9"])
    assert len(now._views) == 2


def test_looking_again_reads_those_who_changed_and_nobody_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_scan, "SETTLED_NS", 1)
    watched = Watched(store, refresh_s=3600)
    watched.snapshot()
    listed: list[str] = []
    real = snapshot.numbers
    monkeypatch.setattr(snapshot, "numbers", lambda files, owner: listed.append(owner) or real(files, owner))
    assert watched.snapshot(now=True) is watched.snapshot()
    assert not listed
    store.delete_slide("B1")
    watched.snapshot(now=True)
    assert listed == ["B1"]


def test_a_damaged_manifest_is_told_and_not_passed_over(store: Store) -> None:
    watched = Watched(store, refresh_s=3600)
    before = watched.snapshot()
    newest = max((Path(store.uri) / "manifests" / "B1").glob("*.json"))
    newest.with_name(f"{int(newest.stem) + 1:08d}.json").write_bytes(b"{")
    for _ in range(2):
        with pytest.raises(CorruptionError):
            watched.snapshot(now=True)
    assert before.slides() == ["A1", "B1"]


def test_a_search_opens_no_slide_that_holds_none_of_its_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from histostore.stages.search import search

    monkeypatch.setattr(catalog, "LEAST_OWNERS", 2)
    now = Watched(store, refresh_s=3600).snapshot()
    vector = view(store, backbone="testing", slides=["A1"]).numpy()[0]
    opened = []
    real = Group.open
    monkeypatch.setattr(Group, "open", lambda files, ref: opened.append(ref.owner) or real(files, ref))
    hits = search(now, rows=now.rows(**ALL), vector=vector, k=3, where="slide == 'A1'", columns=["tile_id", "patient"])
    assert len(hits.table) == 3
    assert set(opened) == {"A1"}


def test_a_store_that_is_no_longer_there_is_told_and_answers_again_when_it_is_back(
    embedded: Path, copy_of: Callable[[Path], Path], serve: Callable[..., Any]
) -> None:
    place = copy_of(embedded)
    query = {"slide": "A1", "box": [0, 0, 1e9, 1e9]}
    with serve(place, limits=Limits(refresh_s=1e-6)) as client:
        assert client.get("/v1/health").json()["slides"] == 2
        place.rename(place.with_name("elsewhere"))
        for reply in (client.get("/v1/health"), client.search(query=query)):
            assert (reply.status, reply.json()["error"]["kind"]) == (503, "storage")
        place.with_name("elsewhere").rename(place)
        assert client.get("/v1/health").json()["slides"] == 2
        assert client.search(query=query).status == 200


def test_an_empty_store_is_no_missing_one(tmp_path: Path, serve: Callable[..., Any]) -> None:
    create_store(tmp_path / "S")
    with serve(tmp_path / "S") as client:
        assert client.get("/v1/health").json()["slides"] == 0
