"""The names users build on: one that goes missing, or appears by accident, is noticed here."""

from __future__ import annotations

import inspect

import histostore as hs

NAMES = {
    "EmbeddingSpec", "FeatureSpec", "GroupKFold", "HistostoreError", "LabelSpec", "LeaveOneOut", "MaskSpec",
    "PanelSpec", "PixelSpec", "SpatialBlocks", "SplitSpec", "Store", "StratifiedKFold", "TileSpec", "__version__",
    "create", "get", "heads", "io", "open", "pl", "pp", "report", "tl",
}  # fmt: skip


def test_the_package_offers_these_names_and_no_others() -> None:
    assert set(hs.__all__) == NAMES
    for name in NAMES:
        assert getattr(hs, name) is not None


def test_the_namespaces_offer_what_the_docs_show() -> None:
    assert set(hs.pp.__all__) == {"annotate", "gene_stats", "highly_variable_genes", "ingest", "tile"}
    assert set(hs.tl.__all__) == {
        "drift", "embed", "factors", "finetune", "fit", "gram", "index", "neighbors", "nmf", "pca", "pool", "predict",
        "review", "search",
    }  # fmt: skip
    assert set(hs.get.__all__) == {"head", "obs", "prediction", "slides"}
    assert hs.heads.Ridge().get_params()["alphas"]


def test_every_public_function_has_a_docstring_and_types() -> None:
    for space in (hs.pp, hs.tl, hs.get):
        for name in space.__all__:
            function = getattr(space, name)
            assert inspect.getdoc(function), name
            hints = inspect.signature(function)
            assert hints.return_annotation is not inspect.Signature.empty, name
