"""A scheduler and workers as docs/cluster.md starts them: TLS, loopback, other versions, and losing them."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import histostore as hs
from histostore.errors import UsageError
from histostore.scale.checks import check_address
from histostore.scale.cluster import Tls, scheduler_at, visible_devices, workers_here
from histostore.store.gc import plan_gc
from histostore.store.verify import verify
from histostore.testing.crash import contents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from distributed import Client


@pytest.fixture(scope="module")
def lab(by_hand: Any) -> Iterator[Any]:
    with by_hand() as lab:
        yield lab


@contextmanager
def third_worker(lab: Any, *options: str, **environment: str) -> Iterator[Client]:
    """Start one more worker by hand; it is gone after the block."""
    pem = [f"--tls-{n}={lab.folder / f}" for n, f in (("ca-file", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))]
    command = ["dask", "worker", lab.url, "--host", "127.0.0.1", "--no-nanny", "--no-dashboard", *pem]
    worker = subprocess.Popen(
        [*command, "--dashboard-address", "127.0.0.1:0", *options],
        env=lab.environment(**environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    tls = Tls(*(lab.folder / f"{name}.pem" for name in ("ca", "cert", "key")))
    try:
        with scheduler_at(lab.url, tls=tls) as client:
            client.wait_for_workers(3, timeout=60)
            yield client
            worker.kill()
            while len(client.nthreads()) > 2:
                time.sleep(0.02)
    finally:
        worker.kill()
        worker.wait()


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
    with third_worker(lab, "--name", "old", PYTHONPATH=str(tmp_path)):
        told = cli("verify", tiled, *lab.options, code=3)
    assert re.search(rf"has histostore 0\.0\.1 \(here {re.escape(hs.__version__)}\)", told.stderr)
    assert len(told.stderr.strip().splitlines()) == 1


def test_workers_that_offer_no_gpu_or_have_none_are_refused(lab: Any, tiled: Path, cli: Any) -> None:
    embed = ["embed", tiled, "--backbone", "testing", "--gpu-per-worker", *lab.options]
    told = cli(*embed, code=2)
    assert "none of the 2 workers offers one; start them with: dask worker --resources" in told.stderr
    with third_worker(lab, "--resources", "GPU=1", CUDA_VISIBLE_DEVICES=""):
        told = cli(*embed, code=2)
    assert re.search(r"worker tls://127\.0\.0\.1:\d+ has no CUDA device", told.stderr)
    assert len(told.stderr.strip().splitlines()) == 1


def test_a_worker_whose_clock_is_a_day_ahead_leaves_the_same_bytes(
    lab: Any, ingested: Path, tiled: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nreal, real_ns = time.time, time.time_ns\n"
        "time.time, time.time_ns = lambda: real() + 86_400, lambda: real_ns() + 86_400 * 10**9\n"
    )
    store, pixels = copy_of(ingested), hs.PixelSpec(codec="lossless", shard_tiles=8)

    def did(dask_worker: Any) -> tuple[bool, bool]:
        return time.time() > day, "histostore-p" in str(dask_worker.state.log)

    with third_worker(lab, PYTHONPATH=str(tmp_path)) as client:
        day = time.time() + 80_000
        hs.pp.tile(hs.open(store), hs.TileSpec.at_spots(px=96), pixels=pixels, client=client)
        assert (True, True) in client.run(did).values()
    for slide in ("A1", "B1"):
        assert contents(store, slide) == contents(tiled, slide)
    assert verify(hs.open(store)).problems == ()
    assert plan_gc(hs.open(store), grace_s=0).items == ()


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


@pytest.mark.parametrize(
    ("visible", "count", "devices"),
    [
        (None, 3, ["0", "1", "2"]),
        ("", 0, []),
        ("2, 0", 2, ["2", "0"]),
        ("0,1,7", 2, ["0", "1"]),  # CUDA stops at a name that it does not know
        ("-1", 0, []),
        ("GPU-5f1c1d1e,GPU-0a", 2, ["GPU-5f1c1d1e", "GPU-0a"]),
        ("MIG-aa/1/0,MIG-bb", 1, ["MIG-aa/1/0", "MIG-bb"]),  # it takes one part of a GPU per process
        ("MIG-aa", 0, []),
    ],
)
def test_devices_go_by_the_names_that_CUDA_was_given(visible: str | None, count: int, devices: list[str]) -> None:
    assert visible_devices(visible, count) == devices
