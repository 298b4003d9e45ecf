"""What `search` says where it finds less than was asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

QUERY = ("--slide", "A1", "--spot")


@pytest.fixture(scope="module")
def spot(built: Path) -> str:
    from histostore.store.store import open_store
    from histostore.view import view

    return str(view(open_store(built)).parts[0].column("barcode")[0])


@pytest.mark.parametrize(
    ("options", "said", "hits"),
    [
        (("--at-most", "patient:1", "-k", 6), "note: 2 of 6: --at-most leaves no more", 2),
        (("--where", "n_counts < 0"), "note: no hits: --where leaves none", 0),
        (("--where", "tissue >= 0", "--max-distance", -1), "note: no hits: --where, --max-distance leave none", 0),
        (("-k", 1000), "of 1,000: there are no more", None),
        (("-k", 3), "", 3),
    ],
)
def test_fewer_hits_than_asked_for_are_explained(
    built: Path, call: Any, spot: str, options: tuple[str, ...], said: str, hits: int | None
) -> None:
    told = call("search", built, *QUERY, spot, *options)
    assert told.code == 0
    assert said in told.out
    assert "Empty" not in told.out
    assert ("note" in told.out) == bool(said)
    (value,) = map(json.loads, call("search", built, *QUERY, spot, *options, "--json").out.splitlines())
    assert hits in (None, len(value["hits"]))
    assert bool(value["notes"]) == bool(said)
