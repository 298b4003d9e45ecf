"""The commands `run`, `runs` and `fetch`, called as functions with what the parser would hand them."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from histostore.cli import runs as commands
from histostore.errors import UsageError

TOY = """
from dataclasses import dataclass
from histostore.errors import DataError
from histostore.recipes import Recipe, Results


@dataclass(frozen=True)
class Settings:
    size: int = 2
    seed: int = 0
    bad: bool = False


def run(store, settings, report):
    if settings.bad:
        raise DataError("bad on purpose")
    report.note("noted")
    return Results(metrics={"value": settings.size + settings.seed / 10}, table=[{"epoch": 0, "loss": 1.5}])


RECIPE = Recipe(name="toy", citation="nobody 2020", settings=Settings, run=run, needs_store=False,
                differs="in all", published={"value": 2.5})
"""


@pytest.fixture
def toy(tmp_path: Path) -> str:
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return str(path)


def run_args(pipeline: str, out: Path, **more: Any) -> Namespace:
    defaults: dict[str, Any] = {
        "pipeline": pipeline, "set": [], "sweep": [], "store": None, "name": None, "out": str(out / "runs"),
        "again": False, "describe": False, "json": False,
    }  # fmt: skip
    return Namespace(**{**defaults, **more})


def runs_args(out: Path, *names: str, **more: Any) -> Namespace:
    defaults: dict[str, Any] = {"names": list(names), "store": None, "out": str(out / "runs"), "compare": False}
    return Namespace(**{**defaults, "json": False, **more})


def fetch_args(name: str | None = None, **more: Any) -> Namespace:
    defaults: dict[str, Any] = {
        "name": name, "output": None, "only": None, "limit": None, "base_url": None, "list": False, "dry_run": False,
        "json": False,
    }  # fmt: skip
    return Namespace(**{**defaults, **more})


def test_run_prints_metrics_beside_published_values_and_says_when_it_was_there(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run(run_args(toy, tmp_path, set=["size=3"], name="one")) == 0
    out = capsys.readouterr().out
    assert "run 'one' of toy: done" in out
    assert "value  3  (published 2.5)" in out
    assert "note: noted" in out
    commands.run(run_args(toy, tmp_path, set=["size=3"], name="one"))
    assert "already there" in capsys.readouterr().out
    commands.run(run_args(toy, tmp_path, set=["size=3"], name="one", json=True))
    found = json.loads(capsys.readouterr().out)
    assert (found["fresh"], found["status"], found["settings"]["size"]) == (False, "done", 3)


def test_a_bad_setting_is_a_usage_error_with_the_near_name(toy: str, tmp_path: Path) -> None:
    for given, said in (("sizes=3", "did you mean 'size'"), ("size=x", "takes int"), ("size", "KEY=VALUE")):
        with pytest.raises(UsageError, match=said) as error:
            commands.run(run_args(toy, tmp_path, set=[given]))
        assert error.value.exit_code == 2
    with pytest.raises(UsageError, match="by --set and by --sweep"):
        commands.run(run_args(toy, tmp_path, set=["size=3"], sweep=["size=1,2"]))
    for twice in ({"set": ["size=3", "size=4"]}, {"sweep": ["size=1,2", "size=3"]}):
        with pytest.raises(UsageError, match="'size' is given twice"):
            commands.run(run_args(toy, tmp_path, **twice))
    assert not (tmp_path / "runs").exists()


def test_describe_shows_citation_and_settings_and_runs_nothing(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run(run_args(toy, tmp_path, describe=True)) == 0
    out = capsys.readouterr().out
    assert "toy: nobody 2020" in out
    assert "size  2  (int)" in out
    assert not (tmp_path / "runs").exists()


def test_a_sweep_prints_its_points_and_fails_with_the_worst(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"sweep": ["size=2,4", "seed=0,1"], "name": "grid"}
    assert commands.run(run_args(toy, tmp_path, **given)) == 0
    assert "sweep 'grid': 4 of 4 points done (0 were there)" in capsys.readouterr().out
    commands.run(run_args(toy, tmp_path, **given))
    assert "4 of 4 points done (4 were there)" in capsys.readouterr().out
    assert commands.run(run_args(toy, tmp_path, sweep=["bad=true,false"], name="bad")) == 3
    told = capsys.readouterr()
    assert "1 of 2 points done" in told.out
    assert "histostore: error: bad-True: bad on purpose" in told.err


def test_runs_lists_shows_one_and_compares(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.runs(runs_args(tmp_path))
    assert "no runs in" in capsys.readouterr().out
    for name, size in (("a", 2), ("b", 4)):
        commands.run(run_args(toy, tmp_path, set=[f"size={size}"], name=name))
    capsys.readouterr()
    commands.runs(runs_args(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "recipe", "status", "started", "seconds", "value"]
    assert [line.split()[0] for line in lines[1:]] == ["a", "b"]
    commands.runs(runs_args(tmp_path, "a"))
    assert "size     2" in capsys.readouterr().out
    commands.runs(runs_args(tmp_path, "a", "b"))
    out = capsys.readouterr().out
    assert "[settings that differ]" in out
    assert [line.split() for line in out.splitlines() if line.startswith(("size", "value"))] == [
        ["size", "2", "4"],
        ["value", "2", "4"],
    ]
    commands.runs(runs_args(tmp_path, "a", "b", json=True))
    assert json.loads(capsys.readouterr().out)["differ"] == {"size": [2, 4]}
    with pytest.raises(UsageError, match="two runs"):
        commands.runs(runs_args(tmp_path, "a", compare=True))


def test_fetch_lists_what_there_is_with_licences_and_asks_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.fetch(fetch_args()) == 0
    out = capsys.readouterr().out
    assert "her2st: " in out
    assert "licence: CC BY 4.0" in out
    commands.fetch(fetch_args(list=True, json=True))
    assert len(json.loads(capsys.readouterr().out)["datasets"]) == 5


def test_a_dry_run_says_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands.fetch(fetch_args("10x-breast-a1", dry_run=True)) == 0
    out = capsys.readouterr().out
    assert "image.tif  size unknown  hash unknown" in out
    assert "3 files, 0.0 MB, and 3 of unknown size; nothing was fetched" in out
    assert not list(Path().iterdir())


def test_a_mirror_that_is_not_there_is_one_line_and_exit_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    code = commands.fetch(fetch_args("10x-breast-a1", output=str(tmp_path / "d"), base_url="http://127.0.0.1:9"))
    assert code == 3
    told = capsys.readouterr()
    assert "1 failed, 2 not tried" in told.out
    assert told.err.count("\n") == 1
    assert "run it again to go on" in told.err
