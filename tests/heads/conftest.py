"""A small cohort whose truth is known: genes 0-5 follow the embeddings, 6-8 the position, the rest nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp


def _cohort(slides=6, per_patient=2, rows=60, d=16, genes=40, seed=0):
    rng = np.random.default_rng(seed)
    n = slides * rows
    X = rng.normal(size=(n, d))
    xy = rng.uniform(-1000, 1000, size=(n, 2))
    level = np.tile(rng.uniform(1, 2, size=genes), (n, 1))
    level[:, :6] += X[:, :6]
    level[:, 6:9] += 1.2 * np.sign(xy[:, [0, 1, 0]])
    counts = rng.poisson(np.exp(level + 1))
    slide = np.repeat(np.arange(slides), rows)
    obs = pd.DataFrame(
        {
            "slide": [f"s{i}" for i in slide],
            "patient": [f"p{i // per_patient}" for i in slide],
            "x_um": xy[:, 0] + 5000 * slide,
            "y_um": xy[:, 1],
        }
    )
    symbols = [f"G{i:02d}" for i in range(genes)]
    return {"X": X.astype(np.float32), "counts": sp.csr_array(counts), "symbols": symbols, "obs": obs}


@pytest.fixture(scope="session")
def make_cohort():
    """Return the function that draws a cohort: ``make_cohort(seed=1)``."""
    return _cohort
