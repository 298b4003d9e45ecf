"""Commands for stores of many slides: lists of slides, dry runs, and what gc would free."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from histostore.store import catalog
from histostore.store.catalog import NAME
from histostore.store.store import open_store

if TYPE_CHECKING:
    from pathlib import Path


def listing(store: Path) -> list[tuple[str, int]]:
    return [(key, size) for key, size, _ in open_store(store).files.walk("")]


def test_info_lists_the_slides_that_pass_a_filter(built: Path, call: Any) -> None:
    told = call("info", built, "--where", "slide != 'A1'", "--columns", "patient,tiles/spots", "--json")
    (value,) = map(json.loads, told.out.splitlines())
    slides = [row["slide"] for row in value["slides"]]
    assert "A1" not in slides
    assert slides == [s for s in open_store(built).slides() if s != "A1"]
    assert all(row["patient"] == row["slide"][0] and row["tiles/spots"] > 0 for row in value["slides"])
    text = call("info", built, "--where", "patient == 'A'").out
    assert text.splitlines()[0].split()[0] == "slide"
    assert "patient" in text.splitlines()[0]
    assert f"of {len(open_store(built).slides())} slides" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--where", "patiant == 'A'"), 2, "patient"),
        (("--where", "patient = 'A'"), 2, "cannot be read"),
        (("--where", "patient == 3"), 2, "text with numbers"),
        (("--columns", "patiant"), 2, "patient"),
    ],
)
def test_a_filter_or_column_that_is_not_there_is_one_error(
    built: Path, call: Any, options: tuple[str, ...], code: int, said: str
) -> None:
    told = call("info", built, *options)
    assert told.code == code
    assert len(told.errors) == 1
    assert said in told.err


def test_reading_commands_leave_a_small_store_as_it_is(built: Path, call: Any) -> None:
    before = listing(built)
    for argv in (("info",), ("info", "--columns", "patient"), ("doctor",), ("gc",)):
        assert call(argv[0], built, *argv[1:]).code == 0
    assert listing(built) == before


def test_doctor_makes_a_damaged_catalog_anew_and_says_so(
    built: Path, copy_of: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "LEAST_OWNERS", 1)
    store = copy_of(built)
    assert "read again" in call("doctor", store).out
    (store / NAME).write_bytes(b"x" * 9000)
    assert "made anew" in call("doctor", store).out
    told = call("doctor", store)
    assert (told.code, "made anew" in told.out) == (0, False)


def test_a_dry_run_says_tiles_bytes_and_time_and_writes_nothing(tiled: Path, copy_of: Any, call: Any) -> None:
    store = copy_of(tiled)
    before = listing(store)
    for argv in (
        ("tile", "--grid", "--px", 128, "--dry-run", "--slides", "A1,B1"),
        ("embed", "--backbone", "testing", "--dry-run", "--slides", "A1,B1"),
    ):
        told = call(argv[0], store, *argv[1:], "--json")
        assert told.code == 0, told.err
        (value,) = map(json.loads, told.out.splitlines())
        assert [e["slide"] for e in value["estimates"]] == ["A1", "B1"]
        assert value["total"]["tiles"] == sum(e["tiles"] for e in value["estimates"]) > 0
        assert value["total"]["bytes"][1] == pytest.approx(sum(e["bytes"][1] for e in value["estimates"]))
        assert value["total"]["free"] <= shutil.disk_usage(store).total
        text = call(argv[0], store, *argv[1:]).out
        assert "nothing was written" in text
        assert text.startswith("A1: ")
    assert listing(store) == before


def test_a_dry_run_tells_of_a_bad_slide_and_goes_on(tiled: Path, copy_of: Any, call: Any) -> None:
    store = copy_of(tiled)
    told = call("tile", store, "--at", "spots", "--px", 128, "--dry-run", "--slides", "A1,B1", "--json")
    assert told.code == 3
    assert len(told.errors) == 2
    assert "another spec" in told.err
    assert json.loads(told.out.splitlines()[-1])["total"]["tiles"] == 0


def test_gc_sums_by_slide_and_kind(built: Path, copy_of: Any, call: Any) -> None:
    store = copy_of(built)
    assert call("delete", store, "--slide", "A1").code == 0
    told = call("gc", store, "--grace", 0)
    assert "A1" in told.out
    assert "--erase --run" in told.out
    assert "slides/A1" not in told.out
    assert "slides/A1" in call("gc", store, "--grace", 0, "--paths").out
    (value,) = map(json.loads, call("gc", store, "--grace", 0, "--keep", 1, "--json").out.splitlines())
    found = {(g["slide"], g["kind"], g["reason"]) for g in value["groups"]}
    assert found >= {("A1", "manifest", "deleted"), ("A1", "tiles", "deleted"), ("B1", "manifest", "history")}
    assert sum(g["bytes"] for g in value["groups"]) == sum(p["bytes"] for p in value["planned"].values())
    assert call("gc", store, "--keep", 0).code == 2
    files = sum(g["files"] for g in json.loads(call("gc", store, "--grace", 0, "--json").out)["groups"])
    told = call("gc", store, "--grace", 0, "--run").out.splitlines()[-1]
    assert told == f"removed 0 of {files} files, 0.0 MB; {files} files of deleted slides stay until --erase --run"
    told = call("gc", store, "--grace", 0, "--run", "--erase").out.splitlines()[-1]
    assert told.startswith(f"removed {files} of {files} files, ")
