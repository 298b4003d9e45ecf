"""Two worker processes for all tests of this folder, a cluster as the docs start one, and a fitted head."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from histostore.scale.cluster import workers_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCS = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
CERTIFICATES, BY_HAND = re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL)


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """Return the client of two workers on loopback. Leave them alive: tests that kill start their own."""
    with workers_here(2) as client:
        yield client


@pytest.fixture(scope="session")
def headed(embedded: Path, tmp_path_factory: pytest.TempPathFactory, cli: Any) -> Path:
    """Return the embedded store with a saved head. Shared: copy it before you write."""
    store = Path(shutil.copytree(embedded, tmp_path_factory.mktemp("headed") / "store"))
    how = ("--genes", "top-mean:5", "--backbone", "testing", "--split", "leave-one-out:patient", "--save", "h")
    cli("fit", store, *how)
    return store


@dataclass
class Lab:
    """A scheduler and two workers that the page's commands left running."""

    folder: Path
    port: int
    shell: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    @property
    def options(self) -> list[str]:
        files = [f"--tls-{name}={self.folder / f'{name}.pem'}" for name in ("ca", "cert", "key")]
        return ["--scheduler", self.url, *files]

    def processes(self, what: str = "") -> list[psutil.Process]:
        family = psutil.Process(self.shell.pid).children(recursive=True)
        return [p for p in family if what in " ".join(p.cmdline())]

    @staticmethod
    def environment(**more: str) -> dict[str, str]:
        return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | more

    @staticmethod
    def certify(folder: Path) -> None:
        subprocess.run(["bash", "-ec", CERTIFICATES], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an authority and a certificate, as the docs make them."""
    folder = tmp_path_factory.mktemp("certificates")
    Lab.certify(folder)
    return folder


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Return a port that nobody listens on."""

    def find() -> int:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return int(s.getsockname()[1])

    return find


def answers(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def by_hand(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Callable[[], Any]:
    """Start what docs/cluster.md says to start by hand, and end it."""

    @contextmanager
    def start() -> Iterator[Lab]:
        folder, port = tmp_path_factory.mktemp("lab"), free_port()
        Lab.certify(folder)
        with (folder / "log").open("wb") as log:
            shell = subprocess.Popen(
                ["bash", "-ec", BY_HAND], cwd=folder, env=Lab.environment(PORT=str(port)), stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + 60
            while not answers(port) and time.monotonic() < deadline:
                time.sleep(0.1)
            yield Lab(folder, port, shell)
        finally:
            for process in [*psutil.Process(shell.pid).children(recursive=True), shell]:
                process.kill()
            shell.wait()

    return start
