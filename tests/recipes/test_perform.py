from __future__ import annotations

import csv
import getpass
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import histostore as hs
from histostore.errors import ConflictError, DataError, NotFoundError, StorageError, UsageError
from histostore.recipes import compare, find_runs, list_runs, load_recipe, overview, run, runs_beside
from histostore.recipes.folders import RunFolder, csv_text, read_run
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    from collections.abc import Callable


def documents(folder: Path) -> dict[str, Any]:
    return {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}


def test_a_run_leaves_all_there_is_to_know_beside_its_numbers(toy: Path, tmp_path: Path) -> None:
    made = run(toy, None, {"seed": "3", "hidden": (8, 4)}, "one", out=tmp_path / "runs")
    assert made.fresh
    assert made.status == "done"
    found = documents(made.folder)
    assert found["settings"]["settings"]["hidden"] == [8, 4]
    assert found["settings"]["seeds"] == {"seed": 3}
    assert found["environment"]["libraries"]["numpy"]
    assert found["protocol"]["citation"] == "nobody 2020"
    assert found["protocol"]["split"] == "none"
    assert found["protocol"]["notes"] == ["a note"]
    assert found["run"]["metrics"] == made.metrics
    assert found["run"]["timings"].keys() == {"think"}
    assert found["run"]["recipe"]["file"] == "toy.py"
    rows = list(csv.DictReader((made.folder / "results.csv").read_text().splitlines()))
    assert [r["epoch"] for r in rows] == ["0", "1", "2"]
    assert rows[0]["nan"] == ""
    assert found["results"]["table"][0]["nan"] is None
    assert (made.folder / "files" / "curve.txt").read_text() == "curve"


def test_the_folder_tells_nothing_of_the_host_the_user_or_where_it_lies(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        run(toy, None, {"fail": "path"}, "bad", out=tmp_path / "runs")
    run(toy, None, None, "good", out=tmp_path / "runs")
    text = "".join(p.read_text() for p in (tmp_path / "runs").rglob("*.json"))
    words = [socket.gethostname(), str(Path.home()), str(tmp_path), os.getcwd()]  # noqa: PTH109
    # a user called "root" or "a" is part of many words
    words += [getpass.getuser()] if len(getpass.getuser()) > 5 else []
    assert not [w for w in words if len(w) > 1 and re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text)]


def test_the_same_settings_again_are_found_and_not_redone(toy: Path, tmp_path: Path) -> None:
    first = run(toy, None, {"seed": 1}, "one", out=tmp_path / "runs")
    before = (first.folder / "run.json").stat().st_mtime_ns
    second = run(toy, None, {"seed": "1"}, "one", out=tmp_path / "runs")
    assert not second.fresh
    assert second.metrics == first.metrics
    assert (first.folder / "run.json").stat().st_mtime_ns == before
    assert run(toy, None, {"seed": 1}, "one", out=tmp_path / "runs", again=True).fresh


def test_a_run_without_a_name_has_one_that_follows_from_what_was_asked(toy: Path, tmp_path: Path) -> None:
    first = run(toy, out=tmp_path / "runs")
    assert first.name.startswith("toy-")
    assert not run(toy, settings={"seed": 0}, out=tmp_path / "runs").fresh
    assert run(toy, settings={"seed": 1}, out=tmp_path / "runs").name != first.name


def test_a_name_taken_by_other_settings_is_refused_and_told_which(toy: Path, tmp_path: Path) -> None:
    run(toy, None, {"seed": 1}, "one", out=tmp_path / "runs")
    with pytest.raises(ConflictError, match=r"another setting: seed \(1 there, 2 asked\).*--again"):
        run(toy, None, {"seed": 2}, "one", out=tmp_path / "runs")
    assert run(toy, None, {"seed": 2}, "one", out=tmp_path / "runs", again=True).settings["seed"] == 2


def test_a_pipeline_file_that_changed_is_another_run(toy: Path, tmp_path: Path) -> None:
    run(toy, None, None, "one", out=tmp_path / "runs")
    toy.write_text(toy.read_text().replace("/ settings.batch_size", "* settings.batch_size"))
    with pytest.raises(ConflictError, match="another version of the pipeline file"):
        run(toy, None, None, "one", out=tmp_path / "runs")


