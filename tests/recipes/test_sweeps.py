from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest

from histostore.errors import ConflictError, UsageError
from histostore.recipes import list_runs, load_recipe, run, sweep

if TYPE_CHECKING:
    from pathlib import Path


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_grid_has_one_folder_each_and_one_flat_table(toy: Path, tmp_path: Path) -> None:
    swept = sweep(toy, None, {"lr": 0.3}, {"batch_size": (2, 4), "seed": (0, 1)}, "grid", out=tmp_path / "runs")
    assert [r.folder.name for r in swept.runs] == [f"batch_size-{b}+seed-{s}" for b in (2, 4) for s in (0, 1)]
    rows = table(swept.table)
    assert len(rows) == 4 * 3
    assert list(rows[0]) == ["run", "batch_size", "seed", "epoch", "loss", "nan"]
    lines = table(swept.metrics)
    assert (lines[0]["batch_size"], lines[0]["seed"], lines[0]["status"]) == ("2", "0", "done")
    assert float(lines[0]["value"]) == swept.runs[0].metrics["value"]
    assert {r.settings["lr"] for r in swept.runs} == {0.3}
    assert len(list_runs(tmp_path / "runs")) == 4
    assert json.loads((swept.folder / "sweep.json").read_text())["grid"] == {"batch_size": [2, 4], "seed": [0, 1]}


def test_a_sweep_goes_on_where_it_was_and_may_grow(toy: Path, tmp_path: Path) -> None:
    first = sweep(toy, None, None, {"seed": (0, 1)}, "grid", out=tmp_path / "runs")
    text = (first.runs[1].folder / "run.json").read_text()
    (first.runs[1].folder / "run.json").write_text(text.replace('"done"', '"running"'))  # as if killed
    second = sweep(toy, None, None, {"seed": (0, 1, 2)}, "grid", out=tmp_path / "runs")
    assert [r.fresh for r in second.runs] == [False, True, True]
    assert len(table(second.table)) == 9


def test_a_point_that_fails_is_told_and_the_others_go_on(toy: Path, tmp_path: Path) -> None:
    swept = sweep(toy, None, None, {"fail": ("key", "ok")}, "grid", out=tmp_path / "runs")
    assert list(swept.errors) == ["fail-key"]
    lines = {v["fail"]: v for v in table(swept.metrics)}
    assert lines["key"]["status"] == "failed"
    assert "KeyError" in lines["key"]["error"]
    assert lines["ok"]["status"] == "done"
    assert {r["fail"] for r in table(swept.table)} == {"ok"}


def test_a_refusing_disk_ends_the_sweep(toy: Path, tmp_path: Path) -> None:
    swept = sweep(toy, None, None, {"fail": ("path", "ok")}, "grid", out=tmp_path / "runs")
    assert len(swept.runs) == 1
    assert len(swept.points) == 2


def test_values_that_are_no_folder_names_get_one_each(toy: Path, tmp_path: Path) -> None:
    values = ("torchvision/a b", "torchvision/a:b", "../up")
    swept = sweep(toy, None, None, {"note": values}, "grid", out=tmp_path / "runs")
    names = [r.folder.name for r in swept.runs]
    assert len(set(names)) == 3
    assert all(r.folder.parent == swept.folder for r in swept.runs)
    assert [r["note"] for r in table(swept.metrics)] == list(values)


def test_a_sweep_and_a_run_do_not_share_a_folder(toy: Path, tmp_path: Path) -> None:
    run(toy, None, None, "one", out=tmp_path / "runs")
    with pytest.raises(ConflictError, match="single run"):
        sweep(toy, None, None, {"seed": (1,)}, "one", out=tmp_path / "runs")
    sweep(toy, None, None, {"seed": (1,)}, "grid", out=tmp_path / "runs")
    with pytest.raises(ConflictError, match="holds a sweep"):
        run(toy, None, None, "grid", out=tmp_path / "runs")


def test_an_empty_or_misspelt_grid_is_refused_before_anything_runs(toy: Path, tmp_path: Path) -> None:
    recipe = load_recipe(toy)
    for grid in ({}, {"seed": ()}, {"seeed": (1,)}, {"seed": (0, "x")}):
        with pytest.raises(UsageError):
            sweep(recipe, None, None, grid, "grid", out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"fail": "ok"}, "sweep over 'fail' is 'ok'; give its values in a list"),
        ({"seed": 3}, "sweep over 'seed' is 3; give its values in a list"),
        ({"seed": (0, 1, 0)}, "seed-0 and seed-0 are one"),
        ({"seed": (0, "0")}, "seed-0 and seed-0 are one"),
        ({"seed": ()}, "at least one setting with its values"),
    ],
)
def test_a_grid_that_is_none_is_refused_before_the_first_run(
    toy: Path, tmp_path: Path, grid: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        sweep(toy, None, None, grid, "grid", out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
