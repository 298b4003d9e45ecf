from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from histostore.stages import twins
from histostore.stages.twins import Twins
from histostore.store.store import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.store.manifest import Manifest, Ref


@pytest.fixture
def store(ingested: Path, copy_of: Callable[[Path], Path]) -> Store:
    return open_store(copy_of(ingested))


def _as(slide: str, of: Manifest) -> list[Ref]:
    """Return the groups that a slide would have if it were brought in from the files of another."""
    return [replace(ref, owner=slide) for ref in of.entries.values()]


@pytest.mark.parametrize("many", [pytest.param(False, id="manifests"), pytest.param(True, id="catalog")])
def test_a_slide_of_the_image_and_counts_of_another_is_noticed(
    many: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins, "worth_it", lambda _store: many)
    known = Twins(store)
    assert known.notes("A1", store.slide("A1").entries.values()) == (), "not its own twin"
    refs = _as("M2", store.slide("B1"))
    assert known.notes("M2", reversed(refs)) == (
        "M2 has the image of B1 (same bytes): is it one section?",
        "M2 has the counts of B1 (same values): is it one section?",
    )
    more = known.notes("M3", reversed(_as("M3", store.slide("B1"))))
    assert more[0].startswith("M3 has the image of B1 and 1 more (same bytes)"), "what it was told of is known too"


@pytest.mark.parametrize("many", [pytest.param(False, id="manifests"), pytest.param(True, id="catalog")])
def test_deleted_and_damaged_slides_are_passed_over(many: bool, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "worth_it", lambda _store: many)
    refs = _as("M2", store.slide("B1"))
    store.delete_slide("B1")
    newest = max((store.files.root / "manifests" / "A1").iterdir())  # type: ignore[attr-defined]
    newest.write_bytes(b"{}")
    assert Twins(store).notes("M2", refs) == ()
