"""A scheduler and workers as docs/cluster.md starts them: TLS, loopback, other versions, and losing them."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import histostore as hs
from histostore.errors import UsageError
from histostore.scale.checks import check_address
from histostore.scale.cluster import Tls, scheduler_at, workers_here
from histostore.testing.crash import contents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def lab(by_hand: Any) -> Iterator[Any]:
    with by_hand() as lab:
        yield lab


def listening(processes: list[psutil.Process]) -> set[str]:
    """Return the addresses that processes listen on."""
    return {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}


def test_a_run_over_tls_leaves_the_bytes_of_a_serial_one_and_nothing_listens_beyond_loopback(
    lab: Any, ingested: Path, tiled: Path, copy_of: Callable[[Path], Path], cli: Any
) -> None:
    store = copy_of(ingested)
    how = ["--at", "spots", "--px", 96, "--codec", "lossless", "--shard-tiles", 8]
    told = cli("tile", store, *how, *lab.options)
    for slide in ("A1", "B1"):
        assert contents(store, slide) == contents(tiled, slide)
        assert f"{slide}: tile written" in told.stdout
    assert re.search(r"tile: 13 tasks, 13 starts", told.stderr)
    assert listening(lab.processes()) == {"127.0.0.1"}


def test_without_the_certificate_there_is_no_answer(lab: Any, tiled: Path, cli: Any, tmp_path: Path) -> None:
    lab.certify(tmp_path)
    other = Tls(*(tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")))
    with pytest.raises(UsageError, match="no scheduler answers"), scheduler_at(lab.url, tls=other):
        pass
    told = cli("verify", tiled, "--scheduler", lab.url, code=2)
    assert "tls" in told.stderr
    assert "--tls-ca" in told.stderr


def test_workers_of_other_versions_are_refused(lab: Any, tiled: Path, tmp_path: Path, cli: Any) -> None:
    package = tmp_path / "histostore"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_version.py").write_text('__version__ = "0.0.1"\n')
    pem = [f"--tls-{n}={lab.folder / f}" for n, f in (("ca-file", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))]
    command = ["dask", "worker", lab.url, "--host", "127.0.0.1", "--no-nanny", "--no-dashboard", *pem]
    worker = subprocess.Popen(
        [*command, "--name", "old", "--dashboard-address", "127.0.0.1:0"],
        env=lab.environment(PYTHONPATH=str(tmp_path)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        tls = Tls(*(lab.folder / f"{name}.pem" for name in ("ca", "cert", "key")))
        with scheduler_at(lab.url, tls=tls) as client:
            client.wait_for_workers(3, timeout=60)
        told = cli("verify", tiled, *lab.options, code=3)
        assert re.search(rf"has histostore 0\.0\.1 \(here {re.escape(hs.__version__)}\)", told.stderr)
        assert len(told.stderr.strip().splitlines()) == 1
    finally:
        worker.kill()
        worker.wait()


def test_a_lost_scheduler_is_one_line_and_the_next_run_goes_on(
    lab: Any, tiled: Path, embedded: Path, copy_of: Callable[[Path], Path], cli: Any
) -> None:
    store = copy_of(tiled)
    embed = ["embed", store, "--backbone", "testing?delay_ms=200", "--shard-rows", 16, "--batch", 8]
    scheduler = next(p for p in lab.processes("scheduler") if "dask" in " ".join(p.cmdline()))

    def strike() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not list(store.glob("slides/*/embeddings/*/*/receipts/*.json")):
            time.sleep(0.01)
        scheduler.send_signal(signal.SIGKILL)

    striker = threading.Thread(target=strike)
    striker.start()
    told = cli(*embed, *lab.options, code=3)
    striker.join()
    assert "the scheduler is gone; finished shards are kept" in told.stderr.splitlines()[-1]
    done = cli(*embed)
    assert "embed resumed" in done.stdout
    for slide in ("A1", "B1"):
        assert {k: v for k, v in contents(store, slide).items() if "embedding/c" in k} == {
            k: v for k, v in contents(embedded, slide).items() if "embedding/c" in k
        }


def test_nobody_at_the_address_is_one_line(
    tiled: Path, cli: Any, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histostore.scale.cluster.CONNECT_S", 0.5)
    told = cli("verify", tiled, "--scheduler", f"tcp://127.0.0.1:{free_port()}", code=2)
    assert re.search(r"no scheduler answers at tcp://127\.0\.0\.1:\d+ within", told.stderr)
    assert len(told.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("tcp://10.0.0.7:8786", "neither encrypted nor authenticated"),
        ("tcp://node7:8786", "neither encrypted nor authenticated"),
        ("tls://10.0.0.7:8786", "give tls_ca"),
        ("http://127.0.0.1:8787", "write it as"),
        ("127.0.0.1:8786", "write it as"),
    ],
)
def test_addresses_that_are_not_safe_are_refused(address: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        check_address(address, encrypted=False, allow_plain=False)


def test_addresses_that_are_safe_or_permitted_are_taken() -> None:
    for address in ("tcp://127.0.0.1:8786", "tcp://localhost:8786", "tcp://[::1]:8786"):
        check_address(address, encrypted=False, allow_plain=False)
    check_address("tcp://node7:8786", encrypted=False, allow_plain=True)
    check_address("tls://node7:8786", encrypted=True, allow_plain=False)


def test_options_of_workers_without_workers_are_refused(tiled: Path, cli: Any) -> None:
    assert "give --workers or --scheduler" in cli("verify", tiled, "--tls-ca", "x.pem", code=2).stderr
    assert "give all of" in cli("verify", tiled, "--workers", 1, "--tls-ca", "x.pem", code=2).stderr
    assert "not allowed with" in cli("verify", tiled, "--workers", 1, "--scheduler", "tcp://[::1]:1", code=2).stderr


def test_gpus_that_are_not_there_are_refused() -> None:
    import torch

    more = torch.cuda.device_count() + 1
    with pytest.raises(UsageError, match=f"{more} workers with a GPU each are demanded"), workers_here(more, gpu=True):
        pass
