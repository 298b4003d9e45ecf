"""How a reader looks at tiles and embeddings that are being made."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from histostore.errors import NotFoundError
from histostore.store.store import open_store
from histostore.testing.crash import contents
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

    type Look = Callable[[Path], Callable[[], Hashable]]

SLIDE = "A1"


@pytest.fixture
def command() -> Callable[..., list[str]]:
    """Return a command line of histostore."""
    return lambda *args: [sys.executable, "-m", "histostore", *map(str, args)]


@pytest.fixture
def look_at_tiles() -> Look:
    """Read all bytes of tiles and pixels, once there is either of them."""

    def look(store: Path) -> Callable[[], Hashable]:
        def read() -> Hashable:
            keys = {"tiles/spots", "pixels/spots"}
            there = keys & set(open_store(store).slide(SLIDE).entries)
            if not there:
                return None
            return (*sorted(there), *sorted(contents(store, SLIDE, keys=list(keys)).items()))

        return read

    return look


@pytest.fixture
def look_at_embeddings() -> Callable[[str], Look]:
    """Open a view of a backbone's embeddings and read every value."""

    def of(backbone: str) -> Look:
        def look(store: Path) -> Callable[[], Hashable]:
            def read() -> Hashable:
                try:
                    rows = view(open_store(store), backbone=backbone, slides=[SLIDE])
                except NotFoundError:
                    return None
                return rows.numpy().tobytes(), tuple(rows.names())

            return read

        return look

    return of
