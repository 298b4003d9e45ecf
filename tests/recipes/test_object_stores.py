"""Recipes over a store in a bucket: read where it lies, with the runs in a folder here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import histostore as hs
from histostore.errors import NotFoundError
from histostore.recipes import run, runs_beside, sweep
from histostore.testing.s3 import running_s3

if TYPE_CHECKING:
    from collections.abc import Iterator

    from histostore.testing.s3 import S3Server

RECIPE = """
from dataclasses import dataclass

from histostore.recipes import Recipe, Results


@dataclass(frozen=True)
class Settings:
    seed: int = 0


def run(store, settings, report):
    report.note(f"read {store.uri}/STORE.json")
    return Results(metrics={"slides": len(store.slides()), "seed": settings.seed})


RECIPE = Recipe(name="counting", citation="nobody 2020", settings=Settings, run=run)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run a real S3 server."""
    with running_s3(tmp_path_factory.mktemp("s3") / "server") as found:
        yield found


@pytest.fixture
def bucket(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of an empty store on it; the test runs in a folder of its own."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HISTOSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    address = f"s3://{server.bucket}/{tmp_path.name}"
    hs.create(address)
    (tmp_path / "counting.py").write_text(RECIPE)
    return address


def test_runs_lie_beside_a_folder_and_here_for_a_bucket(tmp_path: Path) -> None:
    assert runs_beside(None) == Path("runs")
    assert runs_beside("s3://bucket/cohorts/one") == runs_beside("gs://bucket") == Path("runs")
    assert runs_beside(tmp_path / "store") == runs_beside(str(tmp_path / "store")) == tmp_path / "runs"


def test_a_recipe_and_a_sweep_run_on_a_store_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    for store in (bucket, hs.open(bucket)):
        made = run("counting.py", store, None, "one")
        assert made.metrics == {"slides": 0, "seed": 0}
        assert made.folder.absolute() == tmp_path / "runs" / "one"
        assert made.fresh == (store is bucket)
        assert made.record["notes"] == ["read <store>/STORE.json"]
    swept = sweep("counting.py", bucket, {}, {"seed": [1, 2]}, "both")
    assert [r.metrics["seed"] for r in swept.runs] == [1, 2]
    assert swept.folder.absolute() == tmp_path / "runs" / "both"
    with pytest.raises(NotFoundError, match="no store at s3://"):
        run("counting.py", f"{bucket}-gone")


def test_the_commands_take_an_address(bucket: str, tmp_path: Path) -> None:
    from histostore.cli import main

    assert main(["run", "counting.py", "--store", bucket, "--name", "said"]) == 0
    assert main(["runs", "--store", bucket, "said"]) == 0
    assert (tmp_path / "runs" / "said" / "run.json").exists()
