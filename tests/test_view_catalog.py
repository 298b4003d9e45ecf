"""A view of many slides is opened from the catalog, and is the view that is opened from the manifests."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import histostore as hs
from histostore.errors import CorruptionError, UsageError
from histostore.store import catalog, catalog_scan
from histostore.store.groups import Group

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.face import Store
    from histostore.part import Part
    from histostore.view import View

GOLDEN = Path(__file__).parents[1] / "stores" / "golden" / "v1"
SLIDES = 12


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store of a dozen slides with all that the golden one has, of six patients."""
    store = hs.open(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("copies") / "store"))
    groups = [r for r in store.manifest("G1").entries.values() if r.kind != "meta"]
    for number in range(SLIDES):
        slide = f"T{number:02d}"
        shutil.copytree(Path(store.uri) / "slides" / "G1", Path(store.uri) / "slides" / slide)
        fields = {"patient": f"P{number // 2}"} | ({"organ": "kidney"} if number % 3 else {})
        if number != 5:
            fields["age"] = str(31 + 7 * number) if number != 6 else ""
        with store.begin(slide, "meta", "meta", spec={"fields": fields}, inputs={}) as writer:
            meta = writer.seal(rows=1, attrs={"fields": fields, "mpp": 0.5, "mpp_origin": "given"})
        store.commit(slide, [*(replace(r, owner=slide) for r in groups), meta])
    return store


@pytest.fixture
def both(copies: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[View, View]:
    """Return the view that is opened from manifests, and the one from the catalog."""
    plain = copies.view(backbone="toy-float32")
    monkeypatch.setattr(catalog, "LEAST_OWNERS", 2)
    return plain, copies.view(backbone="toy-float32")


def test_both_have_the_same_rows_columns_and_values(both: tuple[View, View]) -> None:
    plain, known = both
    assert (plain.slides, len(plain)) == (known.slides, len(known))
    assert known.parts[0].headers
    assert not plain.parts[0].headers
    assert plain.obs().equals(known.obs())
    assert np.array_equal(plain.numpy(), known.numpy(), equal_nan=True)
    for one, other in zip(plain.parts, known.parts, strict=True):
        assert dict(one.manifest.entries) == dict(other.manifest.entries)
        assert one.manifest == replace(other.manifest, entries=dict(other.manifest.entries))


@pytest.mark.parametrize(
    "text",
    [
        "patient == 'P3'",
        "organ == 'kidney' and patient != 'P1'",
        "organ != 'kidney'",
        "not organ == 'kidney' or slide in ['T03', 'T04']",
        "library_id >= 'T05'",
        "patient in ['P0', 'P5'] and tissue > 0.5",
        "slide == 'T01' and x >= 0",
        "organ == patient",
        "true",
        "age > 55",
        "60 <= age < 101 or age == 38",
        "age == '101'",
        "age in [38, 45.0, 101]",
        "age > 55 and x >= 0",
        "not age <= 55 and tissue >= 0",
    ],
)
def test_filters_give_the_same_rows_however_they_are_answered(both: tuple[View, View], text: str) -> None:
    plain, known = both
    row_by_row = [_passing(plain, part, text) for part in plain.parts]
    for rows in (plain, known):
        found = rows.where(text)
        assert found.slides == plain.slides
        assert [len(p) for p in found.parts] == row_by_row
        assert found.names().tolist() == plain.where(text).names().tolist()
        assert int(rows.mask(text).sum()) == len(found)
        assert found.report.counts["rows left out by where"] == len(plain) - len(found)


def _passing(rows: View, part: Part, text: str) -> int:
    from histostore.row_filter import _passing
    from histostore.where import Field, Where

    fields = {"age": Field("age", [p.meta["fields"].get("age") for p in rows.parts])}
    return len(_passing(part, Where.parse(text), fields))


def test_a_filter_that_compares_text_with_numbers_is_refused_either_way(both: tuple[View, View]) -> None:
    for rows in both:
        with pytest.raises(UsageError, match="compares text with numbers"):
            rows.where("patient == 3")


@pytest.mark.parametrize(
    ("text", "slides"),
    [
        ("age > 55", ["T04", "T07", "T08", "T09", "T10", "T11"]),  # 101 and 108 among them: as text they are smaller
        ("age == 101", ["T10"]),
        ("age == '101'", ["T10"]),
        ("55 < age <= 87", ["T04", "T07", "T08"]),
        ("age != 101 and age == age and not age == '' and slide != 'G1'",
         [f"T{i:02d}" for i in (0, 1, 2, 3, 4, 7, 8, 9, 11)]),
    ],
)  # fmt: skip
def test_metadata_that_are_numbers_compare_as_numbers_in_a_view_and_in_info(
    both: tuple[View, View], copies: Store, text: str, slides: list[str]
) -> None:
    from histostore.store.catalog import slides_where

    assert slides_where(copies, text) == slides  # type: ignore[arg-type]
    for rows in both:
        for one in (text, f"({text}) and tissue > -1"):
            assert [p.slide for p in rows.where(one).parts if len(p)] == slides


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("age > '55'", "age holds numbers: write age > 55"),
        ("'55' < age", "age holds numbers: write 55 < age"),
        ("patient > 3", r"of 12 values of patient 12 are no numbers, like 'P0'|of 13 values of patient 13 are no numb"),
    ],
)
def test_metadata_compared_as_the_other_kind_are_refused_alike(
    both: tuple[View, View], copies: Store, text: str, says: str
) -> None:
    from histostore.store.catalog import slides_where

    asked = (lambda: slides_where(copies, text), *(lambda rows=rows: rows.where(text) for rows in both),
             lambda: both[0].where(f"tissue > -1 and ({text})"))  # type: ignore[arg-type]  # fmt: skip
    told = []
    for ask in asked:
        with pytest.raises(UsageError, match=says) as error:
            ask()
        told.append(str(error.value).partition(": ")[2])
    assert len(set(told)) == 1


def test_opening_and_filtering_by_slide_opens_no_group(copies: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "LEAST_OWNERS", 2)
    copies.view(backbone="toy-float32")
    opened = []
    real: Callable[..., Group] = Group.open
    monkeypatch.setattr(Group, "open", lambda files, ref: opened.append((ref.owner, ref.key)) or real(files, ref))
    rows = copies.view(backbone="toy-float32", where="patient != 'P1'")
    assert len(rows)
    assert not opened


def test_what_is_damaged_is_still_noticed_when_it_is_read(copies: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "LEAST_OWNERS", 2)
    monkeypatch.setattr(catalog_scan, "SETTLED_NS", 20_000_000)
    slide = "T99"
    shutil.copytree(Path(copies.uri) / "slides" / "T01", Path(copies.uri) / "slides" / slide)
    copies.commit(slide, [replace(r, owner=slide) for r in copies.manifest("T01").entries.values()])
    time.sleep(0.03)
    copies.view(backbone="toy-float32")
    ref = copies.manifest(slide).find("embeddings", "spots/toy-float32")
    header = Path(copies.uri) / ref.prefix / "GROUP.json"
    header.write_bytes(header.read_bytes()[:-9])
    rows = copies.view(backbone="toy-float32")
    with pytest.raises(CorruptionError, match="differs from what was committed"):
        rows.numpy()
    copies.delete_slide(slide)
