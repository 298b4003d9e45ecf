"""repair: what is damaged is put aside, never deleted, and made again as a new attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import NotFoundError
from histostore.schema.kinds import NEWEST
from histostore.store.manifest import manifest_key
from histostore.store.repair import IMPORTED_BY, REMADE_BY, quarantine, repair
from histostore.store.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.store.manifest import Ref
    from histostore.store.store import Store


def flip(store: Store, ref: Ref, name: str) -> Path:
    path = store.files.root / ref.prefix / name
    data = bytearray(path.read_bytes())
    data[0] ^= 255
    path.write_bytes(data)
    return path


def test_every_kind_has_a_command_that_makes_it() -> None:
    assert {*REMADE_BY, *IMPORTED_BY} == set(NEWEST)


def test_a_damaged_group_is_made_again_as_a_new_attempt_with_the_same_values(
    store: Store, seal_vectors: Callable[..., Ref], vectors: np.ndarray
) -> None:
    old = seal_vectors(store)
    store.commit("S1", [old])
    assert seal_vectors(store) == old  # while it is whole (and by its size alone) it is taken as it is
    damaged = flip(store, old, "zarr/embedding/c/2/0")
    done = repair(store, verify(store))
    assert [(r.ref, r.command, r.quarantined) for r in done.redo] == [(old, "embed", True)]
    assert done.commands == ("embed",)
    assert done.beyond == ()
    assert store.slide("S1").get("embeddings", "toy") is None
    assert damaged.exists()
    new = seal_vectors(store)
    assert new.attempt != old.attempt
    assert new.digest == old.digest
    assert store.commit("S1", [new]).added == ("embeddings/toy",)
    np.testing.assert_array_equal(store.group(new).read("embedding"), vectors)
    report = verify(store)
    assert report.ok
    assert [p.kind for p in report.problems] == ["quarantined"]
    assert repair(store, report).redo == ()
    assert seal_vectors(store) == new


def test_derived_groups_are_put_aside_and_imported_ones_listed(golden: Store) -> None:
    manifest = golden.slide("G1")
    flip(golden, manifest.find("points"), "zarr/xy/c/0/0")
    flip(golden, manifest.find("pixels", "lossless"), "zarr/pixels/c/1/0/0/0")
    flip(golden, golden.manifest("@heads").find("heads"), "state.safetensors")
    report = verify(golden)
    done = repair(golden, report)
    assert [(r.ref.key, r.command, r.quarantined) for r in done.redo] == [
        ("points/spots", "ingest", False),
        ("pixels/lossless", "tile", True),
        ("heads/toy", "fit", True),
    ]
    assert done.commands == ("ingest", "tile", "fit")
    assert set(manifest.entries) - set(golden.slide("G1").entries) == {"pixels/lossless"}
    assert dict(golden.manifest("@heads").entries) == {}
    done = repair(golden, verify(golden), imported=True)
    assert [(r.ref.key, r.quarantined) for r in done.redo] == [("points/spots", True)]
    assert verify(golden).ok


def test_the_points_of_a_grid_are_made_by_tile(store: Store) -> None:
    def seal(kind: str, spec: dict[str, object], **arrays: object) -> Ref:
        with store.begin("S1", kind, "grid@0.5", spec=spec, inputs={}) as writer:
            for name, values in arrays.items():
                writer.put_array(name, values)
            return writer.seal(rows=2)

    points = seal("points", {}, ids=["a", "b"], xy=np.zeros((2, 2)))
    tiles = seal("tiles", {"at": "grid"}, geometry=np.zeros((2, 5)), ids=np.zeros((2, 3), np.uint64))
    store.commit("S1", [points, tiles])
    flip(store, points, "zarr/xy/c/0/0")
    assert [(r.ref, r.command, r.quarantined) for r in repair(store, verify(store)).redo] == [(points, "tile", True)]


def test_what_no_command_undoes_is_said(golden: Store) -> None:
    (golden.files.root / manifest_key("G1", 1)).write_bytes(b"")
    done = repair(golden, verify(golden))
    assert done.redo == ()
    assert len(done.beyond) == 1
    assert done.beyond[0].startswith(manifest_key("G1", 1))


def test_only_what_the_newest_manifest_names_can_be_put_aside(golden: Store) -> None:
    old, new = golden.manifest("G1", 1).find("meta"), golden.slide("G1").find("meta")
    assert old != new
    with pytest.raises(NotFoundError, match="does not name meta 'meta'"):
        quarantine(golden, old)
    commit = quarantine(golden, new, why="a test")
    assert "meta/meta" not in commit.manifest.entries
    assert golden.files.get(f"{new.prefix}/DAMAGED") == b'{"why": "a test"}'
    assert golden.group(new).attrs["fields"] == {"patient": "B"}
