"""Requests to an object store, each sent until it is answered, within limits."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from histostore.errors import StorageError, UsageError
from histostore.store.azure_account import azure_settings
from histostore.store.object_address import allows_http, endpoint, request_seconds
from histostore.store.object_faults import Fault, fault_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from histostore.store.object_address import Address


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is sent at once, and how often."""

    tries: int = 6
    """Of one request; obstore itself bridges two more for what is over in a moment."""
    seconds: float = 180.0
    """After which nothing is tried again."""
    wait_s: float = 0.1
    """Before the second try; doubled for each further one, up to 5 s, and shortened by chance."""
    at_once: int = 10
    """Requests of one call that run side by side."""
    gap_bytes: int = 256 << 10
    """Pieces of a file this close are fetched as one."""
    most_bytes: int = 8 << 20
    """Of one answer."""
    single_bytes: int = 32 << 20
    """A larger object is sent in parts."""
    part_bytes: int = 16 << 20


def connect(address: Address) -> Any:
    """Return obstore's client for a bucket and prefix; credentials and endpoint come from the environment.

    Raises
    ------
    UsageError
        The endpoint is plain http and AWS_ALLOW_HTTP (GOOGLE_, AZURE_) does not allow that, or a setting is not one.
    """
    seconds = request_seconds()
    options: dict[str, Any] = {"timeout": timedelta(seconds=seconds), "connect_timeout": timedelta(seconds=5)}
    retry: dict[str, Any] = {
        "max_retries": 2,
        "retry_timeout": timedelta(seconds=3 * seconds),
        "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=1), "base": 2},
    }
    settings = azure_settings() if address.scheme == "az" else {}
    endpoint(address)  # refused here if it is plain http and that was not asked for
    options["allow_http"] = allows_http(address) or "use_emulator" in settings
    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[address.scheme]
    where: dict[str, Any] = {"prefix": address.prefix or None, "client_options": options, "retry_config": retry}
    if settings:
        where["config"] = settings
    try:
        return kind(address.bucket, **where)
    except (BaseError, ValueError, TypeError, OSError) as error:  # its text may repeat what the environment holds
        failed = type(error).__name__
    raise UsageError(f"{address}: the settings in the environment cannot be used ({failed}); check them one by one")


class Requests:
    """Sends requests until they are answered. Safe to share between threads."""

    def __init__(self, uri: str, limits: Limits) -> None:
        self.uri = uri
        self.limits = limits
        self._pool: ThreadPoolExecutor | None = None

    def ask[T](self, call: Callable[[], T]) -> T | Fault:
        """Return what a request gives, or why it fails for good: the last fault, `passing` where tries ran out."""
        until = time.monotonic() + self.limits.seconds
        for attempt in range(self.limits.tries):
            try:
                return call()
            except (BaseError, OSError) as error:
                fault = fault_of(error)
            if not fault.passing or attempt + 1 == self.limits.tries or time.monotonic() > until:
                break
            time.sleep(min(5.0, self.limits.wait_s * 2**attempt) * random.uniform(0.5, 1.0))
        return fault

    def get[T](self, key: str, call: Callable[[], T]) -> T:
        """Return what a request gives.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        StorageError
            It was refused, or not answered.
        """
        found = self.ask(call)
        if isinstance(found, Fault):
            raise self.error(found, key)
        return found

    def many[A, T](self, call: Callable[[A], T], items: Iterable[A]) -> list[T]:
        """Return ``call(item)`` for each item, some of them side by side."""
        items = list(items)
        if len(items) < 2:
            return [call(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.limits.at_once, thread_name_prefix="objects")
        return list(self._pool.map(call, items))

    def error(self, fault: Fault, key: str) -> OSError:
        """Return the error that says what a fault means; it holds nothing that a server or a client said."""
        where = f"{self.uri}/{key}" if key else self.uri
        if fault.absent:
            return FileNotFoundError(2, "no such object", where)
        told = fault.advice or "the server's answer makes no sense here"
        return StorageError(f"{where}: {told} ({fault.what})")
