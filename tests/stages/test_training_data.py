"""Which rows of a store work is done on: those with embeddings, those a filter keeps, those with counts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore import pp
from histostore.content.tables import read_counts, write_counts
from histostore.errors import DataError, NotFoundError
from histostore.head_specs import BagSpec, HeadSpec, SplitSpec
from histostore.stages.training_data import training_data
from histostore.testing.cohort import write_cohort

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.testing.cohort import Cohort
    from tests.conftest import Cli

HEAD = ("--backbone", "testing", "--split", "leave-one-out:slide", "--allow-same-patient")
RIDGE = (*HEAD, "--genes", "top-mean:5")


@pytest.fixture
def with_another(embedded: Path, cohort: Cohort, tmp_path: Path) -> Path:
    """Return a store with a third slide that was ingested and no more."""
    path = shutil.copytree(embedded, tmp_path / "store")
    first = cohort.slides[0]
    pp.ingest(
        hs.open(path), "N1", image=first.image, mpp=2.0, st_counts=first.counts, st_spots=first.spots,
        meta={"patient": "N"},
    )  # fmt: skip
    return path


def test_slides_without_embeddings_are_left_out_and_named_where_nobody_asked_for_them(
    with_another: Path, tmp_path: Path, cli: Cli
) -> None:
    store, out = hs.open(with_another), tmp_path / "out.h5ad"
    note = "left out 1 of 3 slides without embeddings of testing: N1\n"
    spot = store.view(slides=["A1"]).column("barcode")[0]
    for command in (
        ("fit", with_another, *RIDGE),
        ("index", with_another, "--backbone", "testing"),
        ("search", with_another, "--slide", "A1", "--spot", spot, "-k", 3),
        ("export", with_another, "--backbone", "testing", "-o", out, "--overwrite"),
    ):
        said = cli(*command, "--json")
        assert note in said.stderr
        (line,) = [json.loads(one) for one in said.stdout.splitlines()]
        assert line["slides_left_out"] == {"N1": "without embeddings of testing"}
    rows = store.view(backbone="testing")
    assert rows.slides == ("A1", "B1")
    assert repr(rows).startswith(f"View of {len(rows)} rows from 2 slides (1 left out)")
    assert rows.to_adata(images=False).uns["histostore"]["left_out"] == {"slides without embeddings of testing": 1}
    assert store.view(backbone="testing", tiles="spots").left_out == {"N1": "without embeddings of testing on 'spots'"}
    assert len(store.view(backbone="testing", where="patient == 'A'")) == len(rows.of_slides(["A1"]))


def test_slides_that_are_named_and_stores_without_any_embeddings_are_errors(with_another: Path, tiled: Path) -> None:
    store = hs.open(with_another)
    with pytest.raises(NotFoundError, match="slide 'N1' has no embeddings 'testing'"):
        store.view(backbone="testing", slides=["A1", "N1"])
    with pytest.raises(NotFoundError, match="slide 'A1' has no embeddings 'testing'"):
        hs.open(tiled).view(backbone="testing")
    assert store.view().slides == ("A1", "B1", "N1")


def test_a_filter_that_keeps_no_row_is_said_so(embedded: Path, tmp_path: Path, cli: Cli) -> None:
    said = cli("fit", embedded, *RIDGE, "--where", "patient == 'Q'", code=2).stderr
    assert "where \"patient == 'Q'\" keeps no row" in said
    out = tmp_path / "none.h5ad"
    said = cli("export", embedded, "--backbone", "testing", "--where", "patient == 'Q'", "-o", out, code=2).stderr
    assert "keeps no row" in said
    assert not out.exists()


@pytest.fixture(scope="module")
def normalised(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """Return a store of two slides, of which the second has shares for counts."""
    folder = tmp_path_factory.mktemp("normalised")
    cohort = write_cohort(folder / "files", n_patients=2, slides_per_patient=1, spots=30, genes=30, px=900)
    second = cohort.slides[1]
    table = pd.read_csv(second.counts, sep="\t", index_col=0)
    table.div(table.sum(axis=1) + 1, axis=0).to_csv(second.counts, sep="\t")
    store = folder / "store"
    cli("init", store)
    cli("ingest", store, "--sheet", cohort.sheet, "--allow-normalised")
    cli("tile", store, "--at", "spots", "--px", 64)
    cli("embed", store, "--backbone", "testing")
    return store


def test_values_that_are_no_counts_are_refused_where_counts_are_needed(normalised: Path, cli: Cli) -> None:
    for unit in ("log1p-cp10k", "log1p", "log-share", "counts"):
        said = cli("fit", normalised, *RIDGE, "--target", unit, code=3).stderr
        assert "1 of 2 slides have normalised values where counts are needed (B1)" in said
        assert "--slides" in said
    store = hs.open(normalised)
    for ask in (pp.gene_stats, pp.highly_variable_genes):
        with pytest.raises(DataError, match="slide 'B1' has normalised values"):
            ask(store.view())
    cli("fit", normalised, *HEAD, "--target", "array_row")  # a numeric column needs no counts


def test_a_table_says_that_it_is_normalised_and_never_mixes_both(normalised: Path) -> None:
    store = hs.open(normalised)
    with pytest.raises(DataError, match="slide 'B1' has normalised values and slide 'A1' has counts"):
        store.view(backbone="testing").to_adata()
    assert store.view(slides=["B1"]).to_adata(images=False).uns["histostore"]["normalised"] is True
    assert store.view(slides=["A1"]).to_adata(images=False).uns["histostore"]["normalised"] is False
    assert store.view().to_adata(counts=False, images=False).uns["histostore"]["normalised"] is False


def test_normalised_values_are_not_ranked_among_counts(normalised: Path) -> None:
    store = hs.open(normalised)
    gene = store.view(slides=["A1"]).counts().symbols[0]
    vector = store.view(backbone="testing").numpy()[0].astype(np.float32)
    asked = {"vector": vector, "k": 60, "expressing": {gene: -1.0}, "expression_weight": 1.0, "columns": [gene]}
    found = hs.tl.search(store, **asked).table  # shares are below all counts but zeros
    n = len(store.view(slides=["A1"]))
    assert found["slide"].tolist() == ["A1"] * n + ["B1"] * (len(found) - n)
    assert (np.diff(found[gene][:n].to_numpy(np.float64)) >= 0).all()
    alone = hs.tl.search(store, **asked | {"slides": ["B1"], "k": 30}).table
    assert (np.diff(alone[gene].to_numpy(np.float64)) >= 0).all()


@pytest.mark.parametrize("pool", ["mean", "tiles"])
def test_slides_that_a_filter_leaves_no_row_of_are_no_rows_of_heads_per_slide(
    embedded: Path, tmp_path: Path, pool: str
) -> None:
    store = hs.open(shutil.copytree(embedded, tmp_path / "store"))
    for slide, age in (("A1", "40"), ("B1", "50")):
        pp.annotate(store, slide, age=age)
    split = SplitSpec.parse("leave-one-out:slide")
    spec = HeadSpec(head="mean", columns=("age",), split=split, bag=BagSpec(tiles=4, pool=pool))  # type: ignore[arg-type]
    whole = training_data(store, spec, backbone="testing")
    assert "slides without a row left" not in whole.report.counts
    data = training_data(store, spec, backbone="testing", where="patient != 'A'")
    assert data.obs.index.tolist() == list(data.view.slides) == ["B1"]
    assert data.values is not None
    assert data.values["age"].tolist() == ["50"]
    np.testing.assert_array_equal(data.X, whole.X[1:])
    assert data.report.counts["slides without a row left"] == 1
    left = store.view(backbone="testing", where="patient != 'A'")
    X, used = hs.tl.pool(left, tiles=4, how=pool)  # type: ignore[arg-type]
    np.testing.assert_array_equal(X, whole.X[1:])
    assert used == [4]


def test_a_head_of_numbers_that_some_rows_lack_is_saved(embedded: Path, tmp_path: Path) -> None:
    store = hs.open(shutil.copytree(embedded, tmp_path / "store"))
    lacking = 0
    for slide in store.slides():
        names = store.view(slides=[slide]).column("barcode")
        lacking += len(names[::4])
        score = np.where(np.arange(len(names)) % 4 == 0, np.nan, np.arange(len(names)) / 2)
        pd.DataFrame({"barcode": names, "score": score}).to_csv(tmp_path / "score.csv", index=False)
        pp.annotate(store, slide, obs=tmp_path / "score.csv")
    head = hs.heads.Ridge(alphas=(1.0,))
    done = hs.tl.fit(store, head, backbone="testing", target="score", split="leave-one-out:slide",
                     allow_same_patient=True, save="score")  # fmt: skip
    assert done.evaluation.report.counts["without score"] == lacking
    assert hs.get.head(store, "score")["stale"] == []


def test_the_expression_of_hits_is_of_slides_with_counts(normalised: Path) -> None:
    store = hs.open(normalised)
    spot = store.view(slides=["A1"]).column("barcode")[0]
    hits = hs.tl.search(store, slide="A1", spot=spot, k=100)
    counted = (hits.table["slide"] == "A1").to_numpy()
    assert 0 < counted.sum() < len(counted)
    gene = store.view().counts().symbols[0]
    assert hits.expression([gene]).loc[gene, "n"] == counted.sum()


def test_slides_of_panels_that_differ_have_labels_to_learn_and_no_genes(embedded: Path, tmp_path: Path) -> None:
    store = hs.open(shutil.copytree(embedded, tmp_path / "store"))
    for slide, genes in (("A1", slice(0, 20)), ("B1", slice(5, 25))):
        counts = read_counts(store.group(store.slide(slide).find("expression", "counts")))
        panel = replace(
            counts, matrix=counts.matrix[:, genes], gene_ids=counts.gene_ids[genes], symbols=counts.symbols[genes],
            whole_transcriptome=False,
        )  # fmt: skip
        store.commit(slide, [write_counts(store, slide, "counts", panel)], replace=True)
    asked: dict[str, Any] = {"backbone": "testing", "split": "leave-one-out:slide", "allow_same_patient": True}
    with pytest.raises(DataError, match=r"2 slides are of targeted panels .*'A1' lacks 5, 'B1' lacks 5.*--slides"):
        hs.tl.fit(store, "mean", genes="top-mean:2", **asked)
    tumour = hs.LabelSpec(column="region_annotations", positive=("tumour",), negative=("region",))
    found = hs.tl.fit(store, hs.heads.Logistic(1e-2), labels=tumour, **asked).evaluation
    assert "no library sizes: no library size baseline" in found.report.notes
