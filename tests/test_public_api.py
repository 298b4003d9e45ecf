"""The names users build on: one that goes missing, or appears by accident, is noticed here."""

from __future__ import annotations

import inspect
import subprocess
import sys

import histostore as hs

NAMES = {
    "EmbeddingSpec", "FeatureSpec", "GroupKFold", "HistostoreError", "LabelSpec", "LeaveOneOut", "MaskSpec",
    "PanelSpec", "PixelSpec", "SpatialBlocks", "SplitSpec", "Store", "StratifiedKFold", "TileSpec", "__version__",
    "create", "doctor", "fetch", "get", "heads", "io", "open", "pl", "pp", "recipes", "report", "serve", "tl",
}  # fmt: skip


def test_the_package_offers_these_names_and_no_others() -> None:
    assert set(hs.__all__) == NAMES
    for name in NAMES:
        assert getattr(hs, name) is not None


def test_the_namespaces_offer_what_the_docs_show() -> None:
    assert set(hs.pp.__all__) == {
        "annotate", "gene_stats", "highly_variable_genes", "import_features", "ingest", "tile"
    }  # fmt: skip
    assert set(hs.tl.__all__) == {
        "drift", "embed", "factors", "finetune", "fit", "gram", "index", "neighbors", "nmf", "pca", "pool", "predict",
        "review", "search",
    }  # fmt: skip
    assert set(hs.get.__all__) == {"export_features", "head", "models", "obs", "prediction", "slides"}
    assert hs.heads.Ridge().get_params()["alphas"]


def test_every_public_function_has_a_docstring_and_types() -> None:
    for space in (hs.pp, hs.tl, hs.get):
        for name in space.__all__:
            function = getattr(space, name)
            assert inspect.getdoc(function), name
            hints = inspect.signature(function)
            assert hints.return_annotation is not inspect.Signature.empty, name


def test_serving_without_its_libraries_says_what_to_install() -> None:
    code = "import sys; sys.modules['starlette'] = None; import histostore as hs; hs.serve.Server"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "serve needs starlette and uvicorn: pip install 'histostore[serve]'" in done.stderr.splitlines()[-1]
