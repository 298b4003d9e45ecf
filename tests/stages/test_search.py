"""Searching a store: queries of every kind, filters, choices, indexes that grow and shrink."""

from __future__ import annotations

import json
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import histostore as hs
from histostore.errors import CorruptionError, HistostoreError
from histostore.stages.hits import column_at
from histostore.stages.index import open_index


@pytest.fixture(scope="module")
def store(embedded):
    return hs.open(embedded)


@pytest.fixture(scope="module")
def rows(store):
    return store.view(backbone="testing")


def brute(rows, vector, allowed=None, k=5):
    """Return what a few lines of numpy find: row names by cosine distance."""
    X = rows.numpy().astype(np.float64)
    q = np.asarray(vector, dtype=np.float64)
    distance = 1 - X @ q / np.linalg.norm(X, axis=1) / np.linalg.norm(q)
    order = np.argsort(distance, kind="stable")
    order = order if allowed is None else order[allowed[order]]
    return rows.names()[order[:k]].tolist()


def test_a_vector_finds_what_brute_force_finds(store, rows):
    vector = rows.numpy()[7].astype(np.float32)
    hits = hs.tl.search(store, vector=vector, k=5)
    assert hits.table.index.tolist() == brute(rows, vector)
    assert hits.table["rank"].tolist() == [1, 2, 3, 4, 5]
    several = hs.tl.search(store, vector=rows.numpy()[[3, 50]].astype(np.float32), k=4)
    assert several.table["query"].tolist() == ["vector 0"] * 4 + ["vector 1"] * 4
    assert several.table.index.tolist()[4:] == brute(rows, rows.numpy()[50], k=4)


def test_a_spot_is_not_its_own_answer_and_its_slide_can_be_left_out(store, rows):
    spots = rows.of_slides(["A1"]).column("barcode")[:2].tolist()
    hits = hs.tl.search(store, slide="A1", spot=spots[0], k=40)
    assert f"A1:{spots[0]}" not in hits.table.index
    others = hs.tl.search(store, slide="A1", spot=spots, k=3, exclude_same="slide")
    assert set(others.table["slide"]) == {"B1"}
    assert others.table["query"].nunique() == 2


def test_a_view_that_is_open_already_is_searched_as_one_that_is_opened(store, rows):
    spot = str(rows.of_slides(["B1"]).column("barcode")[3])
    asked = {"slide": "B1", "spot": spot, "k": 6, "where": "n_counts > 0", "columns": ["patient", "in_tissue"]}
    for _ in range(2):
        pd.testing.assert_frame_equal(hs.tl.search(store, rows=rows, **asked).table, hs.tl.search(store, **asked).table)
    for wrong in ({"backbone": "testing"}, {"slides": ["A1"]}):
        with pytest.raises(HistostoreError, match="give rows, or these"):
            hs.tl.search(store, rows=rows, **wrong, **asked)
    with pytest.raises(HistostoreError, match="choose among them by where"):
        hs.tl.search(store, rows=rows.where("slide == 'A1'"), **asked)


def test_columns_of_hits_are_those_of_the_whole_view(rows):
    chosen = np.array([45, 3, 44, 7, 3])
    first, second = rows.parts
    bare = {key: ref for key, ref in first.manifest.entries.items() if ref.kind not in ("labels", "regions")}
    first = replace(first.forgotten(), manifest=replace(first.manifest, entries=bare), expression=None)
    for view in (rows, replace(rows, parts=(first, second))):
        for some in (chosen, chosen[:0], np.array([2, 1]), np.array([41])):
            for name in [*view.columns(), "MORPH001"]:
                expected, found = view.column(name)[some], column_at(view, name, some)
                np.testing.assert_array_equal(found, expected, err_msg=name)
                assert found.dtype == expected.dtype, name
    with pytest.raises(HistostoreError, match="no column 'nothing'"):
        column_at(rows, "nothing", chosen)


def test_a_radius_keeps_the_neighbourhood_out(store, rows):
    spot = str(rows.of_slides(["A1"]).column("barcode")[10])
    hits = hs.tl.search(store, slide="A1", spot=spot, k=80, exclude_radius_um=500)
    view = rows.of_slides(["A1"])
    xy = np.column_stack([view.column("x_um"), view.column("y_um")])
    near = np.hypot(*(xy - xy[10]).T) <= 500
    assert near.sum() > 3
    assert not set(view.names()[near]) & set(hits.table.index)
    assert len(hits.table) == len(rows) - near.sum()


