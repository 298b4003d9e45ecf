"""``info --where`` and ``--columns``: slides as a table of their metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.cli.common import show
from histostore.errors import NotFoundError, near
from histostore.store.catalog import look, slides_where, worth_it

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from histostore.store.store import Store


def show_slides(store: Store, where: str | None, columns: list[str] | None, args: argparse.Namespace) -> None:
    """Print the slides that pass a filter, with metadata fields or, of ``kind/name``, its rows.

    Raises
    ------
    NotFoundError
        No slide has such a column.
    """
    wanted = slides_where(store, where) if where is not None else None
    of_groups = any("/" in name for name in columns or ())
    catalog = look(store, contents=of_groups, keep=worth_it(store))
    there = catalog.slides()
    every: list[Mapping[str, Any]] = list(catalog.fields(there))
    if of_groups:
        headers = [catalog.known(slide).headers for slide in there]
        every = [{**f, **{key: h[key].rows for key in h}} for f, h in zip(every, headers, strict=True)]
    known = dict.fromkeys(name for of in every for name in of)
    for name in columns or ():
        if name not in known:
            raise NotFoundError(f"no column '{name}' in any slide{near(name, known)}; there are {', '.join(known)}")
    passed = set(there if wanted is None else wanted)
    shown = columns if columns is not None else [name for name in known if "/" not in name]
    rows = [
        {"slide": slide, **{name: of.get(name) for name in shown}}
        for slide, of in zip(there, every, strict=True)
        if slide in passed
    ]
    text = "\n".join([*_table(["slide", *shown], rows), f"{len(rows):,} of {len(there):,} slides"])
    show({"store": store.uri, "name": store.name, "slides": rows}, text, args)


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [list(columns), *([_cell(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
