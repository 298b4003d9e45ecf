"""A view takes from a slide what belongs together: rows of other tiles or points are never joined to those of now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.content.tables import read_points, write_points
from histostore.errors import NotFoundError, SpecMismatchError
from histostore.io.feature_table import TileFeatures
from histostore.stages.annotate import annotate_obs
from histostore.stages.import_features import import_features
from histostore.stages.imported_tiles import ImportSpec
from histostore.store import catalog
from histostore.view import view_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.store.store import Store
    from histostore.view import View

LOSSLESS = hs.PixelSpec(codec="lossless")
OTHER = hs.TileSpec.at_spots(px=96, min_tissue=0.99)
OF_OTHER_TILES = (
    r"^slide 'A1': embeddings 'spots/testing' were made of other tiles than those there now; run embed --replace$"
)
LEFT_OUT = "whose embeddings 'testing' were made of other tiles than those there now (run embed --replace)"


@pytest.fixture
def store(embedded: Path, copy_of: Callable[[Path], Path]) -> hs.Store:
    """Return a store whose slide A1 was tiled otherwise after it was embedded; B1 is as it was."""
    store = hs.open(copy_of(embedded))
    hs.pp.tile(store, "A1", OTHER, pixels=LOSSLESS, replace=True)
    return store


@pytest.fixture(params=["manifests", "catalog"])
def opened_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "catalog":
        monkeypatch.setattr(catalog, "LEAST_OWNERS", 1)
    return str(request.param)


def embeddings_by_name(rows: View) -> dict[str, bytes]:
    return {name: x.tobytes() for name, x in zip(rows.names(), rows.numpy(), strict=True)}


def test_embeddings_of_other_tiles_are_refused_on_a_slide_that_is_named(store: hs.Store, opened_from: str) -> None:
    with pytest.raises(SpecMismatchError, match=OF_OTHER_TILES):
        store.view(backbone="testing", slides=["B1", "A1"])


def test_embeddings_of_other_tiles_are_left_out_of_all_slides(store: hs.Store, opened_from: str) -> None:
    rows = store.view(backbone="testing")
    assert bool(rows.parts[0].headers) == (opened_from == "catalog")
    assert (rows.slides, dict(rows.left_out)) == (("B1",), {"A1": LEFT_OUT})
    assert rows.note() == f"left out 1 of 2 slides {LEFT_OUT}: A1"


def test_when_no_slide_has_embeddings_of_its_tiles_that_is_the_error(store: hs.Store, opened_from: str) -> None:
    hs.pp.tile(store, "B1", OTHER, replace=True)
    with pytest.raises(SpecMismatchError, match=OF_OTHER_TILES):
        store.view(backbone="testing")


def test_embedded_again_the_slide_is_back_with_the_rows_of_its_own_tiles(store: hs.Store, embedded: Path) -> None:
    before = embeddings_by_name(hs.open(embedded).view(backbone="testing"))
    hs.tl.embed(store, "testing", slides="A1", replace=True)
    again = store.view(backbone="testing")
    assert again.slides == ("A1", "B1")
    assert len(again) < len(before)
    assert embeddings_by_name(again).items() <= before.items()


def test_tiled_as_before_the_embeddings_fit_again(store: hs.Store, embedded: Path) -> None:
    hs.pp.tile(store, "A1", hs.TileSpec.at_spots(px=96), pixels=LOSSLESS, replace=True)
    before = hs.open(embedded).view(backbone="testing")
    assert embeddings_by_name(store.view(backbone="testing")) == embeddings_by_name(before)


def test_tiles_of_another_size_alone_are_other_tiles(embedded: Path, copy_of: Callable[[Path], Path]) -> None:
    store = hs.open(copy_of(embedded))
    hs.pp.tile(store, hs.TileSpec.at_spots(px=48), replace=True)
    assert len(store.view(tiles="spots")) == len(hs.open(embedded).view(tiles="spots"))
    with pytest.raises(SpecMismatchError, match=OF_OTHER_TILES):
        store.view(backbone="testing")


def test_what_stands_on_a_view_goes_on_without_the_slide(store: hs.Store, tmp_path: Path) -> None:
    """Fit, search, index and AnnData: told, and no row of the slide in any."""
    index = hs.tl.index(store, "testing")
    assert (dict(index.left_out), index.rows) == ({"A1": LEFT_OUT}, len(store.view(tiles="spots", slides=["B1"])))
    barcode = str(store.view(tiles="spots", slides=["B1"]).column("barcode")[3])
    hits = hs.tl.search(store, slide="B1", spot=barcode, k=50, backbone="testing")
    assert set(hits.table["slide"]) == {"B1"}
    adata = store.view(backbone="testing").to_adata(images=False)
    assert adata.uns["histostore"]["left_out"] == {f"slides {LEFT_OUT}": 1}
    adata.write_h5ad(tmp_path / "a.h5ad")


def test_an_index_that_held_the_slide_answers_without_it(embedded: Path, copy_of: Callable[[Path], Path]) -> None:
    store = hs.open(copy_of(embedded))
    hs.tl.index(store, "testing")
    hs.pp.tile(store, "A1", OTHER, replace=True)
    barcode = str(store.view(tiles="spots", slides=["B1"]).column("barcode")[3])
    for _ in range(2):
        hits = hs.tl.search(store, slide="B1", spot=barcode, k=100, backbone="testing")
        assert set(hits.table["slide"]) == {"B1"}
        assert hs.tl.index(store, "testing").rows == len(store.view(backbone="testing"))


def test_tiles_that_were_cut_at_other_points_are_refused(embedded: Path, copy_of: Callable[[Path], Path]) -> None:
    """Spots that came in again in another order: a tile knows its spot by number."""
    store = hs.open(copy_of(embedded))
    _turn_points(store, "A1", "spots")
    said = r"^slide 'A1': tiles 'spots' were cut at other points than those there now; run tile --replace$"
    for options in ({"tiles": "spots"}, {"backbone": "testing"}):
        with pytest.raises(SpecMismatchError, match=said):
            store.view(slides=["A1"], **options)  # type: ignore[arg-type]
    assert store.view(backbone="testing").slides == ("B1",)
    assert len(store.view(slides=["A1"])) == 41, "the spots themselves need no tiles"


def test_labels_of_other_points_are_no_column_and_that_is_said(
    embedded: Path, copy_of: Callable[[Path], Path], opened_from: str
) -> None:
    store = hs.open(copy_of(embedded))
    labels = [c for c in store.view(slides=["A1"]).columns() if c == "label"]
    assert labels == ["label"]
    _turn_points(store, "A1", "spots")
    (known,) = catalog.known_slides(store, ["A1"])
    part = view_of(store, [known], backbones=(), tiles=None, named=True).parts[0]
    assert "label" not in part.columns()
    assert not part.has("label")
    with pytest.raises(
        NotFoundError,
        match=r"^no column 'label' on slide 'A1': labels 'obs' are of other points than those there now; run annotate",
    ):
        part.column("label")
    both = store.view()
    assert set(both.column("label")[: len(both.parts[0])]) == {None}, "missing there, as on a slide without labels"


def test_labels_of_a_grid_do_not_move_to_another_grid(
    ingested: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    store = hs.open(copy_of(ingested))
    pixels = hs.PixelSpec(codec="slide")
    hs.pp.tile(store, "A1", hs.TileSpec.grid(px=96), name="grid", pixels=pixels)
    cells = store.view(slides=["A1"], tiles="grid").column("barcode")
    pd.DataFrame({"barcode": cells, "review": [f"at {c}" for c in cells]}).to_csv(tmp_path / "review.csv", index=False)
    annotate_obs(store, "A1", tmp_path / "review.csv", name="review", points="grid")
    assert store.view(slides=["A1"], tiles="grid").column("review").tolist() == [f"at {c}" for c in cells]
    result = hs.pp.tile(
        store, "A1", hs.TileSpec.grid(px=96, min_tissue=0.95), name="grid", pixels=pixels, replace=True
    )[0]
    assert "labels 'review'" in result.report.notes[-1]
    part = store.view(slides=["A1"], tiles="grid").parts[0]
    assert "review" not in part.columns()
    assert list(part.left_behind) == ["review"]


def test_features_that_came_in_are_of_the_tiles_they_came_with(ingested: Path, copy_of: Callable[[Path], Path]) -> None:
    store = hs.open(copy_of(ingested))
    coords = np.array([[100, 100], [300, 100], [500, 500]], np.int64)
    spec = ImportSpec(backbone="uni", tiles="fed")
    first, other = (_features(coords, start) for start in (0, 9))
    import_features(store, "A1", first, spec)
    import_features(store, "A1", other, ImportSpec(backbone="gigapath", tiles="fed"))
    assert len(store.view(backbone=["uni", "gigapath"], slides=["A1"])) == 3
    import_features(store, "A1", _features(coords[::-1].copy(), 0), spec, replace=True)
    assert len(store.view(backbone="uni", slides=["A1"])) == 3
    with pytest.raises(SpecMismatchError, match=r"embeddings 'fed/gigapath' were made of other tiles"):
        store.view(backbone="gigapath", slides=["A1"])


def _features(coords: np.ndarray[tuple[int, ...], np.dtype[np.int64]], start: int) -> TileFeatures:
    values = np.arange(start, start + 3 * 4, dtype=np.float32).reshape(3, 4)
    return TileFeatures(
        tool="trident", container="h5", features=values, coords=coords, unit="px", anchor="corner", edge=96.0
    )


def _turn_points(store: Store, slide: str, name: str) -> None:
    """Commit the points of a slide in the opposite order."""
    old = read_points(store.group(store.slide(slide).find("points", name)))
    turned = {
        key: None if (values := getattr(old, key)) is None else values[::-1].copy()
        for key in ("xy", "in_tissue", "array_row", "array_col")
    }
    points = replace(old, ids=old.ids[::-1], **turned)
    store.commit(slide, [write_points(store, slide, name, points)], replace=True)
