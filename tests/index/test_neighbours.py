"""The neighbour graph is the one scanpy would have made."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

from histostore.errors import DataError, UsageError
from histostore.index.build import build
from histostore.index.neighbours import neighbours
from histostore.index.spec import IndexSpec

X = np.random.default_rng(0).standard_normal((300, 12)).astype(np.float32)


@pytest.mark.parametrize(("metric", "theirs"), [("l2", "euclidean"), ("cosine", "cosine")])
def test_graphs_equal_those_of_scanpy(metric: str, theirs: str) -> None:
    adata = ad.AnnData(X.copy())
    sc.pp.neighbors(adata, n_neighbors=12, metric=theirs, use_rep="X")
    graph = neighbours(X, n_neighbors=12, metric=metric)
    assert np.allclose(graph.matrix().toarray(), adata.obsp["distances"].toarray(), atol=1e-5)
    assert np.allclose(graph.connectivities().toarray(), adata.obsp["connectivities"].toarray(), atol=1e-4)
    assert graph.uns()["params"]["metric"] == theirs


def test_scanpy_tools_run_on_the_graph() -> None:
    adata = ad.AnnData(X.copy())
    graph = neighbours(X, n_neighbors=10)
    adata.obsp["distances"], adata.obsp["connectivities"] = graph.matrix(), graph.connectivities()
    adata.uns["neighbors"] = graph.uns()
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2)
    assert adata.obs["leiden"].nunique() > 1


def test_duplicates_are_neighbours_and_no_row_is_its_own() -> None:
    same = np.repeat(X[:50], 6, axis=0)
    graph = neighbours(same, n_neighbors=4, metric="l2")
    assert (graph.distances == 0).all()
    assert (graph.indices != np.arange(300)[:, None]).all()
    assert graph.connectivities().shape == (300, 300)


def test_an_index_serves_as_well() -> None:
    built = build(X, IndexSpec(kind="ivf-flat", metric="l2", nlist=4, recall=1.0), device="cpu")
    graph = neighbours(X, n_neighbors=8, metric="l2", index=built.index)
    assert (graph.indices == neighbours(X, n_neighbors=8, metric="l2").indices).mean() > 0.999


def test_what_makes_no_graph_is_refused() -> None:
    with pytest.raises(UsageError, match="no distance"):
        neighbours(X, metric="ip")
    with pytest.raises(UsageError, match="outside 2-300"):
        neighbours(X, n_neighbors=301)
    bad = X.copy()
    bad[7] = np.nan
    with pytest.raises(DataError, match="1 of 300 rows"):
        neighbours(bad)
