"""Is a client fit to run our tasks? Its workers' versions, their GPUs, and where the scheduler listens."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from histostore.errors import SpecMismatchError, UsageError
from histostore.scale.versions import looker, require_equal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WAIT_S = 30.0
"""How long workers that are being started are waited for."""
ALL = -1


def check_address(address: str, *, encrypted: bool, allow_plain: bool) -> None:
    """Refuse a scheduler's address over which code would travel in the open.

    Whoever reaches a scheduler runs code on it, and on its workers: dask unpickles what it is sent.

    Raises
    ------
    UsageError
        It is not ``tcp://`` on loopback, nor ``tls://`` with certificates.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "tls") or not parts.hostname:
        raise UsageError(f"scheduler {address!r}: write it as tcp://127.0.0.1:8786 or tls://HOST:8786")
    if parts.scheme == "tls" and not encrypted:
        raise UsageError(f"scheduler {address} speaks TLS: give tls_ca, tls_cert and tls_key")
    if parts.scheme == "tcp" and encrypted:
        raise UsageError(f"scheduler {address} is plain tcp, and certificates were given: use tls://")
    if parts.scheme == "tcp" and not allow_plain and not _is_loopback(parts.hostname):
        raise UsageError(
            f"scheduler {address} is not on this machine, and tcp is neither encrypted nor authenticated: "
            "use tls:// with tls_ca, tls_cert and tls_key, or pass allow_plain_tcp"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_workers(client: Any, ours: Mapping[str, str]) -> None:
    """Wait for a worker, and refuse workers with other versions than `ours`.

    Raises
    ------
    UsageError
        None comes.
    SpecMismatchError
        Versions differ.
    """
    try:
        client.wait_for_workers(1, timeout=WAIT_S)
    except TimeoutError:
        raise UsageError(f"the scheduler has no workers after {WAIT_S:.0f} s; start some: dask worker …") from None
    for worker, found in _answers(client, looker()).items():
        if isinstance(found, BaseException):
            raise SpecMismatchError(f"worker {worker} cannot run our code ({type(found).__name__}: {found})")
        require_equal(found, ours, worker=worker)


def _answers(client: Any, ask: Callable[[], Any], workers: list[str] | None = None) -> dict[str, Any]:
    """Return what each worker answers, or its error, but for those that died as they were asked.

    Who comes in their place is looked at by every task.
    """
    found = client.run(ask, workers=workers, on_error="return")
    up = client.nthreads()
    return {w: answer for w, answer in sorted(found.items()) if w in up or not isinstance(answer, OSError)}


def require_gpus(client: Any) -> None:
    """Refuse workers that were promised to have GPUs and do not.

    Raises
    ------
    UsageError
        No worker offers the resource ``GPU``, or one that does has no CUDA device.
    """
    workers = client.scheduler_info(n_workers=ALL)["workers"]
    offering = [address for address, info in workers.items() if info["resources"].get("GPU", 0) >= 1]
    if not offering:
        raise UsageError(
            f"a GPU per worker is demanded, and none of the {len(workers)} workers offers one; start them with: "
            'dask worker --resources "GPU=1" (dask cuda worker too)'
        )

    def devices() -> int:
        import torch

        return torch.cuda.device_count()

    for address, found in _answers(client, devices, offering).items():
        if found == 0 or isinstance(found, BaseException):
            raise UsageError(f"a GPU per worker is demanded, and worker {address} has no CUDA device")
