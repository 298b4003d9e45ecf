"""Where the work is done: worker processes of this machine, or a scheduler that runs already.

Nothing listens beyond this machine unless told, and there is no dashboard.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.security import Security
from distributed.utils import silence_logging_cmgr

from histostore.errors import UsageError
from histostore.scale.checks import check_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LOOPBACK = "127.0.0.1"
CONNECT_S = 10.0
SETTINGS: Mapping[str, Any] = {
    # dask listens for http even without a dashboard: on loopback, and with no page to serve
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # dask has glibc give back what exceeds 64 KiB, which faults in each buffer anew: a quarter of the time of
    # tiling. These are what glibc settles at by itself.
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 32 << 20,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 64 << 20,
    # dask wakes every process fifty times a second to see whether it is late, and twice to measure it
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    # dask looks at every thread of a worker a hundred times a second, for a page that is not served
    "distributed.worker.profile.enabled": False,
    # else a worker that is not back 15 s after it died is given up for good
    "distributed.deploy.lost-worker-timeout": "3650 days",
}


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates: of the authority that signed all of them, and ours with its key. PEM files."""

    ca: Path
    cert: Path
    key: Path

    def security(self) -> Security:
        """Return what dask calls it; connections that are not encrypted are refused.

        Raises
        ------
        UsageError
            A file is not there.
        """
        for path in (self.ca, self.cert, self.key):
            if not path.is_file():
                raise UsageError(f"{path}: there is no such certificate or key")
        roles = {f"tls_{role}_{part}": str(path) for role in ("client", "scheduler", "worker")
                 for part, path in (("cert", self.cert), ("key", self.key))}  # fmt: skip
        return Security(require_encryption=True, tls_ca_file=str(self.ca), **roles)


@contextmanager
def workers_here(n: int, *, gpu: bool = False, tls: Tls | None = None) -> Iterator[Client]:
    """Start `n` worker processes on loopback, of one thread each; they end with the block.

    A worker that dies is started again. Its task is too, on any worker, up to three times.

    Raises
    ------
    UsageError
        GPUs are demanded, and there are fewer than workers.
    """
    devices = _devices(n) if gpu else [""] * n
    protocol = "tls://" if tls is not None else "tcp://"
    quiet: dict[str, Any] = {"host": LOOPBACK, "protocol": protocol, "dashboard": False}
    # dask counts mapped files as memory in use, and would pause workers for it: no limit
    worker = {**quiet, "nthreads": 1, "memory_limit": 0, "dashboard_address": f"{LOOPBACK}:0",
              "silence_logs": logging.CRITICAL}  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        security = tls.security() if tls is not None else Security()
        specs = {
            i: {"cls": Nanny, "options": {**worker, "security": security, **_gpu_options(device)}}
            for i, device in enumerate(devices)
        }
        scheduler = {"cls": Scheduler, "options": {**quiet, "port": 0, "security": security,
                                                   "dashboard_address": f"{LOOPBACK}:0"}}  # fmt: skip
        cluster = stack.enter_context(
            SpecCluster(specs, scheduler, security=security, silence_logs=logging.CRITICAL, name="histostore")
        )
        # not dask's default: what else a user computes meanwhile stays where it was
        yield stack.enter_context(Client(cluster, security=security, set_as_default=False))


def _gpu_options(device: str) -> dict[str, Any]:
    return {"resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": device}} if device else {}


def _devices(n: int) -> list[str]:
    """Return the CUDA devices for `n` workers, one each."""
    import torch

    known = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())
    if n > len(known):
        raise UsageError(f"{n} workers with a GPU each are demanded, and this machine has {len(known)}")
    return known[:n]


def visible_devices(visible: str | None, count: int) -> list[str]:
    """Return the names by which CUDA knows its devices: ordinals, ``GPU-…`` or ``MIG-…``.

    Parameters
    ----------
    visible
        ``CUDA_VISIBLE_DEVICES``, where it is set.
    count
        How many devices CUDA finds in this process: it stops at a name that it does not know, and of the parts of a
        divided GPU it takes one per process, however many are named.
    """
    if visible is None:
        return [str(i) for i in range(count)]
    named = [name for part in visible.split(",") if (name := part.strip())]
    return named if count and named[0].startswith("MIG-") else named[:count]


@contextmanager
def scheduler_at(address: str, *, tls: Tls | None = None, allow_plain_tcp: bool = False) -> Iterator[Client]:
    """Connect to a scheduler; leaving closes the connection alone.

    Raises
    ------
    UsageError
        The address is not safe (see `check_address`), or nobody answers there.
    """
    check_address(address, encrypted=tls is not None, allow_plain=allow_plain_tcp)
    security = tls.security() if tls is not None else None
    with ExitStack() as stack:
        stack.enter_context(silence_logging_cmgr(logging.CRITICAL))
        try:
            client = Client(address, security=security, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError) as error:
            why = f" ({error.__cause__})" if error.__cause__ is not None else ""
            raise UsageError(
                f"no scheduler answers at {address} within {CONNECT_S:.0f} s{why}; start one (dask scheduler), "
                "or use workers of this machine"
            ) from None
        yield stack.enter_context(client)
