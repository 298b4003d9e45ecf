"""The genes of a slide's counts; equal lists of many slides are read and kept once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from histostore.store.receipts import TREE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.groups import Group

KEPT = 64
"""Different lists that a process keeps: 36,000 names with their ids are some 5 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class GeneList:
    """Ids and symbols, in the order of the columns. Equal lists of a process are one object, so compare by ``is``."""

    ids: tuple[str, ...]
    """Unique."""
    symbols: tuple[str, ...]
    place: Mapping[str, int]
    """Column of each id."""

    def __len__(self) -> int:
        return len(self.ids)


_kept: OrderedDict[tuple[tuple[str, str], ...], GeneList] = OrderedDict()
_keeping = Lock()


def read_genes(group: Group) -> GeneList:
    """Return the genes of a group of counts."""
    key = (*stored(group, "var/gene_ids"), *stored(group, "var/symbols"))
    with _keeping:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    ids = tuple(group.read("var/gene_ids"))
    found = GeneList(ids, tuple(group.read("var/symbols")), {gene: i for i, gene in enumerate(ids)})
    with _keeping:
        found = _kept.setdefault(key, found)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return found


def stored(group: Group, name: str) -> tuple[tuple[str, str], ...]:
    """Return file names and sha256 of an array's chunks: arrays of the same ones hold the same values."""
    folder = f"{TREE}/{name}/c/"
    files = group.header["files"]
    return tuple((key[len(folder) :], files[key][1]) for key in sorted(files) if key.startswith(folder))
