"""BLAS threads: a small fit runs on one.

Fits are made of thousands of products that take less than a millisecond. A second thread gains nothing on them, and
where it has to wait for a processor they take ten times as long, or fifty. On one thread the last bits do not depend on
how many processors there are either.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Any

import threadpoolctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from histostore.heads.rows import Table

SMALL = 10**10
"""Multiplications that one thread does in less than a second."""


def threads_for(X: Table, targets: int) -> AbstractContextManager[None]:
    """Have products run on one thread where a fit of `X` ``(n, d)`` to so many targets is small; else as they are set.

    Small is X'X beside X'Y of at most `SMALL` multiplications.
    """
    n, d = X.shape
    return one_blas_thread() if n * d * (d + targets) <= SMALL else nullcontext()


_counting = Lock()
_users = 0
_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Have matrix products of this process run on one thread each while anyone is in here."""
    global _users, _limit
    with _counting:
        if not _users:
            with _whoever_asks():
                _limit = threadpoolctl.threadpool_limits(1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _counting:
            _users -= 1
            if not _users:
                with _whoever_asks():
                    _limit.restore_original_limits()
                _limit = None


@contextmanager
def _whoever_asks() -> Iterator[None]:
    """Have limits heeded that are set in here, whichever thread sets them.

    From 3.8 on threadpoolctl passes over all threads but the first that set one, as long as that lives.
    """
    disown = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if disown is not None:
        disown(force=True)
    yield
    if disown is not None:
        disown(force=True)
