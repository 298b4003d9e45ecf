"""A dry run of index says what it would build, near to what it builds, and writes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import histostore as hs
from histostore.errors import ConflictError
from histostore.index.spec import IndexSpec
from histostore.stages.estimate_index import estimate_index
from histostore.stages.index import index, open_index

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    type Copy = Callable[[Path], Path]


def tree(path: Path) -> dict[str, int]:
    return {str(p.relative_to(path)): p.stat().st_size for p in path.rglob("*")}


@pytest.mark.parametrize("kind", ["auto", "exact", "ivf-flat", "ivf-sq8", "hnsw"])
def test_kind_rows_and_bytes_are_those_that_index_then_makes(embedded: Path, copy_of: Copy, kind: Any) -> None:
    path = copy_of(embedded)
    store, before, spec = hs.open(path), tree(path), IndexSpec(kind=kind, nlist=4)
    told = estimate_index(store, backbone="testing", spec=spec)
    assert tree(path) == before
    made = index(store, backbone="testing", spec=spec)
    segment = open_index(store, made.name).snapshot.segments[0]
    assert (told.name, told.done, told.kind, told.rows) == (made.name, made.done, segment.report.kind, made.rows)
    assert told.bytes == pytest.approx(made.bytes, rel=0.15, abs=1500)
    assert told.memory > told.bytes / 2
    assert told.cells == segment.report.cells
    assert 0 < told.seconds.low <= told.seconds.middle <= told.seconds.high
    assert told.probed == made.rows
    json.dumps(told.to_json())


def test_what_is_there_takes_nothing_what_is_new_is_told_and_a_conflict_is_one(embedded: Path, copy_of: Copy) -> None:
    store = hs.open(copy_of(embedded))
    index(store, backbone="testing", slides=["A1"])
    told = estimate_index(store, backbone="testing", slides=["A1"])
    assert (told.done, told.kind, told.rows, told.bytes, told.seconds.high) == ("already there", None, 0, 0, 0)
    more = estimate_index(store, backbone="testing")
    made = index(store, backbone="testing")
    assert (more.done, more.rows, more.kind) == (made.done, made.added, "exact")
    less = estimate_index(store, backbone="testing", slides=["B1"])
    assert (less.done, less.rows, less.removed, less.kind) == ("updated", 0, 1, None)
    with pytest.raises(ConflictError, match="another spec"):
        estimate_index(store, backbone="testing", spec=IndexSpec(kind="hnsw"))
    assert estimate_index(store, backbone="testing", spec=IndexSpec(kind="hnsw"), rebuild=True).done == "built"


def test_auto_names_what_comes_next_and_heeds_the_room(
    embedded: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histostore.index.build.EXACT_ROWS", 10)
    store = hs.open(copy_of(embedded))
    told = estimate_index(store, backbone="testing", spec=IndexSpec(nlist=2, recall=0.9))
    assert (told.kind, told.note) == ("ivf-sq8", "then ivf-flat, where recall 0.9 is not reached")
    tight = estimate_index(store, backbone="testing", spec=IndexSpec(nlist=2, max_bytes=2000))
    assert (tight.kind, tight.note) == ("ivf-pq", "")


def test_the_command_says_it_in_a_line_and_as_json(embedded: Path, copy_of: Copy, cli: Any) -> None:
    path = copy_of(embedded)
    before = tree(path)
    said = cli("index", path, "--kind", "ivf-sq8", "--dry-run").stdout
    assert "would be built: 80 rows as ivf-sq8" in said
    assert said.endswith("nothing was written\n")
    found = json.loads(cli("index", path, "--dry-run", "--json").stdout)
    assert (found["kind"], found["rows"], len(found["seconds"])) == ("exact", 80, 3)
    assert "--compact" in cli("index", path, "--dry-run", "--compact", code=2).stderr
    assert tree(path) == before