def test_filters_on_columns_and_genes_give_all_that_pass(store, rows):
    gene = "MORPH001"
    counts = rows.column(gene)
    vector = rows.numpy()[0].astype(np.float32)
    allowed = (counts > np.median(counts)) & (rows.column("slide") == "B1")
    text = f"{gene} > {np.median(counts)} and slide == 'B1'"
    hits = hs.tl.search(store, vector=vector, k=1000, where=text, columns=(gene,))
    assert hits.table.index.tolist() == brute(rows, vector, allowed, k=1000)
    assert (hits.table[gene] > np.median(counts)).all()
    with pytest.raises(HistostoreError, match=r"did you mean.*MORPH001"):
        hs.tl.search(store, vector=vector, where="MORPH01 > 2")


def test_the_tiles_of_a_region_are_asked_together(store, rows):
    view = rows.of_slides(["A1"])
    xy = np.column_stack([view.column("x"), view.column("y")])
    low, high = np.quantile(xy, [0.2, 0.6], axis=0)
    inside = ((xy >= low) & (xy <= high)).all(1)
    box = (low[0], low[1], high[0], high[1])
    hits = hs.tl.search(store, slide="A1", region=box, k=10)
    assert not set(view.names()[inside]) & set(hits.table.index)
    polygon = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[
        [box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]], [box[0], box[1]]]]}}  # fmt: skip
    again = hs.tl.search(store, slide="A1", region=polygon, k=10)
    assert again.table.index.tolist() == hits.table.index.tolist()
    X = rows.numpy().astype(np.float64)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    own = np.flatnonzero(np.isin(rows.names(), view.names()[inside]))
    best = (1 - X @ X[own].T).min(1)
    best[own] = np.inf
    assert hits.table.index[0] == rows.names()[np.argmin(best)]
    assert hits.query == f"{inside.sum()} tiles of A1"


def test_answers_are_capped_spread_cut_off_and_chosen_by_expression(store, rows):
    vector = rows.numpy()[0].astype(np.float32)
    capped = hs.tl.search(store, vector=vector, k=6, at_most_per="slide", at_most=2)
    assert capped.table["slide"].value_counts().max() == 2
    assert len(capped.table) == 4
    plain = hs.tl.search(store, vector=vector, k=6)
    spread = hs.tl.search(store, vector=vector, k=6, diversity=0.7)
    assert spread.table.index[0] == plain.table.index[0]
    assert spread.table.index.tolist() != plain.table.index.tolist()
    limit = float(plain.table["distance"].iloc[2])
    assert len(hs.tl.search(store, vector=vector, k=6, max_distance=limit).table) == 3
    loud = hs.tl.search(store, vector=vector, k=6, expressing=["MORPH001"], expression_weight=1.0, columns=["MORPH001"])
    assert (
        loud.table["MORPH001"].mean()
        > hs.tl.search(store, vector=vector, k=6, columns=["MORPH001"]).table["MORPH001"].mean()
    )


def test_genes_count_as_much_as_they_are_told_to(store, rows):
    vector = rows.numpy()[5].astype(np.float32)

    def ranked(expressing):
        asked = {"vector": vector, "k": 40, "expressing": expressing, "expression_weight": 1.0}
        return hs.tl.search(store, columns=["MORPH001", "MORPH002"], **asked).table

    counts = ranked(["MORPH001"])
    for weights in ({"MORPH001": 1, "MORPH002": 3}, {"MORPH001": -2, "MORPH002": 0.5}):
        found = ranked(weights)
        score = sum(w * np.log1p(found[g].to_numpy(np.float64)) for g, w in weights.items())
        assert (np.diff(score) <= 1e-12).all()
        assert found.index.tolist() != counts.index.tolist()
    assert ranked(types.MappingProxyType({"MORPH001": 1.0})).index.tolist() == counts.index.tolist()
    for wrong, said in (({"MORPH001": np.nan}, "'MORPH001' is nan"), ({"MORPH001": 0}, "all weights are 0")):
        with pytest.raises(HistostoreError, match=said):
            ranked(wrong)


def test_hits_become_anndata_and_a_prediction_with_spread(store, rows):
    hits = hs.tl.search(store, vector=rows.numpy()[5].astype(np.float32), k=7)
    adata = hits.to_adata()
    assert adata.obs_names.tolist() == hits.table.index.tolist()
    assert adata.obs["rank"].tolist() == list(range(1, 8))
    told = hits.expression(["MORPH001", "NOISE001"])
    assert told.loc["MORPH001", "n"] == 7
    counts = pd.Series(rows.column("MORPH001"), rows.names())[hits.table.index]
    total = pd.Series(rows.column("n_counts"), rows.names())[hits.table.index]
    assert told.loc["MORPH001", "mean"] == pytest.approx(np.log1p(counts / total * 1e4).mean(), rel=1e-6)


