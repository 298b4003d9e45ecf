"""An image that lies elsewhere now: ingest at the new place says so, and nothing made of it is stale."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import histostore as hs
from histostore.errors import ConflictError, SlideError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

SPEC = hs.TileSpec.at_spots(px=96)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Path]:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    return tmp_path / "a" / "A1.jpg", tmp_path / "b" / "A1.jpg", tmp_path / "c" / "A1.jpg"


@pytest.fixture
def files(cohort: Cohort) -> dict[str, Any]:
    a1 = cohort.slides[0]
    return {"mpp": 2.0, "st_counts": a1.counts, "st_spots": a1.spots}


@pytest.fixture
def store(tmp_path: Path, cohort: Cohort, places: tuple[Path, Path, Path], files: dict[str, Any]) -> hs.Store:
    store = hs.create(tmp_path / "S")
    shutil.copy(cohort.slides[0].image, places[0])
    hs.pp.ingest(store, "A1", image=places[0], **files)
    return store


def uri(store: hs.Store) -> str:
    return str(store.group(store.slide("A1").find("source", "image")).attrs["uri"])


def digests(store: hs.Store) -> dict[str, str]:
    return {key: ref.digest for key, ref in store.slide("A1").entries.items()}


def test_an_image_that_moved_is_found_again_and_what_was_made_of_it_stays(
    store: hs.Store, places: tuple[Path, Path, Path], files: dict[str, Any]
) -> None:
    hs.pp.tile(store, "A1", SPEC)
    hs.tl.embed(store, "testing", slides="A1")
    made, rows = digests(store), store.view(backbone="testing").numpy()
    shutil.move(places[0], places[1])
    with pytest.raises(SlideError, match=r"is gone: .*; put it back, ingest the slide again with --image"):
        hs.pp.tile(store, "A1", hs.TileSpec.at_spots(px=64), name="small")
    done = hs.pp.ingest(store, "A1", image=places[1], **files)[0]
    assert done.done == "written"
    assert f"the image was at {places[0]}, and is at {places[1]} now" in done.report.notes
    assert uri(store) == str(places[1])
    assert digests(store) == made
    assert hs.pp.tile(store, "A1", SPEC)[0].done == "already there"
    assert {r.done for r in hs.tl.embed(store, "testing", slides="A1", tiles="spots")} == {"already there"}
    np.testing.assert_array_equal(store.view(backbone="testing").numpy(), rows)
    assert hs.pp.tile(store, "A1", hs.TileSpec.at_spots(px=64), name="small")[0].done == "written"
    assert hs.pp.ingest(store, "A1", image=places[1], **files)[0].done == "already there"


def test_an_image_may_move_on_and_back(
    store: hs.Store, places: tuple[Path, Path, Path], files: dict[str, Any], cli: Callable[..., Any]
) -> None:
    for old, new in (places[:2], places[1:], (places[2], places[1]), (places[1], places[0])):
        shutil.move(old, new)
        assert hs.pp.ingest(store, "A1", image=new, **files)[0].done == "written"
        assert uri(store) == str(new)
        number = store.slide("A1").number
        assert hs.pp.ingest(store, "A1", image=new, **files)[0].done == "already there"
        assert store.slide("A1").number == number
    cli("verify", store.uri)
    cli("gc", store.uri)
    hs.pp.tile(store, "A1", SPEC)


def test_a_deleted_slide_that_comes_back_from_another_place_is_there(
    store: hs.Store, places: tuple[Path, Path, Path], files: dict[str, Any]
) -> None:
    store.delete_slide("A1")
    shutil.move(places[0], places[1])
    hs.pp.ingest(store, "A1", image=places[1], **files)
    assert uri(store) == str(places[1])
    hs.pp.tile(store, "A1", SPEC)


def test_other_bytes_at_another_place_are_still_another_slide(
    store: hs.Store, places: tuple[Path, Path, Path], files: dict[str, Any], cohort: Cohort
) -> None:
    places[1].write_bytes(places[0].read_bytes() + b"\0")
    with pytest.raises(ConflictError, match="another image than"):
        hs.pp.ingest(store, "A1", image=places[1], **files)
    assert uri(store) == str(places[0])
