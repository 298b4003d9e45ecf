"""A recipe that needs no store and takes no time, as a pipeline file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

TOY = '''
"""A toy."""
from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from histostore.errors import StorageError
from histostore.recipes import Recipe, Results


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    batch_size: int = 4
    hidden: tuple[int, ...] = (64,)
    loss: Literal["nll", "mse"] = "nll"
    augment: bool = False
    note: str | None = None
    seed: int = 0
    fail: str = ""


def run(store, settings, report):
    with report.timed("think"):
        rng = np.random.default_rng(settings.seed)
    if settings.fail == "key":
        raise KeyError("no such thing")
    if settings.fail == "path":
        raise StorageError(f"{Path.home()}/secret/{os.getcwd()}: no room")
    if settings.fail == "kill":
        os.kill(os.getpid(), 9)
    if settings.fail == "type":
        return {"a": 1}
    report.note("a note")
    report.count("rows", 3)
    report.path("curve.txt").write_text("curve")
    value = float(rng.normal()) / settings.batch_size
    size = settings.batch_size
    rows = [{"epoch": e, "loss": np.float32(value + e), "nan": math.nan, "batch_size": size} for e in range(3)]
    return Results(metrics={"value": value, "epochs": 3}, table=rows, protocol={"split": "none"})


RECIPE = Recipe(
    name="toy", citation="nobody 2020", settings=Settings, run=run, needs_store=False,
    reproduces="nothing", differs="in all", published={"value": 0.5}, quick={"lr": 0.2},
)
'''


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Return the toy's file."""
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return path
