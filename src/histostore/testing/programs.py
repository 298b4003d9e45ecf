"""Other programs that serve on 127.0.0.1 while tests run: started, waited for, and ended with the context."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from histostore.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

READY_S = 60.0
_LAST_LINES = 3


@contextlib.contextmanager
def serving(
    command: Sequence[str], folder: Path, *, port: int, ready: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Run a program in a folder, where its log goes, until the context is left.

    Parameters
    ----------
    ready
        Whether it answers as it should; it may raise OSError where it does not yet. By default it answers as soon as it
        takes connections.

    Raises
    ------
    StorageError
        It does not answer within a minute, or has ended; its last lines are told.
    """
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    try:
        until = time.monotonic() + READY_S
        while not _answers(port, ready):
            if time.monotonic() > until or process.poll() is not None:
                said = " | ".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
                raise StorageError(f"the server does not answer on port {port}: {said}")
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def free_ports(n: int) -> list[int]:
    """Return ports that are free now, none twice."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _answers(port: int, ready: Callable[[], bool] | None) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return ready is None or ready()
    except OSError:
        return False
