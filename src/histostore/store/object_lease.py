"""That an attempt in an object store is being written: an object that its writer renews.

Nobody else ever writes into an attempt there, so a lease guards no data. It tells ``gc`` and ``verify`` what runs.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from typing import TYPE_CHECKING, Self

from histostore.errors import StorageError

if TYPE_CHECKING:
    from histostore.store.objects import ObjectFiles

RENEW_S = 60.0
LASTS_S = 300.0
"""A lease that was renewed longer ago, by the server's clock, is over."""


class Lease:
    """Renewed by a thread until it is released or the process ends."""

    def __init__(self, files: ObjectFiles, key: str, *, renew_s: float = RENEW_S) -> None:
        self._files = files
        self._key = key
        self._id = secrets.token_hex(8).encode()
        self._renew_s = renew_s
        self._over = threading.Event()
        files.put(key, self._id)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Stop renewing, and remove the object, which is the writer's own."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # it runs out by itself
            self._files.delete(self._key)

    def _renew(self) -> None:
        while not self._over.wait(self._renew_s):
            with contextlib.suppress(StorageError):  # the next one may succeed
                self._files.put(self._key, self._id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
