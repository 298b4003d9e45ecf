"""Every pipeline runs on a small synthetic store, in seconds, with its own quick settings."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import histostore as hs
from histostore.errors import DataError, NotFoundError, UsageError
from histostore.recipes import load_recipe, run

if TYPE_CHECKING:
    from histostore.testing.cohort import Cohort

FOLDER = Path(__file__).parents[1] / "pipelines"
PIPELINES = sorted(p for p in FOLDER.glob("*.py") if "\nRECIPE = " in p.read_text())


@pytest.fixture(scope="module")
def store(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Return a store with the synthetic cohort ingested, which the pipelines write into."""
    made = hs.create(tmp_path_factory.mktemp("pipelines") / "store", name="synthetic")
    hs.pp.ingest(made, sheet=cohort.sheet)
    return made


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_a_pipeline_runs_on_a_synthetic_store(path: Path, store: hs.Store, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    made = run(recipe, store if recipe.needs_store else None, recipe.quick, "quick", out=tmp_path)
    assert made.status == "done"
    assert made.metrics
    assert made.table()
    protocol = json.loads((made.folder / "protocol.json").read_text())
    assert protocol["citation"] == recipe.citation
    assert not run(recipe, store if recipe.needs_store else None, recipe.quick, "quick", out=tmp_path).fresh


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_a_pipeline_says_what_it_reproduces_and_what_differs(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.reproduces
    assert recipe.differs
    assert recipe.name == path.stem
    assert "differs" in (ast.get_docstring(ast.parse(path.read_text())) or "")


def test_st_net_scores_against_the_training_mean(store: hs.Store, tmp_path: Path) -> None:
    recipe = load_recipe(FOLDER / "st_net.py")
    made = run(recipe, store, {**recipe.quick, "genes": "top-mean:10"}, "small", out=tmp_path)
    assert made.metrics["folds"] == 2
    assert made.metrics["mse_gain"] == pytest.approx(1 - made.metrics["mse"] / made.metrics["mse_training_mean"])
    assert {row["method"] for row in made.table()} >= {"training mean", "image"}


@pytest.mark.parametrize(
    ("pipeline", "given", "said"),
    [
        ("st_net", {"genes": "20"}, "no gene '20' among"),
        ("st_net", {"genes": "top-mean:100000"}, "wants 100000 genes and there are"),
        ("st_net", {"genes": "top-meen:5"}, "did you mean 'top-mean'"),
        ("st_net", {"head": "rigde"}, "did you mean 'ridge'"),
        ("st_net", {"split": "leave-one-out:patiant"}, "did you mean 'patient'"),
        ("st_net", {"target": "log1p-cp10"}, "did you mean 'log1p-cp10k'"),
        ("st_net", {"backbone": "testinf"}, "testinf"),
        ("stdl", {"task": "one", "gene": "CRISP3"}, "no gene 'CRISP3' among"),
        ("glomeruli", {"labels": "region_anotations"}, "did you mean 'region_annotations'"),
        ("glomeruli", {"positive": "tumor"}, "no row has region_annotations 'tumor'.*did you mean 'tumour'"),
        ("glomeruli", {"negative": "cortex"}, "no row has region_annotations 'cortex'"),
        ("glomeruli", {"labels": "patient"}, "no row has patient 'tumour'; there are A, B"),
        ("glomeruli", {"labels": "centre", "positive": "nroth", "negative": ""}, "did you mean 'north'"),
        ("glomeruli", {"head": "logistik"}, "did you mean 'logistic'"),
        ("glomeruli", {"head": "ridge"}, "no option 'class_weight'"),
        ("glomeruli", {"calibration": "temprature"}, "temperature"),
        ("glomeruli", {"threshold": "f2"}, "f1"),
        ("glomeruli", {"negatives_per_positive": "-1"}, "negatives_per_positive"),
        ("glomeruli", {"split": "leave-one-out:patiant"}, "did you mean 'patient'"),
        ("glomeruli", {"backbone": "testinf"}, "testinf"),
        ("glomeruli", {"codec": "jpg"}, "jpeg"),
        ("renn_mki67", {"target": "patiant", "site": "centre"}, "did you mean 'patient'"),
        ("renn_mki67", {"target": "patient", "site": "tss_code"}, "no column 'tss_code' among"),
        ("renn_mki67", {"target": "tpm", "site": "centre", "backbone": "testinf"}, "testinf"),
        ("renn_mki67", {"target": "patient", "site": "centre"}, "0 sites cannot be split"),
        ("renn_mki67", {"target": "patient", "site": "centre", "min_tissue": "2"}, "tissue"),
    ],
)
def test_settings_that_cannot_be_are_told_before_the_first_stage(
    store: hs.Store, tmp_path: Path, pipeline: str, given: dict[str, str], said: str
) -> None:
    recipe = load_recipe(FOLDER / f"{pipeline}.py")
    before = {slide: store.slide(slide).number for slide in store.slides()}
    # the quick settings of RENN read no slide
    more = {"st_net": {"px": 64}, "renn_mki67": {"features": "", "backbone": "testing"}}.get(pipeline, {})
    with pytest.raises((NotFoundError, UsageError, DataError), match=said):
        run(recipe, store, {**recipe.quick, **more, **given}, "bad", out=tmp_path)
    assert {slide: store.slide(slide).number for slide in store.slides()} == before
    assert not (tmp_path / "bad").exists()
