"""How many tiles per forward pass does a group go on with? What an earlier attempt at it recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.errors import CorruptionError, FormatError
from histostore.store.groups import DAMAGED
from histostore.store.manifest import GROUP, checked_json, group_folder
from histostore.store.receipts import ATTEMPT, RECEIPTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.files import Files

FREE = "batch"
"""The one field of an engine that is chosen, not given by machine and libraries."""


def begun_batch(files: Files, slide: str, digest: str, engine: Mapping[str, Any]) -> int | None:
    """Return the batch of the attempt at a group of embeddings that got furthest on the same engine.

    A measured batch may come out otherwise the next time, and with it the last bits of rows: what was begun goes on
    with its own. A damaged attempt counts where there is no other, so that it is made again as it was.

    Parameters
    ----------
    engine
        As it will be recorded; its own batch is not looked at.

    Returns
    -------
    int or None
        None where nobody began.
    """
    folder = group_folder(slide, "embeddings", digest)
    found: list[tuple[bool, bool, int, int]] = []
    for child in files.children(folder):
        prefix = f"{folder}/{child.rstrip('/')}"
        sealed, recorded = _engine(files, prefix)
        batch = recorded.get(FREE)
        if rest_of(recorded) == rest_of(engine) and isinstance(batch, int) and batch > 0:
            whole = files.size(f"{prefix}/{DAMAGED}") is None
            found.append((whole, sealed, len(files.children(f"{prefix}/{RECEIPTS}")), batch))
    return max(found)[-1] if found else None


def _engine(files: Files, prefix: str) -> tuple[bool, dict[str, Any]]:
    """Return whether an attempt is sealed, and its engine: empty where no file says so that can be trusted."""
    for name in (GROUP, ATTEMPT):
        try:
            return name == GROUP, dict(checked_json(files.get(f"{prefix}/{name}"), where=prefix)["engine"])
        except (FileNotFoundError, CorruptionError, FormatError):
            continue
    return False, {}


def rest_of(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return what machine and libraries give: an engine without its batch."""
    return {key: value for key, value in engine.items() if key != FREE}