def test_neighbours_fill_the_slots_of_scanpy(store):
    adata = store.view(backbone="testing").to_adata(images=False)
    hs.tl.neighbors(adata, use_rep="X_testing", n_neighbors=8)
    sc.tl.umap(adata)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    assert adata.obsm["X_umap"].shape == (adata.n_obs, 2)
    assert adata.obs["leiden"].nunique() > 1
    with pytest.raises(HistostoreError, match="X_testing"):
        hs.tl.neighbors(adata, use_rep="X_tesitng")


def test_an_index_grows_shrinks_and_answers_as_exact_search(embedded, copy_of, rows, cli):
    store = hs.open(copy_of(embedded))
    made = hs.tl.index(store, slides=["A1"])
    assert (made.done, made.rows) == ("built", len(rows.of_slides(["A1"])))
    vector = rows.numpy()[45].astype(np.float32)
    hits = hs.tl.search(store, vector=vector, k=5)
    assert hits.table.index.tolist() == brute(rows, vector)
    assert "B1 searched exactly" in hits.notes[0]
    grown = hs.tl.index(store)
    assert (grown.done, grown.added, grown.rows) == ("updated", len(rows) - made.rows, len(rows))
    assert hs.tl.index(store).done == "already there"
    now = hs.tl.search(store, vector=vector, k=5, where="slide == 'B1'")
    assert now.notes == ()
    assert now.table.index.tolist() == brute(rows, vector, rows.column("slide") == "B1")
    old = open_index(store, "spots/testing")
    cli("delete", store.uri, "--slide", "A1")
    shrunk = hs.tl.index(store)
    assert (shrunk.removed, shrunk.rows) == (made.rows, len(rows) - made.rows)
    assert set(hs.tl.search(store, vector=vector, k=99).table["slide"]) == {"B1"}
    assert hs.tl.index(store, compact=True).segments == (f"exact {shrunk.rows}",)
    assert old.snapshot.live == len(rows)


def test_a_flipped_byte_in_an_index_is_refused_and_the_index_rebuilt(embedded, copy_of, rows):
    store = hs.open(copy_of(embedded))
    hs.tl.index(store, kind="hnsw")
    opened = open_index(store, "spots/testing")
    path = Path(opened.folder) / opened.snapshot.segments[0].body.name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    vector = rows.numpy()[0].astype(np.float32)
    with pytest.raises(CorruptionError, match="rebuild the index"):
        hs.tl.search(store, vector=vector)
    assert hs.tl.search(store, vector=vector, index=False, k=3).table.index.tolist() == brute(rows, vector, k=3)
    assert hs.tl.index(store, rebuild=True).done == "built"
    assert len(hs.tl.search(store, vector=vector, k=3).table) == 3


def test_two_backbones_are_compared(embedded, copy_of, cli):
    store = copy_of(embedded)
    cli("embed", store, "--backbone", "efficientnet_lite0")
    told = json.loads(cli("drift", store, "testing", "efficientnet_lite0", "-k", 5, "--json").stdout)
    assert 0 < told["overlap"] < 1
    assert 0 < told["cka"] < 1
    assert told["rows"] == len(hs.open(store).view(tiles="spots"))


BAD = [
    ({"vector": np.ones(3)}, "3 features"),
    ({"vector": np.full(64, np.nan)}, "no embedding"),
    ({"vector": np.zeros(0)}, "give \\(d,\\)"),
    ({"k": 0, "vector": np.ones(64)}, "at least one neighbour"),
    ({"slide": "A1", "region": (0, 0, 1, 1)}, "no tile of slide 'A1'"),
    ({"slide": "A1", "region": [(0, 0), (100, 100), (100, 0), (0, 100)]}, "does not cross itself"),
    ({"slide": "A1", "region": (5, 5, 1, 1)}, "x0 < x1"),
    ({"region": (0, 0, 9, 9)}, "needs its slide"),
    ({"image": np.zeros((4, 4, 3), np.uint8)}, "smaller than any tile"),
    ({"index": "nope", "vector": np.ones(64)}, "no index 'nope'"),
    ({"where": "__import__('os')", "vector": np.ones(64)}, "where"),
    ({"vector": np.ones(64), "exclude_same": "slide"}, "only tiles of the store"),
    ({"vector": np.ones(64), "diversity": 3}, "outside 0-1"),
]


@pytest.mark.parametrize(("asked", "said"), BAD, ids=[b[1] for b in BAD])
def test_bad_queries_are_one_line(store, rows, asked, said):
    dim = rows.numpy().shape[1]
    asked = {k: np.resize(v, dim) if k == "vector" and len(v) == 64 else v for k, v in asked.items()}
    with pytest.raises(HistostoreError, match=said) as error:
        hs.tl.search(store, **asked)
    assert "\n" not in str(error.value)
