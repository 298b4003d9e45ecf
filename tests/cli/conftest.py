"""A small cohort, a store made of it, and a way to call the command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from histostore.cli.main import main
from histostore.testing.cohort import write_cohort

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

TILE_PX = 64


@dataclass(frozen=True, slots=True)
class Told:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The error lines."""
        return [line for line in self.err.splitlines() if "error:" in line]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Two slides of two patients: A1 is a JPEG without mpp, B1 an SVS that says 2 µm per pixel."""
    folder = tmp_path_factory.mktemp("cohort")
    return write_cohort(folder, n_patients=2, slides_per_patient=1, spots=40, genes=20, px=1000, seed=3)


@pytest.fixture(scope="session")
def built(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of both slides with tiles, embeddings and a head. Shared: commands must leave it as it is."""
    store = tmp_path_factory.mktemp("built") / "S"
    for command in (
        ["init", store],
        ["ingest", store, "--sheet", cohort.sheet],
        ["tile", store, "--at", "spots", "--px", TILE_PX],
        ["embed", store, "--backbone", "testing"],
        ["fit", store, "--genes", "top-variance:5", "--save"],
    ):
        assert main([str(part) for part in command]) == 0
    return store


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Run a command in this process."""

    def run(*argv: object) -> Told:
        capsys.readouterr()
        code = main([str(part) for part in argv])
        out, err = capsys.readouterr()
        return Told(code, out, err)

    return run


@pytest.fixture
def spawn() -> Callable[..., Told]:
    """Run a command in a process of its own: a decoder may crash in it, limits may be set on it."""

    def run(*argv: object, **options: Any) -> Told:
        command = [sys.executable, "-m", "histostore", *map(str, argv)]
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False, **options
        )
        return Told(done.returncode, done.stdout, done.stderr)

    return run
