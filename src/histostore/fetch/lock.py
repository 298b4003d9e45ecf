"""What was fetched, beside the data: address, size and hash seen, so that a file that changes is noticed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from histostore.errors import DataError
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    from pathlib import Path

LOCK = "fetch.lock.json"
FORMAT = 1


class LockFile:
    """The record of one folder of fetched data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            value = json.loads((folder / LOCK).read_bytes())
            self._datasets: dict[str, Any] = dict(value["datasets"])
            self._files: dict[str, dict[str, Any]] = dict(value["files"])
        except FileNotFoundError:
            self._datasets, self._files = {}, {}
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{folder / LOCK} is damaged; restore it, or remove it with the data it tells of") from None

    def get(self, path: str) -> dict[str, Any] | None:
        """Return what is known of a file."""
        return self._files.get(path)

    def put(self, path: str, about: dict[str, Any], dataset: str, terms: dict[str, str]) -> None:
        """Record a file, durable on return."""
        self._files[path] = about
        self._datasets[dataset] = terms
        value = {"format": FORMAT, "datasets": self._datasets, "files": dict(sorted(self._files.items()))}
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        LocalFiles(self._folder).put(LOCK, text.encode())