def test_a_recipe_that_fails_says_why_in_one_line_and_is_tried_again(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recipe 'toy' failed \(toy.py line \d+\): KeyError"):
        run(toy, None, {"fail": "key"}, "one", out=tmp_path / "runs")
    found = read_run(tmp_path / "runs" / "one")
    assert found is not None
    assert found.status == "failed"
    assert "KeyError" in found.record["error"]
    assert "\n" not in found.record["error"]
    assert not found.metrics
    assert not (found.folder / "results.csv").exists()
    assert run(toy, None, None, "one", out=tmp_path / "runs").fresh
    with pytest.raises(DataError, match="returned a dict, not Results"):
        run(toy, None, {"fail": "type"}, "two", out=tmp_path / "runs")


def test_a_killed_run_is_seen_as_unfinished_and_done_anew(toy: Path, tmp_path: Path) -> None:
    asked = f"{str(toy)!r}, None, {{'fail': 'kill'}}, 'one', out={str(tmp_path / 'runs')!r}"
    code = f"from histostore.recipes import run; run({asked})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (found,) = list_runs(tmp_path / "runs")
    assert found.status == "unfinished"
    assert found.record["status"] == "running"
    assert run(toy, None, None, "one", out=tmp_path / "runs").status == "done"


def test_a_run_that_another_process_makes_is_running_and_left_alone(toy: Path, tmp_path: Path) -> None:
    keeper = RunFolder(tmp_path / "runs" / "one")
    keeper.begin({"status": "running"}, {"settings": {}}, {})
    found = read_run(tmp_path / "runs" / "one")
    assert found is not None
    assert found.status == "running"
    with pytest.raises(ConflictError, match="another process"):
        run(toy, None, None, "one", out=tmp_path / "runs")
    keeper.release()
    assert run(toy, None, None, "one", out=tmp_path / "runs").fresh


def test_a_folder_that_is_no_run_is_never_written_into(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(ConflictError, match="is no run"):
        run(toy, None, None, "mine", out=tmp_path / "runs", again=True)
    assert [p.name for p in (tmp_path / "runs" / "mine").iterdir()] == ["thesis.txt"]


def test_runs_are_listed_and_compared_by_what_differs(toy: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for name, given in (("a", {"seed": 1}), ("b", {"seed": 2, "batch_size": 8})):
        run(toy, None, given, name, out=root)
    lines = overview(list_runs(root))
    assert [(line["run"], line["recipe"], line["status"]) for line in lines] == [
        ("a", "toy", "done"),
        ("b", "toy", "done"),
    ]
    beside = compare(find_runs(root, ["b", "a"]))
    assert beside["runs"] == ["b", "a"]
    assert beside["differ"] == {"batch_size": [8, 4], "seed": [2, 1]}
    assert beside["metrics"]["epochs"] == [3, 3]
    assert beside["environment"] == {}
    with pytest.raises(NotFoundError, match="no run 'c'"):
        find_runs(root, ["c"])


def test_a_damaged_record_is_named(toy: Path, tmp_path: Path) -> None:
    made = run(toy, None, None, "one", out=tmp_path / "runs")
    (made.folder / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run.json: not the JSON"):
        list_runs(tmp_path / "runs")


def test_a_pipeline_that_is_none_is_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean 'toy.py'"):
        load_recipe(tmp_path / "toyy.py")
    empty = tmp_path / "empty.py"
    for text, said in (
        ("x = 1", "has no RECIPE"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
    ):
        empty.write_text(text)
        with pytest.raises(UsageError, match=said):
            load_recipe(empty)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match="no Python file"):
        load_recipe(tmp_path / "notes.txt")
    toy.write_text(toy.read_text().replace('citation="nobody 2020"', 'citation=" "'))
    with pytest.raises(UsageError, match="no citation"):
        load_recipe(toy)


def test_a_recipe_that_needs_a_store_says_so(toy: Path, tmp_path: Path) -> None:
    toy.write_text(toy.read_text().replace("needs_store=False", "needs_store=True"))
    with pytest.raises(UsageError, match="needs a store"):
        run(toy, None, None, "one", out=tmp_path / "runs")


def test_a_store_whose_slides_changed_is_another_run(
    toy: Path, ingested: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    store = copy_of(ingested)
    made = run(toy, store, None, "one")
    assert made.folder == tmp_path / "runs" / "one"
    assert made.record["store"]["slides"] == 2
    opened = hs.open(store)
    assert not run(toy, opened, None, "one").fresh
    hs.pp.annotate(opened, "A1", ward="7")
    with pytest.raises(ConflictError, match="another content of the store"):
        run(toy, store, None, "one")


def test_runs_lie_beside_the_store_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    assert runs_beside("stores/her2st") == Path("stores/runs")
    assert runs_beside(".").resolve() == tmp_path / "runs"
    assert runs_beside(None) == Path("runs")


def test_tables_keep_every_column_and_leave_what_is_missing_empty() -> None:
    assert csv_text([{"a": 1}, {"b": float("nan"), "a": [1, 2]}]) == 'a,b\n1,\n"[1, 2]",\n'


def test_no_half_file_is_left_behind(toy: Path, tmp_path: Path) -> None:
    made = run(toy, None, None, "one", out=tmp_path / "runs")
    assert not [k for k, _, _ in LocalFiles(made.folder).walk("") if ".partial-" in k]
