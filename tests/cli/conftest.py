"""A store with everything in it, and two ways to call the command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from histostore.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable


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
def built(embedded: Path, tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Any]) -> Path:
    """Return a store with tiles, embeddings and the head ``ridge-testing``. Shared: commands must leave it as it is."""
    store = Path(shutil.copytree(embedded, tmp_path_factory.mktemp("built") / "S"))
    cli("fit", store, "--genes", "top-variance:5", "--save")
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
