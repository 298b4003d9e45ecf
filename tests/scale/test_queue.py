"""`pipelines/cluster.py`: jobs of a queue leave the bytes of a serial run, and SLURM would be given the right job."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

import histostore as hs
from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
from histostore.store.verify import verify
from histostore.testing.crash import contents

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "pipelines" / "cluster.py"
STAGES = ("--at", "spots", "--px", "96", "--shard", "16", "--backbone", "testing")


def start(store: Path, certificates: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(store), "--certificates", str(certificates), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses that a process and its children listen on now."""
    found = set()
    try:
        for each in [process, *process.children(recursive=True)]:
            found |= {c.laddr.ip for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return found
    return found


def test_jobs_of_a_local_queue_leave_the_bytes_of_a_serial_run(
    ingested: Path, copy_of: Callable[[Path], Path], certificates: Path
) -> None:
    store = copy_of(ingested)
    process = start(store, certificates, "--queue", "local", "--jobs", "2", *STAGES)
    family, heard = psutil.Process(process.pid), set[str]()
    try:
        serial = hs.open(copy_of(ingested))
        hs.pp.tile(serial, TileSpec.at_spots(px=96), pixels=PixelSpec(shard_tiles=16))
        hs.tl.embed(serial, "testing", spec=EmbeddingSpec(shard_rows=16, chunk_rows=16))
        while process.poll() is None:
            heard |= listening(family)
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        out, err = process.communicate()
    finally:
        for each in [*family.children(recursive=True), process] if process.poll() is None else []:
            each.kill()
    assert process.returncode == 0, err
    assert "index: 80 rows, exact 80" in out
    assert "tile: 8 tasks, 8 starts" in err
    assert "embed: 7 tasks, 7 starts" in err
    assert heard == {"127.0.0.1"}
    for slide in serial.slides():
        assert contents(store, slide) == contents(Path(serial.uri), slide)
    assert verify(hs.open(store)).problems == ()


def test_slurm_would_be_given_a_job_with_a_gpu_certificates_and_no_dashboard(
    ingested: Path, certificates: Path, tmp_path: Path
) -> None:
    job = [
        "--partition",
        "gpu",
        "--account",
        "lab",
        "--gpu",
        "--cpus",
        "4",
        "--memory",
        "32GiB",
        "--walltime",
        "2:00:00",
    ]
    process = start(ingested, certificates, "--show-job", *job, "--interface", "lo", "--logs", str(tmp_path))
    script, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    directives = dict(re.findall(r"^#SBATCH (-\S+?)[= ](.*)$", script, re.MULTILINE))
    assert directives == {
        "-J": "histostore", "-p": "gpu", "-A": "lab", "-n": "1", "--cpus-per-task": "4", "--mem": "32G",
        "-t": "2:00:00", "--gres": "gpu:1", "-e": f"{tmp_path}/histostore-%J.err",
        "-o": f"{tmp_path}/histostore-%J.out",
    }  # fmt: skip
    assert "export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true\n" in script
    worker = script.strip().splitlines()[-1]
    assert re.search(r"dask_worker tls://127\.0\.0\.1:\d+ ", worker)
    assert worker.rfind("--memory-limit 0 ") > worker.find("--memory-limit 32.00GiB ") > 0  # the last one holds
    for option in (
        "--resources GPU=1", "--no-dashboard", "--dashboard-address 127.0.0.1:0", "--interface lo", "--protocol tls://",
        "--nthreads 1", f"--tls-ca-file {certificates}/ca.pem", f"--tls-cert {certificates}/cert.pem",
        f"--tls-key {certificates}/key.pem",
    ):  # fmt: skip
        assert option in worker


def test_without_certificates_nothing_is_started(ingested: Path, tmp_path: Path) -> None:
    process = start(ingested, tmp_path, "--queue", "local")
    assert "ca.pem: there is no such certificate or key" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


def test_the_page_shows_the_scripts_own_lines() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text().partition("## SLURM")[2]
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    script = {line.strip() for line in SCRIPT.read_text().splitlines()}
    assert [line for line in shown.splitlines() if line.strip() not in script] == []
