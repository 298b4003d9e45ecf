"""A cohort, opened lazily: rows, columns, filters and embeddings, joined by id."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import torch

import histostore as hs
from histostore.backbones import load_backbone
from histostore.errors import DataError, NotFoundError, SpecMismatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort
    from histostore.view import View

TILE_PX = 96


@pytest.fixture(scope="module")
def rows(embedded: Path) -> View:
    return hs.open(embedded).view(backbone="testing")


def test_a_view_opens_from_counts_alone(ingested: Path, cohort: Cohort) -> None:
    rows = hs.open(ingested).view()
    assert len(rows) == sum(len(s.spot_ids) for s in cohort.slides)
    assert rows.counts().matrix.shape == (len(rows), len(rows.counts().ids))
    with pytest.raises(NotFoundError, match="no embeddings"):
        rows.numpy()


def test_names_are_unique_and_say_slide_and_point(rows: View, cohort: Cohort) -> None:
    names = rows.names()
    assert len(set(names)) == len(names)
    assert set(names) == {f"{s.name}:{i}" for s in cohort.slides for i in s.spot_ids}


def test_each_embedding_is_that_of_the_pixels_at_its_spot(rows: View, cohort: Cohort) -> None:
    slide = cohort.slides[0]
    image = imagecodecs.imread(slide.image)
    one = rows.where("slide == 'A1'")
    place = dict(zip(slide.spot_ids, slide.xy, strict=True))
    geometry = one.parts[0].group(one.parts[0].tiles).read("geometry")
    tiles = []
    for (cx, cy, x0, y0, _), spot in zip(geometry, one.column("barcode"), strict=True):
        assert (cx, cy) == tuple(place[spot])
        assert abs(x0 + TILE_PX / 2 - cx) <= 0.5
        assert abs(y0 + TILE_PX / 2 - cy) <= 0.5
        tiles.append(image[int(y0) : int(y0) + TILE_PX, int(x0) : int(x0) + TILE_PX])
    expected = load_backbone("testing").embed(np.stack(tiles)).astype(np.float16)
    assert np.array_equal(one.numpy(), expected)


def test_rows_come_in_the_order_asked_for(rows: View) -> None:
    whole = rows.numpy()
    order = np.random.default_rng(0).integers(0, len(rows), 3 * len(rows))
    assert np.array_equal(rows.numpy(rows=order), whole[order])
    assert rows.numpy(rows=np.array([], dtype=np.int64)).shape == (0, 64)
    with pytest.raises(IndexError):
        rows.numpy(rows=np.array([len(rows)]))


def test_batches_are_a_permutation_of_the_seed_and_the_epoch(rows: View) -> None:
    whole = rows.numpy()

    def order(**options: Any) -> np.ndarray:
        found = list(rows.batches(7, **options))
        assert [len(r) for r, _ in found[:-1]] == [7] * (len(found) - 1)
        assert all(np.array_equal(values, whole[r]) for r, values in found)
        return np.concatenate([r for r, _ in found])

    shuffled = order(seed=3)
    assert sorted(shuffled) == list(range(len(rows)))
    assert np.array_equal(order(seed=3), shuffled)
    assert not np.array_equal(order(seed=4), shuffled)
    assert not np.array_equal(order(seed=3, epoch=1), shuffled)
    assert np.array_equal(order(), np.arange(len(rows)))


def test_batches_are_memory_that_torch_may_write_to(rows: View) -> None:
    _, values = next(rows.batches(5, seed=0))
    torch.from_numpy(values).zero_()
    assert rows.numpy().any()


def test_where_filters_on_slide_and_tile_columns(rows: View, cohort: Cohort) -> None:
    obs = rows.obs()
    found = rows.where("patient == 'A' and n_counts >= 2000 and label in ['1', '2']")
    wanted = obs[(obs["patient"] == "A") & (obs["n_counts"] >= 2000) & obs["label"].isin(["1", "2"])]
    assert 0 < len(found) < len(rows)
    assert list(found.names()) == list(wanted.index)
    assert found.report.counts == {"rows left out by where": len(rows) - len(found)}
    assert np.array_equal(found.numpy(), rows.numpy()[[list(rows.names()).index(n) for n in found.names()]])
    tumour = rows.where("region_annotations == 'tumour'")
    inside = {f"{s.name}:{i}" for s in cohort.slides for i, t in zip(s.spot_ids, s.in_tumour, strict=True) if t}
    assert set(tumour.names()) <= inside
    counts = rows.column("MORPH001")
    loud = rows.where(f"MORPH001 > {np.median(counts)}")
    assert list(loud.names()) == list(rows.names()[counts > np.median(counts)])
    assert len(tumour) > 0


def test_filters_on_filters_and_selections_compose(rows: View) -> None:
    both = rows.where("n_counts > 1000").where("slide == 'B1'").select(np.array([3, 1, 2]))
    once = rows.where("n_counts > 1000 and slide == 'B1'")
    assert list(both.names()) == list(once.names()[[3, 1, 2]])
    assert np.array_equal(both.numpy(), once.numpy()[[3, 1, 2]])
    assert np.array_equal(both.counts().matrix.toarray(), once.counts().matrix.toarray()[[3, 1, 2]])


def test_a_filter_that_nothing_passes_gives_an_empty_view(rows: View) -> None:
    none = rows.where("n_counts > 1e9")
    assert len(none) == 0
    assert none.numpy().shape == (0, 64)
    assert none.obs().shape[0] == 0
    assert none.to_adata().shape[0] == 0


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda s: s.view(backbone="testin"), NotFoundError, "testing"),
        (lambda s: s.view(slides=["A2"]), NotFoundError, "A1"),
        (lambda s: s.view(tiles="spot"), NotFoundError, "spots"),
        (lambda s: s.view(genes="all"), UsageError, "outer"),
        (lambda s: s.view(where="patientt == 'A'"), NotFoundError, "patient"),
        (lambda s: s.view().column("clusters"), NotFoundError, "there are"),
        (lambda s: s.view(genes=["MORPH00"]).counts(), NotFoundError, "MORPH00"),
    ],
)
def test_a_name_that_is_not_there_is_told_with_near_ones(
    call: Callable[[Any], Any], error: type[Exception], told: str, embedded: Path
) -> None:
    with pytest.raises(error, match=told):
        call(hs.open(embedded))


def test_genes_are_joined_outer_inner_or_as_asked(embedded: Path) -> None:
    store = hs.open(embedded)
    single = {s: store.view(slides=[s]).counts() for s in store.slides()}
    sets = [set(g.ids) for g in single.values()]
    outer, inner = store.view().counts(), store.view(genes="inner").counts()
    assert set(outer.ids) == set.union(*sets)
    assert set(inner.ids) == set.intersection(*sets)
    names = store.view().names()
    table = pd.DataFrame(outer.matrix.toarray(), index=names, columns=outer.symbols)
    asked = store.view(genes=["NOISE003", "MORPH001"]).counts()
    assert asked.symbols == ("NOISE003", "MORPH001")
    assert np.array_equal(asked.matrix.toarray(), table[["NOISE003", "MORPH001"]].to_numpy())
    for slide, genes in single.items():
        mine = table.loc[[n for n in names if n.startswith(f"{slide}:")]]
        assert np.array_equal(mine[list(genes.symbols)].to_numpy(), genes.matrix.toarray())
        assert (mine.drop(columns=list(genes.symbols)) == 0).all(axis=None)


def test_a_column_that_only_some_slides_have_is_missing_on_the_others(
    embedded: Path, copy_of: Callable[[Path], Path]
) -> None:
    store = hs.open(copy_of(embedded))
    hs.pp.annotate(store, "A1", grade="3")
    values = store.view().column("grade")
    slides = store.view().column("slide")
    assert set(values[slides == "A1"]) == {"3"}
    assert all(v is None for v in values[slides == "B1"])
    assert len(store.view(where="grade == '3'")) == (slides == "A1").sum()


def test_a_view_stays_what_it_was_when_the_store_moves_on(embedded: Path, copy_of: Callable[[Path], Path]) -> None:
    store = hs.open(copy_of(embedded))
    before = store.view(backbone="testing")
    hs.pp.annotate(store, "A1", patient="Z")
    assert set(before.column("patient")) == {"A", "B"}
    assert set(store.view().column("patient")) == {"Z", "B"}


def test_the_dataset_is_lazy_and_equals_the_arrays(rows: View) -> None:
    data = rows.where("n_counts > 1500").to_xarray()
    values = data["testing"]
    assert values.chunks is not None
    assert values.dims == ("obs", "feature")
    assert np.array_equal(values.values, rows.where("n_counts > 1500").numpy())
    one = data.sel(obs="A1:" + str(rows.where("n_counts > 1500").column("barcode")[0]))
    assert str(one["patient"].values) == "A"
    assert float(data["testing"].isel(obs=slice(0, 3)).mean()) == pytest.approx(
        float(rows.where("n_counts > 1500").numpy()[:3].mean()), rel=1e-2
    )


def test_slides_with_different_networks_of_one_name_do_not_mix(embedded: Path, copy_of: Callable[[Path], Path]) -> None:
    store = hs.open(copy_of(embedded))
    other = load_backbone("testing", dihedral=True)
    object.__setattr__(other.spec, "name", "testing")
    hs.tl.embed(store, other, slides="B1", replace=True)
    with pytest.raises(DataError, match="not the same backbone"):
        store.view(backbone="testing")


def test_a_mask_says_which_rows_and_is_never_taken_for_numbers(rows: View) -> None:
    whole, mask = rows.numpy(), rows.mask("slide == 'B1'")
    assert np.array_equal(rows.numpy(rows=mask), whole[mask])
    assert np.array_equal(rows.lazy()[mask], whole[mask])
    for given in (mask[:-1], np.array([1.5]), np.array([[1, 2]]), np.array(5)):
        with pytest.raises(UsageError, match="mask"):
            rows.lazy()[given]


@pytest.mark.parametrize("cut", [slice(None, None, 2), slice(None, None, -1), slice(10, 2, -3), slice(3, 9)], ids=repr)
def test_slices_are_numpys(rows: View, cut: slice) -> None:
    assert np.array_equal(rows.lazy()[cut], rows.numpy()[cut])


def test_selecting_rows_that_are_not_there_is_refused(rows: View) -> None:
    n = len(rows)
    for given in ([-1, 0], [n]):
        with pytest.raises(IndexError, match=f"a view of {n}"):
            rows.select(given)
    with pytest.raises(UsageError, match="a mask of shape"):
        rows.select(np.array([True, False]))
    assert len(rows.select([0, n - 1])) == 2


def test_a_slide_is_named_once_and_an_empty_list_is_not_all(embedded: Path) -> None:
    store = hs.open(embedded)
    with pytest.raises(UsageError, match="'A1' is asked for 2 times"):
        store.view(slides=["A1", "B1", "A1"])
    for ask in (store.view, lambda slides: hs.tl.embed(store, "testing", slides=slides)):
        with pytest.raises(UsageError, match="empty list"):
            ask(slides=[])
    assert store.view(slides="A1").slides == ("A1",)
    assert store.view(slides=pd.Index(["B1"])).slides == ("B1",)
    assert store.view(slides=(s for s in ("B1", "A1"))).slides == ("B1", "A1")


def test_a_slide_without_a_row_left_lends_no_gene_and_needs_no_counts(
    embedded: Path, copy_of: Callable[[Path], Path]
) -> None:
    store = hs.open(copy_of(embedded))
    counts = store.group(store.slide("B1").find("expression", "counts"))
    symbols = counts.read("var/symbols")
    only = store.view(backbone="testing", slides=["A1"], genes="inner")
    both = store.view(backbone="testing", genes="inner")
    left = both.where("slide == 'A1'")
    assert left.counts().ids == only.counts().ids
    assert list(left.counts_dask().ids) == list(only.counts().ids)
    assert len(symbols)
    plain = store.slide("B1").of_kind("expression")
    store.commit("B1", [], remove=[r.key for r in plain])
    assert store.view(backbone="testing").where("slide == 'A1'").to_adata().n_vars == only.to_adata().n_vars


def test_a_label_measured_on_one_slide_is_a_number_on_all(
    embedded: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    store = hs.open(copy_of(embedded))
    for slide, value in (("A1", "{}.5"), ("B1", "{}")):
        spots = store.view(slides=[slide]).column("barcode")
        path = tmp_path / f"{slide}.csv"
        lines = [f"{spot},{value.format(k % 5)},{k}.25" for k, spot in enumerate(spots)]
        path.write_text("\n".join(["barcode,score,miss", *lines]) + "\n")
        if slide == "B1":
            path.write_text(path.read_text().replace(".25", "").replace("\n0,", "\n,"))
        hs.pp.annotate(store, slide, obs=path)
    rows = store.view(backbone="testing")
    score = rows.column("score")
    assert score.dtype == np.float64
    assert len(rows.where("score > 2")) == int((score > 2).sum()) > 0
    assert rows.to_adata().obs["score"].dtype == np.float64


def test_columns_may_be_one_and_a_batch_has_rows(rows: View) -> None:
    assert list(rows.obs("slide").columns) == ["slide"]
    with pytest.raises(UsageError, match="at least one row"):
        next(rows.batches(0))


def test_embeddings_that_were_read_can_be_sent_to_another_process(rows: View) -> None:
    source = rows.lazy()
    first = source[:3]
    assert np.array_equal(pickle.loads(pickle.dumps(source))[:3], first)


def test_rows_are_not_cut_to_the_type_of_the_first_slide(embedded: Path, copy_of: Callable[[Path], Path]) -> None:
    store = hs.open(copy_of(embedded))
    spec = hs.EmbeddingSpec(dtype="float32")
    hs.tl.embed(store, "testing", slides="B1", spec=spec, replace=True)
    assert store.view(backbone="testing", slides=["B1", "A1"]).numpy().dtype == np.float32
    with pytest.raises(SpecMismatchError, match="float32 and those of slide 'A1' float16"):
        store.view(backbone="testing").numpy()


def test_slides_of_a_view_are_asked_for_by_whole_names(rows: View) -> None:
    assert rows.of_slides("A1").slides == ("A1",)
    for wrong in ("A1 B1", ["A1", "A11"]):
        with pytest.raises(NotFoundError, match="the view has no slide"):
            rows.of_slides(wrong)
