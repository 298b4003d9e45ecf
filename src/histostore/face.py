"""The store as users hold it: what `histostore.open` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from histostore.store.store import Store as BaseStore
from histostore.store.store import create_store, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.view import View


class Store(BaseStore):
    """An open store. See `histostore.store.store.Store` for what it offers beside `view`."""

    __slots__ = ()

    @classmethod
    def of(cls, store: BaseStore) -> Self:
        """Return the same store with the user's methods."""
        return cls(store.files, store.name, store.uuid, store.format)

    def view(self, **options: Any) -> View:
        """Open a cohort: slides, embeddings, counts and labels joined by id. Options as in `histostore.view.view`."""
        from histostore.view import view

        return view(self, **options)

    def __repr__(self) -> str:
        return f"Store '{self.name}' at {self.uri} ({len(self.slides())} slides)"


def open(path: str | Path) -> Store:
    """Open a store.

    Raises
    ------
    NotFoundError
        There is no store at `path`.
    FormatError
        It is of a newer format.
    """
    return Store.of(open_store(path))


def create(path: str | Path, *, name: str | None = None) -> Store:
    """Make an empty store; its folder must not exist or be empty."""
    return Store.of(create_store(path, name=name))
