"""Tiles of other sizes, or of other resolutions, are not taken as one set."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import histostore as hs
from histostore.errors import SpecMismatchError
from histostore.field_of_view import FieldOfView, refuse_mixed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Cli

RIDGE = ("--backbone", "testing", "--genes", "top-mean:5", "--split", "leave-one-out:slide", "--allow-same-patient")


def test_scanners_of_one_magnification_are_alike_and_what_is_not_told_is_not_compared() -> None:
    assert FieldOfView(224, 0.23).is_like(FieldOfView(224, 0.25))
    assert FieldOfView(224, None).is_like(FieldOfView(224, 0.25))
    assert FieldOfView(None, 0.5).is_like(FieldOfView(112, 0.5))
    assert not FieldOfView(224, None).is_like(FieldOfView(112, 0.25))
    assert not FieldOfView(224, 0.5).is_like(FieldOfView(224, 0.25))
    refuse_mixed([("A", FieldOfView(224, 0.23)), ("B", FieldOfView(224, None)), ("C", FieldOfView(None, 0.25))])
    with pytest.raises(SpecMismatchError, match=r"'A' are 224 px at 0.23 µm and those of slide 'C' are 224 px at 0.26"):
        refuse_mixed([("B", FieldOfView(224, 0.245)), ("A", FieldOfView(224, 0.23)), ("C", FieldOfView(224, 0.26))])


@pytest.mark.parametrize("how", [("--px", 48), ("--px", 96, "--mpp", 4)], ids=["size", "resolution"])
def test_tiles_of_two_kinds_under_one_name_are_refused_wherever_they_meet(
    embedded: Path, tmp_path: Path, cli: Cli, how: tuple[object, ...]
) -> None:
    store = shutil.copytree(embedded, tmp_path / "store")
    cli("fit", store, *RIDGE, "--save", "before")
    cli("tile", store, "--slides", "B1", "--at", "spots", *how, "--replace")
    cli("embed", store, "--slides", "B1", "--backbone", "testing", "--replace")
    for command in (
        ("fit", store, *RIDGE),
        ("index", store, "--backbone", "testing"),
        ("search", store, "--slide", "A1", "--spot", hs.open(store).view(slides=["A1"]).column("barcode")[0]),
        ("export", store, "--backbone", "testing", "-o", tmp_path / "out.h5ad"),
    ):
        said = cli(*command, code=3).stderr
        assert "tiles of slide 'A1' are 96 px at 2 µm and those of slide 'B1' are " in said
        assert "give slides of one kind (--slides, slides=)" in said
        assert "--replace" in said
    some = hs.open(store).view(slides=["A1"]).column("barcode")[0]
    cli("search", store, "--slides", "A1", "--slide", "A1", "--spot", some)
    with pytest.raises(SpecMismatchError, match=r"give slides of one kind \(--slides, slides=\)"):
        hs.tl.search(hs.open(store), slide="A1", spot=some)
    assert len(hs.tl.search(hs.open(store), slide="A1", spot=some, slides=["A1"], k=3).table) == 3
    # a query of the other kind
    b1 = hs.open(store).view(slides=["B1"]).column("barcode")[0]
    assert "are no one set" in cli("search", store, "--slides", "A1", "--slide", "B1", "--spot", b1, code=3).stderr
    said = cli("predict", store, "--slides", "B1", "--head", "before", code=3).stderr
    assert "head 'before' was trained on tiles of 96 px at 2 µm, those of slide 'B1' are of " in said
    cli("predict", store, "--slides", "A1", "--head", "before")
    assert hs.open(store).view(backbone="testing", slides=["B1"]).numpy().shape[1] == 64
    assert len(hs.open(store).view(backbone="testing", where="slide == 'A1'"))


def test_a_head_that_does_not_tell_its_tiles_predicts_and_says_that_they_were_not_compared(
    embedded: Path, tmp_path: Path, cli: Cli
) -> None:
    path = shutil.copytree(embedded, tmp_path / "store")
    cli("fit", path, *RIDGE, "--save", "new")
    store = hs.open(path)
    group = store.group(store.manifest("@heads").find("heads", "new"))
    files = ("state.safetensors", "head.json")
    with store.begin("@heads", "heads", "old", spec={"as": "saved by the first heads"}, inputs={}) as writer:
        for name in files:
            writer.put_file(name, bytes(group.bytes(name)))
        ref = writer.seal(rows=1, attrs={k: v for k, v in group.attrs.items() if k != "field"})
    store.commit("@heads", [ref])
    cli("tile", path, "--slides", "B1", "--at", "spots", "--px", 48, "--replace")
    cli("embed", path, "--slides", "B1", "--backbone", "testing", "--replace")
    said = "head 'old' does not tell the size and resolution of the tiles it was trained on"
    assert said in cli("predict", path, "--slides", "B1", "--head", "old").stdout
    assert said in hs.tl.predict(store, "old", slides=["B1"])[0].report.notes[-1]
    assert said not in cli("predict", path, "--slides", "A1", "--head", "new").stdout
    cli("predict", path, "--slides", "B1", "--head", "new", code=3)
