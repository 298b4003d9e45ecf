"""Recipes: a published system as one typed value, run into a folder that says everything about its numbers.

A pipeline is a Python module with ``RECIPE = Recipe(name=…, citation=…, settings=<frozen dataclass>, run=<function>)``
that uses the public API only. Its function is called ``run(store, settings, report)`` and returns `Results`.
"""

from histostore.recipes.checks import check_backbone, check_fit, check_labels
from histostore.recipes.folders import Run, compare, find_runs, list_runs, overview
from histostore.recipes.perform import run, runs_beside
from histostore.recipes.recipe import Recipe, Results, RunReport, load_recipe
from histostore.recipes.sweeps import Sweep, sweep

__all__ = [
    "Recipe",
    "Results",
    "Run",
    "RunReport",
    "Sweep",
    "check_backbone",
    "check_fit",
    "check_labels",
    "compare",
    "find_runs",
    "list_runs",
    "load_recipe",
    "overview",
    "run",
    "runs_beside",
    "sweep",
]
