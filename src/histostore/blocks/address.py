"""Where a store is, for another process: it is opened there, once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from histostore.errors import NotFoundError
from histostore.store.store import open_store

if TYPE_CHECKING:
    from histostore.store.store import Store

KEPT_OPEN = 16
"""Stores that a process keeps open; one costs a few files."""


@dataclass(frozen=True, slots=True)
class Address:
    """A store by its place and its identity. It has neither open files nor credentials."""

    uri: str
    uuid: str

    @classmethod
    def of(cls, store: Store) -> Address:
        """Return the address of an open store."""
        return cls(store.uri, store.uuid)

    def open(self) -> Store:
        """Open the store, or take the one that this process has open.

        Raises
        ------
        NotFoundError
            There is none on this machine, or another one lies there.
        """
        return _opened(self)


@lru_cache(KEPT_OPEN)
def _opened(address: Address) -> Store:
    store = open_store(address.uri)
    if store.uuid != address.uuid:
        raise NotFoundError(
            f"the store at {address.uri} is {store.uuid[:8]} on this machine and {address.uuid[:8]} where the task was "
            "made: all workers must see the same folder or bucket"
        )
    return store
