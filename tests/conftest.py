"""Shared by all tests: the real data, where it is to be had, and a small synthetic cohort in a store."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from histostore.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.testing.cohort import Cohort

    type Cli = Callable[..., subprocess.CompletedProcess[str]]

TILE_PX = 96


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real sections; its README says what they are."""
    folder = os.environ.get("HISTOSTORE_REAL_DATA")
    if not folder:
        pytest.skip("HISTOSTORE_REAL_DATA is unset: no real slides here")
    return Path(folder)


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run a command line in this process; it must end with `code`."""

    def run(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            ended = main([str(a) for a in args])
        assert ended == code, f"exit {ended}, not {code}: {err.getvalue()}\n{out.getvalue()}"
        return subprocess.CompletedProcess(args, ended, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Two small slides of two patients: ``A1`` a JPEG, ``B1`` an Aperio-like pyramid; files and truth."""
    from histostore.testing.cohort import write_cohort  # heavy, and most tests do without

    folder = tmp_path_factory.mktemp("cohort")
    return write_cohort(folder, n_patients=2, slides_per_patient=1, spots=40, genes=60, px=1200)


@pytest.fixture(scope="session")
def ingested(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """Return a store with the cohort ingested. Shared: copy it before you write (`copy_of`)."""
    store = tmp_path_factory.mktemp("ingested") / "store"
    cli("init", store, "--name", "synthetic")
    cli("ingest", store, "--sheet", cohort.sheet)
    return store


@pytest.fixture(scope="session")
def tiled(ingested: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """Return that store with lossless tiles at the spots. Shared: copy it before you write."""
    store = Path(shutil.copytree(ingested, tmp_path_factory.mktemp("tiled") / "store"))
    cli("tile", store, "--at", "spots", "--px", TILE_PX, "--codec", "lossless", "--shard-tiles", 8)
    return store


@pytest.fixture(scope="session")
def embedded(tiled: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """Return that store with embeddings of the `testing` backbone. Shared: copy it before you write."""
    store = Path(shutil.copytree(tiled, tmp_path_factory.mktemp("embedded") / "store"))
    cli("embed", store, "--backbone", "testing", "--shard-rows", 16)
    return store


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a store to a place of the test's own."""
    made = iter(range(10_000))

    def copy(store: Path) -> Path:
        return Path(shutil.copytree(store, tmp_path / f"copy{next(made)}"))

    return copy
